"""Files of weights: reading them, and checking that they are what they claim to be."""

from ditzoo.weights.checks import Check, Verification
from ditzoo.weights.files import WeightsFile, load_state_dict, read_checkpoint, sampled_hash
from ditzoo.weights.loading import LoadResult, load_weights
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
    "verify",
]
