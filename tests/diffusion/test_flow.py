"""Flow matching against SiT's official code, and against data whose velocity is known."""

import pytest
import torch

import ditzoo
from ditzoo.diffusion import (
    SAMPLERS,
    FlowMatching,
    GaussianDiffusion,
    TrainingDraws,
    ddim_sample,
    denoising_loss,
    draw_training,
    euler_sample,
    get_sampler,
    guide,
    heun_sample,
    make_process,
)
from ditzoo.recipe import Guidance, Recipe
from tests.golden_cases import process_case, relative_error

FLOW = Recipe(prediction="velocity", schedule="flow_linear", sampler="euler")
DDIM = Recipe(prediction="epsilon", schedule="linear")


@pytest.fixture
def golden():
    return process_case("sit_transport")


@pytest.fixture
def network(golden):
    return golden.model()


class Recorder:
    """Calls a network and remembers where and when."""

    def __init__(self, network):
        self.network, self.x, self.t = network, [], []

    def __call__(self, x, t, y):
        self.x.append(x)
        self.t.append(t)
        return self.network(x, t, y)


def test_points_and_velocities_of_the_line_equal_the_official_ones(golden):
    data, noise, t = golden["in.x1"], golden["in.x0"], golden["in.t_rand"]
    assert relative_error(FlowMatching().add_noise(data, noise, t), golden["out.Linear.x_t"]) < 1e-6
    assert relative_error(FlowMatching().target(data, noise, t), golden["out.Linear.u_t"]) < 1e-6


def test_the_line_runs_from_noise_at_0_to_data_at_1(golden):
    data, noise = golden["in.x1"], golden["in.x0"]
    assert torch.equal(FlowMatching().add_noise(data, noise, torch.zeros(3)), noise)
    assert torch.equal(FlowMatching().add_noise(data, noise, torch.ones(3)), data)


def test_the_loss_equals_the_official_one(golden, network):
    draws = TrainingDraws(golden["in.t_rand"], torch.ones(3), golden["in.x0"], torch.empty(3, 0))
    with torch.no_grad():
        loss = denoising_loss(network, FlowMatching(), golden["in.x1"], golden["in.y"], draws)
        prediction = network(golden["out.Linear.x_t"], golden["in.t_rand"], golden["in.y"])
    assert relative_error(prediction, golden["out.pred"]) < 2e-5
    assert relative_error(loss, golden["out.loss"]) < 2e-5


@pytest.mark.parametrize(
    ("sample", "case", "evaluations"),
    [(euler_sample, "out.ode_euler_num_steps11", 10), (heun_sample, "out.ode_heun2_num_steps11", 20)],
)
def test_every_step_equals_the_official_one(golden, network, sample, case, evaluations):
    guided = Recorder(guide(network, Guidance(scale=1.5, channels=3), network.null_label))
    # The official batch is [n conditional | n null], of which the first half is kept; a grid of 11 points, 10 steps.
    noise, y = golden["in.loop_z"][:2], golden["in.loop_y"][:2]
    with torch.no_grad():
        x = sample(guided, FlowMatching(), noise, y, num_inference_steps=10)
    times = torch.stack([t[0] for t in guided.t])
    assert len(guided.t) == evaluations
    assert relative_error(times, golden[f"{case}.model_t"]) < 1e-6
    trajectory = [*guided.x[:: evaluations // 10], x]
    for ours, theirs in zip(trajectory, golden[f"{case}.trajectory"], strict=True):
        assert relative_error(ours, theirs[:2]) < 2e-5


@pytest.mark.parametrize(("sample", "case"), [(euler_sample, "out.ode_euler"), (heun_sample, "out.ode_heun2")])
def test_another_number_of_steps_equals_the_official_one(golden, network, sample, case):
    guided = guide(network, Guidance(scale=1.5, channels=3), network.null_label)
    with torch.no_grad():
        x = sample(guided, FlowMatching(), golden["in.loop_z"][:2], golden["in.loop_y"][:2], num_inference_steps=9)
    assert relative_error(x, golden[f"{case}_num_steps10.sample"][:2]) < 2e-5


def best_velocity(mean, std):
    """What a perfectly trained network returns for data distributed as N(mean, std^2)."""

    def network(x, t, y):
        t = t.view(-1, 1, 1, 1)
        variance = t**2 * std**2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    return network


@pytest.mark.parametrize(("sample", "order"), [(euler_sample, 1), (heun_sample, 2)])
def test_a_perfect_network_gives_the_data_with_the_order_of_the_method(sample, order):
    # Double precision, so that only the method errs. The path of a Gaussian is the straight map from its noise.
    noise = torch.randn(256, 1, 2, 2, dtype=torch.float64)
    errors = []
    for steps in (50, 100):
        x = sample(best_velocity(0.7, 0.3), FlowMatching(), noise, num_inference_steps=steps)
        errors.append(float((x - (0.7 + 0.3 * noise)).abs().max()))
    assert errors[1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("sample", [euler_sample, heun_sample])
def test_a_constant_velocity_needs_one_step(sample):
    x = sample(lambda x, t, y: torch.full_like(x, 3.0), FlowMatching(), torch.ones(2, 1, 2, 2), num_inference_steps=1)
    assert torch.equal(x, torch.full((2, 1, 2, 2), 4.0))


@pytest.mark.parametrize("sample", [euler_sample, heun_sample])
def test_extra_channels_are_dropped_steps_are_counted_and_noise_is_kept(sample):
    noise, finished = torch.randn(2, 3, 2, 2), []
    before = noise.clone()
    plain = sample(lambda x, t, y: x / 2, FlowMatching(), noise, num_inference_steps=4, callback=finished.append)
    longer = sample(lambda x, t, y: torch.cat([x / 2, 9 + x], 1), FlowMatching(), noise, num_inference_steps=4)
    assert finished == [1, 2, 3, 4]
    assert torch.equal(longer, plain)
    assert torch.equal(noise, before)


def test_times_are_drawn_uniformly_from_0_to_1_and_belong_to_the_sample():
    (draws,) = draw_training(0, range(2000), (1, 1, 1), num_timesteps=FlowMatching().num_timesteps)
    assert draws.t.dtype == torch.float32
    assert 0 <= draws.t.min() < 0.005 < 0.995 < draws.t.max() < 1
    histogram = torch.histc(draws.t, bins=10, min=0, max=1)
    assert (histogram - 200).abs().max() < 5 * 200**0.5
    (alone,) = draw_training(0, [1234], (1, 1, 1), num_timesteps=None)
    assert torch.equal(alone.t[0], draws.t[1234])


def test_recipes_choose_process_and_sampler():
    assert isinstance(make_process(FLOW), FlowMatching)
    assert isinstance(make_process(DDIM), GaussianDiffusion)
    assert [get_sampler(FLOW), get_sampler(DDIM)] == [euler_sample, ddim_sample]
    assert set(SAMPLERS) == {"ddim", "euler", "heun"}


def test_what_recipes_state_and_this_release_lacks_is_said():
    dit, uvit = (ditzoo.model_info(name).recipe for name in ("dit_xl_2.in256", "uvit_l_2.in256"))
    with pytest.raises(
        ValueError, match=r"no ddpm sampler; use dataclasses\.replace\(recipe, sampler=\.\.\.\) with ddim"
    ):
        get_sampler(dit)
    with pytest.raises(ValueError, match=r"'continuous_vp' in recipes and does not compute it; choose linear,"):
        make_process(uvit)


def test_a_sampler_refuses_the_other_kind_of_process():
    noise = torch.zeros(1, 1, 2, 2)
    with pytest.raises(TypeError, match=r"DDIM needs a GaussianDiffusion, not a FlowMatching; use euler_sample"):
        ddim_sample(lambda x, t, y: x, FlowMatching(), noise)
    for sample in (euler_sample, heun_sample):
        with pytest.raises(TypeError, match=r"follows a flow, and GaussianDiffusion is none; use ddim_sample"):
            sample(lambda x, t, y: x, GaussianDiffusion(DDIM), noise)
        with pytest.raises(ValueError, match=r"num_inference_steps must be 1 or more, got 0"):
            sample(lambda x, t, y: x, FlowMatching(), noise, num_inference_steps=0)
