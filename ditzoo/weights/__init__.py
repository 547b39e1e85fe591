"""Weights: fetching, reading and writing them, fitting them to models, and checking that they are what they claim."""

from ditzoo.weights.catalogue import fetch_published, note_licence
from ditzoo.weights.checks import Check, Verification
from ditzoo.weights.download import fetch_url
from ditzoo.weights.files import WeightsFile, load_state_dict, read_checkpoint
from ditzoo.weights.hub import DownloadError, UploadError
from ditzoo.weights.loading import LoadResult, load_weights
from ditzoo.weights.published import PublishedResult, published_results
from ditzoo.weights.shards import save_weights
from ditzoo.weights.values import sampled_hash, warn_of_non_finite
from ditzoo.weights.verification import verify

__all__ = [
    "Check",
    "DownloadError",
    "LoadResult",
    "PublishedResult",
    "UploadError",
    "Verification",
    "WeightsFile",
    "fetch_published",
    "fetch_url",
    "load_state_dict",
    "load_weights",
    "note_licence",
    "published_results",
    "read_checkpoint",
    "sampled_hash",
    "save_weights",
    "verify",
    "warn_of_non_finite",
]
