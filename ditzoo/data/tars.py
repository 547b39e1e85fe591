"""Tar files as webdataset writes them, read at random places: an index says where in which file each image is."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ditzoo.data.buckets import Size
from ditzoo.data.image_source import LEAVE_LABELS_OUT, MAX_UNREADABLE, ImageSource, Names, check_image_options

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json")
_BLOCK = 512  # of a tar file, bytes
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


class TarFiles(ImageSource):
    """Images in webdataset's layout: the members of a sample stand side by side and share the name before the dot.

    A sample has an image (`.jpg`, `.jpeg`, `.png` or `.webp`) and its class, a number in `.cls` or the entry `"label"`
    of `.json`. Other members are left out of account. The tar files are local and not compressed; all are read through
    once at the start for the places of their members.

    Args:
        paths: a file, a pattern with `*` or `?`, ranges and choices in braces (`data-{0000..0146}.tar`), or several
            of them. Files that a pattern stands for come in the order of their names.
        size, channels, flip, max_unreadable, buckets: see `ditzoo.data.image_source.ImageSource`.
        labels: False leaves them out of account.
        num_classes: where the largest class does not occur in these files.

    Raises:
        FileNotFoundError: a file is missing, or none fits a pattern.
        ValueError: a tar file is damaged, cut off or compressed; there are no images; a sample has two images, a class
            but no image or a class that is no number; only some samples have a class. The message names file and
            member.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        size: int,
        channels: int = 3,
        flip: bool = False,
        max_unreadable: int = MAX_UNREADABLE,
        buckets: Sequence[Size] | None = None,
        labels: bool = True,
        num_classes: int | None = None,
    ) -> None:
        check_image_options(size, channels, max_unreadable, buckets)
        patterns = [paths] if isinstance(paths, str | Path) else list(paths)
        self.paths = [path for pattern in patterns for path in expand(str(pattern))]
        samples = [sample for number, path in enumerate(self.paths) for sample in _samples(path, number, labels)]
        where = self.paths[0] if len(self.paths) == 1 else f"{len(self.paths):,} tar files"
        if not samples:
            raise ValueError(f"{where} holds no images ({', '.join(_IMAGES)}); check the names of the members.")
        found = _labels(samples, self.paths) if labels else None
        classes = _num_classes(found, num_classes)
        self._members = Names(sample.member for sample in samples)
        #: (N, 3): number of the tar file, first byte, bytes
        self._places = np.array([(sample.tar, sample.start, sample.num_bytes) for sample in samples], dtype=np.int64)
        super().__init__(
            len(samples),
            name=f"{len(samples):,} images of {os.path.basename(where)}{f' in {classes:,} classes' if classes else ''}",
            labels=found,
            num_classes=classes,
            label_names=None,
            identity=(os.fsencode(f"{sample.num_bytes} {sample.member}") for sample in samples),
            size=size,
            channels=channels,
            flip=flip,
            max_unreadable=max_unreadable,
            buckets=buckets,
        )

    def image_file(self, index: int) -> bytes:
        """See `ImageSource`."""
        tar, start, num_bytes = self._places[index].tolist()
        with open(self.paths[tar], "rb") as file:  # opened each time, so that thousands of tars need no open files
            file.seek(start)
            return file.read(num_bytes)

    def image_name(self, index: int) -> str:
        """See `ImageSource`."""
        return f"{self._members[index]} of {self.paths[int(self._places[index, 0])]}"


def expand(pattern: str) -> list[str]:
    """The files that a pattern stands for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is an address, or a range of braces that ends before it starts.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(f"{pattern} is not local; download the tar files and name where they are.")
    if os.path.exists(pattern):  # whatever is in its name
        return [pattern]
    files: list[str] = []
    for path in _without_braces(pattern):
        found = sorted(glob.glob(path)) if glob.has_magic(path) else [path] * os.path.exists(path)
        if not found:
            within = "" if path == pattern else f", which {pattern} names"
            raise FileNotFoundError(f"there is no tar file {path}{within}.")
        files += found
    return files


def _without_braces(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern) or _CHOICE.search(pattern)
    if match is None:
        yield pattern
        return
    if match.re is _RANGE:
        first, last = match.groups()
        if int(first) > int(last):
            raise ValueError(f"the range {match[0]} of {pattern} ends before it starts.")
        words = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        words = match[1].split(",")
    for word in words:
        yield from _without_braces(pattern[: match.start()] + word + pattern[match.end() :])


class _Sample(NamedTuple):
    member: str  # the image
    tar: int
    start: int  # byte of the tar file at which the image begins
    num_bytes: int
    label: int | None


class _Member(NamedTuple):
    name: str
    key: str  # what the members of a sample share
    kind: str  # what follows the first dot, in lower case
    start: int
    num_bytes: int


def _samples(path: str, number: int, labels: bool) -> Iterator[_Sample]:
    with open(path, "rb") as file:
        for _, group in itertools.groupby(_members(file, path), key=lambda member: member.key):
            members = list(group)
            images = [member for member in members if member.kind in _IMAGES]
            label = next(
                (_label(file, path, member) for member in members if labels and member.kind in _LABELS),
                None,
            )
            if len(images) > 1:
                raise ValueError(f"{path} has two images of one sample: {images[0].name} and {images[1].name}.")
            if images:
                image = images[0]
                yield _Sample(image.name, number, image.start, image.num_bytes, label)
            elif label is not None:
                raise ValueError(f"{path} has the class of a sample without its image: {members[0].name}.")


def _members(file: BinaryIO, path: str) -> Iterator[_Member]:
    """All files in a tar file that are part of a sample."""
    last, end = "", 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                last, end = info.name, info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                folder, slash, name = info.name.rpartition("/")
                key, dot, kind = name.partition(".")
                if info.isfile() and key and dot:
                    yield _Member(info.name, folder + slash + key, kind.lower(), info.offset_data, info.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(_damage(path, last, str(error))) from error
    # Python's reader takes whatever is no member for the end, also where a file is cut off between two.
    file.seek(end)
    rest = file.read(_BLOCK)
    if len(rest) < _BLOCK:
        raise ValueError(_damage(path, last, "it is cut off: the zeros at the end are missing"))
    while rest:
        if rest.count(0) < len(rest):
            raise ValueError(_damage(path, last, "what follows is no member"))
        rest = file.read(1 << 20)


def _damage(path: str, member: str, reason: str) -> str:
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return f"{path} is compressed, so that its images cannot be read at random places; unpack it first."
    place = f"after {member}" if member else "at its start"
    return f"{path} is damaged {place} ({reason}). Fetch or make it again."


def _label(file: BinaryIO, path: str, member: _Member) -> int | None:
    """The class that a member tells; None where a JSON file has no label."""
    place = file.tell()
    file.seek(member.start)
    content = file.read(member.num_bytes)
    file.seek(place)
    try:
        if member.kind == "cls":
            label: Any = int(content)
        else:
            entries = json.loads(content)
            label = entries.get("label") if isinstance(entries, dict) else None
    except ValueError as error:
        raise ValueError(f"{member.name} of {path} has no class in it: {content[:40]!r}.") from error
    if label is not None and (type(label) is not int or label < 0):
        raise ValueError(f"{member.name} of {path} has {label!r} for a class; classes are numbers from 0 on.")
    return label


def _labels(samples: Sequence[_Sample], paths: Sequence[str]) -> Tensor | None:
    """(N,) int64; None where no sample has a class."""
    with_label = [sample for sample in samples if sample.label is not None]
    if with_label and len(with_label) < len(samples):
        without = next(sample for sample in samples if sample.label is None)
        raise ValueError(
            f"{len(samples) - len(with_label)} of {len(samples)} samples have no class, such as {without.member} of "
            f"{paths[without.tar]}; add the missing .cls members, or {LEAVE_LABELS_OUT}."
        )
    return torch.tensor([sample.label for sample in with_label]) if with_label else None


def _num_classes(labels: Tensor | None, num_classes: int | None) -> int:
    largest = -1 if labels is None else int(labels.max())
    if num_classes is not None and largest >= num_classes:
        raise ValueError(f"there is a class {largest}, so that num_classes cannot be {num_classes}.")
    return largest + 1 if num_classes is None or labels is None else num_classes
