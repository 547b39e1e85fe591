"""1,797 real handwritten digits of 8x8 pixels: a data set that needs no network and trains in minutes.

Source: "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI, 1998), its test part, as
scikit-learn ships it in `sklearn.datasets.load_digits`.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ditzoo.data.images import random_flips
from ditzoo.data.source import Loaded, TensorSource
from ditzoo.media.codec import to_uint8 as to_uint8  # its public name here, older than ditzoo.media

_HELD_OUT_PER_CLASS = 50
_NUM_CLASSES = 10
_MAX_PIXEL = 16


class DigitsSplit(NamedTuple):
    """One part of the digits: `images, labels = load_digits_split("train")`."""

    images: Tensor
    """(N, 1, 8, 8) float32 in [-1, 1], ink positive, in steps of 1/8."""
    labels: Tensor
    """(N,) int64 in [0, 9]."""


def load_digits_split(split: Literal["train", "test"]) -> DigitsSplit:
    """The training part (1,297 images) or the held-out part (500, fifty of each class), in file order.

    The split never changes and draws no random numbers: of a class with n images, the held-out ones are those
    of rank `j * n // 50` within the class, j = 0..49, which spreads them evenly over the file.

    Raises:
        ValueError: an unknown split.
        ImportError: scikit-learn, which holds the images, is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"Unknown split {split!r} of the digits; valid are 'train' and 'test'.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('The digits need scikit-learn: pip install "ditzoo[bench]"') from error
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / (_MAX_PIXEL / 2) - 1  # (N, 1, 8, 8)
    labels = torch.from_numpy(digits.target).long()  # (N,)
    chosen = _held_out(labels) if split == "test" else ~_held_out(labels)
    return DigitsSplit(images[chosen], labels[chosen])


class Digits(TensorSource):
    """The digits as what training reads: 1x8x8 pixels in ten classes.

    Args:
        split: as for `load_digits_split`.
        flip: mirror half of the samples left to right. A mirrored digit is no digit: for tests alone.
    """

    def __init__(self, split: Literal["train", "test"] = "train", *, flip: bool = False) -> None:
        images, labels = load_digits_split(split)
        super().__init__(
            images,
            labels,
            name=f"{len(images):,} handwritten digits",
            num_classes=_NUM_CLASSES,
            label_names=tuple(str(label) for label in range(_NUM_CLASSES)),
            fingerprint=hashlib.sha256(f"digits {split} {flip}".encode()).hexdigest(),
        )
        self.flip = flip

    def load(self, indices: Sequence[int], numbers: Sequence[int], seed: int) -> Loaded:
        """See `Source`."""
        loaded = super().load(indices, numbers, seed)
        return loaded._replace(x=random_flips(loaded.x, numbers, seed)) if self.flip else loaded


def _held_out(labels: Tensor) -> Tensor:
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(_NUM_CLASSES):
        members = (labels == label).nonzero().flatten()
        held_out[members[torch.arange(_HELD_OUT_PER_CLASS) * len(members) // _HELD_OUT_PER_CLASS]] = True
    return held_out
