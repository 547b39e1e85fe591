"""What all data sets of image files share: decoding when asked for, flips, sizes, and files that cannot be read."""

from __future__ import annotations

import hashlib
import itertools
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditzoo.data.buckets import BucketOrder, Size, check_buckets, nearest_bucket
from ditzoo.data.images import (
    UnreadableImageError,
    center_crop,
    check_channels,
    image_size,
    random_flips,
    read_image,
    to_tensor,
)
from ditzoo.data.source import Loaded, Order, Source

#: Unreadable images of a data set that are replaced before loading ends with an error.
MAX_UNREADABLE = 10
#: The end of messages about labels that are not clear.
LEAVE_LABELS_OUT = "leave labels out (labels=False; --num-classes 0 to train, --no-labels to encode)"
_NUM_NAMED = 3


class ImageSource(Source):
    """Images that are read, cropped as ADM does it and flipped when they are asked for.

    An image that cannot be read is replaced by the next one that can, in the order of the data set, and has a message
    in `Loaded.unreadable` the first time.

    Args:
        name: for people.
        labels: (N,) int64, or None.
        num_classes: of the labels; 0 without them.
        label_names: of the classes.
        identity: what names the samples in their order, for the fingerprint.
        size: side of the square that images are cropped to, pixels.
        channels: 3 for colours or 1 for grey.
        flip: mirror half of the samples left to right, drawn anew for each running number.
        max_unreadable: unreadable files above which loading ends with an error.
        buckets: (height, width) of crops in place of the square: each image gets the one whose shape is nearest to its
            own, and each batch has one size (see `ditzoo.data.bucket_sizes`). The headers of all files are read first.

    Raises:
        ValueError: for a size, a number of channels or buckets that images cannot have.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        name: str,
        labels: Tensor | None,
        num_classes: int,
        label_names: tuple[str, ...] | None,
        identity: Iterable[bytes],
        size: int,
        channels: int,
        flip: bool,
        max_unreadable: int,
        buckets: Sequence[Size] | None,
    ) -> None:
        check_image_options(size, channels, max_unreadable, buckets)
        self.name, self.labels, self.num_classes, self.label_names = name, labels, num_classes, label_names
        self.channels, self.flip, self.max_unreadable = channels, flip, max_unreadable
        self.buckets: list[Size] = [(size, size)] if buckets is None else list(buckets)
        self.shape = (channels, *self.buckets[0])
        self.fingerprint = _fingerprint(identity, labels, self.buckets, channels, flip)
        self._num_samples = num_samples
        self._unreadable = UnreadableFiles(name, max_unreadable)
        self._bad_indices: set[int] = set()
        #: (N,) which bucket each image belongs to; None where there is one
        self._bucket_of = None if len(self.buckets) == 1 else self._find_buckets()

    @abstractmethod
    def image_file(self, index: int) -> Path | bytes:
        """What holds sample `index`.

        Raises:
            OSError, ValueError: it cannot be read.
        """

    @abstractmethod
    def image_name(self, index: int) -> str:
        """The name of the file of sample `index`, for messages."""

    def label(self, index: int) -> int | None:
        """The class of sample `index`; None where there are none."""
        return None if self.labels is None else int(self.labels[index])

    def __len__(self) -> int:
        return self._num_samples

    def load(self, indices: Sequence[int], numbers: Sequence[int], seed: int) -> Loaded:
        """See `Source`.

        Raises:
            ValueError: more than `max_unreadable` images of this data set could not be read; the message names the
                last ones. Or `indices` are of several buckets.
        """
        sizes = {self._size(index) for index in indices}
        if len(sizes) > 1:
            raise ValueError(
                f"samples of the sizes {sorted(sizes)} cannot be put into one batch; with buckets, load the indices "
                "that order(seed, batch_size) gives for batches that begin at multiples of batch_size."
            )
        messages: list[str] = []
        images, labels = [], []
        for index in indices:
            found, image = self._first_readable(index, messages)
            images.append(image)
            labels.append(self.label(found))
        x = torch.stack(images)  # (B, C, H, W)
        if self.flip:
            x = random_flips(x, numbers, seed)
        y = torch.tensor(labels) if self.num_classes else None
        return Loaded(x, y, tuple(messages))

    def order(self, seed: int, batch_size: int) -> Order:
        """See `Source`; with buckets, each batch is of one."""
        if self._bucket_of is None:
            return super().order(seed, batch_size)
        return BucketOrder(self._bucket_of, seed, batch_size)

    def _size(self, index: int) -> Size:
        return self.buckets[0 if self._bucket_of is None else int(self._bucket_of[index])]

    def _first_readable(self, index: int, messages: list[str]) -> tuple[int, Tensor]:
        """The sample, or the next of its size that can be read; what cannot be is added to `messages`."""
        size = self._size(index)
        for candidate in self._candidates(index):
            if candidate in self._bad_indices:
                continue
            try:
                return candidate, self._read(candidate, size)
            except UnreadableImageError as error:
                self._bad_indices.add(candidate)
                messages += self._unreadable.add([str(error)])
        raise ValueError(f"no image of {self.name} can be read; {self._unreadable.last()}")

    def _read(self, index: int, size: Size) -> Tensor:
        name = self.image_name(index)
        try:
            file = self.image_file(index)
        except OSError as error:
            raise UnreadableImageError(f"{name} cannot be read: {error.strerror or error}.") from error
        return to_tensor(center_crop(read_image(file, name=name, channels=self.channels), *size))

    def _candidates(self, index: int) -> Iterator[int]:
        """What may stand in place of a sample: all of its size, from `index` on and round to it."""
        every = itertools.chain(range(index, self._num_samples), range(index))
        if self._bucket_of is None:
            return iter(every)
        bucket_of, bucket = self._bucket_of, self._bucket_of[index]
        return (candidate for candidate in every if bucket_of[candidate] == bucket)

    def _find_buckets(self) -> np.ndarray:
        """The bucket of each image. One that cannot be read gets the first, and is reported when it is loaded."""
        found = np.zeros(self._num_samples, dtype=np.int16)
        for index in range(self._num_samples):
            try:
                size = image_size(self.image_file(index), name=self.image_name(index))
            except (OSError, UnreadableImageError):
                continue
            found[index] = nearest_bucket(size, self.buckets)
        return found


class UnreadableFiles:
    """Messages about files that cannot be read, each counted once.

    Args:
        name: of the data set.
        limit: files above which there is an error.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit = name, limit
        self._messages: dict[str, None] = {}

    def add(self, messages: Iterable[str]) -> list[str]:
        """Count messages, and return those that are new.

        Raises:
            ValueError: there are more than the limit.
        """
        new = [message for message in messages if message not in self._messages]
        self._messages.update(dict.fromkeys(new))
        if len(self._messages) > self.limit:
            raise ValueError(
                f"{len(self._messages)} files of {self.name} cannot be read, more than max_unreadable "
                f"({self.limit}); {self.last()} Replace or remove them, or raise max_unreadable."
            )
        return new

    def last(self) -> str:
        """The last messages, as the end of a sentence."""
        return "the last: " + " ".join(list(self._messages)[-_NUM_NAMED:])


class Names:
    """Many strings in one piece of memory: a list of a million would be copied into each worker of a loader."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]])


def check_image_options(size: int, channels: int, max_unreadable: int, buckets: Sequence[Size] | None) -> None:
    """Raise a ValueError for a value that images cannot have, before anything is searched or fetched."""
    if size < 1:
        raise ValueError(f"size must be 1 pixel or more, got {size}.")
    check_channels(channels)
    if max_unreadable < 0:
        raise ValueError(f"max_unreadable must be 0 or more, got {max_unreadable}.")
    if buckets is not None:
        check_buckets(buckets)


def _fingerprint(
    identity: Iterable[bytes], labels: Tensor | None, buckets: Sequence[Size], channels: int, flip: bool
) -> str:
    digest = hashlib.sha256(repr((buckets, channels, flip)).encode())
    for part in identity:
        digest.update(len(part).to_bytes(8, "little") + part)
    digest.update(b"" if labels is None else labels.numpy().tobytes())
    return digest.hexdigest()
