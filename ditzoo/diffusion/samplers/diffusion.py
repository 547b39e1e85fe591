"""The samplers that came with diffusion models: DDPM's and DDIM's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import Estimate, GaussianDiffusion, Process, Spacing
from ditzoo.diffusion.samplers.frame import Callback, NoiseOfStep, Run, drawn, grid
from ditzoo.diffusion.samplers.options import check_ranges
from ditzoo.recipe import CONTINUOUS_SAMPLERS


def ddpm_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    step_noise: NoiseOfStep | None = None,
    clip_sample: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling (algorithm 2 of arXiv:2006.11239) on fewer timesteps, with the recipe's variance, learned or
    fixed (section 4 of arXiv:2102.09672).

    Args:
        model: called as model(x, t, y).
        process: discrete; schedule, prediction type and variance.
        x: (B, C, H, W) start at the last timestep: `process.initial_sample(noise)`.
        y: (B,) labels; None for an unconditional model.
        num_inference_steps: evaluations of the model, on times spread as `space_timesteps` does.
        times: whole timesteps to take instead, falling, and the data's -1 at the end.
        step_noise: noise of each step, such as `StepNoise(seed, indices, shape)`.
        clip_sample: clamp each estimate of x0 to [-1, 1]: for pixels, not for latents.
        callback: called after each step with a `SamplingStep`; a tensor that it returns takes the sample's place.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: for a step count below 1 or above the number of timesteps, or no noise.
        TypeError: for a step count that is no integer, or a process in continuous time.
        NonFiniteSampleError: at the first value that is no finite number.
    """
    if not isinstance(process, GaussianDiffusion):
        raise TypeError(
            f"DDPM needs the timesteps of a GaussianDiffusion, and a {type(process).__name__} has none; use one of "
            f"{', '.join(CONTINUOUS_SAMPLERS)}."
        )
    times = process.integer_times(num_inference_steps) if times is None else _checked_whole(times)
    spaced = process.keep([int(time) for time in reversed(times[:-1])])
    run = Run(model, process, y, times, callback)
    for step, time in enumerate(times[:-1]):
        estimate = run.estimate(x, time)
        x0 = estimate.x0.clamp(-1, 1) if clip_sample else estimate.x0
        run.last = Estimate(x0, estimate.noise, estimate.output)
        if step + 1 == run.num_steps:  # the posterior of the last step has no variance, and x0 as its mean
            x = x0
        else:
            t = torch.full((x.shape[0],), len(times) - 2 - step, device=x.device)
            reverse = spaced.reverse_step(x, estimate.output, t, clip_sample=clip_sample)
            x = reverse.mean + torch.exp(0.5 * reverse.log_variance) * drawn(step_noise, step, x, "DDPM")
        x = run.finish(step, x)
    return x


def _checked_whole(times: Sequence[float]) -> list[float]:
    falling = all(before > after for before, after in itertools.pairwise(times))
    if len(times) < 2 or not falling or times[-1] != -1 or not all(float(time).is_integer() for time in times):
        raise ValueError(f"times must be whole timesteps that fall and end with the data's -1, got {list(times)}.")
    return [float(time) for time in times]


def ddim_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    eta: float = 0.0,
    step_noise: NoiseOfStep | None = None,
    clip_sample: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (eq. 12 and 16 of arXiv:2010.02502) for every process; eta = 1 adds DDPM's noise.

    Arguments, result and errors as `ddpm_sample`, and:

    Args:
        times: of the process instead of a number of steps, from noise to data; the other way round inverts the sampler.
        spacing: of the times, see `Process.times`; discrete processes keep whole timesteps where None.
        eta: from 0, which adds no noise, to 1.
    """
    check_ranges(eta=eta)
    if times is None and spacing is None and isinstance(process, GaussianDiffusion):
        times = process.integer_times(num_inference_steps)
    run = Run(model, process, y, grid(process, num_inference_steps, times, spacing), callback)
    for step in range(run.num_steps):
        estimate = run.estimate(x, run.times[step])
        if clip_sample:
            x0 = estimate.x0.clamp(-1, 1)
            estimate = run.last = Estimate(x0, noise_beside(process, x, x0, run.times[step]), estimate.output)
        x, added = ddim_step(process, estimate, run.times[step], run.times[step + 1], eta)
        if added > 0:
            x = x + added * drawn(step_noise, step, x, "DDIM with eta above 0")
        x = run.finish(step, x)
    return x


def noise_beside(process: Process, x: Tensor, x0: Tensor, time: float) -> Tensor:
    """The noise in x = alpha x0 + sigma noise."""
    alpha, sigma = process.level(time)
    return (x - alpha * x0) / sigma


def ddim_step(process: Process, estimate: Estimate, start: float, end: float, eta: float = 0.0) -> tuple[Tensor, float]:
    """One step of DDIM between two times: the sample before noise is added, and that noise's standard deviation."""
    (alpha, sigma), (next_alpha, next_sigma) = process.level(start), process.level(end)
    added = 0.0
    if eta and next_sigma > 0:
        ratio = next_sigma * alpha / (next_alpha * sigma)  # of the two noise levels sigma / alpha
        added = eta * next_sigma * math.sqrt(1 - min(ratio, 1.0) ** 2)
    direction = math.sqrt(max(next_sigma**2 - added**2, 0.0))
    return next_alpha * estimate.x0 + direction * estimate.noise, added
