"""Solvers of reverse stochastic differential equations in the process's own time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import FlowMatching, Process
from ditzoo.diffusion.process.base import check_steps
from ditzoo.diffusion.samplers.frame import Callback, NoiseOfStep, Run, drawn, flow_velocity, grid
from ditzoo.diffusion.samplers.ode import check_continuous
from ditzoo.diffusion.samplers.options import check_ranges

DiffusionForm = Literal["sbdm", "sigma", "constant", "linear", "decreasing", "increasing_decreasing"]
LastStep = Literal["mean", "tweedie", "euler"]


def euler_maruyama_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 250,
    times: Sequence[float] | None = None,
    diffusion: DiffusionForm | None = None,
    diffusion_norm: float = 1.0,
    last_step: LastStep | None = "mean",
    last_step_size: float = 0.04,
    step_noise: NoiseOfStep | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler-Maruyama on dx = (v + w s) dt + sqrt(2 w) dW, with velocity v, score s and a free choice of w(t)
    (section 2.4 of arXiv:2401.08740; for the VP process with `"sbdm"`, eq. 6 of arXiv:2011.13456).

    One evaluation a step; the last step adds no noise. Arguments as `ddpm_sample`, and:

    Args:
        times: of the process, all steps included.
        diffusion: w, times `diffusion_norm`: `"sbdm"`, |sigma^2 alpha' / alpha - sigma sigma'|; `"sigma"`, sigma_t;
            `"constant"`, 1; `"linear"`, 1 - t; `"decreasing"`, (norm cos(pi t) + 1)^2 / 4; `"increasing_decreasing"`,
            sin(pi t)^2. `"sigma"` for flows and `"sbdm"` for the others where None.
        diffusion_norm: factor of w, above 0.
        last_step: `"mean"` follows the drift, `"tweedie"` takes the estimate of x0, `"euler"` follows the velocity;
            None stops short of it.
        last_step_size: length of a flow's last step; other processes go from their last time to the data.

    Raises:
        ValueError: for an unknown choice, or a w or drift that is infinite at the first or last time.
        TypeError: for a step count that is no integer, or a process whose noise levels are a table.
    """

    def step(sde: _ReverseSDE, run: Run, x: Tensor, start: float, end: float, noise: Tensor) -> Tensor:
        drift, w = sde.drift(run, x, start, end)
        return x + drift + math.sqrt(2 * w * abs(end - start)) * noise

    sde = _ReverseSDE(process, diffusion, diffusion_norm)
    if times is None:
        times = sde_times(process, num_inference_steps, last_step, last_step_size)
    return _solve(step, sde, model, process, x, y, times, last_step, step_noise, callback)


def heun_maruyama_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 250,
    times: Sequence[float] | None = None,
    diffusion: DiffusionForm | None = None,
    diffusion_norm: float = 1.0,
    last_step: LastStep | None = "mean",
    last_step_size: float = 0.04,
    step_noise: NoiseOfStep | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """SiT's second-order variant of `euler_maruyama_sample`: the noise of a step first, then Heun's method on the
    drift. Two evaluations a step, one in the last. Arguments and errors as there."""

    def step(sde: _ReverseSDE, run: Run, x: Tensor, start: float, end: float, noise: Tensor) -> Tensor:
        x = x + math.sqrt(2 * sde.w(start) * abs(end - start)) * noise
        first, _ = sde.drift(run, x, start, end)
        second, _ = sde.drift(run, x + first, end, end + (end - start))
        return x + (first + second) / 2

    sde = _ReverseSDE(process, diffusion, diffusion_norm)
    if times is None:
        times = sde_times(process, num_inference_steps, last_step, last_step_size)
    return _solve(step, sde, model, process, x, y, times, last_step, step_noise, callback)


class _ReverseSDE:
    """Drift and diffusion of the reverse process."""

    def __init__(self, process: Process, form: DiffusionForm | None, norm: float) -> None:
        check_continuous(process)
        check_ranges(diffusion_norm=norm)
        is_flow = isinstance(process, FlowMatching)
        self.process, self.norm = process, norm
        self.form: DiffusionForm = form or ("sigma" if is_flow else "sbdm")
        choices: Sequence[str] = get_args(DiffusionForm) if is_flow else ("sbdm", "constant")
        if self.form not in choices:
            raise ValueError(
                f"unknown diffusion {self.form!r} for a {type(process).__name__}; choose one of {', '.join(choices)}."
            )

    def w(self, t: float) -> float:
        """Half the square of the noise's rate."""
        alpha, sigma = self.process.level(t)
        if self.form == "sbdm":
            d_alpha, d_sigma = self.process.derivatives(t)
            if alpha == 0:
                raise ValueError(
                    f"diffusion 'sbdm' is infinite at time {t:g}; choose 'sigma', or give times that start later."
                )
            return self.norm * abs(sigma**2 * d_alpha / alpha - sigma * d_sigma)
        if self.form == "decreasing":
            return 0.25 * (self.norm * math.cos(math.pi * t) + 1) ** 2
        forms = {"sigma": sigma, "constant": 1.0, "linear": 1 - t, "increasing_decreasing": math.sin(math.pi * t) ** 2}
        return self.norm * forms[self.form]

    def drift(self, run: Run, x: Tensor, start: float, end: float) -> tuple[Tensor, float]:
        """What the drift at `start` adds on the way to `end`, and w: one evaluation."""
        estimate, w = run.estimate(x, start), self.w(start)
        pull = self._w_over_sigma(start, w) * abs(end - start) * estimate.noise  # w times the score -noise / sigma
        return flow_velocity(self.process, estimate, start) * (end - start) - pull, w

    def _w_over_sigma(self, t: float, w: float) -> float:
        if self.form == "sigma":
            return self.norm
        sigma = self.process.level(t)[1]
        if sigma == 0:
            raise ValueError(
                f"the drift of diffusion {self.form!r} is infinite at time {t:g}, where there is no noise; choose "
                "last_step='mean', diffusion='sigma', or times that end earlier."
            )
        return w / sigma


def sde_times(
    process: Process, num_steps: int, last_step: LastStep | None = "mean", last_step_size: float = 0.04
) -> list[float]:
    """The times of a stochastic sampler, its last step included.

    Raises:
        ValueError: for an unknown last step, a size outside (0, 1) or too few steps.
        TypeError: for a number of steps that is no integer.
    """
    _check_last_step(last_step)
    if not isinstance(process, FlowMatching):
        return process.times(num_steps, final_step=last_step is not None)
    if last_step is None:
        return process.times(num_steps)
    check_steps(num_steps)
    if not 0 < last_step_size < process.data - process.start:
        raise ValueError(f"last_step_size must lie between 0 and 1, got {last_step_size}.")
    if num_steps < 2:
        raise ValueError(f"num_inference_steps must be 2 or more with a last step of its own, got {num_steps}.")
    noisy = [process.start + i * (1 - last_step_size - process.start) / (num_steps - 1) for i in range(num_steps)]
    return [*noisy, process.data]


def _check_last_step(last_step: object) -> None:
    if last_step is not None and last_step not in get_args(LastStep):
        raise ValueError(f"unknown last_step {last_step!r}; choose mean, tweedie, euler or None.")


def _solve(
    step: Callable[[_ReverseSDE, Run, Tensor, float, float, Tensor], Tensor],
    sde: _ReverseSDE,
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None,
    times: Sequence[float],
    last_step: LastStep | None,
    step_noise: NoiseOfStep | None,
    callback: Callback | None,
) -> Tensor:
    _check_last_step(last_step)
    times = grid(process, 0, times)
    run = Run(model, process, y, times, callback)
    for number, (start, end) in enumerate(itertools.pairwise(times)):
        if number + 1 < run.num_steps or last_step is None:
            x = step(sde, run, x, start, end, drawn(step_noise, number, x, "a stochastic sampler"))
        elif last_step == "tweedie":
            x = run.estimate(x, start).x0
        elif last_step == "euler":
            x = x + (end - start) * run.velocity(x, start)
        else:
            x = x + sde.drift(run, x, start, end)[0]
        x = run.finish(number, x)
    return x
