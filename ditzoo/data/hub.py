"""Data sets of the Hub, or of a folder in a layout that the library datasets knows: on this machine, or as a stream."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditzoo.data.buckets import Size
from ditzoo.data.image_source import LEAVE_LABELS_OUT, MAX_UNREADABLE, ImageSource, check_image_options
from ditzoo.data.images import UnreadableImageError
from ditzoo.data.source import Order
from ditzoo.diffusion.draws import epoch_order

_SPEC = re.compile(r"(?P<place>[^:]+)(?::(?P<split>[^:\[]+(?:\[[^\]]*\])?))?(?::(?P<labels>[^:]+))?")
_LABEL_COLUMNS = ("label", "labels")
#: Samples of a stream that are shuffled together, and in memory at a time.
BLOCK_SIZE = 1024


class HubImages(ImageSource):
    """A data set that the library datasets loads: fetched once, then read at random places.

    Args:
        spec: `PLACE[:SPLIT[:LABELS]]`. The place is an id of the Hub (`owner/name`, `owner/name/subset`,
            `owner/name@revision`), a folder (of parquet files, images, or one that `save_to_disk` wrote) or a parquet
            file. The split is `train` by default. LABELS is the column of the classes, where there are several.
        size, channels, flip, max_unreadable, buckets: see `ditzoo.data.image_source.ImageSource`.
        labels: False leaves them out of account.

    Raises:
        ImportError: the library is not installed.
        OSError: the data set is not here and cannot be fetched; the message says what to do.
        ValueError: a split, subset or column that it does not have, no column of images or several, classes that are
            missing or negative.
    """

    def __init__(
        self,
        spec: str,
        *,
        size: int,
        channels: int = 3,
        flip: bool = False,
        max_unreadable: int = MAX_UNREADABLE,
        buckets: Sequence[Size] | None = None,
        labels: bool = True,
    ) -> None:
        check_image_options(size, channels, max_unreadable, buckets)
        place = HubPlace.parse(spec)
        dataset = _load(place, streaming=False)
        columns = _columns(place, dataset.features, labels)
        keep = [columns.image] + ([columns.label] if columns.label else [])
        self._place, self._image = place, columns.image
        self._dataset = _undecoded(dataset.select_columns(keep), columns.image)
        if len(dataset) == 0:
            raise ValueError(f"the split {place.split} of the data set {place} holds no samples.")
        found = (
            None
            if columns.label is None
            else _checked_labels(place, dataset[columns.label][:], columns, columns.num_classes)
        )
        num_classes = columns.num_classes or (0 if found is None else int(found.max()) + 1)
        super().__init__(
            len(dataset),
            name=_title(place, len(dataset), num_classes),
            labels=found,
            num_classes=num_classes,
            label_names=columns.label_names,
            identity=self._identity(),
            size=size,
            channels=channels,
            flip=flip,
            max_unreadable=max_unreadable,
            buckets=buckets,
        )

    def image_file(self, index: int) -> Path | bytes:
        """See `ImageSource`."""
        return _image_file(self._dataset[index][self._image], self.image_name(index))

    def image_name(self, index: int) -> str:
        """See `ImageSource`."""
        return f"image {index} of {self._place}"

    def _identity(self) -> Iterator[bytes]:
        """Names without folders, and sizes: found without reading the images."""
        import pyarrow.compute as pc

        for batch in self._dataset.with_format("arrow").iter(batch_size=10_000):
            images = batch.column(self._image)  # in chunks: to join them would read all bytes
            lengths = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
            for path, length in zip(pc.struct_field(images, "path").to_pylist(), lengths, strict=True):
                if length is None and path is not None and os.path.exists(path):
                    length = os.path.getsize(path)
                yield os.fsencode(f"{length} {os.path.basename(path or '')}")


class HubStream(ImageSource):
    """A data set read as a stream: nothing is kept on this machine.

    Samples are shuffled within blocks of the stream, each epoch anew; the blocks follow one another as they are. So
    the stream should be in random order, not sorted by class. A resumed run skips to its block, whose samples are the
    same in the same order. Every process reads the whole stream and one worker is enough for it: with many processes,
    a data set on the machine (`HubImages`) or cached latents read less.

    An image that cannot be read is replaced by the next of its block that can.

    Args:
        spec: as for `HubImages`, but no slices of a split.
        size, channels, flip, max_unreadable: see `ditzoo.data.image_source.ImageSource`.
        labels: False leaves them out of account.
        num_samples: of the split, where the data set does not tell.
        num_classes: of the labels, where their column does not tell.
        block_size: samples that are shuffled together; they are in memory, not decoded.

    Raises:
        ImportError, OSError, ValueError: as `HubImages`; or the number of samples or of classes is not known.
    """

    max_workers = 1

    def __init__(
        self,
        spec: str,
        *,
        size: int,
        channels: int = 3,
        flip: bool = False,
        max_unreadable: int = MAX_UNREADABLE,
        labels: bool = True,
        num_samples: int | None = None,
        num_classes: int | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        check_image_options(size, channels, max_unreadable, None)
        for name, value in {"num_samples": num_samples, "block_size": block_size}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        place = HubPlace.parse(spec)
        dataset = _load(place, streaming=True)
        columns = _columns(place, dataset.features, labels)
        self._place, self._columns, self._block_size = place, columns, block_size
        self._dataset = _undecoded(dataset, columns.image)
        num_samples = num_samples or _num_examples(dataset, place.split)
        if num_samples is None:
            raise ValueError(
                f"the data set {place} does not tell how many samples its split {place.split} has, which an epoch "
                "needs; give num_samples=..., or load it whole: hf:... in place of hf-stream:..."
            )
        num_classes = columns.num_classes or num_classes
        if columns.label is not None and num_classes is None:
            raise ValueError(
                f"the column {columns.label} of {place} does not tell how many classes there are; give "
                f"num_classes=..., or {LEAVE_LABELS_OUT}."
            )
        #: the block in memory, and the stream behind it
        self._block: tuple[int, list[Any]] = (-1, [])
        self._rest: Iterator[Any] = iter(())
        super().__init__(
            num_samples,
            name=_title(place, num_samples, num_classes or 0),
            labels=None,
            num_classes=num_classes or 0,
            label_names=columns.label_names,
            identity=[f"{place.name} {place.split} {num_samples} {block_size} {columns}".encode()],
            size=size,
            channels=channels,
            flip=flip,
            max_unreadable=max_unreadable,
            buckets=None,
        )

    def some_indices(self, count: int) -> list[int]:
        """The first ones, without reading the whole stream: it should be in random order."""
        return list(range(count))

    def order(self, seed: int, batch_size: int) -> Order:
        """See `Source`."""
        return BlockShuffle(len(self), seed, self._block_size)

    def label(self, index: int) -> int | None:
        """See `ImageSource`."""
        if self._columns.label is None:
            return None
        label = self._sample(index)[self._columns.label]
        return int(_checked_labels(self._place, [label], self._columns, self.num_classes))

    def image_file(self, index: int) -> Path | bytes:
        """See `ImageSource`."""
        return _image_file(self._sample(index)[self._columns.image], self.image_name(index))

    def image_name(self, index: int) -> str:
        """See `ImageSource`."""
        return f"image {index} of {self._place}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_block": (-1, []), "_rest": iter(())}

    def _candidates(self, index: int) -> Iterator[int]:
        start = index // self._block_size * self._block_size
        stop = min(start + self._block_size, len(self))
        return iter([*range(index, stop), *range(start, index)])

    def _sample(self, index: int) -> Any:
        block, place = divmod(index, self._block_size)
        if block != self._block[0]:
            self._block = (block, self._read_block(block))
        return self._block[1][place]

    def _read_block(self, block: int) -> list[Any]:
        start = block * self._block_size
        if block != self._block[0] + 1 or block == 0:
            self._rest = iter(self._dataset.skip(start))
        self._block = (-1, [])  # one block in memory, also while the next is read
        try:
            samples = list(islice(self._rest, min(self._block_size, len(self) - start)))
        except OSError as error:  # no unreadable image, for which another could stand
            raise ValueError(
                f"the stream {self._place} broke off after {start:,} samples ({error}); check the network and resume."
            ) from error
        if start + len(samples) < min(start + self._block_size, len(self)):
            raise ValueError(
                f"the stream {self._place} ended after {start + len(samples):,} samples of {len(self):,}; give "
                f"num_samples={start + len(samples)} if these are all, else check the network and resume."
            )
        return samples


@dataclass
class BlockShuffle:
    """All samples once an epoch, block after block, those of a block in an order of its own."""

    num_samples: int
    seed: int
    block_size: int

    def __post_init__(self) -> None:
        self._block: tuple[int, list[int]] = (-1, [])

    def index(self, number: int) -> int:
        """See `ditzoo.data.source.Order`."""
        epoch, place = divmod(number, self.num_samples)
        block, place = divmod(place, self.block_size)
        start = block * self.block_size
        turn = epoch * -(-self.num_samples // self.block_size) + block
        if turn != self._block[0]:
            num_samples = min(self.block_size, self.num_samples - start)
            self._block = (turn, epoch_order(self.seed, turn, num_samples).tolist())
        return start + self._block[1][place]


@dataclass(frozen=True)
class HubPlace:
    """What `PLACE[:SPLIT[:LABELS]]` names."""

    name: str
    split: str = "train"
    label_column: str | None = None
    subset: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, spec: str) -> HubPlace:
        """Raises a ValueError for what has another form, a FileNotFoundError for a path that is not there."""
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise ValueError(f"{spec!r} is not of the form PLACE[:SPLIT[:LABELS]], such as owner/name:train.")
        name, split, label_column = match["place"], match["split"] or "train", match["labels"]
        if os.path.exists(name):
            return cls(name, split, label_column)
        repository, _, revision = name.partition("@")
        parts = repository.split("/")
        if name.startswith((".", "/", "~")) or len(parts) > 3 or name.endswith(".parquet"):
            raise FileNotFoundError(f"there is no data set {name} on this machine; check the path.")
        subset = parts[2] if len(parts) == 3 else None
        return cls("/".join(parts[:2]), split, label_column, subset, revision or None)

    def __str__(self) -> str:
        return f"{self.name}{f'/{self.subset}' if self.subset else ''}{f'@{self.revision}' if self.revision else ''}"


class _Columns(NamedTuple):
    image: str
    label: str | None
    label_names: tuple[str, ...] | None
    num_classes: int | None  # None where the column of the classes does not tell


def _load(place: HubPlace, *, streaming: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError('data sets of the Hub need the library datasets: pip install "ditzoo[train]"') from error
    path = Path(place.name)
    try:
        if path.suffix == ".parquet":
            return datasets.load_dataset("parquet", data_files=str(path), split=place.split, streaming=streaming)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            if streaming:
                raise ValueError("save_to_disk wrote it, which is no stream: name it by hf: in place of hf-stream:")
            return _load_saved(place)
        return datasets.load_dataset(
            place.name, place.subset, split=place.split, revision=place.revision, streaming=streaming
        )
    except Exception as error:  # the library raises many kinds, of its own and of what it builds on
        reason = (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
        if isinstance(error, OSError) and not path.exists():
            raise OSError(_not_here(place, reason)) from error
        raise ValueError(f"the data set {place} cannot be loaded: {reason}.") from error


def _load_saved(place: HubPlace) -> Any:
    """What `save_to_disk` wrote."""
    import datasets

    saved = datasets.load_from_disk(place.name)
    if isinstance(saved, datasets.DatasetDict):
        if place.split not in saved:
            raise ValueError(f"unknown split {place.split!r}; it has {', '.join(saved)}")
        saved = saved[place.split]
    return saved


def _not_here(place: HubPlace, reason: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        mend = "HF_HUB_OFFLINE is set, so that nothing is fetched: unset it,"
    else:
        mend = f"It could not be fetched ({reason}): check its name and the network,"
    revision = f" --revision {place.revision}" if place.revision else ""
    return (
        f"the data set {place} is not on this machine. {mend} or give a local folder in its place (hf:FOLDER); on a "
        f"machine with a network `hf download {place.name} --repo-type dataset{revision} --local-dir FOLDER` fills one."
    )


def _columns(place: HubPlace, features: Any, labels: bool) -> _Columns:
    import datasets

    if features is None:
        raise ValueError(f"the data set {place} does not tell the kinds of its columns; store it as parquet files.")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        found = f"several columns of images ({', '.join(images)})" if images else "no column of images"
        raise ValueError(f"the data set {place} has {found}; it needs one. Its columns: {', '.join(features)}.")
    label = _label_column(place, features) if labels else None
    feature = None if label is None else features[label]
    if isinstance(feature, datasets.ClassLabel):
        return _Columns(images[0], label, tuple(feature.names), feature.num_classes)
    return _Columns(images[0], label, None, None)


def _label_column(place: HubPlace, features: Any) -> str | None:
    """The column of the classes: the one named, the only one of classes, or whole numbers of the usual name."""
    import datasets

    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    whole = [name for name, feature in features.items() if str(getattr(feature, "dtype", "")).startswith(("int", "u"))]
    usual = [name for name in _LABEL_COLUMNS if name in classes] or classes
    if place.label_column is None and len(usual) > 1:
        raise ValueError(
            f"the data set {place} has several columns of classes ({', '.join(classes)}); name one: "
            f"hf:{place}:{place.split}:{classes[0]}."
        )
    if place.label_column is None:
        return next(iter([*usual, *(name for name in _LABEL_COLUMNS if name in whole)]), None)
    if place.label_column not in [*classes, *whole]:
        raise ValueError(
            f"the data set {place} has no column {place.label_column!r} of classes; it has "
            f"{', '.join([*classes, *whole]) or 'none'}."
        )
    return place.label_column


def _checked_labels(
    place: HubPlace, labels: Sequence[int | None], columns: _Columns, num_classes: int | None
) -> Tensor:
    if any(label is None or label < 0 for label in labels):
        raise ValueError(
            f"samples of the split {place.split} of {place} have no class (column {columns.label}); choose another "
            f"split, or {LEAVE_LABELS_OUT}."
        )
    found = torch.tensor(labels, dtype=torch.int64)
    if num_classes is not None and found.max() >= num_classes:
        raise ValueError(f"there is a class {int(found.max())} in {place}, which should have {num_classes} classes.")
    return found


def _undecoded(dataset: Any, image: str) -> Any:
    """The data set with the bytes of its images in place of pixels."""
    import datasets

    return dataset.cast_column(image, datasets.Image(decode=False))


def _image_file(image: Any, name: str) -> Path | bytes:
    if image is None:
        raise UnreadableImageError(f"{name} cannot be read: there is none.")
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    path = str(image["path"])
    if "://" not in path:
        return Path(path)
    import fsspec

    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


def _num_examples(dataset: Any, split: str) -> int | None:
    """Of a split of a stream, where its description tells."""
    splits = dataset.info.splits or {}
    return (splits[split].num_examples or None) if split in splits else None


def _title(place: HubPlace, num_samples: int, num_classes: int) -> str:
    name = os.path.basename(os.path.normpath(place.name)) if os.path.exists(place.name) else str(place)
    return f"{num_samples:,} images of {name} ({place.split}){f' in {num_classes:,} classes' if num_classes else ''}"
