"""Changing images and finding their noise, with any model and recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate as resize

from ditzoo.diffusion import Process, SamplingStep, make_process, sample_noise, sampler_times
from ditzoo.pipeline.denoising import Batch, Denoised, RunOptions, denoise, sample_in_batches
from ditzoo.pipeline.samples import Samples
from ditzoo.pipeline.settings import SETTINGS, check_whole
from ditzoo.recipe import Recipe, Sampler

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import ClassLabels, Pipeline

#: deterministic, and able to walk from data to noise
_REVERSIBLE: tuple[Sampler, ...] = ("ddim", "euler", "heun", "edm_heun", "dopri5")
#: images that the codec encodes at a time
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class Inversion:
    """What `invert` found.

    Attributes:
        latents: (N, C, H, W) standard-normal-like noise; `pipe(labels, latents=inversion.latents, **inversion.options)`
            gives the images back.
        error: of that round trip, the root mean square over each image's latents, (N,).
        options: with which it was made: sampler and its options, steps and guidance scale.
    """

    latents: Tensor
    error: Tensor
    options: dict[str, Any]


def image_to_image(
    pipeline: Pipeline,
    images: Any,
    class_labels: ClassLabels | None = None,
    *,
    strength: float = 0.6,
    seed: int = 0,
    **options: Any,
) -> Samples:
    """Samples that keep the coarse layout of given images (SDEdit, arXiv:2108.01073).

    Args:
        pipeline: the model.
        images: (N, C, H, W) in [-1, 1], or PIL images.
        class_labels: one an image, fewer are taken in turn; None draws classes at random.
        strength: how much of the way from noise is walked again, in (0, 1]; 1 ignores the images.
        seed: of the noise of sample i = 0 .. N - 1.
        options: what a call of the pipeline takes beside labels, sizes and noise: `sampler`, `num_inference_steps`,
            `guidance_scale`, `batch_size`, `frames`, `progress`, ...

    Raises:
        ValueError: for a strength outside (0, 1], images of another size than the model's patches take, or more labels
            than images.
        TypeError: for images of another kind, or an unknown option.
    """
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise TypeError(f"strength must be a number, got {strength!r}.")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}.")
    settings, running = _split(pipeline, options)
    clean = encode_images(pipeline, images)
    labels = _labels(pipeline, class_labels, len(clean), seed)
    process, times = make_process(settings), sampler_times(settings)
    skipped = round((len(times) - 1) * (1 - strength))
    times = times[min(skipped, len(times) - 2) :]

    def denoise_batch(batch: Batch) -> Denoised:
        noise = sample_noise(seed, batch.indices, clean.shape[1:])
        start = None if skipped == 0 else noised(process, clean[batch.rows], noise, times[0])
        return denoise(pipeline, settings, batch, noise, seed=seed, times=times, start=start)

    return sample_in_batches(pipeline, settings, labels, range(len(clean)), seed, running, denoise_batch)


def inpaint(
    pipeline: Pipeline,
    images: Any,
    mask: Any,
    class_labels: ClassLabels | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> Samples:
    """Given images with their masked part filled in: after each step, the part that is kept is set to the image with
    the noise of that time (section 3 of arXiv:2201.09865, without resampling).

    Args:
        pipeline: the model.
        images: (N, C, H, W) in [-1, 1], or PIL images.
        mask: (H, W) or (N, H, W) in pixels, true or 1 where to paint; or PIL images, white where to paint.
        class_labels, seed, options: as in `image_to_image`.

    Raises:
        ValueError: for a mask of another size or other values, or one that paints nothing, and as `image_to_image`.
        TypeError: as `image_to_image`.
    """
    settings, running = _split(pipeline, options)
    clean = encode_images(pipeline, images)
    paint = _mask(pipeline, mask, clean).expand(len(clean), -1, -1, -1)
    labels = _labels(pipeline, class_labels, len(clean), seed)
    process = make_process(settings)

    def denoise_batch(batch: Batch) -> Denoised:
        known, painted = clean[batch.rows], paint[batch.rows]
        noise = sample_noise(seed, batch.indices, clean.shape[1:])

        def keep(step: SamplingStep) -> object:
            there = noised(process, known, noise, step.time).to(step.sample)
            sample = torch.where(painted.to(step.sample.device), step.sample, there)
            replaced = None if batch.callback is None else batch.callback(step._replace(sample=sample))
            return replaced if isinstance(replaced, Tensor) else sample

        run = denoise(pipeline, settings, batch._replace(callback=keep), noise, seed=seed)
        return run._replace(latents=torch.where(painted, run.latents, known))

    return sample_in_batches(pipeline, settings, labels, range(len(clean)), seed, running, denoise_batch)


def invert(
    pipeline: Pipeline,
    images: Any,
    class_labels: ClassLabels | None = None,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    sampler: Sampler | None = None,
    batch_size: int = 64,
    progress: bool | None = None,
) -> Inversion:
    """The noise from which a deterministic sampler draws given images: DDIM's inversion (section 4.3 of
    arXiv:2010.02502), or the flow integrated backwards.

    Args:
        pipeline: the model.
        images: (N, C, H, W) in [-1, 1], or PIL images.
        class_labels: one an image; None uses the null label, or nothing in an unconditional model.
        num_inference_steps: both ways.
        guidance_scale: off where None, which inverts best.
        sampler: ddim, euler, heun, edm_heun or dopri5; where None, edm_heun, or heun for flows.
        batch_size: images at a time.
        progress: show a bar for each way; where None, on a terminal.

    Returns:
        Noise, and the error of the round trip.

    Raises:
        ValueError: for a sampler that cannot run backwards, no label where one is needed, or more labels than images.
        TypeError: for images of another kind.
    """
    recipe = pipeline.recipe
    sampler = sampler or ("heun" if recipe.is_flow else "edm_heun")
    # A flow's data end has no noise at all, in whose level EDM's sampler steps.
    reversible = [
        name for name in _REVERSIBLE if name in recipe.samplers and not (recipe.is_flow and name == "edm_heun")
    ]
    if sampler not in reversible:
        raise ValueError(f"sampler {sampler!r} cannot be run backwards; choose one of {', '.join(reversible)}.")
    scale = recipe.guidance.off if guidance_scale is None else guidance_scale
    options: dict[str, Any] = {
        "sampler": sampler,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": scale,
        "sampler_options": _without_noise(recipe, sampler),
    }
    settings = pipeline.settings(options)
    running = RunOptions(batch_size=batch_size, output="latents", progress=progress)
    clean = encode_images(pipeline, images)
    if class_labels is None and pipeline.model.num_classes:
        if pipeline.model.null_label is None:
            raise ValueError(f"{pipeline.name} has no null label to invert with; give class_labels.")
        class_labels = pipeline.model.null_label
    labels = _labels(pipeline, class_labels, len(clean))
    process, times = make_process(settings), sampler_times(settings)
    if times[-1] == process.data != process.end:
        times = times[:-1]  # networks cannot be called there; the last step only removes the rest of the noise
    if len(times) < 2:
        raise ValueError(f"num_inference_steps must be 2 or more to invert by {sampler}, got {num_inference_steps}.")

    def backwards(batch: Batch) -> Denoised:
        start = clean[batch.rows]
        return denoise(pipeline, settings, batch, torch.zeros_like(start), times=times[::-1], start=start)

    indices = range(len(clean))
    ended = sample_in_batches(pipeline, settings, labels, indices, 0, running, backwards).latents
    latents = process.initial_noise(ended)
    again = pipeline.draw(settings, labels, indices, 0, running, latents=latents).latents
    return Inversion(latents, (again - clean).square().flatten(1).mean(dim=1).sqrt(), options)


def _without_noise(recipe: Recipe, sampler: Sampler) -> dict[str, Any]:
    """The recipe's options of its sampler, those that add noise left out: the way back must meet none."""
    own = recipe.sampler_options if sampler == recipe.sampler else {}
    return {option: value for option, value in own.items() if option not in ("eta", "s_churn")}


def interpolate(
    pipeline: Pipeline,
    class_labels: tuple[int | str, int | str] | None = None,
    *,
    num_images: int = 8,
    seeds: tuple[int, int] = (0, 1),
    **options: Any,
) -> Samples:
    """Samples on the way between two classes and two noises: noises along the great circle, classes as a mixture of
    the two guided predictions, which works in every family.

    Args:
        pipeline: the model.
        class_labels: of the first and the last image; twice the same one changes the noise alone. None draws one class
            for both, or leaves it to an unconditional model.
        num_images: both ends included, 2 or more.
        seeds: of the first and the last noise; twice the same one changes the class alone.
        options: as in `image_to_image`.

    Raises:
        ValueError: for fewer than two images, or other than two labels and seeds.
        TypeError: for an unknown option, or numbers that are none.
    """
    check_whole("num_images", num_images, least=2)
    for what, pair in (("class_labels", (0, 0) if class_labels is None else class_labels), ("seeds", seeds)):
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise ValueError(f"{what} must be two, of the first and the last image, got {pair!r}.")
    for seed in seeds:
        check_whole("seeds", seed, least=0)
    settings, running = _split(pipeline, options)
    ends, _ = pipeline.labels(class_labels, 1 if class_labels is None else 2, seeds[0])
    first, last = (sample_noise(seed, [0], pipeline.latent_shape()) for seed in seeds)
    weights = torch.linspace(0, 1, num_images)
    labels = None if ends is None else torch.where(weights < 0.5, ends[0], ends[-1])

    def denoise_batch(batch: Batch) -> Denoised:
        share = weights[batch.rows]
        noise = torch.cat([slerp(first, last, float(weight)) for weight in share])
        mixture = None
        if ends is not None and len(ends) == 2:
            mixture = ([end.expand(len(share)) for end in ends], share)
        return denoise(pipeline, settings, batch, noise, seed=seeds[0], mixture=mixture)

    return sample_in_batches(pipeline, settings, labels, range(num_images), seeds[0], running, denoise_batch)


def _split(pipeline: Pipeline, options: dict[str, Any]) -> tuple[Recipe, RunOptions]:
    """The settings among the options of a call, and how it is run."""
    running = [field.name for field in fields(RunOptions)]
    if unknown := set(options) - {*SETTINGS, *running}:
        known = ", ".join((*SETTINGS, *running))
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}; editing takes {known}.")
    chosen = RunOptions(**{key: value for key, value in options.items() if key in running})
    return pipeline.settings(options), chosen


def _labels(pipeline: Pipeline, class_labels: ClassLabels | None, num_images: int, seed: int = 0) -> Tensor | None:
    if class_labels is not None and (count := pipeline.labels(class_labels, None)[1]) > num_images:
        raise ValueError(f"there are {count} class_labels for {num_images} images; give one an image, or fewer.")
    return pipeline.labels(class_labels, num_images, seed)[0]


def slerp(first: Tensor, last: Tensor, weight: float) -> Tensor:
    """Between two noises along the great circle through them, which keeps their norm."""
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), last.flatten(), dim=0).clamp(-1, 1)
    angle = float(torch.arccos(cosine))
    if angle < 1e-4:
        return torch.lerp(first, last, weight)
    return (math.sin((1 - weight) * angle) * first + math.sin(weight * angle) * last) / math.sin(angle)


def noised(process: Process, clean: Tensor, noise: Tensor, time: float) -> Tensor:
    """Clean latents with the noise of one time."""
    alpha, sigma = process.level(time)
    return alpha * clean + sigma * noise


def encode_images(pipeline: Pipeline, images: Any) -> Tensor:
    """Latents (N, C, H, W) of images: tensors (N, C, H, W) in [-1, 1], or PIL images.

    Raises:
        TypeError: for anything else.
        ValueError: for values outside [-1, 1].
    """
    if not isinstance(images, Tensor):
        listed = images if isinstance(images, list | tuple) else [images]
        if not all(hasattr(image, "convert") for image in listed):
            raise TypeError(
                f"images must be a tensor (N, C, H, W) in [-1, 1] or PIL images, got {type(images).__name__}."
            )
        if len({image.size for image in listed}) != 1:
            sizes = " and ".join(sorted({f"{image.width}x{image.height}" for image in listed})) or "none"
            raise ValueError(f"images must be one or more of one size, got {sizes}; resize them, or edit them apart.")
        channels = getattr(pipeline.codec, "image_channels", pipeline.model.in_channels)
        arrays = [np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32) for image in listed]
        stacked = torch.from_numpy(np.stack(arrays))
        images = (stacked[:, None] if channels == 1 else stacked.permute(0, 3, 1, 2)) / 127.5 - 1
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}; give (N, C, H, W), N of 1 or more.")
    if not torch.isfinite(images).all():
        raise ValueError("images hold values that are no finite numbers; they must lie in [-1, 1].")
    if images.abs().max() > 1 + 1e-4:
        raise ValueError(f"images must lie in [-1, 1], got values up to {float(images.abs().max()):g}.")
    parts = [pipeline.codec.encode(part.float()).float().cpu() for part in images.split(_ENCODED_AT_ONCE)]
    latents = torch.cat(parts)
    pipeline.model.token_grid(*latents.shape[2:])
    return latents


def _mask(pipeline: Pipeline, mask: Any, clean: Tensor) -> Tensor:
    """(N, 1, H, W) bool, in latents: a latent that sees any painted pixel is painted."""
    if not isinstance(mask, Tensor):
        listed = mask if isinstance(mask, list | tuple) else [mask]
        arrays = [np.asarray(m.convert("L")) > 127 if hasattr(m, "convert") else np.asarray(m) for m in listed]
        mask = torch.from_numpy(np.stack(arrays) if len(arrays) > 1 else arrays[0])
    mask = mask.float()
    mask = mask[None] if mask.ndim == 2 else mask
    factor = pipeline.codec.downsampling
    wanted = (clean.shape[2] * factor, clean.shape[3] * factor)
    if mask.ndim != 3 or tuple(mask.shape[1:]) != wanted or mask.shape[0] not in (1, len(clean)):
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}; give ({wanted[0]}, {wanted[1]}) for all images, or one an image."
        )
    if not torch.isin(mask, torch.tensor([0.0, 1.0])).all():
        raise ValueError("a mask holds 0 and 1, or false and true, alone; give mask > 0, say.")
    if not mask.any():
        raise ValueError("the mask paints nothing; set it to 1 where the image is to change.")
    return resize(torch.nn.functional.max_pool2d(mask[:, None], factor), clean.shape[2:]).bool()
