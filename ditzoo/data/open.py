"""A data set by its name, as command lines and configs write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ditzoo.data.buckets import Size
from ditzoo.data.digits import Digits
from ditzoo.data.folders import ImageFolder
from ditzoo.data.hub import HubImages, HubStream
from ditzoo.data.image_source import MAX_UNREADABLE
from ditzoo.data.latents import LatentCache
from ditzoo.data.manifest import has_latents
from ditzoo.data.source import Source
from ditzoo.data.tars import TarFiles

_HUB, _STREAM = "hf:", "hf-stream:"
_KINDS = (
    "'digits', a folder of images or of cached latents, tar files ('data/*.tar', 'data-{0000..0146}.tar'), or a data "
    "set of the Hub ('hf:owner/name', 'hf-stream:owner/name')"
)


def open_source(
    spec: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    flip: bool = False,
    max_unreadable: int = MAX_UNREADABLE,
    buckets: Sequence[Size] | None = None,
    labels: bool = True,
    sample_posterior: bool = True,
) -> Source:
    """The data set that `spec` names.

    - `"digits"`: the training part of the embedded digits; `"digits:test"` the held-out part (a folder of that name is
      `"./digits"`)
    - a folder of images, see `ditzoo.data.ImageFolder`, or one that `ditzoo encode` wrote
    - tar files, see `ditzoo.data.TarFiles`: a pattern with `*`, a range in braces, or one file
    - `"hf:PLACE"` and `"hf-stream:PLACE"`, see `ditzoo.data.HubImages` and `ditzoo.data.HubStream`

    Args:
        spec: the name.
        size: side of the square that images are cropped to, pixels; digits and latents have theirs.
        channels: 3 for colours or 1 for grey; by default 1 for digits and 3 for other images.
        flip: mirror half of the samples left to right.
        max_unreadable: unreadable files above which loading ends with an error.
        buckets: (height, width) of crops in place of the square.
        labels: False leaves those of images out; digits and latents keep theirs.
        sample_posterior: of latents, see `ditzoo.data.LatentCache`.

    Raises:
        FileNotFoundError: there is no such file or folder; the message names the kinds of data.
        ValueError: no size where one is needed, one where the data set has its own, or what the data set itself
            refuses.
    """
    if is_digits(spec):
        return _open_digits(spec, size, channels, flip, buckets)
    if has_latents(spec):
        return _open_latents(spec, size, channels, flip, buckets, sample_posterior)
    if size is None:
        raise ValueError(f"the images of {spec} have no size of their own; set size, such as size=256.")
    channels = 3 if channels is None else channels
    if spec.startswith(_STREAM):
        if buckets is not None:
            raise ValueError(f"a stream has no buckets: leave buckets out, or load {spec} whole (hf:...).")
        place = spec.removeprefix(_STREAM)
        return HubStream(place, size=size, channels=channels, flip=flip, max_unreadable=max_unreadable, labels=labels)
    kind: type[ImageFolder] | type[TarFiles] | type[HubImages]
    if spec.startswith(_HUB):
        kind, place = HubImages, spec.removeprefix(_HUB)
    elif Path(spec).is_dir():
        kind, place = ImageFolder, spec
    elif ".tar" in Path(spec).name:
        kind, place = TarFiles, spec
    else:
        raise FileNotFoundError(f"there is no folder {spec}. Data are {_KINDS}.")
    return kind(
        place,
        size=size,
        channels=channels,
        flip=flip,
        max_unreadable=max_unreadable,
        buckets=buckets,
        labels=labels,
    )


def is_digits(spec: str) -> bool:
    """Whether the digits are named, or a part of them."""
    return spec.partition(":")[0] == "digits"


def has_own_size(spec: str) -> bool:
    """Whether the samples have a size and channels that no option changes: digits and latents."""
    return is_digits(spec) or has_latents(spec)


def _open_digits(
    spec: str, size: int | None, channels: int | None, flip: bool, buckets: Sequence[Size] | None
) -> Digits:
    split = spec.partition(":")[2] or "train"
    if size not in (None, 8) or channels not in (None, 1) or buckets is not None:
        raise ValueError(
            f"digits are grey images of 8x8 pixels: leave size ({size}), channels ({channels}) and buckets ({buckets}) "
            "out."
        )
    return Digits(split, flip=flip)  # type: ignore[arg-type]  # it names the valid splits


def _open_latents(
    spec: str,
    size: int | None,
    channels: int | None,
    flip: bool,
    buckets: Sequence[Size] | None,
    sample_posterior: bool,
) -> LatentCache:
    given = {"size": size, "channels": channels, "buckets": buckets}
    if names := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"{spec} holds latents, whose images were read before: leave {' and '.join(names)} out, or encode anew."
        )
    return LatentCache(spec, flip=flip, sample_posterior=sample_posterior)
