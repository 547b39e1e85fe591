"""What all samplers have in common, and DDIM's own arithmetic; `test_mixture.py` holds them to known solutions."""

import dataclasses
import inspect
import itertools
import math
import re
import sys

import pytest
import torch

import ditzoo
from ditzoo.diffusion import (
    EDM,
    SAMPLERS,
    ContinuousVP,
    FlowMatching,
    GaussianDiffusion,
    NonFiniteSampleError,
    StepNoise,
    count_evaluations,
    ddim_sample,
    ddpm_sample,
    edm_heun_sample,
    euler_maruyama_sample,
    euler_sample,
    get_sampler,
    guide,
    heun_maruyama_sample,
    sample_noise,
    unipc_sample,
)
from ditzoo.diffusion.samplers.exponential import singlestep_orders
from ditzoo.recipe import CONTINUOUS_SAMPLERS, DISCRETE_SAMPLERS, Guidance, Recipe
from tests.diffusion.mixture import KINDS, denoiser, gaussian, process_of, recipe_of
from tests.golden_cases import relative_error
from tests.zoo import TINY, lively

SCHEDULES = ["linear", "scaled_linear", "cosine"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def process(prediction="epsilon", schedule="linear", steps=1000):
    recipe = Recipe(prediction=prediction, schedule=schedule, num_train_timesteps=steps, num_inference_steps=1)
    return GaussianDiffusion(recipe)


def best_denoiser(this, mean, std):
    """What a perfectly trained network returns for data distributed as N(mean, std^2)."""

    def network(x, t, y):
        alpha, sigma = this.alpha_sigma(t)
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
        return this.target(x0, (x - alpha * x0) / sigma, t)

    return network


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_gives_the_distribution_of_the_data(prediction, schedule):
    this, noise = process(prediction, schedule), torch.randn(4096, 1, 2, 2)
    x = ddim_sample(best_denoiser(this, 0.7, 0.3), this, noise, num_inference_steps=250)
    assert float(x.mean()) == pytest.approx(0.7, abs=0.03)
    assert float(x.std()) == pytest.approx(0.3, rel=0.03)
    # The path of a Gaussian is the straight map from its noise.
    assert float((x - (0.7 + 0.3 * noise)).abs().max()) < 0.1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_more_steps_come_closer(prediction):
    this, noise = process(prediction, "cosine"), torch.randn(64, 1, 2, 2)
    errors = []
    for steps in (5, 25, 125):
        x = ddim_sample(best_denoiser(this, 0.7, 0.3), this, noise, num_inference_steps=steps)
        errors.append(float((x - (0.7 + 0.3 * noise)).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_single_image_is_found_in_any_number_of_steps(prediction, steps):
    this, noise = process(prediction), torch.randn(8, 1, 2, 2)
    x = ddim_sample(best_denoiser(this, 0.7, 0.0), this, noise, num_inference_steps=steps)
    # A float32 alpha of 0.006 leaves four digits of a noise prediction's x0.
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-4 if steps == 1 else 1e-5)


class Recorder:
    """Calls a network and remembers what with."""

    def __init__(self, network):
        self.network, self.x, self.t, self.y = network, [], [], []

    def __call__(self, x, t, y):
        self.x.append(x)
        self.t.append(t)
        self.y.append(y)
        return self.network(x, t, y)


@pytest.mark.parametrize(
    ("total", "steps", "times"),
    [
        (1000, 1, [999]),
        (1000, 2, [999, 0]),
        (10, 4, [9, 6, 3, 0]),
        (1000, 5, [999, 749, 500, 250, 0]),
        (21, 21, list(range(20, -1, -1))),
    ],
)
def test_times_are_spread_evenly_from_last_to_first(total, steps, times):
    this = process("sample", "cosine", total)
    network = Recorder(lambda x, t, y: x)
    ddim_sample(network, this, torch.zeros(3, 1, 2, 2), num_inference_steps=steps)
    assert [t.tolist() for t in network.t] == [[time] * 3 for time in times]
    assert {t.dtype for t in network.t} == {torch.int64}


def test_no_time_is_visited_twice():
    this = process("sample", "cosine", 60)
    for steps in range(1, 61):
        network = Recorder(lambda x, t, y: x)
        ddim_sample(network, this, torch.zeros(1, 1, 1, 1), num_inference_steps=steps)
        assert len({int(t) for t in network.t}) == steps


def test_labels_reach_the_network_and_steps_the_callback():
    network, finished, y = Recorder(lambda x, t, y: x), [], torch.tensor([3, 4])
    noise = torch.zeros(2, 1, 2, 2)
    ddim_sample(network, process(), noise, y, num_inference_steps=3, callback=finished.append)
    assert [step.number for step in finished] == [1, 2, 3]
    assert all(labels is y for labels in network.y)
    ddim_sample(network, process(), noise, num_inference_steps=1)
    assert network.y[-1] is None


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_wrong_number_of_steps_is_named(steps):
    with pytest.raises(ValueError, match=rf"num_inference_steps must be from 1 to 1000, got {steps}"):
        ddim_sample(lambda x, t, y: x, process(), torch.zeros(1, 1, 2, 2), num_inference_steps=steps)


@pytest.mark.parametrize("name", TINY)
def test_sample_i_of_a_seed_is_the_same_image_whatever_the_batch(name):
    model = lively(name).double().eval()
    network = guide(model, Guidance(scale=2.0), model.null_label)
    labels = torch.tensor([1, 5, 9])

    def images(indices):
        noise = sample_noise(42, indices, (1, 8, 8)).double()
        with torch.no_grad():
            return ddim_sample(network, process("v_prediction"), noise, labels[indices], num_inference_steps=4)

    together = images([0, 1, 2])
    assert relative_error(images([2]), together[2:]) < 1e-10
    assert relative_error(images([1, 0]), together[[1, 0]]) < 1e-10


def test_the_map_of_one_step_by_its_formula():
    this, x = process(), torch.randn(1, 1, 2, 2)
    result = ddim_sample(lambda x, t, y: 0.3 * x, this, x, num_inference_steps=2)
    last, first = (math.sqrt(float(this.alphas_cumprod[t])) for t in (999, 0))
    x0 = (x - math.sqrt(1 - last**2) * 0.3 * x) / last
    x = first * x0 + math.sqrt(1 - first**2) * 0.3 * x
    expected = (x - math.sqrt(1 - first**2) * 0.3 * x) / first
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


# All samplers, on every process that they go with.

RUNS = [(*kind, sampler) for kind in KINDS for sampler in recipe_of(*kind).samplers]
#: one kind of every schedule, where a prediction makes no difference; half of them are slow
QUICK = {"cosine", "continuous_vp", "flow_linear", "edm"}
FIRST = {kind[0]: kind for kind in reversed(KINDS)}.values()


def marked(runs):
    return [pytest.param(*run, marks=() if run[0] in QUICK else pytest.mark.slow) for run in runs if run[:2] in FIRST]


EVERY = pytest.mark.parametrize(("schedule", "prediction", "sampler"), marked(RUNS))


def zeros_of(step):
    """Noise of a step for samples of a shape that spreads: none."""
    return torch.zeros(1, 1, 1, 1)


def run(sampler, network, this, x, y=None, **options):
    """With noise of its own for a sampler that adds some."""
    info = SAMPLERS[sampler]
    if info.takes_noise and "step_noise" not in options:
        options["step_noise"] = StepNoise(5, range(len(x)), x.shape[1:])
    return info.function(network, this, x, y, **options)


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize(("schedule", "prediction", "sampler"), [*marked(RUNS), ("flow_linear", "epsilon", "edm_heun")])
def test_evaluations_are_as_many_as_the_table_says(schedule, prediction, sampler, steps):
    this, finished = process_of(schedule, prediction), []
    network = Recorder(denoiser(this))
    run(sampler, network, this, this.initial_sample(gaussian(3)), num_inference_steps=steps, callback=finished.append)
    recipe = dataclasses.replace(recipe_of(schedule, prediction), sampler=sampler, num_inference_steps=steps)
    counted = count_evaluations(recipe)
    assert counted == (None if sampler == "dopri5" else len(network.t))
    if sampler != "dopri5":
        assert len(network.t) in (info := SAMPLERS[sampler].evaluations, info * steps, info * steps - 1)
        assert finished[-1].evaluations == len(network.t)


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", None])
def test_evaluations_of_every_last_step(last_step):
    this = FlowMatching()
    network = Recorder(denoiser(this))
    run("heun_maruyama", network, this, gaussian(3), num_inference_steps=5, last_step=last_step)
    recipe = Recipe(
        prediction="velocity",
        schedule="flow_linear",
        sampler="heun_maruyama",
        num_inference_steps=5,
        sampler_options={"last_step": last_step},
    )
    assert count_evaluations(recipe) == len(network.t) == (10 if last_step is None else 9)


@EVERY
def test_callbacks_see_every_step_and_samplers_leave_their_start_alone(schedule, prediction, sampler):
    this, finished = process_of(schedule, prediction), []
    start = this.initial_sample(gaussian(3)).float()
    before = start.clone()
    x = run(sampler, denoiser(this), this, start, num_inference_steps=7, callback=finished.append)
    assert torch.equal(start, before)
    assert [step.number for step in finished] == sorted({step.number for step in finished})
    last = finished[-1]
    assert (last.number, last.num_steps) == (7, 7)
    assert torch.equal(last.sample, x)
    assert x.shape == last.x0.shape == start.shape
    assert x.dtype == torch.float32
    levels = [this.log_snr(step.time) for step in finished]
    assert all(before < after for before, after in itertools.pairwise(levels))


@EVERY
def test_channels_behind_the_prediction_are_dropped(schedule, prediction, sampler):
    this = process_of(schedule, prediction)
    start, plain = this.initial_sample(gaussian(3)), denoiser(this)

    def longer(x, t, y):
        return torch.cat([plain(x, t, y), 9 + x], dim=1)

    options = {"num_inference_steps": 5}
    assert torch.equal(run(sampler, longer, this, start, **options), run(sampler, plain, this, start, **options))


#: those that solve in the noise level; in a process's own time the way is curved
STRAIGHT = marked(run for run in RUNS if run[2] in DISCRETE_SAMPLERS)


@pytest.mark.parametrize(("schedule", "prediction", "sampler"), STRAIGHT)
def test_a_single_image_is_found_in_any_number_of_steps_by_every_sampler(schedule, prediction, sampler):
    """Of data that is one point the flow from any noise leads there, straight in x / alpha over sigma / alpha."""
    this = process_of(schedule, prediction)

    def point(x, t, y):
        time = this.process_time(float(t[0]))
        alpha, sigma = this.level(time)
        if isinstance(this, EDM):
            x = x * math.sqrt(sigma**2 + 0.25)
        x0 = torch.full_like(x, 0.7)
        noise = (x - alpha * x0) / max(sigma, 1e-300)
        if this.prediction == "velocity":
            d_alpha, d_sigma = this.derivatives(time)
            return d_alpha * x0 + d_sigma * noise
        total = sigma**2 + 0.25
        edm = (x0 - 0.25 / total * x) / (0.5 * sigma / math.sqrt(total)) if sigma else x
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "edm": edm}[this.prediction]

    for steps in (2, 7):
        finished = []
        start = this.initial_sample(gaussian(8))
        x = run(sampler, point, this, start, num_inference_steps=steps, callback=finished.append)
        alpha, sigma = this.level(finished[-1].time)
        assert float((x - alpha * 0.7).abs().max()) <= 6 * sigma + 1e-10


@pytest.mark.parametrize("sampler", CONTINUOUS_SAMPLERS)
def test_the_callback_may_replace_the_sample(sampler):
    this, seen = FlowMatching(), []

    def freeze(step):
        seen.append(step.sample)
        return torch.full_like(step.sample, 0.25)

    x = run(sampler, denoiser(this), this, gaussian(3), num_inference_steps=9, callback=freeze)
    torch.testing.assert_close(x, torch.full_like(x, 0.25))
    # Each later step starts from equal samples, and deterministic ones keep them so.
    assert all(not torch.equal(after, seen[0]) for after in seen[1:])
    if not SAMPLERS[sampler].takes_noise:
        assert all(torch.equal(after, after[:1].expand_as(after)) for after in seen[1:])


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "edm_heun", "dopri5"])
@pytest.mark.parametrize("kind", [("continuous_vp", "epsilon"), ("flow_linear", "velocity"), ("edm", "edm")])
def test_the_other_way_round_a_sampler_finds_the_noise(kind, sampler):
    this = process_of(*kind)
    first, last = (this.time_at(value) for value in (-3.0, 3.0))
    values = [-3 + 6 * i / 100 for i in range(101)]
    times = [this.time_at(value) for value in values]
    alpha, sigma = this.level(first)
    start = sigma * gaussian(16) + alpha * 0.1
    x = run(sampler, denoiser(this), this, start, times=times)
    back = run(sampler, denoiser(this), this, x, times=times[::-1])
    # In 100 steps and back; Euler's and DDIM's errors are of first order.
    bound = {"ddim": 0.15, "euler": 0.15, "dopri5": 0.02}.get(sampler, 5e-4)
    assert float((back - start).abs().max()) < bound * sigma
    assert not torch.allclose(x, start)
    assert last == times[-1]


# Samples that do not depend on their batch.

NAMES = {"flow_linear": "sit_ti_2", "edm": "uvit_ti_2"}
STOCHASTIC = [
    ("cosine", "v_prediction", "ddpm", {}),
    ("linear", "epsilon", "ddim", {"eta": 1.0}),
    ("edm", "edm", "edm_heun", {"s_churn": 10.0}),
    ("continuous_vp", "epsilon", "euler_maruyama", {}),
    ("continuous_vp", "epsilon", "heun_maruyama", {}),
    ("flow_linear", "velocity", "euler_maruyama", {}),
    ("flow_linear", "velocity", "heun_maruyama", {}),
]


def test_every_stochastic_sampler_is_among_them():
    assert {sampler for _, _, sampler, _ in STOCHASTIC} == {name for name, info in SAMPLERS.items() if info.takes_noise}


@pytest.mark.parametrize(("schedule", "prediction", "sampler", "options"), STOCHASTIC)
def test_a_sample_is_the_same_in_batches_of_one_three_and_eight(schedule, prediction, sampler, options):
    this = process_of(schedule, prediction)
    model = lively(NAMES.get(schedule, "dit_ti_2")).eval()
    shape, labels = (1, 8, 8), torch.arange(8) % 10

    @torch.no_grad()
    def images(chosen):
        drawn, noise = [], StepNoise(3, chosen, shape)

        def step_noise(step):
            drawn.append(noise(step))
            return drawn[-1]

        x = this.initial_sample(sample_noise(3, chosen, shape))
        y = labels[list(chosen)]
        given = {"num_inference_steps": 5, "step_noise": step_noise, **options}
        return SAMPLERS[sampler].function(model, this, x, y, **given), torch.stack(drawn, 1)

    whole, noises = images(range(8))
    assert noises.shape[1] in (4, 5)  # the last step may add none
    for size in (1, 3):
        for start in range(0, 8, size):
            chosen = range(start, min(start + size, 8))
            part, part_noises = images(chosen)
            assert torch.equal(part_noises, noises[chosen.start : chosen.stop])
            assert relative_error(part, whole[chosen.start : chosen.stop]) < 1e-5


# What is refused.

NETWORK = Recorder(lambda x, t, y: x)
NOISE = torch.zeros(2, 1, 2, 2)


@pytest.mark.parametrize("kind", [("continuous_vp", "epsilon"), ("flow_linear", "velocity"), ("edm", "edm")])
def test_ddpm_refuses_continuous_time_and_names_what_works(kind):
    this = process_of(*kind)
    message = rf"a {type(this).__name__} has none; use one of {', '.join(CONTINUOUS_SAMPLERS)}\."
    with pytest.raises(TypeError, match=message):
        ddpm_sample(NETWORK, this, NOISE, step_noise=zeros_of)


@pytest.mark.parametrize("sampler", sorted(set(CONTINUOUS_SAMPLERS) - set(DISCRETE_SAMPLERS)))
def test_samplers_in_continuous_time_refuse_a_table_and_name_what_works(sampler):
    with pytest.raises(TypeError, match=rf"whole timesteps; use one of {', '.join(DISCRETE_SAMPLERS)}\."):
        run(sampler, NETWORK, process(), NOISE)


@EVERY
def test_wrong_numbers_of_steps_are_named_by_every_sampler(schedule, prediction, sampler):
    this = process_of(schedule, prediction)
    for steps in (0, -1):
        with pytest.raises(ValueError, match=rf"num_inference_steps must be (from 1 to 1000|. or more.*), got {steps}"):
            run(sampler, NETWORK, this, NOISE, num_inference_steps=steps)
    for steps in (2.5, "10", None):
        with pytest.raises(TypeError, match=rf"num_inference_steps must be an integer, got {steps!r}"):
            run(sampler, NETWORK, this, NOISE, num_inference_steps=steps)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_more_steps_than_timesteps_are_refused(sampler):
    with pytest.raises(ValueError, match=r"num_inference_steps must be from 1 to 1000, got 1001"):
        run(sampler, NETWORK, process(), NOISE, num_inference_steps=1001)


@pytest.mark.parametrize(("schedule", "prediction", "sampler", "options"), STOCHASTIC)
def test_noise_that_is_not_given_is_asked_for(schedule, prediction, sampler, options):
    this = process_of(schedule, prediction)
    message = r"adds noise at every step: give step_noise=ditzoo\.diffusion\.StepNoise\(seed, indices, shape\)"
    with pytest.raises(ValueError, match=message):
        SAMPLERS[sampler].function(denoiser(this), this, this.initial_sample(gaussian(2)), **options)


@EVERY
def test_a_value_that_is_no_number_stops_at_its_step_and_names_its_rows(schedule, prediction, sampler):
    this = process_of(schedule, prediction)
    plain, broken = denoiser(this), []

    def network(x, t, y):
        output = plain(x, t, y)
        if broken:
            output[1] = torch.nan
        return output

    def spoil(step):
        if step.number >= 2:
            broken.append(step.number)

    with pytest.raises(NonFiniteSampleError) as error:
        run(
            sampler, network, this, this.initial_sample(gaussian(4)), num_inference_steps=9, callback=spoil,
            **({"times": this.times(9)} if sampler in ("dpmpp_3s", "dpm_3s") else {}),
        )  # fmt: skip
    ends = list(itertools.accumulate(singlestep_orders(9)))
    expected = {"dpmpp_3s": ends, "dpm_3s": ends}.get(sampler, range(1, 10))
    assert error.value.rows == [1]
    assert error.value.step > broken[-1]
    assert error.value.step in expected or sampler in ("dpmpp_3s", "dpm_3s")
    assert re.fullmatch(
        rf"sampling gave values that are not finite at step {error.value.step} of 9, in samples 1 of the batch\. Look "
        r"at the weights \(`ditzoo verify`\), lower the guidance scale, or sample in float32\.",
        str(error.value),
    )
    assert isinstance(error.value, FloatingPointError)


def test_a_row_that_breaks_at_the_third_step():
    calls = []

    def network(x, t, y):
        calls.append(t)
        return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 2, torch.nan, 0.0) + x if len(calls) == 3 else x

    with pytest.raises(NonFiniteSampleError, match=r"at step 3 of 10, in samples 2 of the batch") as error:
        ddim_sample(network, process(), torch.zeros(5, 1, 2, 2), num_inference_steps=10)
    assert (error.value.step, error.value.rows) == (3, [2])


def test_many_broken_rows_are_counted():
    with pytest.raises(NonFiniteSampleError, match=r"in samples 0, 1, 2, 3, 4, 5, 6, 7 and 12 more of the batch"):
        euler_sample(lambda x, t, y: x * torch.inf, FlowMatching(), torch.ones(20, 1, 2, 2), num_inference_steps=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ddim_sample(NETWORK, process(), NOISE, times=[3.0]),
            r"times must be two or more times .* \[3\.0\]",
        ),
        (
            lambda: ddpm_sample(NETWORK, process(), NOISE, times=[10.5, -1]),
            r"times must be whole timesteps that fall and end with the data's -1, got \[10\.5, -1\]",
        ),
        (lambda: ddpm_sample(NETWORK, process(), NOISE, times=[10, 5]), r"end with the data's -1, got \[10, 5\]"),
        (lambda: ddpm_sample(NETWORK, process(), NOISE, times=[5, 10, -1]), r"whole timesteps that fall and end"),
        (lambda: unipc_sample(NETWORK, process(), NOISE, order=4), r"UniPC's order must be 1, 2 or 3, got 4"),
        (lambda: unipc_sample(NETWORK, process(), NOISE, order="2"), r"UniPC's order must be 1, 2 or 3, got '2'"),
        (
            lambda: euler_maruyama_sample(NETWORK, FlowMatching(), NOISE, last_step="none"),
            r"unknown last_step 'none'; choose mean, tweedie, euler or None",
        ),
        (
            lambda: heun_maruyama_sample(NETWORK, FlowMatching(), NOISE, times=[0, 1], last_step="none"),
            r"unknown last_step 'none'; choose mean, tweedie, euler or None",
        ),
        (
            lambda: euler_maruyama_sample(NETWORK, FlowMatching(), NOISE, times=[0.5]),
            r"times must be two or more times of the process, from start to end, got \[0\.5\]",
        ),
        (
            lambda: euler_maruyama_sample(NETWORK, FlowMatching(), NOISE, last_step_size=1.0),
            r"last_step_size must lie between 0 and 1, got 1\.0",
        ),
        (
            lambda: euler_maruyama_sample(NETWORK, FlowMatching(), NOISE, num_inference_steps=1),
            r"num_inference_steps must be 2 or more with a last step of its own, got 1",
        ),
        (
            lambda: euler_maruyama_sample(NETWORK, FlowMatching(), NOISE, diffusion="SBDM"),
            r"unknown diffusion 'SBDM' for a FlowMatching; choose one of sbdm, sigma, constant, linear, decreasing, in",
        ),
        (
            lambda: euler_maruyama_sample(NETWORK, ContinuousVP(), NOISE, diffusion="linear"),
            r"unknown diffusion 'linear' for a ContinuousVP; choose one of sbdm, constant",
        ),
        (
            lambda: euler_maruyama_sample(NETWORK, FlowMatching(), NOISE, diffusion="sbdm", step_noise=zeros_of),
            r"diffusion 'sbdm' is infinite at time 0; choose 'sigma', or give times that start later",
        ),
        (
            lambda: edm_heun_sample(NETWORK, EDM(), NOISE, spacing="rho"),
            r"unknown spacing 'rho'; choose time, log_snr or karras",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_solver_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r'the dopri5 sampler needs torchdiffeq: pip install "ditzoo\[ode\]"'):
        run("dopri5", NETWORK, FlowMatching(), NOISE)


# The table of samplers.


def test_recipes_choose_the_sampler():
    for name, info in SAMPLERS.items():
        kind = ("flow_linear", "velocity") if name != "ddpm" else ("linear", "epsilon")
        recipe = dataclasses.replace(recipe_of(*kind), sampler=name)
        assert get_sampler(recipe) is info.function
        assert info.function.__name__ == f"{name}_sample"
        assert info.function is getattr(ditzoo.diffusion, f"{name}_sample")


def test_samplers_take_the_same_arguments():
    for name, info in SAMPLERS.items():
        parameters = list(inspect.signature(info.function).parameters)
        assert parameters[:5] == ["model", "process", "x", "y", "num_inference_steps"], name
        assert parameters[-1] == "callback"
        assert "times" in parameters
        assert info.title


@pytest.mark.parametrize(
    ("steps", "orders"),
    [(1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 2, 1]), (50, [3] * 16 + [2])],
)
def test_singlestep_orders_use_up_all_evaluations(steps, orders):
    assert singlestep_orders(steps) == orders
    assert sum(orders) == steps
