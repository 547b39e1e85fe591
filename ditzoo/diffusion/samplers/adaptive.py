"""The solver of the probability flow that chooses its own steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import Estimate, Process
from ditzoo.diffusion.samplers.frame import Callback, Run, grid
from ditzoo.diffusion.samplers.ode import check_continuous
from ditzoo.diffusion.samplers.options import check_ranges

#: weights of a step's seven slopes in the curvature of the path through it (section II.6 of Hairer, Norsett and
#: Wanner, Solving ordinary differential equations I)
_CURVATURE = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)


def dopri5_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    callback: Callback | None = None,
) -> Tensor:
    """Dormand and Prince's adaptive method through torchdiffeq, with SiT's tolerances. Arguments as `euler_sample`.

    The batch is one system: its step lengths, and so the last digits of a sample, depend on what else is in it. The
    number of steps decides only how often the callback is called, not how many evaluations are made: between the
    solver's own steps the sample is interpolated. The solver starts anew where the callback replaces a sample.

    Args:
        times: from the first to the last, rising or falling; those between are when the callback is called.
        rtol: relative error allowed in a step, above 0.
        atol: absolute error allowed in a step, above 0.

    Raises:
        ImportError: where torchdiffeq is missing, naming the extra to install.
        ValueError: for times that neither rise nor fall, or tolerances that are 0 or that no step can keep.
        NonFiniteSampleError: at the first value that is no finite number; its step is the one next to be reported.
    """
    check_continuous(process)
    check_ranges(rtol=rtol, atol=atol)
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError('the dopri5 sampler needs torchdiffeq: pip install "ditzoo[ode]"') from error
    times = grid(process, num_inference_steps, times, final_step=False)
    if len({after > before for before, after in itertools.pairwise(times)}) > 1 or len({*times}) < len(times):
        raise ValueError(f"times must rise or fall from each to the next, got {times}.")
    run = Run(model, process, y, times, callback)
    flow = _Flow(run)
    while True:
        points = torch.tensor([times[flow.reported], times[-1]], dtype=torch.float64, device=x.device)
        # Never step past the last time, where a network has not been trained.
        options = {"step_t": points[-1:], "first_step": flow.step_size}
        try:
            x = odeint(flow, x, points, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]
        except _Replaced as replaced:
            x, flow = replaced.sample, _Flow(run, flow.reported, flow.step_size)
        except AssertionError as error:
            if "underflow" not in str(error):
                raise
            raise ValueError(
                f"no step after time {times[flow.reported]:g} is short enough for dopri5 to keep rtol={rtol:g} and "
                f"atol={atol:g}; raise them, sample in float64, or take a sampler of fixed steps such as heun."
            ) from error
        else:
            return run.finish(run.num_steps - 1, x)


class _Replaced(Exception):  # noqa: N818, it is no error
    """Leaves the solver when the callback has put another sample in the place of its own."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class _Flow:
    """dx / dt as torchdiffeq calls it, and the hook by which torchdiffeq tells of its own steps.

    Args:
        run: the batch; its steps are what the callback is told of.
        reported: how many of them it has been told of.
        step_size: of the solver's last step.
    """

    def __init__(self, run: Run, reported: int = 0, step_size: float | None = None) -> None:
        self.run, self.reported, self.step_size = run, reported, step_size
        #: states and dx / dt of the solver's step in progress: at its start, and the last six that were evaluated
        self.stages: list[tuple[Tensor, Tensor]] = []
        self.at_start: Estimate | None = None

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        slope = self.run.velocity(x, float(t))
        self.run.check_finite(self.reported, slope)
        if not self.stages:
            self.at_start = self.run.last
        self.stages = [*self.stages[:1], *self.stages[1:][-5:], (x, slope)]
        return slope

    def callback_accept_step(self, t0: Tensor, x: Tensor, dt: Tensor) -> None:
        """Report the steps of the run that end within a step of the solver; the last one is left to the caller."""
        run, start, self.step_size = self.run, float(t0), float(dt)
        h = math.copysign(self.step_size, run.times[-1] - run.times[0])
        while self.reported + 1 < run.num_steps and (share := (run.times[self.reported + 1] - start) / h) <= 1:
            between = _interpolated(self.stages, h, share)
            finished = run.finish(self.reported, between, self.at_start)
            self.reported += 1
            if finished is not between:
                raise _Replaced(finished)
        self.stages, self.at_start = self.stages[-1:], run.last  # the last stage is at the end of its step


def _interpolated(stages: list[tuple[Tensor, Tensor]], h: float, share: float) -> Tensor:
    """Where the path is at a share of a step of length h, to fourth order, from the step's seven stages."""
    start, slopes = stages[0][0], [slope for _, slope in stages]
    rise = stages[-1][0] - start
    bend = h * slopes[0] - rise
    curvature = h * sum(weight * slope for weight, slope in zip(_CURVATURE, slopes, strict=True))
    rest = 1 - share
    return start + share * (rise + rest * (bend + share * (rise - h * slopes[-1] - bend + rest * curvature)))
