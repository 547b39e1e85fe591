"""dopri5 beside torchdiffeq's own run over all times, and what its callback sees and does on the way."""

import itertools

import pytest
import torch

from ditzoo.diffusion import FlowMatching, NonFiniteSampleError, dopri5_sample
from ditzoo.diffusion.samplers.frame import Run
from tests.diffusion.mixture import denoiser, gaussian, process_of

torchdiffeq = pytest.importorskip("torchdiffeq", reason="dopri5 needs it; pip install 'ditzoo[ode]'")

KINDS = [("flow_linear", "velocity"), ("continuous_vp", "epsilon"), ("edm", "edm")]


def start_and_times(process, direction):
    times = process.times(20, final_step=False)[::direction]
    return process.level(times[0])[1] * gaussian(8), times


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_on_the_way_are_those_of_torchdiffeq(kind, direction):
    process, seen = process_of(*kind), []
    start, times = start_and_times(process, direction)
    x = dopri5_sample(denoiser(process), process, start, times=times, callback=seen.append)
    run, points = Run(denoiser(process), process, None, times, None), torch.tensor(times, dtype=torch.float64)
    states = torchdiffeq.odeint(
        lambda t, state: run.velocity(state, float(t)), start, points, rtol=1e-3, atol=1e-6, method="dopri5",
        options={"step_t": points[-1:]},
    )  # fmt: skip
    torch.testing.assert_close(torch.stack([step.sample for step in seen]), states[1:], rtol=1e-9, atol=1e-9)
    assert torch.equal(seen[-1].sample, x)
    assert [step.time for step in seen] == times[1:]
    assert seen[-1].evaluations == run.evaluations


@pytest.mark.parametrize("kind", KINDS[:2])  # EDM's network is called with another x
def test_evaluations_are_counted_and_estimates_made_up_to_each_step(kind):
    process = process_of(*kind)
    start, times = start_and_times(process, 1)
    plain, calls, seen = denoiser(process), [], []

    def network(x, t, y):
        time = process.process_time(float(t[0]))
        calls.append((time, process.estimate(x, output := plain(x, t, y), time).x0))
        return output

    def watch(step):
        assert step.evaluations == len(calls)
        seen.append(step)

    dopri5_sample(network, process, start, times=times, callback=watch)
    assert len({step.evaluations for step in seen}) > 5
    for step in seen:
        # Of the states that were tried only that at a step's start or end is on the path: look for it.
        made = [time for time, x0 in calls[: step.evaluations] if torch.allclose(x0, step.x0, rtol=1e-12, atol=0)]
        assert made
        assert process.log_snr(made[0]) <= process.log_snr(step.time) + 1e-9
    assert torch.equal(seen[-1].x0, calls[-1][1])


def test_a_sample_that_the_callback_replaces_is_where_the_solver_goes_on():
    process, replaced, evaluations = FlowMatching(), gaussian(8, seed=7), []
    start, times = start_and_times(process, 1)

    def replace(step):
        evaluations.append(step.evaluations)
        return replaced if step.number == 12 else None

    network = denoiser(process)
    x = dopri5_sample(network, process, start, times=times, callback=replace)
    expected = dopri5_sample(network, process, replaced, times=times[12:])
    torch.testing.assert_close(x, expected, rtol=5e-3, atol=5e-3)
    assert not torch.allclose(x, dopri5_sample(network, process, start, times=times), atol=0.1)
    assert len(evaluations) == 20
    assert evaluations == sorted(evaluations)


def test_the_number_of_steps_costs_nothing():
    process, counts, ends = FlowMatching(), [], []
    for steps in (1, 7, 50):
        seen = []
        ends.append(
            dopri5_sample(
                denoiser(process), process, gaussian(8), num_inference_steps=steps, callback=seen.append
            )
        )  # fmt: skip
        counts.append(seen[-1].evaluations)
    assert len(set(counts)) == 1
    assert all(torch.equal(first, second) for first, second in itertools.pairwise(ends))


@pytest.mark.parametrize("callback", [None, lambda step: None])
def test_rows_of_the_batch_that_a_network_breaks_are_named_with_the_step(callback):
    calls = []

    def network(x, t, y):
        calls.append(float(t[0]))
        broken = (torch.arange(len(x)) == 2) & (float(t[0]) > 0.5)
        return torch.where(broken.view(-1, 1, 1, 1), torch.inf, x.cos())

    with pytest.raises(NonFiniteSampleError, match=r"in samples 2 of the batch") as error:
        dopri5_sample(network, FlowMatching(), gaussian(4), num_inference_steps=10, callback=callback)
    assert error.value.rows == [2]
    assert 1 <= error.value.step <= 6
    assert error.value.num_steps == 10
    assert calls[-1] > 0.5


def test_tolerances_that_no_step_keeps_say_what_to_do():
    generator = torch.Generator().manual_seed(0)

    def erratic(x, t, y):
        size = 1e6 if float(t[0]) > 0.5 else 0.0
        return size * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    message = (
        r"no step after time 0\.4 is short enough for dopri5 to keep rtol=1e-14 and atol=1e-14; raise them, sample in "
        r"float64, or take a sampler of fixed steps such as heun"
    )
    with pytest.raises(ValueError, match=message):
        dopri5_sample(erratic, FlowMatching(), gaussian(4), num_inference_steps=5, rtol=1e-14, atol=1e-14)


def test_a_failed_assertion_of_the_network_stays_one():
    def network(x, t, y):
        raise AssertionError("of the network's own")

    with pytest.raises(AssertionError, match="of the network's own"):
        dopri5_sample(network, FlowMatching(), gaussian(4))


@pytest.mark.parametrize("times", [[0.0, 0.5, 0.5, 1.0], [0.0, 0.6, 0.4, 1.0], [0.5, 0.5]])
def test_times_that_turn_back_are_refused(times):
    with pytest.raises(ValueError, match=r"times must rise or fall from each to the next, got \[0\.[05], "):
        dopri5_sample(denoiser(FlowMatching()), FlowMatching(), gaussian(4), times=times)
