"""The times that `sampler_times` gives are those at which samplers call the network and the callback."""

import dataclasses

import pytest
import torch

from ditzoo.diffusion import SAMPLERS, StepNoise, get_sampler, make_process, sampler_times
from tests.diffusion.mixture import denoiser, gaussian, recipe_of

KINDS = [
    ("linear", "epsilon"), ("scaled_linear", "epsilon"), ("cosine", "v_prediction"), ("continuous_vp", "epsilon"),
    ("flow_linear", "velocity"), ("flow_gvp", "velocity"), ("flow_vp", "score"), ("edm", "edm"),
]  # fmt: skip
#: what changes the times of a sampler
CHANGES = {
    "spacing": ["time", "log_snr", "karras", None],
    "final_step": [True, False],
    "last_step": ["tweedie", None],
    "last_step_size": [0.2],
}


def recipes():
    for kind in KINDS:
        for sampler in recipe_of(*kind).samplers:
            choices = [{}] + [
                {option: value} for option in SAMPLERS[sampler].options for value in CHANGES.get(option, [])
            ]
            for options in choices:
                yield pytest.param(*kind, sampler, options, id=f"{kind[0]}-{sampler}-{options}")


def recorded(recipe):
    """When the network is called, and when a step of the sampler ends."""
    process = make_process(recipe)
    plain, called, finished = denoiser(process), [], []

    def network(x, t, y):
        called.append(process.process_time(float(t[0])))
        return plain(x, t, y)

    noise = {"step_noise": StepNoise(0, range(2), (2, 1, 1))} if SAMPLERS[recipe.sampler].takes_noise else {}
    x = process.initial_sample(gaussian(2))
    steps = recipe.num_inference_steps
    get_sampler(recipe)(network, process, x, num_inference_steps=steps, callback=finished.append, **noise)
    return called, [step.time for step in finished]


@pytest.mark.parametrize(("schedule", "prediction", "sampler", "options"), list(recipes()))
def test_times_are_those_of_the_sampler(schedule, prediction, sampler, options):
    recipe = dataclasses.replace(
        recipe_of(schedule, prediction), sampler=sampler, num_inference_steps=7, sampler_options=options
    )
    times = sampler_times(recipe)
    called, finished = recorded(recipe)
    assert len(times) == 8
    assert called[0] == pytest.approx(times[0], rel=1e-9, abs=1e-12)
    if sampler in ("dpmpp_3s", "dpm_3s"):  # a step of theirs has up to three of the times
        assert called == pytest.approx(times[:-1], rel=1e-9, abs=1e-12)
        assert finished[-1] == times[-1]
        assert set(finished) <= set(times)
    else:
        assert finished == times[1:]
    if sampler != "dopri5":  # which chooses its own
        seen = torch.tensor([min(abs(time - call) for call in called) for time in times[:-1]])
        assert seen.max() < 1e-9 * max(times)
