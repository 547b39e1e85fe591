"""Folders of image files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ditzoo.data.buckets import Size
from ditzoo.data.image_source import LEAVE_LABELS_OUT, MAX_UNREADABLE, ImageSource, Names, check_image_options
from ditzoo.data.images import IMAGE_ENDINGS

#: Names of folders that are parts of a data set, not classes.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class ImageFolder(ImageSource):
    """The images of a folder, in one of three layouts.

    - `class/img.png`: the folders at the top are the classes; what is in a class may be in folders of any depth.
    - `class_img.png`: what comes before the first `_` is the class, as in ADM, where all names have one and there are
      two classes or more.
    - `img.png`: no labels.

    Classes are numbered in the order of their names as strings ("10" comes before "2"), images ordered by class and
    then by name. Files that begin with a dot, and files of other kinds, are left out of account.

    Args:
        path: the folder.
        size, channels, flip, max_unreadable, buckets: see `ditzoo.data.image_source.ImageSource`.
        labels: False takes all images at any depth, without labels.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: `path` is a file.
        ValueError: there are no images, a class has none, there are images both beside the class folders and in them,
            only some of the names have a class, or the folders at the top are splits of a data set.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        size: int,
        channels: int = 3,
        flip: bool = False,
        max_unreadable: int = MAX_UNREADABLE,
        buckets: Sequence[Size] | None = None,
        labels: bool = True,
    ) -> None:
        check_image_options(size, channels, max_unreadable, buckets)
        self.path = Path(path)
        files = _images_below(self.path)
        classes = _classes(self.path, [file.name for file in files]) if labels else None
        self._names = Names(file.name for file in files)
        label_names = None if classes is None else tuple(sorted(set(classes)))
        numbers = {label: number for number, label in enumerate(label_names or ())}
        in_classes = "" if label_names is None else f" in {len(label_names):,} classes"
        super().__init__(
            len(files),
            name=f"{len(files):,} images of {self.path.resolve().name}{in_classes}",
            labels=None if classes is None else torch.tensor([numbers[label] for label in classes]),
            num_classes=len(numbers),
            label_names=label_names,
            identity=(os.fsencode(f"{file.num_bytes} {file.name}") for file in files),
            size=size,
            channels=channels,
            flip=flip,
            max_unreadable=max_unreadable,
            buckets=buckets,
        )

    def image_file(self, index: int) -> Path:
        """See `ImageSource`."""
        return self.path / self._names[index]

    def image_name(self, index: int) -> str:
        """See `ImageSource`."""
        return str(self.image_file(index))


class _File(NamedTuple):
    name: str  # relative to the data set, with slashes
    num_bytes: int


def _images_below(path: Path) -> list[_File]:
    """Those at any depth, in the order of their names, which is that of the classes first."""
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path}; check the path of the data.")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; name the folder that holds the images.")
    files = sorted(_walk(str(path), "", ()), key=lambda file: file.name.split("/"))
    if not files:
        others = sorted(entry.name for entry in path.iterdir())[:3]
        found = f"It holds {', '.join(others)}." if others else "It is empty."
        archives = f" Tar files are named as '{path}/*.tar'." if any(path.glob("*.tar")) else ""
        raise ValueError(f"{path} holds no images ({', '.join(IMAGE_ENDINGS)}). {found}{archives}")
    return files


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[_File]:
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                # A link to a folder that it lies in has no end.
                if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", above)
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                yield _File(prefix + entry.name, _num_bytes(entry))


def _num_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing: reported when it is loaded
        return -1


def _classes(path: Path, names: list[str]) -> list[str] | None:
    """The class of each image; None where the layout has no labels."""
    nested = [name for name in names if "/" in name]
    flat = [name for name in names if "/" not in name]
    if nested and flat:
        raise ValueError(
            f"{path} holds images both beside the folders of classes ({flat[0]}) and in them ({nested[0]}); move them "
            f"into one layout, or {LEAVE_LABELS_OUT}."
        )
    if nested:
        return _folders_as_classes(path, names)
    without = [name for name in flat if "_" not in name]
    if without and len(without) < len(flat):
        labelled = next(name for name in flat if "_" in name)
        raise ValueError(
            f"{path} holds images with a class in their name ({labelled}) and without ({without[0]}); name all "
            f"class_image.png, or {LEAVE_LABELS_OUT}."
        )
    classes = [name.partition("_")[0] for name in flat]
    return None if without or len(set(classes)) == 1 else classes


def _folders_as_classes(path: Path, names: list[str]) -> list[str]:
    classes = [name.partition("/")[0] for name in names]
    if set(classes) <= _SPLITS:
        parts = sorted(set(classes))
        raise ValueError(
            f"{path} holds {' and '.join(parts)}, which are parts of a data set and no classes; name one of them: "
            f"{path / parts[0]}."
        )
    folders = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = sorted(folders - set(classes))
    if empty:
        raise ValueError(
            f"{path} has classes without images, {len(empty)} of {len(folders)}: {', '.join(empty[:3])}. Remove the "
            "folders, or add their images."
        )
    return classes
