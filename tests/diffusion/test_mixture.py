"""Every sampler on every process against data whose best denoiser is known: a Gaussian mixture, in float64."""

import math
from functools import cache

import pytest
import torch

from ditzoo.diffusion import SAMPLERS, dpmpp_3m_sample
from tests.diffusion import mixture
from tests.diffusion.mixture import KINDS, denoiser, exact, gaussian, process_of, recipe_of, z_scores

#: one kind of process in discrete and one in continuous time; the others are slow
FAST = [("cosine", "v_prediction"), ("flow_linear", "velocity")]


def runs(wanted):
    """(schedule, prediction, sampler) for every sampler that goes with a process and is wanted."""
    return [
        pytest.param(*kind, sampler, marks=() if kind in FAST else pytest.mark.slow)
        for kind in KINDS
        for sampler in recipe_of(*kind).samplers
        if wanted(SAMPLERS[sampler])
    ]


def test_every_sampler_is_among_those_that_run():
    names = {param.values[2] for param in runs(lambda info: True)}
    assert names == set(SAMPLERS)


# Order of convergence.


def even(process, steps):
    """A grid that is even in log(alpha / sigma) between -3 and 3, as far as the process reaches."""
    low, high = max(process.log_snr(process.start), -3.0), min(process.log_snr(process.end), 3.0)
    return [process.time_at(low + (high - low) * i / steps) for i in range(steps + 1)]


@cache
def converged(schedule, prediction):
    """Process, start, and where an all but exact solution of the flow leads from there."""
    process = process_of(schedule, prediction)
    alpha, sigma = process.level(even(process, 1)[0])
    start = alpha * exact(64) + sigma * gaussian(64)
    # Of third order: its error is (1000 / 96)^3 times smaller than the 2e-5 that it has in 96 steps.
    return process, start, dpmpp_3m_sample(denoiser(process), process, start, times=even(process, 1000))


#: with a remainder of 2 by 3: other numbers end the singlestep solvers' groups of third order with one of first, whose
#: error, though of a single step, is of second order
STEPS = (26, 50, 98, 194)


@pytest.mark.parametrize(("schedule", "prediction", "sampler"), runs(lambda info: info.order and info.evaluations))
def test_the_error_falls_with_the_order_of_the_sampler(schedule, prediction, sampler):
    process, start, solution = converged(schedule, prediction)
    info, network = SAMPLERS[sampler], denoiser(process)
    errors = {}
    for steps in STEPS:
        x = info.function(network, process, start, times=even(process, steps))
        errors[steps] = float((x - solution).square().mean().sqrt())
    # Between the two finest grids; below 1e-5 rounding and the solution's own error would be measured too.
    (fewer, large), (more, small) = [(steps, error) for steps, error in errors.items() if error > 1e-5][-2:]
    assert math.log(large / small) / math.log(more / fewer) >= info.order - 0.3, errors
    assert errors[STEPS[-1]] < 1e-2


@pytest.mark.parametrize(("schedule", "prediction", "sampler"), runs(lambda info: info.evaluations is None))
@pytest.mark.parametrize("rtol", [1e-3, pytest.param(1e-5, marks=pytest.mark.slow)])
def test_an_adaptive_sampler_keeps_its_tolerance(schedule, prediction, sampler, rtol):
    process, start, solution = converged(schedule, prediction)
    times = even(process, 1)
    x = SAMPLERS[sampler].function(denoiser(process), process, start, times=times, rtol=rtol, atol=rtol / 1000)
    # The tolerance is that of a step, for the root mean square over the batch; those of several add up.
    assert float((x - solution).square().mean().sqrt()) < 2 * rtol * float(solution.square().mean().sqrt())


MULTISTEP = ["dpmpp_2m", "dpmpp_3m", "unipc"]


@pytest.mark.parametrize("sampler", MULTISTEP)
@pytest.mark.parametrize("kind", FAST)
def test_no_order_is_lowered_on_an_even_grid(kind, sampler):
    process, start, _ = converged(*kind)
    function, times = SAMPLERS[sampler].function, even(process, 20)
    lowered, full = (
        function(denoiser(process), process, start, times=times, lower_order=lower) for lower in (True, False)
    )
    assert torch.equal(lowered, full)


@pytest.mark.parametrize("sampler", MULTISTEP)
@pytest.mark.parametrize("kind", [("linear", "epsilon"), ("flow_gvp", "score")])
def test_lowered_orders_come_closer_where_steps_grow(kind, sampler):
    process = process_of(*kind)
    start, network = process.initial_sample(gaussian(64)), denoiser(process)
    solution = SAMPLERS["edm_heun"].function(network, process, start, num_inference_steps=150)
    function, errors = SAMPLERS[sampler].function, []
    for lower in (True, False):
        x = function(network, process, start, num_inference_steps=20, lower_order=lower)
        errors.append(float((x - solution).square().mean().sqrt()))
    assert errors[0] < 0.6 * errors[1], errors


# The distribution that comes out.

#: Each of a run's five z-scores would lie beyond this in 7 of a million runs if samples were independent and exact;
#: about 1200 are looked at. The rest of the margin is for the error of a finite number of steps.
MOST = 4.5
COUNT = 2048


def steps_of(info):
    """So many that the error of the method is small beside that of 2048 samples, 2 % of a standard deviation."""
    if info.order is None:
        return 200
    return 200 if info.order == 1 else 64


@pytest.mark.parametrize(("schedule", "prediction", "sampler"), runs(lambda info: True))
def test_samples_have_the_mean_and_covariance_of_the_data(schedule, prediction, sampler):
    process, info = process_of(schedule, prediction), SAMPLERS[sampler]
    generator = torch.Generator().manual_seed(2)
    noise = {"step_noise": lambda step: torch.randn(COUNT, 2, 1, 1, generator=generator)} if info.takes_noise else {}
    start = process.initial_sample(gaussian(COUNT))
    x = info.function(denoiser(process), process, start, num_inference_steps=steps_of(info), **noise)
    assert x.dtype == torch.float64
    scores = z_scores(x)
    assert scores.abs().max() < MOST, scores


@pytest.mark.parametrize("options", [{"eta": 1.0}, pytest.param({"eta": 0.4}, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FAST)
def test_ddim_with_noise_draws_from_the_data_too(kind, options):
    process = process_of(*kind)
    generator = torch.Generator().manual_seed(2)
    x = SAMPLERS["ddim"].function(
        denoiser(process),
        process,
        process.initial_sample(gaussian(COUNT)),
        num_inference_steps=200,
        step_noise=lambda step: torch.randn(COUNT, 2, 1, 1, generator=generator),
        **options,
    )
    assert z_scores(x).abs().max() < MOST


@pytest.mark.parametrize(
    "schedule", ["edm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cosine", "flow_linear"))]
)
def test_edms_churn_leaves_the_distribution_alone(schedule):
    process = process_of(schedule, {"edm": "edm", "cosine": "epsilon"}.get(schedule, "velocity"))
    generator = torch.Generator().manual_seed(2)
    x = SAMPLERS["edm_heun"].function(
        denoiser(process),
        process,
        process.initial_sample(gaussian(COUNT)),
        num_inference_steps=100,
        s_churn=20.0,
        step_noise=lambda step: torch.randn(COUNT, 2, 1, 1, generator=generator),
    )
    assert z_scores(x).abs().max() < MOST


FORMS = ["sbdm", "sigma", "constant", "linear", "decreasing", "increasing_decreasing"]


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", None])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampler", ["euler_maruyama", "heun_maruyama"])
@pytest.mark.parametrize("path", ["flow_linear", "flow_gvp", "flow_vp"])
@pytest.mark.slow
def test_any_diffusion_gives_the_same_distribution(path, sampler, form, last_step):
    process = process_of(path, "velocity")
    generator = torch.Generator().manual_seed(2)
    steps = process.times(600)
    if form == "sbdm":  # infinite where there is no signal
        steps = [0.01 + 0.99 * time for time in steps]
    if last_step is None:
        steps = [time for time in steps if time < 0.9999]
    x = SAMPLERS[sampler].function(
        denoiser(process),
        process,
        process.initial_sample(gaussian(COUNT)),
        times=steps,
        diffusion=form,
        last_step=last_step,
        step_noise=lambda step: torch.randn(COUNT, 2, 1, 1, generator=generator),
    )
    assert z_scores(x).abs().max() < MOST


# The mixture itself.


def test_exact_samples_pass_and_others_do_not():
    points = exact(COUNT)
    assert z_scores(points).abs().max() < 3
    for wrong in (1.08 * points, points + 0.1, points.flip(1)):
        assert z_scores(wrong).abs().max() > MOST


def test_expectations_are_those_of_the_points():
    """Of x0 given x, against the average over many exact pairs whose x is nearly the one asked for."""
    x0, noise = exact(1_000_000), gaussian(1_000_000)
    alpha, sigma = 0.8, 0.6
    x = alpha * x0 + sigma * noise
    for place in ((0.3, -0.2), (-1.0, 0.5)):
        near = (x.flatten(1) - torch.tensor(place, dtype=torch.float64)).norm(dim=1) < 0.05
        found = mixture.expectations(torch.tensor([place], dtype=torch.float64), alpha, sigma)
        for ours, points in zip(found, (x0, noise), strict=True):
            chosen = points.flatten(1)[near]
            error = chosen.std(dim=0) / len(chosen) ** 0.5
            assert ((chosen.mean(dim=0) - ours[0]).abs() < 4 * error + 2e-3).all()
