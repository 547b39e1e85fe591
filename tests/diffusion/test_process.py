"""Noise schedules and the algebra between data, noise and v."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditzoo.diffusion import GaussianDiffusion, make_betas
from ditzoo.recipe import Recipe
from tests.golden_cases import process_case, relative_error

SCHEDULES = ["linear", "scaled_linear", "cosine"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def process(prediction="epsilon", schedule="linear", steps=1000):
    recipe = Recipe(prediction=prediction, schedule=schedule, num_train_timesteps=steps, num_inference_steps=1)
    return GaussianDiffusion(recipe)


@pytest.mark.parametrize(("schedule", "official"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
@pytest.mark.parametrize("steps", [100, 1000])
def test_betas_equal_the_official_ones(schedule, official, steps):
    expected = process_case("diffusion_dit")[f"out.betas_{official}_{steps}"]
    betas = make_betas(schedule, steps)
    assert betas.dtype == torch.float64
    torch.testing.assert_close(betas, expected, rtol=1e-12, atol=0)


def test_stable_diffusions_betas_equal_those_of_u_vit():
    # U-ViT counts from 1; its entry 0 stands for no noise.
    golden = process_case("diffusion_uvit")
    torch.testing.assert_close(make_betas("scaled_linear", 1000), golden["out.schedule.betas"][1:], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        process(schedule="scaled_linear").alphas_cumprod,
        golden["out.schedule.cum_alphas"][1:],
        rtol=1e-12,
        atol=0,
    )


def test_alphas_cumprod_equal_the_official_ones():
    expected = process_case("diffusion_dit")["out.schedule.alphas_cumprod"]
    torch.testing.assert_close(process().alphas_cumprod, expected, rtol=1e-12, atol=0)


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


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [21, 100, 1000])
def test_signal_fades_and_never_comes_back(schedule, steps):
    alphas_cumprod = process(schedule=schedule, steps=steps).alphas_cumprod
    assert alphas_cumprod.shape == (steps,)
    assert (alphas_cumprod.diff() < 0).all()
    assert 0 < alphas_cumprod[-1] < alphas_cumprod[0] < 1


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"unknown schedule 'sigmoid'; choose linear, scaled_linear or cosine"):
        make_betas("sigmoid", 10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_and_noise_levels(schedule):
    this = process(schedule=schedule)
    t = torch.arange(1000)
    alpha, sigma = this.alpha_sigma(t)
    assert alpha.shape == sigma.shape == (1000, 1, 1, 1)
    assert alpha.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(alpha.flatten().double() ** 2, this.alphas_cumprod, rtol=1e-6, atol=1e-9)


times = st.lists(st.integers(0, 999), min_size=1, max_size=4)


@given(t=times, seed=st.integers(0, 2**31))
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_data_and_noise_back(prediction, schedule, t, seed):
    this, t = process(prediction, schedule), torch.tensor(t)
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, len(t), 3, 2, 2, generator=generator).unbind()
    x = this.add_noise(x0, noise, t)
    back = this.denoise(x, this.target(x0, noise, t), t)
    alpha, sigma = this.alpha_sigma(t)
    # What is divided by a small level loses as many digits.
    assert ((back[0] - x0).abs() * alpha).max() < 3e-6
    assert ((back[1] - noise).abs() * sigma).max() < 3e-6


@given(t=times, seed=st.integers(0, 2**31))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_prediction_is_consistent_with_the_noised_input(prediction, t, seed):
    this, t = process(prediction), torch.tensor(t)
    generator = torch.Generator().manual_seed(seed)
    x, guess = torch.randn(2, len(t), 3, 2, 2, generator=generator).unbind()
    x0, noise = this.denoise(x, guess, t)
    # Predicting v, the two are a rotation of x and v; predicting one of them, the other completes x.
    torch.testing.assert_close(this.add_noise(x0, noise, t), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(this.target(x0, noise, t), guess, rtol=1e-4, atol=2e-3)


def test_targets_by_value():
    x0, noise, t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([500])
    alpha, sigma = (float(level) for level in process().alpha_sigma(t))
    assert process("epsilon").target(x0, noise, t).item() == 3
    assert process("sample").target(x0, noise, t).item() == 2
    assert process("v_prediction").target(x0, noise, t).item() == pytest.approx(3 * alpha - 2 * sigma)


def test_noising_equals_the_official_one():
    golden = process_case("diffusion_dit")
    x = process().add_noise(golden["in.x_start"], golden["in.noise"], golden["in.t"])
    assert relative_error(x, golden["out.q_sample"]) < 1e-6


def test_denoising_equals_the_official_one():
    golden = process_case("diffusion_dit")
    eps, x_start = golden["in.model_output"][:, :3], golden["in.x_start"]
    x0, same = process("epsilon").denoise(golden["in.x_t"], eps, golden["in.t"])
    assert same is eps
    assert relative_error(x0, golden["out.predict_xstart_from_eps"]) < 2e-5
    assert relative_error(x0, golden["out.p_mean_variance.learned_range.pred_xstart"]) < 2e-5
    _, noise = process("sample").denoise(golden["in.x_t"], x_start, golden["in.t"])
    assert relative_error(noise, golden["out.predict_eps_from_xstart"]) < 2e-5
