"""Data sets for training and judging models."""

from ditzoo.data.buckets import BucketOrder, bucket_sizes
from ditzoo.data.digits import Digits, DigitsSplit, load_digits_split, to_uint8
from ditzoo.data.encode import Encoded, encode
from ditzoo.data.folders import ImageFolder
from ditzoo.data.hub import HubImages, HubStream
from ditzoo.data.images import UnreadableImageError, center_crop, flip_draws, random_flips, read_image, to_tensor
from ditzoo.data.latents import LatentCache
from ditzoo.data.loader import Batch, batches
from ditzoo.data.manifest import LatentManifest
from ditzoo.data.open import open_source
from ditzoo.data.parquet import read_parquet, write_parquet
from ditzoo.data.source import Loaded, Order, Shuffle, Source, TensorSource
from ditzoo.data.tars import TarFiles

__all__ = [
    "Batch",
    "BucketOrder",
    "Digits",
    "DigitsSplit",
    "Encoded",
    "HubImages",
    "HubStream",
    "ImageFolder",
    "LatentCache",
    "LatentManifest",
    "Loaded",
    "Order",
    "Shuffle",
    "Source",
    "TarFiles",
    "TensorSource",
    "UnreadableImageError",
    "batches",
    "bucket_sizes",
    "center_crop",
    "encode",
    "flip_draws",
    "load_digits_split",
    "open_source",
    "random_flips",
    "read_image",
    "read_parquet",
    "to_tensor",
    "to_uint8",
    "write_parquet",
]
