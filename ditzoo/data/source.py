"""What training reads: numbered samples, whatever they are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ditzoo.diffusion.draws import epoch_order


class Loaded(NamedTuple):
    """Samples that `Source.load` read.

    Attributes:
        x: (B, C, H, W) float32, images in [-1, 1] or scaled latents: what the network sees without noise.
        y: (B,) int64 labels; None where the source has none.
        unreadable: what could not be read, one message a file; other samples stand in its place.
    """

    x: Tensor
    y: Tensor | None
    unreadable: tuple[str, ...] = ()


class Order(Protocol):
    """Which sample comes when."""

    def index(self, number: int) -> int:
        """The sample that has the running number `number`, counted from the start of training over all epochs."""


class Source(ABC):
    """A data set with random access.

    Attributes:
        name: for people, such as "1,297 handwritten digits".
        num_classes: 0 where there are no labels.
        label_names: of the classes, in order, where they have names.
        shape: (C, H, W) of a sample; of the first bucket, where sizes differ.
        fingerprint: changes when samples, their order or their labels do; a hexadecimal digest.
        max_unreadable: samples that cannot be read above which loading ends with an error.
        max_workers: processes that load at a time, where more are of no use; None where there is no such limit.
    """

    name: str
    num_classes: int
    label_names: tuple[str, ...] | None = None
    shape: tuple[int, int, int]
    fingerprint: str
    max_unreadable: int = 0
    max_workers: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def load(self, indices: Sequence[int], numbers: Sequence[int], seed: int) -> Loaded:
        """Samples `indices`, all of one size.

        Args:
            indices: from 0 to len - 1, as the order gives them.
            numbers: their running numbers; with the seed they decide flips and whatever else is drawn for a sample, by
                `ditzoo.diffusion.draws.data_generator`.
            seed: of the run.

        Raises:
            OSError, ValueError: where too many samples cannot be read.
        """

    def some_indices(self, count: int) -> list[int]:
        """Samples that stand for all: evenly spaced.

        Args:
            count: from 1 to len.
        """
        return [place * len(self) // count for place in range(count)]

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training sees the samples: each epoch a shuffle of its own.

        Args:
            seed: of the run.
            batch_size: of all processes together, for sources that group samples by size.
        """
        return Shuffle(len(self), seed)


@dataclass
class Shuffle:
    """All samples once an epoch, in an order of its own."""

    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        self._orders: dict[int, list[int]] = {}

    def index(self, number: int) -> int:
        """See `Order`."""
        epoch, place = divmod(number, self.num_samples)
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old >= epoch - 1}
            self._orders[epoch] = epoch_order(self.seed, epoch, self.num_samples).tolist()
        return self._orders[epoch][place]


class TensorSource(Source):
    """Samples held in memory.

    Args:
        x: (N, C, H, W) float, images in [-1, 1] or scaled latents.
        y: (N,) int64 labels, or None.
        name: for people.
        label_names: of the classes.

    Raises:
        ValueError: for no samples, or not as many labels as samples.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        *,
        name: str = "images in memory",
        num_classes: int | None = None,
        label_names: tuple[str, ...] | None = None,
        fingerprint: str = "",
    ) -> None:
        if len(x) == 0:
            raise ValueError("there are no images to train on: images is empty.")
        if y is not None and len(y) != len(x):
            raise ValueError(f"{len(y)} labels for {len(x)} images; give one label an image.")
        self.x, self.y, self.name, self.label_names = x, y, name, label_names
        self.num_classes = num_classes if num_classes is not None else 0 if y is None else int(y.max()) + 1
        channels, height, width = x.shape[1:]
        self.shape = (channels, height, width)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.x)

    def load(self, indices: Sequence[int], numbers: Sequence[int], seed: int) -> Loaded:
        """See `Source`."""
        chosen = torch.tensor(indices)
        return Loaded(self.x[chosen], None if self.y is None else self.y[chosen])
