"""Noise levels of every process, and the algebra between data, noise and what networks predict."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditzoo.diffusion import (
    EDM,
    ContinuousVP,
    FlowMatching,
    GaussianDiffusion,
    draw_training,
    make_betas,
    make_process,
    space_timesteps,
)
from ditzoo.recipe import Recipe
from tests.diffusion.mixture import KINDS, every_kind, process_of, recipe_of

DISCRETE = ["linear", "scaled_linear", "cosine"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
#: one kind of every schedule
SCHEDULES = [next(kind for kind in KINDS if kind[0] == schedule) for schedule in dict.fromkeys(k[0] for k in KINDS)]
CONTINUOUS = [kind for kind in SCHEDULES if kind[0] not in DISCRETE]

seeds = st.integers(0, 2**31)
shares = st.floats(0, 1)
#: of tests that run for every kind of process, and for every schedule
FEW, SOME = settings(max_examples=8), settings(max_examples=25)


def process(prediction="epsilon", schedule="linear", steps=1000):
    recipe = Recipe(prediction=prediction, schedule=schedule, num_train_timesteps=steps, num_inference_steps=1)
    return GaussianDiffusion(recipe)


def normal(seed, count, batch=2):
    """`count` batches (B, 3, 2, 2) of normal numbers."""
    return torch.randn(count, batch, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).unbind()


def trained_time(this, share):
    """A time between the noisiest and the cleanest at which this process calls its network."""
    return this.start + share * (this.end - this.start)


def test_the_list_of_kinds_is_whole():
    assert set(KINDS) == set(every_kind())


def test_recipes_choose_the_process():
    found = {schedule: type(process_of(schedule, prediction)) for schedule, prediction in KINDS}
    assert found == {
        **dict.fromkeys(DISCRETE, GaussianDiffusion),
        "continuous_vp": ContinuousVP,
        **dict.fromkeys(["flow_linear", "flow_gvp", "flow_vp"], FlowMatching),
        "edm": EDM,
    }
    assert [process_of(schedule, "velocity").path for schedule in ("flow_linear", "flow_gvp", "flow_vp")] == [
        *("linear", "gvp", "vp")
    ]


# Tables of noise levels.


@SOME
@given(steps=st.integers(21, 2000), data=st.data())
def test_betas_by_their_formulas(steps, data):
    i = data.draw(st.integers(0, steps - 1))
    part = i / (steps - 1)
    linear = (1e-4 + part * (0.02 - 1e-4)) * 1000 / steps
    assert float(make_betas("linear", steps)[i]) == pytest.approx(linear, rel=1e-9)
    root = math.sqrt(0.00085) + part * (math.sqrt(0.012) - math.sqrt(0.00085))
    assert float(make_betas("scaled_linear", steps)[i]) == pytest.approx(root**2, rel=1e-9)
    after, before = (math.cos((j / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for j in (i + 1, i))
    assert float(make_betas("cosine", steps)[i]) == pytest.approx(min(1 - after / before, 0.999), rel=1e-9)


@pytest.mark.parametrize("schedule", DISCRETE)
@pytest.mark.parametrize("steps", [21, 100, 1000])
def test_signal_fades_and_never_comes_back(schedule, steps):
    alphas_cumprod = process(schedule=schedule, steps=steps).alphas_cumprod
    assert alphas_cumprod.shape == (steps,)
    assert (alphas_cumprod.diff() < 0).all()
    assert 0 < alphas_cumprod[-1] < alphas_cumprod[0] < 1


@pytest.mark.parametrize("schedule", ["sigmoid", "continuous_vp"])
def test_a_schedule_without_a_table_is_named(schedule):
    with pytest.raises(
        ValueError, match=rf"'{schedule}' has no table of betas; choose linear, scaled_linear or cosine"
    ):
        make_betas(schedule, 10)


@pytest.mark.parametrize("steps", [0, -3, 10, 20])
def test_too_few_timesteps_for_a_schedule_are_named(steps):
    with pytest.raises(
        ValueError, match=rf"{steps} timesteps are too few for the linear schedule; the papers use 1000"
    ):
        make_betas("linear", steps)


@pytest.mark.parametrize("schedule", DISCRETE)
def test_signal_and_noise_levels(schedule):
    this = process(schedule=schedule)
    t = torch.arange(1000)
    alpha, sigma = this.alpha_sigma(t)
    assert alpha.shape == sigma.shape == (1000, 1, 1, 1)
    assert alpha.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(alpha.flatten().double() ** 2, this.alphas_cumprod, rtol=1e-6, atol=1e-9)


@SOME
@given(t=st.integers(0, 998), part=shares)
@pytest.mark.parametrize("schedule", DISCRETE)
def test_between_timesteps_the_logarithm_of_the_signal_is_straight(schedule, t, part):
    this = process(schedule=schedule)
    logs = [math.log(this.level(t + share)[0]) for share in (0, part, 1)]
    assert logs[1] == pytest.approx(logs[0] + part * (logs[2] - logs[0]), rel=1e-9, abs=1e-12)
    alpha, sigma = this.level(t + part)
    assert alpha**2 + sigma**2 == pytest.approx(1, rel=1e-12)


@SOME
@given(t=st.integers(0, 999))
@pytest.mark.parametrize("schedule", DISCRETE)
def test_whole_timesteps_have_the_same_levels_as_numbers_of_either_kind(schedule, t):
    this = process(schedule=schedule)
    by_table, by_line = this.levels(torch.tensor(t)), this.level(float(t))
    assert [float(level) for level in by_table] == pytest.approx(by_line, rel=1e-10)


# Which timesteps a shorter process keeps.


@SOME
@given(total=st.integers(1, 2000), data=st.data())
def test_kept_timesteps_ascend_and_keep_both_ends(total, data):
    count = data.draw(st.integers(1, total))
    kept = space_timesteps(total, count)
    assert len(kept) == count
    assert all(before < after for before, after in itertools.pairwise(kept))
    assert kept[0] == 0
    if count > 1:
        assert kept[-1] == total - 1
        assert max(abs(kept[i] - i * (total - 1) / (count - 1)) for i in range(count)) <= 0.5 + 1e-6


@SOME
@given(total=st.integers(6, 500), data=st.data())
def test_sections_are_kept_each_in_its_own_place(total, data):
    sections = data.draw(st.integers(2, 5))
    size, longer = divmod(total, sections)
    counts = [data.draw(st.integers(1, size + (section < longer))) for section in range(sections)]
    kept = space_timesteps(total, counts)
    assert kept == space_timesteps(total, ",".join(map(str, counts)))
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        part, kept = kept[:count], kept[count:]
        assert part == [start + t for t in space_timesteps(length, count)]
        start += length
    assert kept == []


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (0, r"cannot keep 0 of 1000 timesteps \(spacing 0 of 1000\); give 1 to 1000"),
        (1001, r"cannot keep 1001 of 1000 timesteps"),
        ([600, 10], r"cannot keep 600 of 500 timesteps \(spacing \[600, 10\] of 1000\); give 1 to 500"),
        ("ddim700", r"no whole stride keeps 700 of 1000 timesteps; try a divisor of 1000"),
        ("ddimx", r"spacing 'ddimx' is not understood; give a number of timesteps, '10,15,20' or 'ddim50'"),
        ("10,ten", r"spacing '10,ten' is not understood"),
        ("2.5", r"spacing '2\.5' is not understood"),
        ([], r"spacing \[\] keeps no timesteps; give how many to keep, 1 to 1000"),
    ],
)
def test_a_wrong_spacing_is_named(spacing, message):
    with pytest.raises(ValueError, match=message):
        space_timesteps(1000, spacing)


@SOME
@given(kept=st.sets(st.integers(0, 999), min_size=1, max_size=20))
@pytest.mark.parametrize("schedule", DISCRETE)
def test_a_shorter_process_has_the_marginals_of_the_whole_one(schedule, kept):
    whole = process(schedule=schedule)
    short = whole.keep(sorted(kept))
    numbers = torch.arange(len(kept))
    assert torch.equal(short.timestep_map, torch.tensor(sorted(kept)))
    assert torch.equal(short.network_time(numbers), torch.tensor(sorted(kept)))
    for ours, theirs in zip(short.levels(numbers), whole.levels(short.timestep_map), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    # Its own steps lead there: the product of 1 - beta is what is left of the signal.
    torch.testing.assert_close((1 - short.betas).cumprod(0), short.alphas_cumprod, rtol=1e-9, atol=1e-15)
    assert ((short.betas > 0) & (short.betas < 1)).all()


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([999, 500, 0], r"timesteps must rise, got 500 after 999, 0 after 500; sort them, and give each once"),
        ([0, 500, 500], r"timesteps must rise, got 500 after 500"),
        ([-1, 500, 1000], r"timesteps must be whole numbers from 0 to 999, got -1, 1000\."),
        ([0.5, 2], r"timesteps must be whole numbers from 0 to 999, got 0\.5\."),
        (range(1000, 1020), r"from 0 to 999, got 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007 and 12 more\."),
        ([], r"a process needs one timestep or more, got none; give some of 0 to 999"),
    ],
)
def test_timesteps_that_no_process_can_keep_are_named(timesteps, message):
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(process().recipe, timesteps)
    with pytest.raises(ValueError, match=message):
        process().keep(timesteps)


def test_a_shorter_process_keeps_some_of_its_own_timesteps():
    short = process().respace(10)
    assert short.keep(torch.tensor([1, 9])).timestep_map.tolist() == [111, 999]
    with pytest.raises(ValueError, match=r"timesteps must be whole numbers from 0 to 9, got 10\."):
        short.keep([0, 10])


def test_a_process_is_shortened_twice():
    twice = process().respace(100).respace(10)
    assert twice.timestep_map.tolist() == [space_timesteps(1000, 100)[i] for i in space_timesteps(100, 10)]
    with pytest.raises(TypeError, match="fewer timesteps cannot tell its times from the network's; use the full one"):
        twice.process_time(500.0)


@pytest.mark.parametrize("schedule", DISCRETE)
def test_the_posterior_is_that_of_bayes(schedule):
    """q(x_{t-1} | x_t, x0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x0): precisions add (section 2 of
    arXiv:2006.11239)."""
    this = process(schedule=schedule)
    x0, x = normal(0, 2, batch=3)
    t = torch.tensor([1, 400, 999])
    mean, log_variance = this.posterior(x0, x, t)
    beta, before = this.betas[t], this.alphas_cumprod_prev[t]
    precision = (1 - beta) / beta + 1 / (1 - before)
    torch.testing.assert_close(log_variance.flatten().double(), -precision.log(), rtol=1e-6, atol=1e-6)
    factor = ((1 - beta).sqrt() / beta).view(-1, 1, 1, 1)
    expected = (factor * x + (before.sqrt() / (1 - before)).view(-1, 1, 1, 1) * x0) / precision.view(-1, 1, 1, 1)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_learned_variance_lies_between_beta_and_the_posterior():
    this = GaussianDiffusion(Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid"))
    x, t = torch.zeros(1, 1, 1, 1), torch.tensor([500])
    beta, smallest = float(this.betas[500].log()), float(this.posterior_log_variance_clipped[500])
    for said, share in ((-1.0, 0.0), (0.0, 0.5), (1.0, 1.0), (2.0, 1.5)):  # not clamped, as the official one
        step = this.reverse_step(x, torch.tensor([0.0, said]).view(1, 2, 1, 1), t)
        assert float(step.log_variance) == pytest.approx(share * beta + (1 - share) * smallest, rel=1e-5)


def test_a_learned_variance_that_the_model_does_not_give_is_missed():
    this = GaussianDiffusion(Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid"))
    x, t = torch.zeros(1, 3, 2, 2), torch.tensor([5])
    message = r"the model returned 0 channels for it where x has 3: build the model with learn_sigma=True, or use vari"
    with pytest.raises(ValueError, match=message):
        this.reverse_step(x, x, t)
    with pytest.raises(ValueError, match=r"returned 1 channels for it where x has 3"):
        this.reverse_step(x, torch.zeros(1, 4, 2, 2), t)


def test_a_single_timestep_has_no_variance_to_learn():
    x, t = torch.randn(1, 3, 2, 2), torch.tensor([0])
    learned = GaussianDiffusion(
        Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid")
    )
    with pytest.raises(ValueError, match=r"a learned variance needs 2 timesteps or more; .* or with 'ddim'"):
        learned.keep([999]).reverse_step(x, torch.zeros(1, 6, 2, 2), t)
    for variance in ("fixed_small", "fixed_large"):
        this = GaussianDiffusion(Recipe(prediction="sample", schedule="linear", variance=variance)).keep([999])
        step = this.reverse_step(x, torch.full_like(x, 0.3), t)
        torch.testing.assert_close(step.mean, torch.full_like(x, 0.3))
        torch.testing.assert_close(step.log_variance, torch.full_like(x, float(this.betas.log())))


# Levels of every process.


def levels_by_formula(schedule, t):
    """Typed from the papers (SiT's with time as its code counts it)."""
    if schedule == "continuous_vp":
        alpha = math.exp(-0.5 * (0.1 * t + 9.95 * t**2))
        return alpha, math.sqrt(1 - alpha**2)
    if schedule == "flow_linear":
        return t, 1 - t
    if schedule == "flow_gvp":
        return math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)
    if schedule == "flow_vp":
        alpha = math.exp(-0.25 * (1 - t) ** 2 * 19.9 - 0.5 * (1 - t) * 0.1)
        return alpha, math.sqrt(1 - alpha**2)
    assert schedule == "edm"
    return 1.0, t


@SOME
@given(share=shares)
@pytest.mark.parametrize(("schedule", "prediction"), CONTINUOUS)
def test_levels_by_their_formulas(schedule, prediction, share):
    this = process_of(schedule, prediction)
    t = this.start + share * (this.data - this.start)
    assert this.level(t) == pytest.approx(levels_by_formula(schedule, t), rel=1e-9, abs=1e-8)


@SOME
@given(share=st.floats(0.02, 0.98))
@pytest.mark.parametrize(("schedule", "prediction"), CONTINUOUS)
def test_derivatives_are_those_of_the_levels(schedule, prediction, share):
    this = process_of(schedule, prediction)
    t, step = trained_time(this, share), 1e-6
    before, after = this.level(t - step), this.level(t + step)
    measured = [(b - a) / (2 * step) for a, b in zip(before, after, strict=True)]
    assert this.derivatives(t) == pytest.approx(measured, rel=1e-5, abs=1e-6)


@SOME
@given(t=st.floats(0.01, 0.99))
def test_the_score_sdes_diffusion_is_that_of_its_own_noise(t):
    """For x = alpha x0 + sigma noise, the forward process adds noise at the rate d(sigma^2) / dt - 2 sigma^2 alpha' /
    alpha (appendix B.3 of arXiv:2011.13456), whose half, with time towards the data, is `sbdm`; beta / 2 for a VP."""
    line = FlowMatching()
    assert float(line.sbdm(torch.tensor([t]).double())) == pytest.approx((1 - t) / t, rel=1e-5)
    vp = FlowMatching("vp")
    assert float(vp.sbdm(torch.tensor([t]).double())) == pytest.approx(ContinuousVP().beta(1 - t) / 2, rel=1e-5)


@pytest.mark.parametrize("schedule", DISCRETE)
def test_a_table_has_no_derivative(schedule):
    with pytest.raises(TypeError, match="noise levels at whole timesteps only, and no derivative in time"):
        process(schedule=schedule).derivatives(3.0)


@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES)
def test_there_is_no_noise_in_the_data(schedule, prediction):
    this = process_of(schedule, prediction)
    assert this.level(this.data) == (1.0, 0.0)
    assert (this.log_snr(this.data), this.noise_level(this.data)) == (math.inf, 0.0)
    alpha, sigma = this.level(this.start)
    assert alpha / sigma < 0.1
    assert this.log_snr(this.start) < this.log_snr(this.end) <= this.log_snr(this.data)


def test_a_flow_starts_from_noise_alone():
    for path in ("linear", "gvp"):
        assert FlowMatching(path).level(0.0) == (0.0, 1.0)
        assert (FlowMatching(path).log_snr(0.0), FlowMatching(path).noise_level(0.0)) == (-math.inf, math.inf)


@FEW
@given(share=st.floats(0.001, 1))
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_the_time_of_a_noise_level_is_where_it_was(schedule, prediction, share):
    this = process_of(schedule, prediction)
    t = trained_time(this, 0.998 * share)
    back = this.time_at(this.log_snr(t))
    assert back == pytest.approx(t, rel=1e-9, abs=1e-9)


@SOME
@given(log_snr=st.floats(-6, 6))
@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES)
def test_the_noise_level_of_its_time_is_what_was_asked_for(schedule, prediction, log_snr):
    # Beyond the ends of a table too: it goes on straight.
    this = process_of(schedule, prediction)
    assert this.log_snr(this.time_at(log_snr)) == pytest.approx(log_snr, rel=1e-8, abs=1e-8)


# Data, noise and predictions.


@FEW
@given(share=shares, seed=seeds)
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_a_perfect_prediction_gives_data_and_noise_back(schedule, prediction, share, seed):
    this = process_of(schedule, prediction)
    time = trained_time(this, share)
    t = torch.full((2,), round(time) if this.num_timesteps else time)
    x0, noise = normal(seed, 2)
    x = this.add_noise(x0, noise, t)
    back = this.denoise(x, this.target(x0, noise, t), t)
    alpha, sigma = this.level(float(t[0]))
    # What is divided by a small level loses as many digits, and so does a score, noise over sigma.
    largest = max(float(x.abs().max()), 1.0)
    assert float((back[0] - x0).abs().max()) * alpha < 2e-5 * largest
    assert float((back[1] - noise).abs().max()) * sigma < 2e-5 * largest


@FEW
@given(share=st.floats(0.05, 0.95), seed=seeds)
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_any_prediction_is_consistent_with_the_noised_input(schedule, prediction, share, seed):
    this = process_of(schedule, prediction)
    time = trained_time(this, share)
    t = torch.full((2,), round(time) if this.num_timesteps else time)
    x, guess = normal(seed, 2)
    x0, noise = this.denoise(x, guess, t)
    torch.testing.assert_close(this.add_noise(x0, noise, t), x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(this.target(x0, noise, t), guess, rtol=1e-3, atol=5e-3)


@FEW
@given(share=shares, seed=seeds)
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_samplers_split_a_prediction_as_losses_do(schedule, prediction, share, seed):
    this = process_of(schedule, prediction)
    time = trained_time(this, share)
    time = float(round(time)) if this.num_timesteps else float(torch.tensor(time))
    x, guess = normal(seed, 2)
    t = torch.full((2,), int(time) if this.num_timesteps else time)
    x0, noise = this.denoise(x, guess, t)
    estimate = this.estimate(x, torch.cat([guess, torch.full_like(guess, 9.0)], dim=1), time)
    torch.testing.assert_close(estimate.x0, x0, rtol=1e-4, atol=1e-4 * float(x0.abs().max()))
    torch.testing.assert_close(estimate.noise, noise, rtol=1e-4, atol=1e-4 * float(noise.abs().max()))
    assert estimate.output.shape == (2, 6, 2, 2)
    assert this.estimate(x.double(), guess, time).x0.dtype == torch.float64


def test_targets_by_value():
    x0, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    t = torch.tensor([500])
    alpha, sigma = (float(level) for level in process().alpha_sigma(t))
    assert process("epsilon").target(x0, noise, t).item() == 3
    assert process("sample").target(x0, noise, t).item() == 2
    assert process("v_prediction").target(x0, noise, t).item() == pytest.approx(3 * alpha - 2 * sigma)
    t = torch.tensor([0.25])
    assert FlowMatching().target(x0, noise, t).item() == -1
    assert FlowMatching("linear", "epsilon").target(x0, noise, t).item() == 3
    assert FlowMatching("linear", "score").target(x0, noise, t).item() == pytest.approx(-3 / 0.75)
    half = math.pi / 2
    expected = half * (2 * math.cos(half / 4) - 3 * math.sin(half / 4))
    assert FlowMatching("gvp").target(x0, noise, t).item() == pytest.approx(expected)
    # Table 1 of arXiv:2206.00364 at sigma = 0.25: c_skip = 0.8, c_out = 0.125 / sqrt(0.3125).
    x = 2 + 0.25 * 3
    assert EDM().target(x0, noise, t).item() == pytest.approx((2 - 0.8 * x) / (0.125 / math.sqrt(0.3125)), rel=1e-6)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_edms_plain_loss_is_the_papers_weighted_one(sigma):
    x0, noise, output = normal(3, 3)
    t = torch.full((2,), sigma)
    this = EDM()
    denoised, _ = this.denoise(this.add_noise(x0, noise, t), output, t)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    paper = weight * (denoised - x0).square()
    torch.testing.assert_close((output - this.target(x0, noise, t)).square(), paper, rtol=2e-2, atol=2e-4)
    x = this.add_noise(x0, noise, t)
    torch.testing.assert_close(this.scale_input(x, t), x / math.sqrt(sigma**2 + 0.25))
    assert this.network_time(t).tolist() == pytest.approx([math.log(sigma) / 4] * 2, rel=1e-6)


def test_edm_trains_at_log_normal_noise_levels():
    (draws,) = draw_training(0, range(4000), (1, 1, 1), num_timesteps=EDM().num_timesteps)
    logs = EDM().training_times(draws.t).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / 4000**0.5)
    assert float(logs.std()) == pytest.approx(1.2, abs=4 * 1.2 / 8000**0.5)
    ends = EDM().training_times(torch.tensor([0.0, 1 - 2**-24]))
    assert torch.isfinite(ends).all()


@pytest.mark.parametrize(
    ("schedule", "prediction", "towards_noise"),
    [
        ("linear", "epsilon", lambda t: (t + 0.5) / 1000),
        ("continuous_vp", "epsilon", lambda t: t),
        ("flow_linear", "velocity", lambda t: 1 - t),
    ],
)
def test_logit_normal_times_prefer_what_they_are_told_to(schedule, prediction, towards_noise):
    sampler = "euler" if schedule == "flow_linear" else "ddim"
    recipe = Recipe(
        prediction=prediction,
        schedule=schedule,
        sampler=sampler,
        time_distribution="logit_normal",
        time_mean=0.5,
        time_std=0.8,
    )
    this = make_process(recipe)
    assert this.drawn_timesteps is None
    (draws,) = draw_training(0, range(4000), (1, 1, 1), num_timesteps=this.drawn_timesteps)
    noise = towards_noise(this.training_times(draws.t).double())
    logits = torch.logit(noise)
    assert float(logits.mean()) == pytest.approx(0.5, abs=4 * 0.8 / 4000**0.5)
    assert float(logits.std()) == pytest.approx(0.8, abs=4 * 0.8 / 8000**0.5)
    # As the density of arXiv:2403.03206, eq. 19, gives it: the share of times in the noisier half.
    assert float((noise > 0.5).double().mean()) == pytest.approx(0.734, abs=4 * (0.25 / 4000) ** 0.5)


@pytest.mark.parametrize(
    ("path", "prediction", "trained", "sampled"),
    [
        ("linear", "velocity", (0, 1), (0, 1)),
        ("gvp", "velocity", (0, 1), (0, 1)),
        ("linear", "epsilon", (1e-3, 1 - 1e-3), (1e-3, 1 - 1e-3)),
        ("gvp", "score", (1e-3, 1 - 1e-3), (1e-3, 1 - 1e-3)),
        ("vp", "velocity", (0, 1 - 1e-5), (0, 1 - 1e-3)),
        ("vp", "score", (0, 1 - 1e-5), (0, 1 - 1e-3)),
    ],
)
def test_flows_keep_away_from_the_ends_that_they_cannot_compute(path, prediction, trained, sampled):
    this = FlowMatching(path, prediction)
    times = this.training_times(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    low, high = trained
    assert times.tolist() == pytest.approx([low, low + 0.25 * (high - low), high], abs=1e-12)
    assert (this.start, this.end) == pytest.approx(sampled, abs=1e-12)


def test_times_are_drawn_uniformly_from_0_to_1_and_belong_to_the_sample():
    (draws,) = draw_training(0, range(2000), (1, 1, 1), num_timesteps=FlowMatching().num_timesteps)
    assert draws.t.dtype == torch.float32
    assert 0 <= draws.t.min() < 0.005 < 0.995 < draws.t.max() < 1
    histogram = torch.histc(draws.t, bins=10, min=0, max=1)
    assert (histogram - 200).abs().max() < 5 * 200**0.5
    (alone,) = draw_training(0, [1234], (1, 1, 1), num_timesteps=None)
    assert torch.equal(alone.t[0], draws.t[1234])


# The network's units of time.


@FEW
@given(share=shares)
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_the_networks_time_leads_back(schedule, prediction, share):
    this = process_of(schedule, prediction)
    time = trained_time(this, share)
    if this.num_timesteps:
        assert this.process_time(float(this.network_time(torch.tensor(round(time))))) == pytest.approx(round(time))
    told = this.network_time(torch.tensor([time], dtype=torch.float64))
    assert this.process_time(float(told)) == pytest.approx(time, rel=1e-9, abs=1e-9)


def test_the_networks_time_by_value():
    assert process_of("linear", "epsilon").network_time(torch.tensor([0, 999])).tolist() == [0, 999]
    assert process_of("linear", "epsilon").network_time(torch.tensor([0, 999])).dtype == torch.int64
    assert process_of("scaled_linear", "epsilon").network_time(torch.tensor([0, 999])).tolist() == [1, 1000]
    assert process_of("scaled_linear", "epsilon").network_time(torch.tensor([0.5])).tolist() == [1.5]
    assert process_of("continuous_vp", "epsilon").network_time(torch.tensor([0.5])).tolist() == [499.5]
    short = process().respace(10)
    assert short.network_time(torch.tensor([0, 1, 9])).tolist() == [0, 111, 999]
    assert short.network_time(torch.tensor([0.5])).tolist() == [55.5]
    assert process_of("flow_linear", "velocity").network_time(torch.tensor([0.5])).tolist() == [0.5]


# Grids.


@FEW
@given(steps=st.integers(1, 60))
@pytest.mark.parametrize("spacing", [None, "time", "log_snr", "karras"])
@pytest.mark.parametrize(("schedule", "prediction"), [*SCHEDULES, ("flow_linear", "score")])
def test_grids_lead_from_noise_to_data(schedule, prediction, spacing, steps):
    this = process_of(schedule, prediction)
    times = this.times(steps, spacing)
    assert len(times) == steps + 1
    last = this.data if this.has_final_step else this.end
    assert times[0] == this.start
    assert times[-1] == last
    levels = [this.log_snr(time) for time in times]
    assert all(before < after for before, after in itertools.pairwise(levels))
    if steps > 1 and this.end != this.data:
        assert this.times(steps, spacing, final_step=True)[-2:] == [this.end, this.data]
        assert this.times(steps, spacing, final_step=False)[-1] == this.end


def test_edms_grid_by_its_formula():
    """Eq. 5 of arXiv:2206.00364, whose N levels are followed by 0."""
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert EDM().times(18) == pytest.approx([*expected, 0.0], rel=1e-9)


def test_even_grids():
    assert ContinuousVP().times(4, final_step=False) == pytest.approx([1, 0.75025, 0.5005, 0.25075, 1e-3])
    this = ContinuousVP()
    levels = [this.log_snr(time) for time in this.times(10, "log_snr", final_step=False)]
    assert max(b - a for a, b in itertools.pairwise(levels)) == pytest.approx(
        min(b - a for a, b in itertools.pairwise(levels)), rel=1e-6
    )


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
def test_whole_timesteps_are_spread_evenly_from_last_to_first(total, steps, times):
    assert process("sample", "cosine", total).integer_times(steps) == [*times, -1]


def test_the_end_of_sampling_can_be_set():
    recipe = Recipe(prediction="epsilon", schedule="continuous_vp", end_time=1e-4)
    assert make_process(recipe).times(3, final_step=False)[-1] == 1e-4
    flow = Recipe(prediction="velocity", schedule="flow_linear", sampler="euler", end_time=0.9)
    assert make_process(flow).times(3) == pytest.approx([0, 0.3, 0.6, 0.9])


@SOME
@given(seed=seeds)
@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES)
def test_the_start_of_sampling_is_noise_as_strong_as_the_process_says(schedule, prediction, seed):
    this = process_of(schedule, prediction)
    (noise,) = normal(seed, 1)
    x = this.initial_sample(noise)
    torch.testing.assert_close(x, (80 if schedule == "edm" else 1) * noise)
    torch.testing.assert_close(this.initial_noise(x), noise)


# Bad input.


@pytest.mark.parametrize(("schedule", "prediction"), SCHEDULES)
@pytest.mark.parametrize("steps", [2.0, 2.5, "4", None, True])
def test_a_number_of_steps_that_is_none_is_named(schedule, prediction, steps):
    with pytest.raises(TypeError, match=rf"num_inference_steps must be an integer, got {steps!r}"):
        process_of(schedule, prediction).times(steps)
    with pytest.raises(TypeError, match=rf"num_inference_steps must be an integer, got {steps!r}"):
        process().integer_times(steps)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_number_of_steps_below_one_is_named(steps):
    with pytest.raises(ValueError, match=rf"num_inference_steps must be 1 or more, got {steps}"):
        FlowMatching().times(steps)


def test_an_unknown_spacing_is_named():
    with pytest.raises(ValueError, match="unknown spacing 'quadratic'; choose time, log_snr or karras"):
        FlowMatching().times(4, "quadratic")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowMatching("cosine"), r"unknown path 'cosine'; choose one of linear, gvp, vp"),
        (
            lambda: FlowMatching("linear", "sample"),
            r"FlowMatching has no prediction 'sample'; choose one of velocity, ",
        ),
        (
            lambda: ContinuousVP("velocity"),
            r"ContinuousVP has no prediction 'velocity'; choose one of epsilon, v_pred",
        ),
        (lambda: EDM("epsilon"), r"EDM has no prediction 'epsilon'; choose one of edm"),
    ],
)
def test_processes_refuse_what_they_do_not_have(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_of_the_tests_have_units_of_their_own():
    assert {recipe_of(*kind).time_scale for kind in KINDS} == {1.0, 999.0}
    assert {recipe_of(*kind).time_offset for kind in KINDS} == {0.0, 1.0}
