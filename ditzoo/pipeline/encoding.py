"""What `ditzoo encode` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditzoo.data.encode import Progress, encode
from ditzoo.data.image_source import MAX_UNREADABLE
from ditzoo.data.manifest import MANIFEST, LatentDtype
from ditzoo.data.open import has_own_size, is_digits, open_source
from ditzoo.media import Codec, PixelCodec, load_codec, load_codec_for_recipe
from ditzoo.pipeline.jobs import device_of_launcher, process_of_launcher
from ditzoo.registry import model_info

PIXELS = "pixels"
_NUM_PROBLEMS = 10


@dataclass(frozen=True, kw_only=True)
class EncodeCommand:
    """The options of `ditzoo encode`; None where an option is not given."""

    data: str
    out: Path
    model: str | None = None
    codec: str | None = None
    codec_name: str | None = None
    size: int | None = None
    scale: float | None = None
    shift: float | None = None
    flip: bool = True
    dtype: LatentDtype = "float32"
    batch_size: int = 32
    shard_size: int | None = None
    num_workers: int = 0
    max_unreadable: int = MAX_UNREADABLE
    labels: bool = True
    slicing: bool = False
    device: str = "cpu"
    codec_dtype: str = "float32"

    def run(self, progress: Progress | None = None) -> Iterator[str]:
        """Encode; the lines to print.

        Raises:
            ValueError, OSError, ImportError: as `load_codec`, `open_source` and `encode`; no codec, two scales, or a
                place for latents inside of the images.
            FloatingPointError: as `encode`.
        """
        self._check_out()
        codec = self._codec()
        size, channels, own = self.size, codec.image_channels, has_own_size(self.data)
        if size is None and self.model is not None and not own:
            size = model_info(self.model).config["input_size"] * codec.downsampling
        source = open_source(
            self.data,
            size=size,
            channels=None if own else channels,
            max_unreadable=self.max_unreadable,
            labels=self.labels,
        )
        encoded = encode(
            source,
            codec,
            self.out,
            flip=self.flip,
            dtype=self.dtype,
            codec_name=self.codec_name,
            batch_size=self.batch_size,
            shard_size=self.shard_size,
            num_workers=self.num_workers,
            process=process_of_launcher(),
            progress=progress,
        )
        yield from encoded.problems[:_NUM_PROBLEMS]
        if len(encoded.problems) > _NUM_PROBLEMS:
            yield f"... and {len(encoded.problems) - _NUM_PROBLEMS} more."
        yield f"Encoded {encoded.images:,} of {source.name}" + (
            f"; {encoded.missing:,} in {self.out} are left to other processes."
            if encoded.missing
            else f"; {self.out} is complete."
        )

        if hint := self._hint(codec):
            yield hint

    def _check_out(self) -> None:
        images, out = Path(self.data).resolve(), self.out.resolve()
        if images.is_dir() and images in (out, *out.parents):
            raise ValueError(
                f"{self.out} is in the folder of the images, {self.data}; give one outside for the latents."
            )

    def _hint(self, codec: Codec) -> str | None:
        """What to know of an autoencoder that a model's recipe has under another name."""
        recipe = None if self.model is None else model_info(self.model).recipe
        name = self.codec_name or codec.name
        if recipe is None or recipe.latent_codec in (None, name) or isinstance(codec, PixelCodec):
            return None
        return (
            f"These are latents of {name}, while the recipe of {self.model} names {recipe.latent_codec}. If the one is "
            f"a copy of the other, train with --codec {name}, by which weights are compared, or correct the codec in "
            f"{self.out / MANIFEST}; --codec-name says so at once."
        )

    def _codec(self) -> Codec:
        recipe = None if self.model is None else model_info(self.model).recipe
        if recipe is not None and (self.scale, self.shift) != (None, None):
            raise ValueError(f"the recipe of {self.model} has scale and shift, so leave out --scale and --shift.")
        place = self.codec or (None if recipe is None else recipe.latent_codec or PIXELS)
        if place is None:
            raise ValueError(
                "encoding needs an autoencoder: --model NAME takes that of a model's recipe, --codec PLACE one of a "
                f"folder or the Hub, such as stabilityai/sd-vae-ft-ema, and --codec {PIXELS} keeps images as they are."
            )
        if place == PIXELS:
            return PixelCodec(1 if is_digits(self.data) else 3)
        options: dict[str, Any] = {
            "device": device_of_launcher(self.device),
            "dtype": getattr(torch, self.codec_dtype),
            "slicing": self.slicing,
        }
        if recipe is None:
            return load_codec(place, scale=self.scale, shift=self.shift or 0.0, **options)
        return load_codec_for_recipe(
            place, latent_scale=recipe.latent_scale, latent_shift=recipe.latent_shift, **options
        )

    def when_stopped(self) -> str:
        """What to tell whoever has pressed Ctrl-C."""
        return f"Stopped. Run the same command to go on with what is finished, in {self.out}."
