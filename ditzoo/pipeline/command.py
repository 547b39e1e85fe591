"""What `ditzoo sample` does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ditzoo.diffusion import NonFiniteSampleError
from ditzoo.media import LatentCodec, load_codec_for_recipe, parse_labels
from ditzoo.media.files import check_writable
from ditzoo.pipeline.denoising import Frames, NonFiniteImageError
from ditzoo.pipeline.jobs import Made, device_of_launcher, parts_of, process_of_launcher, sample_to_disk
from ditzoo.pipeline.pipeline import Pipeline
from ditzoo.pipeline.samples import Samples
from ditzoo.pipeline.settings import other_convention
from ditzoo.recipe import Guidance, Recipe

_PICTURES, _ANIMATIONS = (".png",), (".gif", ".webp")
#: more images than a picture can show
_MOST_IN_GRID = 2_500
_DEFAULT_NUM = 16


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """The options of `ditzoo sample`; None where an option is not given."""

    name: str
    out: Path
    classes: str | None = None
    per_class: int | None = None
    num: int | None = None
    seed: int = 0
    size: tuple[int, int] | None = None
    sampler: Any = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_channels: int | None = None
    weak_model: str | None = None
    columns: int | None = None
    batch_size: int = 64
    checkpoint: str | None = None
    codec: str | None = None
    tiling: bool = False
    slicing: bool = False
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def is_picture(self) -> bool:
        """Whether one picture or animation is written, rather than a job in shards."""
        return self.out.suffix.lower() in (*_PICTURES, *_ANIMATIONS)

    def run(self) -> Iterator[str]:
        """Sample and write; the lines to print.

        Raises:
            ValueError, TypeError, OSError: as `Pipeline.from_pretrained`, `Pipeline.__call__` and `sample_to_disk`.
            FloatingPointError: at the first value that is no number; what was finished before is written.
        """
        self._check()
        pipeline = self._pipeline()
        labels = None
        if self.classes is not None:
            labels = parse_labels(
                self.classes,
                num_classes=pipeline.model.num_classes,
                names=pipeline.label_names,
                null_label=pipeline.model.null_label,
            )
        count = self.num or (len(labels) * (self.per_class or 1) if labels is not None else _DEFAULT_NUM)
        if labels is not None and count < len(labels):
            raise ValueError(f"--num {count} is too few for {len(labels)} classes; give {len(labels)} or more.")
        settings = {
            "sampler": self.sampler,
            "num_inference_steps": self.steps,
            **self._guidance(pipeline.recipe.guidance),
        }
        if self.is_picture:
            made = self._write_picture(pipeline, labels, count, settings)
        else:
            made = sample_to_disk(
                pipeline,
                self.out,
                count,
                class_labels=labels,
                seed=self.seed,
                batch_size=self.batch_size,
                size=self.size,
                **settings,
            )
            if process_of_launcher()[0] > 0:
                return
        yield f"Wrote {self.out}: {count} images of {self.name}, seed {self.seed}."
        yield _how(pipeline.settings(settings)) + _cost(made, count)

    def _check(self) -> None:
        """What can be known before anything is loaded."""
        if self.per_class is not None and self.num is not None:
            raise ValueError("give --per-class or --num, not both.")
        if self.per_class is not None and self.classes is None:
            raise ValueError("--per-class needs --classes, such as --classes 0-9.")
        if not self.is_picture and self.out.suffix.lower() not in ("", ".npz"):
            raise ValueError(f"{self.out.name} has none of the suffixes .png, .gif, .webp and .npz; a folder has none.")
        if self.is_picture:
            check_writable(self.out)

    def _pipeline(self) -> Pipeline:
        device, dtype = device_of_launcher(self.device), getattr(torch, self.dtype)
        pipeline = Pipeline.from_pretrained(self.name, checkpoint=self.checkpoint, device=device, dtype=dtype)
        if self.codec is not None:
            recipe = pipeline.recipe
            pipeline.codec = load_codec_for_recipe(
                self.codec, latent_scale=recipe.latent_scale, latent_shift=recipe.latent_shift, device=device
            )
        if self.weak_model is not None:
            pipeline.weak_model = Pipeline.from_pretrained(self.weak_model, device=device, dtype=dtype)
        if self.tiling or self.slicing:
            codec = pipeline.codec
            if not isinstance(codec, LatentCodec):
                raise ValueError(f"{self.name} has no autoencoder: leave out --tiling and --slicing.")
            codec.tiling, codec.slicing = self.tiling, self.slicing
        return pipeline

    def _guidance(self, own: Guidance) -> dict[str, Any]:
        """The guidance to ask the pipeline for: a scale alone, or with what else is given."""
        changes: dict[str, Any] = {}
        if self.guidance_interval is not None:
            changes["interval"] = self.guidance_interval
        if self.guidance_channels is not None:
            changes["channels"] = self.guidance_channels or None
        if self.weak_model is not None:
            changes["kind"] = "autoguidance"
        if not changes:
            return {"guidance_scale": self.guidance_scale}
        if self.guidance_scale is not None:
            changes["scale"] = self.guidance_scale
        guidance = replace(own, **changes)
        if self.guidance_scale is not None and (advice := other_convention(guidance)):
            warnings.warn(advice, stacklevel=2)
        return {"guidance": guidance}

    def _write_picture(
        self, pipeline: Pipeline, labels: Sequence[int] | None, count: int, settings: dict[str, Any]
    ) -> Made:
        if count > _MOST_IN_GRID:
            raise ValueError(
                f"{count} images are too many for {self.out.name}; write them to a folder or an .npz file."
            )
        frames: Frames | None = "x0" if self.out.suffix.lower() in _ANIMATIONS else None
        columns = self.columns or (len(labels) if labels is not None else None)
        try:
            samples = pipeline(
                labels,
                num_images=count,
                seed=self.seed,
                size=self.size,
                batch_size=self.batch_size,
                frames=frames,
                **settings,
            )
        except (NonFiniteSampleError, NonFiniteImageError) as error:
            if not isinstance(error.finished, Samples):
                raise
            error.finished.save(self.out, columns=columns)
            raise FloatingPointError(f"{error} {self.out} has the {len(error.finished)} images before.") from error
        samples.save(self.out, columns=columns)
        return Made().and_these(samples)

    def when_stopped(self) -> str:
        """What to tell whoever has pressed Ctrl-C."""
        if self.is_picture:
            return "Stopped; nothing was written."
        return f"Stopped. Run the same command to go on with what is finished, in {parts_of(self.out)}."


def _cost(made: Made, count: int) -> str:
    if made.images == 0:
        return "; all of them were finished earlier."
    of_these = "" if made.images == count else f" of the {made.images} made here"
    return f"; {made.evaluations} evaluations and {made.forward_passes:g} forward passes an image{of_these}."


def _how(settings: Recipe) -> str:
    guidance = settings.guidance
    if guidance.is_off:
        return f"{settings.sampler}, {settings.num_inference_steps} steps, no guidance"
    base = "u" if guidance.convention == "dit" else "c"
    parts = [f"guidance {base} + {guidance.scale:g} (c - u)"]
    if guidance.kind == "autoguidance":
        parts.append("u by the weaker model")
    if guidance.channels is not None:
        parts.append(f"{guidance.channels} channels")
    if guidance.schedule != "constant":
        parts.append(guidance.schedule)
    if guidance.interval is not None:
        parts.append("where {:g} < sigma / alpha <= {:g}".format(*guidance.interval))
    return f"{settings.sampler}, {settings.num_inference_steps} steps, {', '.join(parts)}"
