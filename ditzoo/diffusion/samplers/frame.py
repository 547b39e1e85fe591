"""What all samplers share: evaluations, steps, added noise, and the stop at the first value that is no number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import Estimate, Process, Spacing
from ditzoo.diffusion.process.base import shortened


class SamplingStep(NamedTuple):
    """What a callback is told after a step.

    Attributes:
        number: finished steps, from 1 on.
        num_steps: steps in all.
        time: the process's time that the sample has reached.
        sample: (B, C, H, W) at that time.
        x0: the last estimate of the clean sample, (B, C, H, W).
        evaluations: calls of the model so far.
    """

    number: int
    num_steps: int
    time: float
    sample: Tensor
    x0: Tensor
    evaluations: int


#: a tensor that it returns takes the place of the sample
Callback = Callable[[SamplingStep], object]
#: number of a step, from 0 on -> standard normal noise (B, C, H, W)
NoiseOfStep = Callable[[int], Tensor]


class NonFiniteSampleError(FloatingPointError):
    """Sampling met a value that is no finite number.

    Attributes:
        step: the step that gave it, from 1 on.
        num_steps: steps in all.
        rows: places in the batch of the samples that have one; their numbers where a pipeline raises it.
        finished: what a pipeline had finished before, if anything.
    """

    finished: object = None

    def __init__(self, step: int, num_steps: int, rows: list[int], *, numbered: bool = False) -> None:
        self.step, self.num_steps, self.rows = step, num_steps, rows
        super().__init__(
            f"sampling gave values that are not finite at step {step} of {num_steps}, in samples {shortened(rows)}"
            f"{'' if numbered else ' of the batch'}. Look at the weights (`ditzoo verify`), lower the guidance scale, "
            "or sample in float32."
        )


class Run:
    """One batch on its way from noise to data.

    Args:
        model: called as model(x, t, y).
        process: levels, and what the model predicts.
        y: (B,) labels, or None.
        times: the steps' ends, from noise to data.
        callback: called after each step.
    """

    def __init__(
        self, model: Denoiser, process: Process, y: Tensor | None, times: Sequence[float], callback: Callback | None
    ) -> None:
        self.model, self.process, self.y, self.callback = model, process, y, callback
        self.times = list(times)
        self.num_steps = len(self.times) - 1
        self.evaluations = 0
        self.last: Estimate | None = None

    def estimate(self, x: Tensor, time: float) -> Estimate:
        """x0 and noise as the model sees them in x at a time: one evaluation."""
        whole = self.process.num_timesteps is not None and float(time).is_integer()
        dtype = torch.int64 if whole else torch.float64 if x.dtype == torch.float64 else torch.float32
        t = torch.full((x.shape[0],), int(time) if whole else time, device=x.device, dtype=dtype)
        self.evaluations += 1
        self.last = self.process.estimate(x, self.process.call(self.model, x, t, self.y), time)
        return self.last

    def velocity(self, x: Tensor, time: float) -> Tensor:
        """dx / dt of the probability flow at a time: one evaluation."""
        return flow_velocity(self.process, self.estimate(x, time), time)

    def check_finite(self, number: int, x: Tensor) -> None:
        """Raise a NonFiniteSampleError where a step, counted from 0, met values that are no finite numbers."""
        if not torch.isfinite(x).all():
            rows = (~torch.isfinite(x.flatten(1)).all(dim=1)).nonzero().flatten().tolist()
            raise NonFiniteSampleError(number + 1, self.num_steps, rows)

    def finish(self, number: int, x: Tensor, estimate: Estimate | None = None) -> Tensor:
        """Note that a step, counted from 0, has given x; x, or what the callback puts in its place. The callback is
        shown the x0 of an estimate, the last one where None."""
        self.check_finite(number, x)
        if self.callback is None:
            return x
        estimate = estimate or self.last
        x0 = x if estimate is None else estimate.x0
        time = self.times[number + 1]
        replaced = self.callback(SamplingStep(number + 1, self.num_steps, time, x, x0, self.evaluations))
        return replaced if isinstance(replaced, Tensor) else x


def flow_velocity(process: Process, estimate: Estimate, time: float) -> Tensor:
    """dx / dt = alpha' x0 + sigma' noise of the probability flow, as an estimate at this time has it."""
    d_alpha, d_sigma = process.derivatives(time)
    return d_alpha * estimate.x0 + d_sigma * estimate.noise


def grid(
    process: Process,
    num_inference_steps: int,
    times: Sequence[float] | None,
    spacing: Spacing | None = None,
    final_step: bool | None = None,
) -> list[float]:
    """The caller's times, or the process's.

    Raises:
        ValueError: for fewer than one step, or times that are not two or more numbers.
    """
    if times is None:
        return process.times(num_inference_steps, spacing, final_step=final_step)
    if len(times) < 2:
        raise ValueError(f"times must be two or more times of the process, from start to end, got {list(times)}.")
    return [float(time) for time in times]


def drawn(noise_of_step: NoiseOfStep | None, step: int, x: Tensor, sampler: str) -> Tensor:
    """The noise of a step, where and in the precision that x is.

    Raises:
        ValueError: where the caller gave no noise.
    """
    if noise_of_step is None:
        raise ValueError(
            f"{sampler} adds noise at every step: give step_noise=ditzoo.diffusion.StepNoise(seed, indices, shape), "
            "or a function of the step."
        )
    return noise_of_step(step).to(x)
