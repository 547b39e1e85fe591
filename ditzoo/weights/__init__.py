"""Files of weights: fetching and reading them, and checking that they are what they claim to be."""

from ditzoo.weights.catalogue import fetch_published, note_licence
from ditzoo.weights.checks import Check, Verification
from ditzoo.weights.download import fetch_url
from ditzoo.weights.files import WeightsFile, load_state_dict, read_checkpoint, sampled_hash
from ditzoo.weights.hub import DownloadError
from ditzoo.weights.published import PublishedResult, published_results
from ditzoo.weights.verification import verify

__all__ = [
    "Check",
    "DownloadError",
    "PublishedResult",
    "Verification",
    "WeightsFile",
    "fetch_published",
    "fetch_url",
    "load_state_dict",
    "note_licence",
    "published_results",
    "read_checkpoint",
    "sampled_hash",
    "verify",
]
