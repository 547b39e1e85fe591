"""The noise that EDM's sampler throws in, against algorithm 2 of arXiv:2206.00364 written down a second time."""

import itertools
import math

import pytest
import torch

from ditzoo.diffusion import edm_heun_sample
from tests.diffusion.mixture import denoiser, expectations, gaussian, process_of

#: of a step, for 8 points
NOISES = torch.randn(20, 8, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
#: those of the paper for ImageNet at 64x64 (table 5)
IMAGENET = {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}


def algorithm_2(x, levels, most, *, s_churn, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0):
    """The sample, and the noise levels at which the denoiser was called. `most`, to which the raised levels are
    clamped, is not in the paper."""
    called = []

    def slope(x, level):
        called.append(level)
        x0, _ = expectations(x.flatten(1), 1.0, level)
        return (x - x0.view_as(x)) / level

    for step, (t, following) in enumerate(itertools.pairwise(levels)):
        gamma = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        raised = min(t + gamma * t, most)
        x = x + math.sqrt(raised**2 - t**2) * s_noise * NOISES[step]
        d = slope(x, raised)
        ahead = x + (following - raised) * d
        if following > 0:
            ahead = x + (following - raised) * (d + slope(ahead, following)) / 2
        x = ahead
    return x, called


def churned(process, steps, times=None, **options):
    """The sample over alpha, the noise levels at which the network was called, and what `algorithm_2` starts from."""
    plain, called = denoiser(process), []

    def network(x, t, y):
        called.append(process.noise_level(process.process_time(float(t[0]))))
        return plain(x, t, y)

    times = times or process.times(steps, "karras")
    start = process.initial_sample(gaussian(8))
    x = edm_heun_sample(network, process, start, times=times, step_noise=lambda step: NOISES[step], **options)
    levels = [process.noise_level(time) for time in times]
    return x / process.level(times[-1])[0], called, start / process.level(times[0])[0], levels


@pytest.mark.parametrize("options", [{"s_churn": 2.0}, {"s_churn": 1e3}, IMAGENET])
@pytest.mark.parametrize(
    ("kind", "most"), [(("edm", "edm"), math.inf), (("continuous_vp", "epsilon"), 1.0), (("linear", "epsilon"), 1.0)]
)
def test_churn_is_algorithm_2(kind, most, options):
    """At any noise level under EDM; elsewhere up to that of the first time."""
    process = process_of(*kind)
    x, called, start, levels = churned(process, 6, **options)
    expected, expected_levels = algorithm_2(start, levels, most * levels[0], **options)
    assert called == pytest.approx(expected_levels, rel=1e-9)
    torch.testing.assert_close(x, expected, rtol=1e-7, atol=1e-7)


def test_the_first_step_under_edm_goes_beyond_80():
    _, called, *_ = churned(process_of("edm", "edm"), 4, s_churn=1.0)
    assert called[0] == pytest.approx(80 * 1.25)
    _, called, *_ = churned(process_of("edm", "edm"), 4, **IMAGENET)
    assert called[0] == pytest.approx(80)  # above s_tmax


def test_other_processes_stay_at_their_first_noise_level():
    process = process_of("continuous_vp", "epsilon")
    _, called, _, levels = churned(process, 6, s_churn=1e3)
    assert max(called) == called[0] == pytest.approx(process.noise_level(1.0))
    assert called[2] == pytest.approx(math.sqrt(2) * levels[1])  # the second step


@pytest.mark.parametrize("kind", [("edm", "edm"), ("continuous_vp", "epsilon")])
def test_steps_of_rising_noise_add_none(kind):
    process = process_of(*kind)
    times = process.times(6, "karras")[-2::-1]
    options = {"times": times, "step_noise": lambda step: NOISES[step]}
    x = edm_heun_sample(denoiser(process), process, gaussian(8), s_churn=20.0, **options)
    assert torch.equal(x, edm_heun_sample(denoiser(process), process, gaussian(8), **options))
