"""Solvers of the probability flow in the process's own time, and EDM's in the noise level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import EDM, LOG_SNR_LIMIT, GaussianDiffusion, Process, Spacing
from ditzoo.diffusion.samplers.frame import Callback, NoiseOfStep, Run, drawn, grid
from ditzoo.diffusion.samplers.options import check_ranges
from ditzoo.recipe import DISCRETE_SAMPLERS


def euler_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method along the flow: one evaluation a step. Arguments as `ddim_sample`.

    Raises:
        ValueError: for a step count below 1.
        TypeError: for a process whose noise levels are a table.
    """

    def step(run: Run, x: Tensor, start: float, end: float) -> Tensor:
        return x + (end - start) * run.velocity(x, start)

    return _integrate(step, model, process, x, y, grid(process, num_inference_steps, times, spacing), callback)


def heun_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's method (the explicit trapezoid) along the flow: two evaluations a step, one in a step that ends where the
    network cannot be called. Arguments and errors as `euler_sample`."""

    def step(run: Run, x: Tensor, start: float, end: float) -> Tensor:
        first = run.velocity(x, start)
        ahead = x + (end - start) * first
        if end == process.data != process.end:
            return ahead
        return x + (end - start) * (first + run.velocity(ahead, end)) / 2

    return _integrate(step, model, process, x, y, grid(process, num_inference_steps, times, spacing), callback)


def _integrate(
    step: Callable[[Run, Tensor, float, float], Tensor],
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None,
    times: list[float],
    callback: Callback | None,
) -> Tensor:
    check_continuous(process)
    run = Run(model, process, y, times, callback)
    for number in range(run.num_steps):
        x = run.finish(number, step(run, x, times[number], times[number + 1]))
    return x


def check_continuous(process: Process) -> None:
    """Raise a TypeError for a process whose levels have no derivative in time."""
    if isinstance(process, GaussianDiffusion):
        raise TypeError(
            "this sampler follows a flow in continuous time, and a GaussianDiffusion has whole timesteps; use one of "
            f"{', '.join(DISCRETE_SAMPLERS)}."
        )


def edm_heun_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 18,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    step_noise: NoiseOfStep | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Algorithm 2 of arXiv:2206.00364: Heun's method in the noise level sigma / alpha, Euler's in a last step to the
    data, with noise thrown in before each step where `s_churn` is above 0. Works with every process, on x / alpha.

    Networks trained by EDM take any noise level, and get what the algorithm asks for. Others know none above that of
    their process's first time, so noise is thrown in up to the level of the first of `times` only. Steps of rising
    noise, which invert the sampler, add none.

    2 N - 1 evaluations in N steps where the last one reaches the data. Arguments as `ddim_sample`, and:

    Args:
        spacing: as in `Process.times`; the paper's seventh roots where None.
        s_churn: how much noise is added and removed again; 0 is deterministic (algorithm 1). This and the following
            are 0 or more.
        s_tmin: lowest noise level at which noise is added.
        s_tmax: highest.
        s_noise: factor of its standard deviation.
        step_noise: noise of each step, needed where `s_churn` is above 0.
    """
    check_ranges(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    times = edm_times(process, num_inference_steps, times, spacing)
    run = Run(model, process, y, times, callback)
    most = math.inf if isinstance(process, EDM) else process.noise_level(times[0])
    x = x / process.level(times[0])[0]
    for step, (start, end) in enumerate(itertools.pairwise(times)):
        low, high = process.noise_level(end), process.noise_level(start)
        churned = low < high and s_tmin <= high <= s_tmax
        gamma = min(s_churn / run.num_steps, math.sqrt(2) - 1) if churned else 0.0
        raised = min(high * (1 + gamma), most)
        if raised > high:
            noise = drawn(step_noise, step, x, "EDM's sampler with s_churn above 0")
            x = x + math.sqrt(raised**2 - high**2) * s_noise * noise
            start, high = process.time_at(-math.log(raised)), raised
        slope = _noise_at(run, x, start)
        ahead = x + (low - high) * slope
        if low > 0:
            ahead = x + (low - high) * (slope + _noise_at(run, ahead, end)) / 2
        alpha, _ = process.level(end)
        x = run.finish(step, alpha * ahead) / alpha
    return x * process.level(times[-1])[0]


def edm_times(
    process: Process, num_steps: int, times: Sequence[float] | None = None, spacing: Spacing | None = None
) -> list[float]:
    """The times of `edm_heun_sample`, or the caller's: the first one moved to where x / alpha has some signal."""
    times = grid(process, num_steps, times, spacing or "karras")
    if math.isinf(process.noise_level(times[0])):
        times[0] = process.time_at(-LOG_SNR_LIMIT)
    return times


def _noise_at(run: Run, x: Tensor, time: float) -> Tensor:
    """d (x / alpha) / d (sigma / alpha), for x given over alpha."""
    return run.estimate(run.process.level(time)[0] * x, time).noise
