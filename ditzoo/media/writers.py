"""What a sampling job leaves behind: picture grids, folders of PNG files, arrays for evaluators, animations.

Images are uint8 (N, H, W, C), C = 1 for grey and 3 for colours. Files appear whole or not at all.
"""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from ditzoo.media.files import writing, writing_folder
from ditzoo.media.labels import LabelNames

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

_WHITE, _BLACK = 255, 0
_CAPTION_SIZE = 12  # pixels
_ANIMATIONS = (".gif", ".webp")


def channels_last(images: torch.Tensor) -> Images:
    """(N, C, H, W) uint8, as `to_uint8` makes of a model's images, to the (N, H, W, C) that files hold."""
    return checked_images(images.detach().permute(0, 2, 3, 1).cpu().numpy())


def image_grid(
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    columns: int | None = None,
    scale: int = 1,
    gap: int = 2,
    names: LabelNames | None = None,
) -> Image.Image:
    """One picture of all images, row by row on white.

    Args:
        images: (N, H, W, C) uint8, N of 1 or more.
        labels: (N,) integers, written under the images; None writes nothing.
        columns: images in a row; by default as many as make the grid about square.
        scale: each pixel becomes a square of that side, so that tiny images can be seen.
        gap: pixels between images.
        names: of the classes, written in place of their numbers and cut where they are too wide.

    Raises:
        TypeError: images that are not uint8.
        ValueError: another shape, no images, another number of labels; columns or scale below 1.
    """
    pictures = checked_images(images)
    numbers = checked_labels(labels, len(pictures))
    if len(pictures) == 0:
        raise ValueError("a grid needs 1 or more images, got none.")
    for what, value, least in (("columns", columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        if value is not None and value < least:
            raise ValueError(f"{what} must be {least} or more, got {value}.")
    pictures = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = pictures.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    below = 0 if numbers is None else _CAPTION_SIZE + 4
    rows = math.ceil(count / columns)
    shape = (rows * (height + below + gap) - gap, columns * (width + gap) - gap, channels)
    canvas = np.full(shape, _WHITE, np.uint8)
    corners = [(n // columns * (height + below + gap), n % columns * (width + gap)) for n in range(count)]
    for picture, (top, left) in zip(pictures, corners, strict=True):
        canvas[top : top + height, left : left + width] = picture
    grid = to_pil(canvas)
    if numbers is not None:
        captions = [_name_of(label, names) or str(label) for label in numbers.tolist()]
        _write_captions(grid, captions, [(left, top + height + 1) for top, left in corners], width)
    return grid


def write_png_folder(
    folder: Path | str,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    names: LabelNames | None = None,
    seed: int | None = None,
) -> None:
    """`000000.png`, `000001.png`, ... and `labels.csv`, with the columns index, label, name and seed.

    Args:
        folder: which must be empty or not there: evaluators count every picture in a folder.
        images: (N, H, W, C) uint8.
        labels: (N,) integers; the column stays empty without.
        names: of the classes, likewise; of synonyms the first.
        seed: of the job, of which the picture is image number `index`; likewise.

    Raises:
        TypeError, ValueError: as `image_grid`.
        FileExistsError: the folder holds something.
        OSError: it cannot be written; the message names it.
    """
    pictures = checked_images(images)
    stream_png_folder(folder, [(pictures, checked_labels(labels, len(pictures)))], names=names, seed=seed)


def stream_png_folder(
    folder: Path | str,
    batches: Iterable[tuple[Images, Labels | None]],
    *,
    names: LabelNames | None = None,
    seed: int | None = None,
) -> None:
    """`write_png_folder` of images that come in batches of images and labels."""
    with (
        writing_folder(Path(folder)) as temporary,
        (temporary / "labels.csv").open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("index", "label", "name", "seed"))
        samples = ((image, label) for batch in batches for image, label in _pairs(*batch))
        for index, (image, label) in enumerate(samples):
            to_pil(image).save(temporary / f"{index:06d}.png", format="PNG")
            name = "" if label is None else _name_of(label, names) or ""
            table.writerow((index, "" if label is None else label, name, "" if seed is None else seed))


def write_npz(path: Path | str, images: ArrayLike, labels: ArrayLike | None = None) -> None:
    """The file that ADM's evaluation takes: `arr_0` the images, (N, H, W, C) uint8, `arr_1` the labels, (N,) int64.

    Raises:
        TypeError, ValueError: as `image_grid`.
        OSError: it cannot be written; the message names it.
    """
    pictures = checked_images(images)
    stream_npz(path, pictures.shape, [(pictures, checked_labels(labels, len(pictures)))])


def stream_npz(path: Path | str, shape: tuple[int, ...], batches: Iterable[tuple[Images, Labels | None]]) -> None:
    """`write_npz` of images that come in batches, one of which is in memory at a time.

    Args:
        path: of the file.
        shape: (N, H, W, C) of all images together.
        batches: images and labels. Labels are in all of them or in none.

    Raises:
        ValueError: batches that do not add up to `shape`.
        OSError: as `write_npz`.
    """
    labels: list[Labels] = []
    count = 0
    with writing(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        # Uncompressed, as numpy.savez has it, and with zip64: 50,000 images of 256x256 are 9.8 GB.
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(member, header)
            for pictures, numbers in batches:
                if pictures.shape[1:] != tuple(shape[1:]):
                    raise ValueError(f"images of {pictures.shape[1:]} among images of {tuple(shape[1:])}.")
                member.write(np.ascontiguousarray(pictures).data)
                count += len(pictures)
                if numbers is not None:
                    labels.append(numbers)
        if count != shape[0]:
            raise ValueError(f"{path} was to hold {shape[0]} images, got {count}.")
        if labels:
            checked_labels(np.concatenate(labels), count)
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.concatenate(labels))


def write_animation(
    path: Path | str,
    frames: Sequence[ArrayLike],
    labels: ArrayLike | None = None,
    *,
    columns: int | None = None,
    scale: int = 1,
    names: LabelNames | None = None,
    milliseconds: int = 100,
) -> None:
    """A grid that changes, such as samples on their way from noise, repeated for ever.

    Args:
        path: `.gif`, which has 256 colours a frame and is played everywhere, or `.webp`, which loses nothing.
        frames: one or more times (N, H, W, C) uint8, of the same shape.
        labels, columns, scale, names: as `image_grid` has them.
        milliseconds: that each frame is shown; GIF rounds down to tens. Equal frames become one that is shown longer.

    Raises:
        TypeError, ValueError: as `image_grid`; another suffix, no frames, frames of different shapes, a time below 10.
        OSError: it cannot be written; the message names it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _ANIMATIONS:
        raise ValueError(f"{path} is no animation by its suffix; choose one of {', '.join(_ANIMATIONS)}.")
    if milliseconds < 10:
        raise ValueError(f"milliseconds must be 10 or more, got {milliseconds}.")
    pictures = [checked_images(frame) for frame in frames]
    if len({picture.shape for picture in pictures}) != 1:
        shapes = ", ".join(str(shape) for shape in dict.fromkeys(picture.shape for picture in pictures)) or "none"
        raise ValueError(f"an animation needs frames of one shape, got {shapes}.")
    grids = [image_grid(frame, labels, columns=columns, scale=scale, names=names) for frame in pictures]
    options = {"lossless": True} if suffix == ".webp" else {}
    with writing(path) as temporary:
        grids[0].save(
            temporary, suffix[1:], save_all=True, append_images=grids[1:], duration=milliseconds, loop=0, **options
        )


def to_pil(image: Images) -> Image.Image:
    """One (H, W, C) uint8 image, grey or in colours."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image))


def checked_images(images: ArrayLike) -> Images:
    """`images` as an array.

    Raises:
        TypeError: they are not uint8.
        ValueError: they are not (N, H, W, C) with C 1 or 3, H and W 1 or more.
    """
    array: NDArray[Any] = np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {array.dtype}; to_uint8 makes them of a model's floats.")
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape[1:]:
        hint = " channels_last puts the channels there." if array.ndim == 4 and array.shape[1] in (1, 3) else ""
        raise ValueError(f"images must be (N, H, W, C) with 1 or 3 channels, got {array.shape}.{hint}")
    return array


def checked_labels(labels: ArrayLike | None, count: int) -> Labels | None:
    """`labels` as int64.

    Raises:
        TypeError: they are no integers.
        ValueError: there are not `count` of them.
    """
    if labels is None:
        return None
    array: NDArray[Any] = np.asarray(labels)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {array.dtype}.")
    if array.shape != (count,):
        raise ValueError(f"{count} images need labels of shape ({count},), got {array.shape}.")
    return array.astype(np.int64)


def _pairs(images: Images, labels: Labels | None) -> Iterable[tuple[Images, int | None]]:
    return zip(images, [None] * len(images) if labels is None else labels.tolist(), strict=True)


def _name_of(label: int, names: LabelNames | None) -> str | None:
    """None where there are no names, and for the null label."""
    return names.short(label) if names is not None and 0 <= label < len(names) else None


def _write_captions(grid: Image.Image, captions: list[str], places: list[tuple[int, int]], width: int) -> None:
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(_CAPTION_SIZE)
    for caption, place in zip(captions, places, strict=True):
        shorter = [caption, *(f"{caption[:length]}.." for length in range(len(caption) - 1, 0, -1))]
        text = next((text for text in shorter if draw.textlength(text, font) <= width), "")
        draw.text(place, text, fill=_BLACK if grid.mode == "L" else (_BLACK,) * 3, font=font)
