"""DDIM against the official trajectory and against data whose best denoiser is known."""

import math

import pytest
import torch

from ditzoo.diffusion import GaussianDiffusion, ddim_sample, guide, sample_noise
from ditzoo.recipe import Guidance, Recipe
from tests.golden_cases import process_case, relative_error
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


def test_every_step_equals_the_official_one():
    golden = process_case("diffusion_dit")
    model = golden.model()
    guidance = Guidance(scale=golden.facts["cfg_scale"], channels=3)
    network = Recorder(guide(model, guidance, model.null_label))
    # The official batch is [n conditional | n null], of which the first half is kept.
    noise, y = golden["in.loop_x_T"][:2], golden["in.loop_y"][:2]
    with torch.no_grad():
        x = ddim_sample(network, process(), noise, y, num_inference_steps=10)
    assert [t.tolist() for t in network.t] == [[t, t] for t in golden["out.p_sample_loop.model_t"].tolist()]
    for ours, theirs in zip([*network.x[1:], x], golden["out.ddim_eta0.steps"], strict=True):
        assert relative_error(ours, theirs[:2]) < 2e-5
    assert relative_error(x, golden["out.ddim_eta0.sample"][:2]) < 2e-5


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
    assert finished == [1, 2, 3]
    assert all(labels is y for labels in network.y)
    ddim_sample(network, process(), noise, num_inference_steps=1)
    assert network.y[-1] is None


def test_a_learned_variance_is_dropped():
    noise = torch.randn(2, 3, 2, 2)
    plain = ddim_sample(lambda x, t, y: x / 2, process(), noise, num_inference_steps=4)
    learned = ddim_sample(lambda x, t, y: torch.cat([x / 2, 9 + x], dim=1), process(), noise, num_inference_steps=4)
    assert learned.shape == noise.shape
    assert torch.equal(learned, plain)


def test_the_noise_is_left_as_it_was():
    noise = torch.randn(2, 1, 2, 2)
    before = noise.clone()
    ddim_sample(lambda x, t, y: x / 2, process(), noise, num_inference_steps=4)
    assert torch.equal(noise, before)


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
