"""From latents to files, without a model: autoencoders, names of classes, pictures, and stores for large jobs.

Works on tensors and arrays, and imports nothing else of ditzoo.
"""

from ditzoo.media.codec import Codec, LatentCodec, PixelCodec, load_codec, to_uint8

__all__ = [
    "Codec",
    "LatentCodec",
    "PixelCodec",
    "load_codec",
    "to_uint8",
]
