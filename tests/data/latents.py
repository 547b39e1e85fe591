"""Small caches for the tests: coloured squares, and codecs that need no weights or few."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ditzoo.data import LatentCache, Loaded, TensorSource, encode
from ditzoo.media.codec import Posterior

SIDE = 8


class ToyCodec:
    """Latents whose value says of what: means 2 (image + 1) (2, h, w), mirrored with the image; log-variances of 0."""

    name, encoder_hash, scale, shift = "toys/toy", "ab" * 32, 0.5, 0.25
    downsampling, image_channels, latent_channels, has_posterior = 2, 1, 2, True

    def posterior(self, images: Tensor) -> Posterior:
        mean = (images[:, :, ::2, ::2] + 1).expand(-1, 2, -1, -1) * 2
        return Posterior(mean, torch.zeros_like(mean))


class Squares(TensorSource):
    """Image i is -1 + i / 64 on the left and that plus 1/2 on the right; label i % 3. Remembers what was loaded."""

    max_unreadable = 1

    def __init__(self, count: int = 10, fingerprint: str = "squares", unreadable: tuple[int, ...] = ()) -> None:
        left = torch.arange(count).reshape(count, 1, 1, 1).expand(count, 1, SIDE, SIDE // 2) / 64 - 1
        x, y = torch.cat([left, left + 0.5], dim=3), torch.arange(count) % 3
        super().__init__(x, y, name="squares", label_names=("a", "b", "c"), fingerprint=fingerprint)
        self.unreadable, self.seen = unreadable, []

    def load(self, indices, numbers, seed) -> Loaded:
        self.seen += list(indices)
        loaded = super().load(indices, numbers, seed)
        messages = tuple(f"square {index} is torn" for index in indices if index in self.unreadable)
        return loaded._replace(unreadable=messages) if messages else loaded


def made(folder: Path, *, flip: bool = False, **options) -> LatentCache:
    """The cache of ten squares, in files of four."""
    encode(Squares(), ToyCodec(), folder, flip=flip, **{"shard_size": 4, "batch_size": 3, **options})
    return LatentCache(folder, flip=flip)
