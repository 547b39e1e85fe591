"""DPM-Solver-fast's grid (section 3.4 of arXiv:2206.00927), written down a second time, and what it is worth."""

import math

import pytest

from ditzoo.diffusion import SAMPLERS, dpm_3s_sample, dpmpp_3m_sample
from tests.diffusion.mixture import denoiser, gaussian, process_of

#: processes whose lambda is finite at both ends, as the paper has them
FINITE = [("linear", "epsilon"), ("scaled_linear", "epsilon"), ("continuous_vp", "epsilon"), ("edm", "edm")]


def papers_times(process, budget):
    """M steps of equal length h in lambda: all but the last two or one of order 3, with nodes at h/3 and 2h/3."""
    m = budget // 3 + 1
    orders = {0: [3] * (m - 2) + [2, 1], 1: [3] * (m - 1) + [1], 2: [3] * (m - 1) + [2]}[budget % 3]
    low, high = process.log_snr(process.start), process.log_snr(process.end)
    h = (high - low) / m
    times = []
    for i, order in enumerate(orders):
        ratios = {1: (0,), 2: (0, 1 / 2), 3: (0, 1 / 3, 2 / 3)}[order]
        times += [process.time_at(low + i * h + r * h) for r in ratios]
    return [*times, process.end]


def visited(process, sampler="dpm_3s", **options):
    """The times at which the network is called, and the last one reported."""
    plain, times, finished = denoiser(process), [], []

    def network(x, t, y):
        times.append(process.process_time(float(t[0])))
        return plain(x, t, y)

    start = process.initial_sample(gaussian(3))
    SAMPLERS[sampler].function(network, process, start, callback=finished.append, **options)
    return [*times, finished[-1].time]


@pytest.mark.parametrize("budget", [*range(1, 9), 20, 50])
@pytest.mark.parametrize("kind", FINITE)
def test_the_network_is_called_at_the_papers_times(kind, budget):
    process = process_of(*kind)
    found = visited(process, num_inference_steps=budget)
    assert len(found) == budget + 1
    assert found == pytest.approx(papers_times(process, budget), rel=1e-9, abs=1e-9)


def test_a_grid_that_is_asked_for_is_taken():
    process = process_of("continuous_vp", "epsilon")
    even = visited(process, num_inference_steps=9, spacing="time")
    assert even == pytest.approx([1 - 0.999 * i / 9 for i in range(10)])
    plus_plus = visited(process, "dpmpp_3s", num_inference_steps=9)
    assert plus_plus == pytest.approx(even)
    times = [1.0, 0.7, 0.2, 0.1]
    assert visited(process, times=times) == pytest.approx(times)


def test_infinite_ends_and_the_step_to_the_data_are_of_first_order():
    """Orders 1, 3, 2, 1 of a flow: of the four steps from -7 to 7 the outer ones start or end where lambda is infinite.
    Orders 3, 2 and 1 of the VP process, from which the last leads to the data."""
    flow, vp = process_of("flow_linear", "velocity"), process_of("continuous_vp", "epsilon")
    lambdas = [-3.5, -3.5 + 3.5 / 3, -3.5 + 7 / 3, 0, 1.75, 3.5]
    expected = [0.0, *(1 / (1 + math.exp(-value)) for value in lambdas), 1.0]
    assert visited(flow, num_inference_steps=7) == pytest.approx(expected)
    assert visited(flow, num_inference_steps=2) == pytest.approx([0.0, 0.5, 1.0])
    assert visited(flow, num_inference_steps=1) == pytest.approx([0.0, 1.0])
    whole = visited(vp, num_inference_steps=6, final_step=True)
    assert whole == pytest.approx([*papers_times(vp, 5), 0.0], rel=1e-9)
    assert visited(vp, num_inference_steps=1, final_step=True) == [1.0, 0.0]


@pytest.mark.parametrize("budget", [20, 50])
@pytest.mark.parametrize("kind", FINITE)
def test_its_error_is_smaller_than_on_a_grid_even_in_time(kind, budget):
    process = process_of(*kind)
    network, start = denoiser(process), process.initial_sample(gaussian(64))
    low, high = process.log_snr(process.start), process.log_snr(process.end)
    fine = [process.start, *(process.time_at(low + (high - low) * i / 500) for i in range(1, 500)), process.end]
    solution = dpmpp_3m_sample(network, process, start, times=fine)

    def error(times):
        x = dpm_3s_sample(network, process, start, num_inference_steps=budget, times=times)
        return float((x - solution).square().mean().sqrt())

    assert error(None) < 0.7 * error(process.times(budget, "time", final_step=False))
