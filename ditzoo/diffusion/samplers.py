"""Samplers: from noise to images with any model that a recipe describes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import FlowMatching, GaussianDiffusion
from ditzoo.recipe import Recipe, Sampler


def ddim_sample(
    model: Denoiser,
    process: GaussianDiffusion,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """DDIM without added noise (eq. 12 of arXiv:2010.02502 with eta = 0).

    Args:
        model: called as model(x, t, y); a learned variance behind the first C channels is dropped.
        process: schedule and prediction type.
        noise: (B, C, H, W) start at the last timestep.
        y: (B,) labels; None for an unconditional model.
        num_inference_steps: evaluations of the model, on times spread evenly from T - 1 down to 0.
        callback: called with the number of finished steps.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: for a step count below 1 or above the number of timesteps.
        TypeError: for a flow.
    """
    if not isinstance(process, GaussianDiffusion):
        raise TypeError(f"DDIM needs a GaussianDiffusion, not a {type(process).__name__}; use euler_sample.")
    if not 1 <= num_inference_steps <= process.num_timesteps:
        raise ValueError(f"num_inference_steps must be from 1 to {process.num_timesteps}, got {num_inference_steps}.")
    times = torch.linspace(process.num_timesteps - 1, 0, num_inference_steps).round().long().tolist()
    x, batch = noise, noise.shape[0]
    for step, time in enumerate(times):
        t = torch.full((batch,), time, device=x.device)
        prediction = model(x, t, y)[:, : x.shape[1]]
        x0, eps = process.denoise(x, prediction, t)
        x = x0 if step + 1 == len(times) else process.add_noise(x0, eps, torch.full_like(t, times[step + 1]))
        if callback is not None:
            callback(step + 1)
    return x


def euler_sample(
    model: Denoiser,
    process: FlowMatching,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Euler's method along the flow, from noise at time 0 to data at time 1. Arguments as `ddim_sample`.

    Raises:
        ValueError: for a step count below 1.
        TypeError: for a process that is no flow.
    """

    def step(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return x + (end - start) * _velocity(model, x, start, y)

    return _integrate(step, process, noise, num_inference_steps, callback)


def heun_sample(
    model: Denoiser,
    process: FlowMatching,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Heun's method (the explicit trapezoid) along the flow: two evaluations a step. Arguments as `ddim_sample`.

    Raises:
        ValueError: for a step count below 1.
        TypeError: for a process that is no flow.
    """

    def step(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        first = _velocity(model, x, start, y)
        second = _velocity(model, x + (end - start) * first, end, y)
        return x + (end - start) * (first + second) / 2

    return _integrate(step, process, noise, num_inference_steps, callback)


def _velocity(model: Denoiser, x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
    return model(x, time.expand(x.shape[0]), y)[:, : x.shape[1]]


def _integrate(
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    process: FlowMatching,
    noise: Tensor,
    num_inference_steps: int,
    callback: Callable[[int], None] | None,
) -> Tensor:
    """Apply `step(x, start, end)` on even intervals of [0, 1]."""
    if not isinstance(process, FlowMatching):
        raise TypeError(f"this sampler follows a flow, and {type(process).__name__} is none; use ddim_sample.")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be 1 or more, got {num_inference_steps}.")
    times = torch.linspace(0, 1, num_inference_steps + 1, device=noise.device)
    x = noise
    for i in range(num_inference_steps):
        x = step(x, times[i], times[i + 1])
        if callback is not None:
            callback(i + 1)
    return x


#: samplers of this release by the name that a recipe gives them
SAMPLERS: dict[Sampler, Callable[..., Tensor]] = {"ddim": ddim_sample, "euler": euler_sample, "heun": heun_sample}


def get_sampler(recipe: Recipe) -> Callable[..., Tensor]:
    """The sampler that a recipe names, called as `ddim_sample` is.

    Raises:
        ValueError: for a sampler that recipes can state and this release does not have.
    """
    if recipe.sampler not in SAMPLERS:
        have = "euler or heun" if recipe.is_flow else "ddim"
        raise ValueError(
            f"this release has no {recipe.sampler} sampler; use dataclasses.replace(recipe, sampler=...) with {have}."
        )
    return SAMPLERS[recipe.sampler]
