"""From image files to what a network sees: colours, centre crop, values in [-1, 1], flips."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditzoo.diffusion.draws import data_generator

#: Endings of the files that folders are searched for, in lower case.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_MODES = {1: "L", 3: "RGB"}


class UnreadableImageError(ValueError):
    """An image that is damaged, or of a kind that has no 8-bit colours; the message names the file."""


def read_image(file: Path | str | bytes, *, name: str, channels: int = 3) -> Image.Image:
    """A decoded image, `"RGB"` for three channels or `"L"` for one.

    Whatever colours the file has are converted: grey, palettes, CMYK (with the inks that Adobe writes inverted) and
    YCbCr as Pillow does; transparent parts are laid on white, since the colours below them are arbitrary; of 16 bits
    a channel the upper eight are taken. Of an animation it is the first frame. The orientation that a camera noted
    (EXIF) is left out of account, as ADM does for ImageNet.

    Args:
        file: a path, or the bytes of the file.
        name: of the file, for messages.
        channels: 3 for colours or 1 for grey.

    Raises:
        UnreadableImageError: there is no such file, it is no image, damaged, cut off, far too large for an image, or
            its pixels are numbers without a known range.
        ValueError: another number of channels.
    """
    check_channels(channels)
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            return _convert(image, _MODES[channels])
    except Exception as error:  # Pillow raises anything at damaged files: SyntaxError, struct.error, KeyError...
        raise UnreadableImageError(f"{name} cannot be read: {_reason(error)}.") from error


def image_size(file: Path | str | bytes, *, name: str) -> tuple[int, int]:
    """(height, width) of an image, from its first bytes.

    Raises:
        UnreadableImageError: as `read_image`.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.height, image.width
    except Exception as error:  # as in `read_image`
        raise UnreadableImageError(f"{name} cannot be read: {_reason(error)}.") from error


def center_crop(image: Image.Image, height: int, width: int | None = None) -> Image.Image:
    """The largest centred part that has the shape of the result, resized; squares as ADM makes them.

    ADM (arXiv:2105.05233) halves an image by boxes of 2x2 pixels as long as the shorter side stays at least as long
    as the result's, then resizes the shorter side to it bicubically, then cuts off both ends of the longer side.

    Args:
        image: of any size; a smaller one is enlarged.
        height: of the result, pixels.
        width: the same as `height` where it is left out.
    """
    width = height if width is None else width
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    # Rounding must not lose the last pixel of the side that fits exactly.
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_tensor(image: Image.Image) -> Tensor:
    """(C, H, W) float32 in [-1, 1] of an `"RGB"` or `"L"` image: 0 becomes -1 and 255 becomes 1."""
    pixels = torch.from_numpy(np.array(image))  # (H, W, C) or (H, W)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels.contiguous().float() / 127.5 - 1  # (C, H, W)


def flip_draws(numbers: Sequence[int], seed: int) -> Tensor:
    """Whether the samples of the running numbers are flipped, (B,) bool: each with probability one half."""
    return torch.tensor([bool(torch.rand((), generator=data_generator(seed, number)) < 0.5) for number in numbers])


def random_flips(x: Tensor, numbers: Sequence[int], seed: int) -> Tensor:
    """Samples (B, C, H, W), those of `flip_draws` mirrored left to right."""
    flipped, drawn = x.clone(), flip_draws(numbers, seed)
    flipped[drawn] = x[drawn].flip(-1)
    return flipped


def check_channels(channels: int) -> None:
    """Raise a ValueError unless images can have so many channels."""
    if channels not in _MODES:
        raise ValueError(f"images have 3 channels (colours) or 1 (grey), got channels={channels}.")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip instead of scale
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its pixels are integers of more than 16 bits")
        image = Image.fromarray((pixels.astype(np.int64) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
