"""The feature extractor of the digits benchmark: a small classifier whose weights come with the package.

Inception features mean little on 8x8 digits. These come from a network trained on the training split of
`ditzoo.data.load_digits_split` alone, by `benchmarks/train_digits_classifier.py`. In their units the training
split lies at a Frechet distance of 0.23 from the held-out split, Gaussian noise clamped to [-1, 1] at 45.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

DIGITS_EXTRACTOR = "ditzoo digits classifier v1"
"""The name under which Frechet distances of these features are reported; new weights need a new version."""

_WEIGHTS = Path(__file__).with_name("digits_classifier.safetensors")
_DIGEST = "5d159a9e6134bf40b723d2967de01694d26849a967453bc6cf775825a661ffed"


class DigitsClassifier(nn.Module):
    """Three convolutions, a 32-dimensional feature vector, ten classes; 18,506 parameters.

    Nothing is normalised on the way, so that images unlike any digit may land far from all of them.
    """

    feature_dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.embed = nn.Linear(32 * 2 * 2, self.feature_dim)
        self.head = nn.Linear(self.feature_dim, 10)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate activations (B, 32) of images (B, 1, 8, 8) in [-1, 1].

        Values outside that range are not clamped here: clamp samples first, as for saving them as pictures.

        Raises:
            ValueError: another shape.
        """
        if x.ndim != 4 or x.shape[1:] != (1, 8, 8):
            raise ValueError(f"digits must have shape (B, 1, 8, 8), not {tuple(x.shape)}")
        x = F.gelu(self.conv1(x))  # (B, 16, 8, 8)
        x = F.max_pool2d(F.gelu(self.conv2(x)), 2)  # (B, 32, 4, 4)
        x = F.max_pool2d(F.gelu(self.conv3(x)), 2)  # (B, 32, 2, 2)
        # Not ReLU: units that are always 0 would leave the covariance of the features without full rank.
        return F.gelu(self.embed(x.flatten(1)))  # (B, 32)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (B, 10) of images as `features` takes them."""
        return self.head(self.features(x))


def load_digits_classifier() -> DigitsClassifier:
    """The trained classifier on the CPU, in eval mode and frozen; draws no random numbers.

    Raises:
        FileNotFoundError: the package's weights file is missing.
        ValueError: the file is damaged, or holds other weights than those of `DIGITS_EXTRACTOR`.
    """
    repair = "reinstall ditzoo: pip install --force-reinstall --no-deps ditzoo"
    if not _WEIGHTS.is_file():
        raise FileNotFoundError(f"the weights of the digits classifier are missing at {_WEIGHTS}; {repair}")
    try:
        weights = load(_WEIGHTS.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{_WEIGHTS} is damaged ({error}); {repair}") from error
    if (digest := weights_digest(weights)) != _DIGEST:
        raise ValueError(
            f"{_WEIGHTS} does not hold the weights of {DIGITS_EXTRACTOR!r} "
            f"(SHA-256 {digest[:12]}, not {_DIGEST[:12]}); {repair}"
        )
    with torch.device("meta"):
        model = DigitsClassifier()
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of `weights`, sorted by name.

    Unlike that of a safetensors file it does not depend on the order of the metadata, which varies from one
    write to the next.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
