"""Images of several shapes in one run: each batch has one of a few sizes with about as many pixels."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

from ditzoo.data.source import Shuffle
from ditzoo.diffusion.draws import epoch_order

Size = tuple[int, int]
"""(height, width), pixels"""


def bucket_sizes(size: int, *, multiple: int, max_ratio: float = 2.0) -> list[Size]:
    """Heights and widths with about `size * size` pixels, the square first, then from wide to tall.

    Args:
        size: side of the square, pixels; `multiple` must divide it.
        multiple: of both sides: the patch size, times the downsampling of the autoencoder where there is one.
        max_ratio: of the longer side to the shorter.

    Raises:
        ValueError: for a size that is no multiple, or a ratio below 1.
    """
    if multiple < 1 or size < 1 or size % multiple:
        raise ValueError(f"size must be a multiple of {multiple} pixels, got {size}.")
    if max_ratio < 1:
        raise ValueError(f"max_ratio must be 1 or more, got {max_ratio}.")
    tall = []
    for height in range(size + multiple, size * size // multiple + 1, multiple):
        width = round(size * size / height / multiple) * multiple
        if width and height <= max_ratio * width:
            tall.append((height, width))
    wide = [(width, height) for height, width in reversed(tall)]
    return [(size, size), *wide, *tall]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """Number of the bucket whose ratio of sides is nearest to that of an image, on a logarithmic scale."""
    ratio = math.log(size[0] / size[1])
    return min(range(len(buckets)), key=lambda bucket: abs(math.log(buckets[bucket][0] / buckets[bucket][1]) - ratio))


def check_buckets(buckets: Sequence[Size]) -> None:
    """Raise a ValueError for no buckets, an impossible one, or one that is there twice."""
    if not buckets:
        raise ValueError("buckets is empty; give sizes such as those of bucket_sizes(256, multiple=16), or None.")
    for bucket in buckets:
        if len(bucket) != 2 or min(bucket) < 1:
            raise ValueError(f"a bucket is (height, width) in pixels, got {bucket}.")
        if list(buckets).count(bucket) > 1:
            raise ValueError(f"the bucket {bucket} is there twice.")


class BucketOrder:
    """Batches of one bucket each, in random order; over time every sample comes equally often.

    Each bucket has its own endless sequence of shuffles, of which a batch takes the next `batch_size` samples; what an
    epoch leaves over comes first in the next. After e epochs, bucket b has given floor(e * n_b / batch_size) batches,
    so that any batch can be found without those before it.

    Args:
        bucket_of: (N,) number of the bucket of each sample.
        seed: of the run.
        batch_size: of all processes together.
    """

    def __init__(self, bucket_of: np.ndarray, seed: int, batch_size: int) -> None:
        self.seed, self.batch_size = seed, batch_size
        self._members = [np.flatnonzero(bucket_of == bucket) for bucket in np.unique(bucket_of)]
        self._shuffles = [Shuffle(len(members), seed) for members in self._members]
        #: of the epoch used last: its first batch; for each batch its bucket, and how many that had given before
        self._epoch: tuple[int, list[tuple[int, int]]] = (0, [])

    def index(self, number: int) -> int:
        """See `ditzoo.data.source.Order`."""
        batch, place = divmod(number, self.batch_size)
        first, turns = self._epoch
        if not first <= batch < first + len(turns):
            first, turns = self._epoch = self._find_epoch(batch)
        bucket, turn = turns[batch - first]
        return int(self._members[bucket][self._shuffles[bucket].index(turn * self.batch_size + place)])

    def _find_epoch(self, batch: int) -> tuple[int, list[tuple[int, int]]]:
        num_buckets, num_samples = len(self._members), sum(map(len, self._members))
        beyond = (batch + 1 + num_buckets) * self.batch_size // num_samples + 2  # each bucket lacks less than a batch
        epoch = bisect.bisect_right(range(beyond), batch, key=lambda epoch: sum(self._given(epoch))) - 1
        before, after = self._given(epoch), self._given(epoch + 1)
        buckets = np.repeat(np.arange(num_buckets), np.subtract(after, before))
        buckets = buckets[epoch_order(self.seed, epoch, len(buckets)).numpy()]
        given, turns = list(before), []
        for bucket in buckets.tolist():
            turns.append((bucket, given[bucket]))
            given[bucket] += 1
        return sum(before), turns

    def _given(self, epochs: int) -> list[int]:
        """Batches of each bucket in the first `epochs` epochs."""
        return [epochs * len(members) // self.batch_size for members in self._members]
