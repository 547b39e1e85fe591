"""What a folder of latents holds: of which images, through which autoencoder, in which form."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ditzoo.media.claims import claim, plain, read
from ditzoo.media.codec import Codec
from ditzoo.recipe import Recipe

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARDS = "shard-*.safetensors"

LatentDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class LatentManifest:
    """The content of a cache's `manifest.json`.

    Raises:
        ValueError, TypeError: for an entry that no cache has; the message names it.
    """

    num_samples: int
    """images, each in as many views as `flip` says"""
    shard_size: int
    """images in a file, the last of which may have fewer"""
    source_name: str
    """of the data set, for people"""
    source_fingerprint: str
    """changes when images, their order or their labels do"""
    num_classes: int
    """0 where there are no labels"""
    label_names: tuple[str, ...] | None
    """of the classes, in order"""
    image_shape: tuple[int, int, int]
    """(C, H, W) of what was encoded, pixels"""
    codec: str | None
    """the autoencoder, as a recipe's `latent_codec` names it; None for pixels as they are"""
    encoder_hash: str | None
    """of the weights of its encoder; None for pixels"""
    latent_scale: float
    latent_shift: float
    """latents are (code - latent_shift) * latent_scale, and are kept so"""
    latent_shape: tuple[int, int, int]
    """(C, h, w)"""
    has_variance: bool
    """whether the log-variance is there beside the mean; tiny autoencoders and pixels have none"""
    flip: bool
    """whether the mirrored image is there beside the image"""
    dtype: LatentDtype
    """of the values on disk"""

    def __post_init__(self) -> None:
        for name in ("num_samples", "shard_size"):
            _check(self, name, int, least=1)
        _check(self, "num_classes", int, least=0)
        for name in ("latent_scale", "latent_shift"):
            _check(self, name, float)
        for name in ("has_variance", "flip"):
            _check(self, name, bool)
        for name in ("source_name", "source_fingerprint", "dtype"):
            _check(self, name, str)
        for name in ("image_shape", "latent_shape"):
            shape = _tuple(self, name)
            if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
                raise ValueError(f"{name} must be three whole numbers above 0, got {shape!r:.60}.")
        if self.label_names is not None and not all(isinstance(name, str) for name in _tuple(self, "label_names")):
            raise TypeError(f"label_names must be texts, got {self.label_names!r:.60}.")
        if self.label_names is not None and len(self.label_names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes have {len(self.label_names)} label_names.")
        for name in ("codec", "encoder_hash"):
            if getattr(self, name) is not None:
                _check(self, name, str)
        if self.dtype not in get_args(LatentDtype):
            raise ValueError(f"unknown dtype {self.dtype!r:.60}; choose one of {', '.join(get_args(LatentDtype))}.")

    @property
    def num_views(self) -> int:
        """2 with mirrored images, else 1."""
        return 2 if self.flip else 1

    @property
    def moments_shape(self) -> tuple[int, int, int, int]:
        """(views, C or 2C, h, w) of what is kept of an image: means, then log-variances."""
        channels, height, width = self.latent_shape
        return (self.num_views, 2 * channels if self.has_variance else channels, height, width)

    @property
    def num_shards(self) -> int:
        """Files in the folder."""
        return math.ceil(self.num_samples / self.shard_size)

    def digest(self, **more: bool) -> str:
        """Of all entries that decide the values, so not of names; and of `more`."""
        entries = {name: value for name, value in self.to_dict().items() if name not in _NAMES}
        return hashlib.sha256(plain({**entries, **more}).encode()).hexdigest()

    def shard_range(self, shard: int) -> range:
        """The images of file number `shard`."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_samples))

    def shard_name(self, shard: int) -> str:
        """Name of file number `shard`."""
        return SHARDS.replace("*", f"{shard:06d}")

    def check_fits(self, recipe: Recipe, *, codec: Codec | None = None) -> None:
        """Refuse to train a recipe on latents that are not its own.

        Args:
            recipe: of the run.
            codec: the recipe's, where it is loaded: then encoders are compared by their weights, not by name. So a copy
                of the autoencoder passes, and another one of the same name does not.

        Raises:
            ValueError: latents of another codec, scale or shift; the message names what differs, and how to mend it.
        """
        if differing := list(self._misfits(recipe, codec)):
            own = f"latent_codec={self.codec!r}, latent_scale={self.latent_scale:g}, latent_shift={self.latent_shift:g}"
            same = ""
            if codec is None and None not in (self.codec, recipe.latent_codec) and self.codec != recipe.latent_codec:
                same = (
                    " Only where the two are the same autoencoder, name it as codec, so that its weights are compared, "
                    f"or correct the name in {MANIFEST}."
                )
            raise ValueError(
                f"the latents of {self.source_name} do not fit the recipe: {'; '.join(differing)}. Encode the images "
                f"again with the codec of the recipe, or train with a recipe of {own}.{same}"
            )

    def _misfits(self, recipe: Recipe, codec: Codec | None) -> Iterator[str]:
        if codec is not None:
            if self.encoder_hash != codec.encoder_hash:
                yield (
                    f"they are of encoder {self.codec or 'pixels'} ({_short(self.encoder_hash)}), the recipe's is "
                    f"{codec.name} ({_short(codec.encoder_hash)})"
                )
        elif self.codec != recipe.latent_codec:
            yield f"latent_codec is {self.codec!r}, the recipe has {recipe.latent_codec!r}"
        for name in ("latent_scale", "latent_shift"):
            mine, other = getattr(self, name), getattr(recipe, name)
            if not math.isclose(mine, other, rel_tol=1e-6, abs_tol=1e-9):
                yield f"{name} is {mine:g}, the recipe has {other:g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, with the version of the format."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"format": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentManifest:
        """The manifest that `to_dict` wrote.

        Raises:
            ValueError, TypeError: it is of another version, lacks entries, or has entries that no cache has.
        """
        if values.get("format") != FORMAT_VERSION:
            raise ValueError(
                f"its format is {values.get('format')!r:.60}, this ditzoo reads {FORMAT_VERSION}; use the release that "
                "wrote it, or encode again."
            )
        known = {field.name for field in fields(cls)}
        if differing := known ^ (values.keys() - {"format"}):
            raise ValueError(f"entries missing or unknown: {', '.join(f'{name!r:.60}' for name in sorted(differing))}.")
        entries: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        del entries["format"]
        return cls(**entries)

    @classmethod
    def read(cls, folder: Path) -> LatentManifest:
        """The manifest of a cache.

        Raises:
            FileNotFoundError: there is none; the message names the folder.
            ValueError: it is damaged; the message names the file.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {MANIFEST}, so no latents; `ditzoo encode DATA {folder}` makes them."
            )
        values = read(path)
        try:
            return cls.from_dict(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no manifest of latents: {error}") from error

    def claim(self, folder: Path) -> None:
        """Write the manifest into a folder, or compare it with the one that is there; names may differ.

        Raises:
            ValueError: the folder holds other latents; the message names the entries that differ.
            OSError: it cannot be written.
        """
        claim(folder / MANIFEST, self.to_dict(), shards=SHARDS, what="other latents", names=_NAMES)


#: Entries for people, which can be corrected by hand.
_NAMES = ("source_name", "label_names", "codec")


def has_latents(folder: str | Path) -> bool:
    """Whether a folder was filled by `ditzoo encode`, be it only in part.

    Other programs have files of this name, too, in folders of images.
    """
    path = Path(folder) / MANIFEST
    try:
        return "source_fingerprint" in path.read_text(encoding="utf-8", errors="replace") or any(
            path.parent.glob(SHARDS)
        )
    except OSError:
        return False


def _check(manifest: LatentManifest, name: str, kind: type, least: float = -math.inf) -> None:
    value = getattr(manifest, name)
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise TypeError(f"{name} must be of the type {kind.__name__}, got {value!r:.60}.")
    if kind in (int, float) and not least <= value < math.inf:
        raise ValueError(f"{name} must be a number of {least} or more, got {value!r:.60}.")


def _tuple(manifest: LatentManifest, name: str) -> tuple[Any, ...]:
    value = getattr(manifest, name)
    if not isinstance(value, tuple):
        raise TypeError(f"{name} must be a list, got {value!r:.60}.")
    return value


def _short(digest: str | None) -> str:
    return "no weights" if digest is None else f"hash {digest[:12]}"
