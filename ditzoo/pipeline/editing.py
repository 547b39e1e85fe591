"""Changing images and finding their noise, with any model and recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate as resize

from ditzoo.diffusion import GaussianDiffusion, Process, SamplingStep, make_process, sample_noise
from ditzoo.diffusion.samplers.sde import sde_times
from ditzoo.pipeline.samples import Samples
from ditzoo.pipeline.settings import SETTINGS
from ditzoo.recipe import Recipe, Sampler

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import ClassLabels, Pipeline

#: deterministic, and able to walk from data to noise
_REVERSIBLE: tuple[Sampler, ...] = ("ddim", "euler", "heun", "edm_heun", "dopri5")


@dataclass(frozen=True)
class Inversion:
    """What `invert` found.

    Attributes:
        latents: (N, C, H, W) standard-normal-like noise; `pipe(labels, latents=inversion.latents, **inversion.options)`
            gives the images back.
        error: of that round trip, the root mean square over each image's latents, (N,).
        options: with which it was made: sampler, steps and guidance scale.
    """

    latents: Tensor
    error: Tensor
    options: dict[str, Any]


def image_to_image(
    pipeline: Pipeline, images: Any, class_labels: ClassLabels, *, strength: float = 0.6, seed: int = 0, **options: Any
) -> Samples:
    """See `Pipeline.image_to_image`.

    Raises:
        ValueError: for a strength outside (0, 1] or images of another size than the model's patches take.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}.")
    settings = pipeline.settings(_checked(options))
    clean = encode_images(pipeline, images)
    labels, _ = pipeline.labels(class_labels, len(clean), seed)
    process, times = make_process(settings), sampler_times(settings)
    skipped = round((len(times) - 1) * (1 - strength))
    times = times[min(skipped, len(times) - 2) :]
    noise = sample_noise(seed, range(len(clean)), clean.shape[1:])
    start = process.initial_sample(noise) if skipped == 0 else noised(process, clean, noise, times[0])
    return _samples(pipeline, settings, clean, labels, seed, noise, times=times, start=start)


def inpaint(
    pipeline: Pipeline, images: Any, mask: Any, class_labels: ClassLabels, *, seed: int = 0, **options: Any
) -> Samples:
    """See `Pipeline.inpaint`. The part that is kept is set, after each step, to the image with the noise of that time.

    Raises:
        ValueError: for a mask of another size, one that paints nothing, or a sampler that cannot be stopped between
            steps.
    """
    settings = pipeline.settings(_checked(options))
    if settings.sampler == "dopri5":
        raise ValueError("dopri5 solves in one go and cannot inpaint; choose another sampler, such as heun.")
    clean = encode_images(pipeline, images)
    paint = _mask(pipeline, mask, clean)
    labels, _ = pipeline.labels(class_labels, len(clean), seed)
    noise = sample_noise(seed, range(len(clean)), clean.shape[1:])
    process = make_process(settings)

    def keep(step: SamplingStep) -> Tensor:
        known = noised(process, clean, noise, step.time).to(step.sample)
        return torch.where(paint.to(step.sample.device), step.sample, known)

    return _samples(pipeline, settings, clean, labels, seed, noise, callback=keep, paint=paint)


def invert(
    pipeline: Pipeline,
    images: Any,
    class_labels: ClassLabels | None = None,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    sampler: Sampler | None = None,
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

    Returns:
        Noise, and the error of the round trip.

    Raises:
        ValueError: for a sampler that cannot run backwards, or no label where one is needed.
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
    }
    settings = pipeline.settings(options)
    clean = encode_images(pipeline, images)
    if class_labels is None and pipeline.model.num_classes:
        if pipeline.model.null_label is None:
            raise ValueError(f"{pipeline.name} has no null label to invert with; give class_labels.")
        class_labels = pipeline.model.null_label
    labels, _ = pipeline.labels(class_labels, len(clean))
    process, times = make_process(settings), sampler_times(settings)
    if times[-1] == process.data != process.end:
        times = times[:-1]  # networks cannot be called there; the last step only removes the rest of the noise
    indices = range(len(clean))
    unused = torch.zeros_like(clean)
    back = pipeline.denoise(settings, unused, labels, seed=0, indices=indices, times=times[::-1], start=clean)
    latents = process.initial_noise(back.latents)
    again = pipeline.denoise(settings, latents, labels, seed=0, indices=indices).latents
    return Inversion(latents, (again - clean).square().flatten(1).mean(dim=1).sqrt(), options)


def interpolate(
    pipeline: Pipeline,
    class_labels: tuple[int | str, int | str],
    *,
    num_images: int = 8,
    seeds: tuple[int, int] = (0, 1),
    **options: Any,
) -> Samples:
    """Samples on the way between two classes and two noises: noises along the great circle, classes as a mixture of
    the two guided predictions, which works in every family.

    Args:
        pipeline: the model.
        class_labels: of the first and the last image; twice the same one changes the noise alone.
        num_images: both ends included, 2 or more.
        seeds: of the first and the last noise; twice the same one changes the class alone.
        options: `sampler`, `num_inference_steps`, `guidance_scale`, ... as in a call of the pipeline.

    Raises:
        ValueError: for fewer than two images, or other than two labels and seeds.
    """
    if num_images < 2:
        raise ValueError(f"num_images must be 2 or more, both ends included, got {num_images}.")
    if len(class_labels) != 2 or len(seeds) != 2:
        raise ValueError(f"give two class_labels and two seeds, got {class_labels!r} and {seeds!r}.")
    settings = pipeline.settings(_checked(options))
    ends, _ = pipeline.labels(class_labels, 2)
    assert ends is not None
    first, last = (sample_noise(seed, [0], pipeline.latent_shape()) for seed in seeds)
    weights = torch.linspace(0, 1, num_images)
    noise = torch.cat([slerp(first, last, float(weight)) for weight in weights])
    labels = torch.where(weights < 0.5, ends[0], ends[1])
    mixed = [ends[0].expand(num_images), ends[1].expand(num_images)]
    return _samples(pipeline, settings, noise, labels, seeds[0], noise, mixture=(mixed, weights))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(options) - set(SETTINGS):
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}; editing takes {', '.join(SETTINGS)}.")
    return options


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


def sampler_times(settings: Recipe) -> list[float]:
    """The times that the recipe's sampler visits, noise first."""
    process, steps, options = make_process(settings), settings.num_inference_steps, settings.sampler_options
    if settings.sampler in ("ddpm", "ddim") and isinstance(process, GaussianDiffusion) and "spacing" not in options:
        return process.integer_times(steps)
    if settings.sampler in ("euler_maruyama", "heun_maruyama"):
        return sde_times(process, steps, options.get("last_step", "mean"), options.get("last_step_size", 0.04))
    spacing = options.get("spacing", "karras" if settings.sampler == "edm_heun" else None)
    short = settings.sampler in ("dpmpp_3s", "dpm_3s", "dopri5")
    return process.times(steps, spacing, final_step=options.get("final_step", False) if short else None)


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
        channels = getattr(pipeline.codec, "image_channels", pipeline.model.in_channels)
        arrays = [np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32) for image in listed]
        stacked = torch.from_numpy(np.stack(arrays))
        images = (stacked[:, None] if channels == 1 else stacked.permute(0, 3, 1, 2)) / 127.5 - 1
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; give (N, C, H, W).")
    if images.abs().max() > 1 + 1e-4:
        raise ValueError(f"images must lie in [-1, 1], got values up to {float(images.abs().max()):g}.")
    latents = pipeline.codec.encode(images.float()).float().cpu()
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
    if not mask.any():
        raise ValueError("the mask paints nothing; set it to 1 where the image is to change.")
    return resize(torch.nn.functional.max_pool2d(mask[:, None], factor), clean.shape[2:]).bool()


def _samples(
    pipeline: Pipeline,
    settings: Recipe,
    like: Tensor,
    labels: Tensor | None,
    seed: int,
    noise: Tensor,
    *,
    times: Sequence[float] | None = None,
    start: Tensor | None = None,
    callback: Any = None,
    paint: Tensor | None = None,
    mixture: tuple[list[Tensor], Tensor] | None = None,
) -> Samples:
    _ = pipeline.codec  # what cannot be decoded is not worth sampling
    indices = list(range(len(like)))
    run = pipeline.denoise(
        settings,
        noise,
        labels,
        seed=seed,
        indices=indices,
        times=times,
        start=start,
        callback=callback,
        mixture=mixture,
    )
    latents = run.latents if paint is None else torch.where(paint, run.latents, like)
    return Samples(
        latents=latents,
        pixels=pipeline.decode(latents, settings),
        labels=labels,
        seed=seed,
        indices=indices,
        recipe=settings,
        evaluations=run.evaluations,
        forward_passes=run.rows / len(indices),
        label_names=pipeline.label_names,
    )
