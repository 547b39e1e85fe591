"""From latents to files, without a model: autoencoders, names of classes, pictures, and stores for large jobs.

Works on tensors and arrays, and imports nothing else of ditzoo.
"""

from ditzoo.media.codec import Codec, LatentCodec, PixelCodec, Posterior, load_codec, load_codec_for_recipe, to_uint8
from ditzoo.media.labels import LabelNames, parse_labels
from ditzoo.media.shards import SampleStore, Shard, shard_size_of
from ditzoo.media.writers import channels_last, image_grid, write_animation, write_npz, write_png_folder

__all__ = [
    "Codec",
    "LabelNames",
    "LatentCodec",
    "PixelCodec",
    "Posterior",
    "SampleStore",
    "Shard",
    "channels_last",
    "image_grid",
    "load_codec",
    "load_codec_for_recipe",
    "parse_labels",
    "shard_size_of",
    "to_uint8",
    "write_animation",
    "write_npz",
    "write_png_folder",
]
