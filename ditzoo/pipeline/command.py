"""What `ditzoo sample` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ditzoo.media import load_codec, parse_labels
from ditzoo.pipeline.jobs import device_of_launcher, process_of_launcher, sample_to_disk
from ditzoo.pipeline.pipeline import Frames, Pipeline
from ditzoo.recipe import Recipe

#: more images than a grid can show
_MOST_IN_GRID = 2_500
_DEFAULT_NUM = 16


def run_sample(
    name: str,
    out: Path,
    *,
    classes: str | None,
    per_class: int | None,
    num: int | None,
    seed: int,
    sampler: Any,
    steps: int | None,
    guidance_scale: float | None,
    columns: int | None,
    batch_size: int,
    checkpoint: str | None,
    codec: str | None,
    device: str,
    dtype: str,
) -> Iterator[str]:
    """Sample and write; the lines to print.

    Raises:
        ValueError, TypeError, OSError: as `Pipeline.from_pretrained`, `Pipeline.__call__` and `sample_to_disk`.
    """
    if per_class is not None and num is not None:
        raise ValueError("give --per-class or --num, not both.")
    if per_class is not None and classes is None:
        raise ValueError("--per-class needs --classes, such as --classes 0-9.")
    device = device_of_launcher(device)
    pipeline = Pipeline.from_pretrained(name, checkpoint=checkpoint, device=device, dtype=getattr(torch, dtype))
    if codec is not None:
        recipe = pipeline.recipe
        pipeline.codec = load_codec(codec, scale=recipe.latent_scale, shift=recipe.latent_shift, device=device)
    labels = None
    if classes is not None:
        labels = parse_labels(classes, num_classes=pipeline.model.num_classes, names=pipeline.label_names)
    count = num or (len(labels) * (per_class or 1) if labels is not None else _DEFAULT_NUM)
    options = {
        "sampler": sampler,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "batch_size": batch_size,
    }
    if out.suffix.lower() in (".png", ".gif", ".webp"):
        if count > _MOST_IN_GRID:
            raise ValueError(f"{count} images are too many for {out.name}; write them to a folder or an .npz file.")
        frames: Frames | None = None if out.suffix.lower() == ".png" else "x0"
        samples = pipeline(labels, num_images=count, seed=seed, frames=frames, **options)
        samples.save(out, columns=columns or (len(labels) if labels is not None and len(labels) <= count else None))
        cost = f"{samples.evaluations} evaluations and {samples.forward_passes:g} forward passes an image"
    elif out.suffix.lower() in ("", ".npz"):
        sample_to_disk(pipeline, out, count, class_labels=labels, seed=seed, **options)
        cost = ""
        if process_of_launcher()[0] > 0:
            return
    else:
        raise ValueError(f"{out.name} has none of the suffixes .png, .gif, .webp and .npz; a folder has none.")
    yield f"Wrote {out}: {count} images of {name}, seed {seed}."
    yield _how(pipeline.settings(options)) + (f"; {cost}." if cost else ".")


def _how(settings: Recipe) -> str:
    guidance = settings.guidance
    base = "u" if guidance.convention == "dit" else "c"
    off = "no guidance" if guidance.is_off else f"guidance {base} + {guidance.scale:g} (c - u)"
    schedule = "" if guidance.schedule == "constant" or guidance.is_off else f", {guidance.schedule}"
    return f"{settings.sampler}, {settings.num_inference_steps} steps, {off}{schedule}"
