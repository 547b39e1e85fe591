"""Solvers that integrate the linear part of the probability flow exactly: DPM-Solver(++), UniPC.

Between two times with levels (alpha_s, sigma_s) and (alpha_t, sigma_t), and with lambda = log(alpha / sigma) and
h = lambda_t - lambda_s, the flow is

    x_t = (sigma_t / sigma_s) x_s + sigma_t * integral of exp(lambda) x0(lambda) from lambda_s to lambda_t
        = (alpha_t / alpha_s) x_s - alpha_t * integral of exp(-lambda) noise(lambda)

(eq. 3.4 of arXiv:2206.00927, eq. 8 of arXiv:2211.01095). Both are x_t = (A_t / A_s) x_s - B_t * sum of weighted
predictions, with A, B = sigma, alpha and z = -h for x0, A, B = alpha, sigma and z = h for noise. A step whose h is
infinite, from pure noise or to data, is of first order, where both agree with DDIM.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.process import LOG_SNR_LIMIT, Estimate, Process, Spacing
from ditzoo.diffusion.process.base import check_steps
from ditzoo.diffusion.samplers.diffusion import ddim_step, noise_beside
from ditzoo.diffusion.samplers.frame import Callback, Run, grid

Predicted = Literal["x0", "noise"]
#: a prediction of x0 and the lambda at which it was made; lists of them are newest first
_Known = tuple[float, Tensor]
#: how far back the newest, second and third prediction must reach, as a share of the step that they extrapolate to
_LEAST_REACH = (0.0, 0.4, 1.4)


class _Exponential:
    """Levels and predictions in the roles of the formulas above."""

    def __init__(self, process: Process, predicted: Predicted) -> None:
        self.process, self.predicted = process, predicted

    def level(self, time: float) -> tuple[float, float]:
        """A and B."""
        alpha, sigma = self.process.level(time)
        return (sigma, alpha) if self.predicted == "x0" else (alpha, sigma)

    def z(self, start: float, end: float) -> float:
        h = self.process.log_snr(end) - self.process.log_snr(start)
        return -h if self.predicted == "x0" else h

    def of(self, estimate: Estimate) -> Tensor:
        return estimate.x0 if self.predicted == "x0" else estimate.noise


def dpmpp_2m_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    lower_order: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), multistep of second order (algorithm 2 of arXiv:2211.01095).

    One evaluation a step. Arguments as `ddim_sample`, and:

    Args:
        lower_order: extrapolate from fewer predictions where a step is long for how far back they reach, as the steps
            near the data are on grids that are even in time; False keeps to the algorithm.
    """
    times = grid(process, num_inference_steps, times, spacing)
    return _multistep(_second_order, model, process, x, y, times, lower_order, callback)


def dpmpp_3m_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    lower_order: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Multistep of third order in the manner of DPM-Solver++ (arXiv:2211.01095): x0 as a quadratic through the last
    three predictions, integrated exactly. Arguments as `dpmpp_2m_sample`.

    One evaluation a step. The second step is of second order, the first and last may be of first.
    """
    times = grid(process, num_inference_steps, times, spacing)
    return _multistep(_third_order, model, process, x, y, times, lower_order, callback)


#: (predictions, newest first; their distances in lambda from the newest over h; h) -> the weighted prediction
_Combination = Callable[[list[Tensor], list[float], float], Tensor]


def _multistep(
    combine: _Combination,
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None,
    times: list[float],
    lower_order: bool,
    callback: Callback | None,
) -> Tensor:
    run = Run(model, process, y, times, callback)
    history: list[_Known] = []
    for step, (start, end) in enumerate(itertools.pairwise(times)):
        estimate = run.estimate(x, start)
        here, there = process.log_snr(start), process.log_snr(end)
        history = [(here, estimate.x0), *history[:2]]
        if math.isinf(here) or math.isinf(there):
            x, _ = ddim_step(process, estimate, start, end)
        else:
            h = there - here
            usable = _usable(history, h, lower_order)
            places = [(value - here) / h for value, _ in usable]
            (_, sigma), (next_alpha, next_sigma) = process.level(start), process.level(end)
            weighted = combine([x0 for _, x0 in usable], places, h)
            x = next_sigma / sigma * x + next_alpha * weighted
        x = run.finish(step, x)
    return x


def _usable(history: list[_Known], h: float, lower_order: bool) -> list[_Known]:
    """Those of the last predictions, newest first, that a step of length h may extrapolate from.

    On the papers' grids in time the steps grow longer in lambda towards the data, and a polynomial through points that
    lie closer together than the step is long overshoots. The published solvers lower their order in the last steps;
    here a step does so wherever it is long for what it knows, which leaves the order of convergence as it is.
    """
    known = [(value, x0) for value, x0 in history if not math.isinf(value)]
    if not lower_order:
        return known
    reached = [
        abs(value - known[0][0]) >= least * abs(h) for (value, _), least in zip(known, _LEAST_REACH, strict=False)
    ]
    return known[: len(list(itertools.takewhile(bool, reached)))]


def _second_order(x0: list[Tensor], places: list[float], h: float) -> Tensor:
    whole = -math.expm1(-h)
    if len(x0) == 1:
        return whole * x0[0]
    return whole * (x0[0] + (x0[0] - x0[1]) / (-2 * places[1]))


def _third_order(x0: list[Tensor], places: list[float], h: float) -> Tensor:
    """Newton's polynomial x0[0] + first * u + second * u^2 in u = (lambda - lambda_s) / h, times
    h exp(-h (1 - u)), integrated over u from 0 to 1."""
    if len(x0) < 3:
        return _second_order(x0, places, h)
    near = (x0[0] - x0[1]) / -places[1]
    far = (x0[1] - x0[2]) / (places[1] - places[2])
    second = (near - far) / -places[2]
    first = near - places[1] * second
    zeroth = -math.expm1(-h)
    linear = 1 - zeroth / h
    quadratic = 1 - 2 * linear / h
    return zeroth * x0[0] + linear * first + quadratic * second


def dpmpp_3s_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    final_step: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Singlestep DPM-Solver++ of third order on x0, steps grouped as DPM-Solver-fast groups them
    (appendix B of arXiv:2211.01095, section 3.4 of arXiv:2206.00927). Arguments as `ddim_sample`, and:

    Args:
        num_inference_steps: evaluations: groups of three for steps of third order, the rest for lower ones.
        final_step: end at the data rather than at the last time at which networks are trained. U-ViT does not.
    """
    times = grid(process, num_inference_steps, times, spacing, final_step)
    return _singlestep("x0", model, process, x, y, times, callback)


def dpm_3s_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    final_step: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver-fast: `dpmpp_3s_sample` on the noise instead of x0 (algorithms 1 to 3 of arXiv:2206.00927). Arguments
    as there, and:

    Args:
        spacing: as in `Process.times`; `fast_times`, the paper's steps of equal length in lambda, where None.
    """
    if times is None and spacing is None:
        times = fast_times(process, num_inference_steps, final_step)
    times = grid(process, num_inference_steps, times, spacing, final_step)
    return _singlestep("noise", model, process, x, y, times, callback)


def singlestep_orders(num_steps: int) -> list[int]:
    """Orders of DPM-Solver-fast's steps, which use up `num_steps` evaluations (section 3.4 of arXiv:2206.00927)."""
    threes, rest = divmod(num_steps, 3)
    return [3] * (threes - 1) + [2, 1] if rest == 0 else [3] * threes + [rest]


def fast_times(process: Process, num_steps: int, final_step: bool = False) -> list[float]:
    """The times at which DPM-Solver-fast calls the network, and its last one: steps of equal length in lambda, whose
    inner nodes lie at halves or thirds of their own step (section 3.4 of arXiv:2206.00927).

    Where lambda is infinite, or all but infinite, the grid reaches to `LOG_SNR_LIMIT`, and the step there is of first
    order. The paper has no such ends, and no step to the data.

    Args:
        process: whose times from `start` to `end` are taken.
        num_steps: evaluations.
        final_step: go from `end` to the data in one more step of first order.

    Raises:
        ValueError: for fewer than one step.
        TypeError: for a number of steps that is no integer.
    """
    check_steps(num_steps)
    jump = [process.data] if final_step and process.end != process.data else []
    orders = _orders(process, process.start, process.data if jump else process.end, num_steps)
    if jump:
        orders = orders[:-1]
    low, high = (min(max(process.log_snr(t), -LOG_SNR_LIMIT), LOG_SNR_LIMIT) for t in (process.start, process.end))
    shares = [(step + node / order) / len(orders) for step, order in enumerate(orders) for node in range(order)]
    inner = [process.time_at(low + (high - low) * share) for share in shares[1:]]
    return [process.start, *inner, *([process.end] if orders else []), *jump]


def _orders(process: Process, start: float, end: float, num_steps: int) -> list[int]:
    """Orders of singlesteps with `num_steps` evaluations; those of all but infinite length in lambda stand alone."""
    first = int(process.log_snr(start) < -LOG_SNR_LIMIT)
    last = int(process.log_snr(end) > LOG_SNR_LIMIT and num_steps > first)
    inner = num_steps - first - last
    return [1] * first + (singlestep_orders(inner) if inner else []) + [1] * last


def _singlestep(
    predicted: Predicted,
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None,
    times: list[float],
    callback: Callback | None,
) -> Tensor:
    run, roles = Run(model, process, y, times, callback), _Exponential(process, predicted)
    step = 0
    for order in _orders(process, times[0], times[-1], run.num_steps):
        nodes = times[step : step + order + 1]
        step += order
        if math.isinf(roles.z(nodes[0], nodes[-1])):
            x, _ = ddim_step(process, run.estimate(x, nodes[0]), nodes[0], nodes[-1])
        else:
            x = _SINGLESTEPS[order](run, roles, x, nodes)
        x = run.finish(step - 1, x)
    return x


def _step_1(run: Run, roles: _Exponential, x: Tensor, nodes: Sequence[float]) -> Tensor:
    return _linear(roles, x, roles.of(run.estimate(x, nodes[0])), nodes[0], nodes[1])


def _step_2(run: Run, roles: _Exponential, x: Tensor, nodes: Sequence[float]) -> Tensor:
    start, middle, end = nodes
    r = roles.z(start, middle) / roles.z(start, end)
    m0 = roles.of(run.estimate(x, start))
    m1 = roles.of(run.estimate(_linear(roles, x, m0, start, middle), middle))
    return _linear(roles, x, m0 + (m1 - m0) / (2 * r), start, end)


def _step_3(run: Run, roles: _Exponential, x: Tensor, nodes: Sequence[float]) -> Tensor:
    start, first, second, end = nodes
    r1, r2 = (roles.z(start, node) / roles.z(start, end) for node in (first, second))
    m0 = roles.of(run.estimate(x, start))
    m1 = roles.of(run.estimate(_linear(roles, x, m0, start, first), first))
    x2 = _linear(roles, x, m0, start, second) + _slope(roles, r2 / r1 * (m1 - m0), start, second)
    m2 = roles.of(run.estimate(x2, second))
    return _linear(roles, x, m0, start, end) + _slope(roles, (m2 - m0) / r2, start, end)


_SINGLESTEPS = {1: _step_1, 2: _step_2, 3: _step_3}


def _linear(roles: _Exponential, x: Tensor, m: Tensor, start: float, end: float) -> Tensor:
    """The flow from start to end with a constant prediction m."""
    (a, _), (next_a, next_b) = roles.level(start), roles.level(end)
    return next_a / a * x - next_b * math.expm1(roles.z(start, end)) * m


def _slope(roles: _Exponential, difference: Tensor, start: float, end: float) -> Tensor:
    """What a prediction that rises by `difference` between start and end adds."""
    z = roles.z(start, end)
    return -roles.level(end)[1] * (math.expm1(z) / z - 1) * difference


def unipc_sample(
    model: Denoiser,
    process: Process,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_inference_steps: int = 50,
    times: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    order: int = 2,
    lower_order: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """UniPC (arXiv:2302.04867): a multistep predictor of order `order` on x0 with B(h) = exp(h) - 1, whose result the
    next step's evaluation corrects. Arguments as `dpmpp_2m_sample`, and:

    Args:
        order: of the predictor, 1 to 3.

    Raises:
        ValueError: for another order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"UniPC's order must be 1, 2 or 3, got {order!r}.")
    times = grid(process, num_inference_steps, times, spacing)
    run = Run(model, process, y, times, callback)
    history: list[_Known] = []
    before = x
    for step, (start, end) in enumerate(itertools.pairwise(times)):
        estimate = run.estimate(x, start)
        here = process.log_snr(start)
        if history and not (math.isinf(here) or math.isinf(history[0][0])):
            x = _unipc_step(process, before, history, times[step - 1], start, corrector=estimate.x0)
        there = process.log_snr(end)
        history = [(here, estimate.x0), *history][:order]
        before = x
        if math.isinf(here) or math.isinf(there):
            corrected = estimate._replace(noise=noise_beside(process, x, estimate.x0, start))
            x, _ = ddim_step(process, corrected, start, end)
        else:
            history = _usable(history, there - here, lower_order)
            x = _unipc_step(process, x, history, start, end)
        finished = run.finish(step, x)
        if finished is not x:  # there is nothing left to correct
            history = []
        x = finished
    return x


def _unipc_step(
    process: Process,
    x: Tensor,
    history: list[_Known],
    start: float,
    end: float,
    corrector: Tensor | None = None,
) -> Tensor:
    """UniP, or UniC where the prediction at the step's end is given (eq. 3 and 4, theorem 3.1)."""
    (_, sigma), (next_alpha, next_sigma) = process.level(start), process.level(end)
    here, x0 = history[0]
    h = process.log_snr(end) - here
    places = [(value - here) / h for value, _ in history[1:]]
    values = [earlier for _, earlier in history[1:]]
    if corrector is not None:
        places, values = [*places, 1.0], [*values, corrector]
    x = next_sigma / sigma * x - next_alpha * math.expm1(-h) * x0
    for weight, place, value in zip(_unipc_weights(places, -h), places, values, strict=True):
        x = x - next_alpha * math.expm1(-h) * weight * (value - x0) / place
    return x


def _unipc_weights(places: list[float], z: float) -> list[float]:
    """Weights of the divided differences: R(h) a = phi(h) / B(h) in theorem 3.1, of one difference always 1/2."""
    if len(places) < 2:
        return [0.5] * len(places)
    count = len(places)
    phi, right, factorial = math.expm1(z) / z - 1, [], 1
    for i in range(1, count + 1):
        right.append(phi * factorial / math.expm1(z))
        factorial *= i + 1
        phi = phi / z - 1 / factorial
    matrix = torch.tensor([[place**row for place in places] for row in range(count)], dtype=torch.float64)
    return torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)).tolist()
