"""Files of weights: reading and writing them, and checking that they are what they claim to be."""

from ditzoo.weights.checks import Check, Verification
from ditzoo.weights.files import WeightsFile, load_state_dict, read_checkpoint
from ditzoo.weights.loading import LoadResult, load_weights
from ditzoo.weights.shards import save_weights
from ditzoo.weights.values import sampled_hash, warn_of_non_finite
from ditzoo.weights.verification import verify

__all__ = [
    "Check",
    "LoadResult",
    "Verification",
    "WeightsFile",
    "load_state_dict",
    "load_weights",
    "read_checkpoint",
    "sampled_hash",
    "save_weights",
    "verify",
    "warn_of_non_finite",
]
