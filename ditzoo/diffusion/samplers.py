"""Samplers: from noise to images with any model that a recipe describes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import GaussianDiffusion
from ditzoo.recipe import Sampler


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
    """
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


#: samplers by the name that a recipe gives them
SAMPLERS: dict[Sampler, Callable[..., Tensor]] = {"ddim": ddim_sample}
