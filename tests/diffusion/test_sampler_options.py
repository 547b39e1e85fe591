"""What a recipe's `sampler_options` may be, and that they reach the sampler."""

import dataclasses
import math

import pytest
import torch

from ditzoo.diffusion import SAMPLERS, StepNoise, ddim_sample, get_sampler, make_process
from tests.diffusion.mixture import denoiser, gaussian, recipe_of


def recipe_with(sampler, options):
    kind = ("linear", "epsilon") if sampler in ("ddpm", "ddim") else ("flow_linear", "velocity")
    return dataclasses.replace(recipe_of(*kind), sampler=sampler, sampler_options=options)


def test_options_of_a_recipe_reach_the_sampler():
    recipe = recipe_with("ddim", {"eta": 1.0})
    this, x = make_process(recipe), gaussian(4)
    noise = {"step_noise": StepNoise(0, range(4), (2, 1, 1)), "num_inference_steps": 5}
    by_recipe = get_sampler(recipe)(denoiser(this), this, x, **noise)
    assert torch.equal(by_recipe, ddim_sample(denoiser(this), this, x, eta=1.0, **noise))
    assert not torch.equal(by_recipe, ddim_sample(denoiser(this), this, x, **noise))


@pytest.mark.parametrize(
    ("sampler", "option", "message"),
    [
        (
            "ddim",
            "etta",
            r"sampler 'ddim' has no option 'etta'\. Did you mean eta\? Its options: spacing, eta, clip_",
        ),
        ("edm_heun", "churn", r"sampler 'edm_heun' has no option 'churn'\. Did you mean s_churn\?"),
        ("euler", "step_noise", r"sampler 'euler' has no option 'step_noise'\. Its options: spacing\."),
        ("ddim", "times", r"sampler 'ddim' has no option 'times'"),
        ("euler_maruyama", "laststep", r"no option 'laststep'\. Did you mean last_step"),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest(sampler, option, message):
    with pytest.raises(TypeError, match=message):
        get_sampler(recipe_with(sampler, {option: 1}))


NUMBER, SPACINGS = "a finite number", "one of time, log_snr, karras or None"
FORMS = "one of sbdm, sigma, constant, linear, decreasing, increasing_decreasing or None"
LAST_STEPS = "one of mean, tweedie, euler or None"


@pytest.mark.parametrize(
    ("sampler", "option", "value", "error", "wanted"),
    [
        ("ddim", "eta", "1", TypeError, NUMBER),
        ("ddim", "eta", True, TypeError, NUMBER),
        ("ddim", "eta", math.inf, ValueError, NUMBER),
        ("ddim", "eta", math.nan, ValueError, NUMBER),
        ("ddim", "clip_sample", 3, TypeError, "True or False"),
        ("ddim", "clip_sample", None, TypeError, "True or False"),
        ("ddim", "spacing", "karas", ValueError, SPACINGS),
        ("ddim", "spacing", 7, TypeError, SPACINGS),
        ("edm_heun", "s_churn", None, TypeError, NUMBER),
        ("edm_heun", "s_tmin", math.inf, ValueError, NUMBER),
        ("edm_heun", "s_tmax", "50", TypeError, f"{NUMBER} or inf"),
        ("edm_heun", "s_tmax", -math.inf, ValueError, f"{NUMBER} or inf"),
        ("unipc", "order", "2", TypeError, "a whole number"),
        ("unipc", "order", 2.0, TypeError, "a whole number"),
        ("unipc", "order", True, TypeError, "a whole number"),
        ("euler_maruyama", "diffusion", "SBDM", ValueError, FORMS),
        ("euler_maruyama", "last_step", 5, TypeError, LAST_STEPS),
        ("euler_maruyama", "last_step", ["mean"], TypeError, LAST_STEPS),
        ("euler_maruyama", "last_step", "none", ValueError, LAST_STEPS),
    ],
)
def test_a_wrong_value_is_named_with_what_is_valid(sampler, option, value, error, wanted):
    with pytest.raises(error) as raised:
        get_sampler(recipe_with(sampler, {option: value}))
    assert str(raised.value) == f"option {option!r} of sampler {sampler!r} must be {wanted}, got {value!r}."


RANGES = {
    "eta": ("from 0 to 1", [-0.1, 1.5]),
    "s_churn": ("0 or more", [-1]),
    "s_tmin": ("0 or more", [-0.05]),
    "s_tmax": ("0 or more", [-2.0]),
    "s_noise": ("0 or more", [-1.0]),
    "diffusion_norm": ("above 0", [0.0, -1.0]),
    "rtol": ("above 0", [0, -1e-3]),
    "atol": ("above 0", [0.0]),
}


@pytest.mark.parametrize(
    ("sampler", "option", "value"),
    [
        (sampler, option, value)
        for sampler, info in SAMPLERS.items()
        for option in info.options
        for value in RANGES.get(option, ("", []))[1]
    ],
)
def test_a_number_out_of_range_is_named_by_recipes_and_samplers(sampler, option, value):
    message = rf"^option '{option}' must be {RANGES[option][0]}, got {value!r}\.$"
    recipe = recipe_with(sampler, {option: value})
    with pytest.raises(ValueError, match=message):
        get_sampler(recipe)
    this = make_process(recipe)
    with pytest.raises(ValueError, match=message):
        SAMPLERS[sampler].function(denoiser(this), this, gaussian(2), **recipe.sampler_options)


@pytest.mark.parametrize("option", RANGES)
def test_a_range_is_that_of_an_option(option):
    assert any(option in info.options for info in SAMPLERS.values())


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ddim", {"eta": 1, "clip_sample": True, "spacing": None}),
        ("edm_heun", {"s_churn": 40, "s_tmin": 0.05, "s_tmax": math.inf, "s_noise": 1.003, "spacing": "log_snr"}),
        ("unipc", {"order": 3, "lower_order": False}),
        ("euler_maruyama", {"diffusion": "sbdm", "diffusion_norm": 2, "last_step": None, "last_step_size": 0.1}),
    ],
)
def test_values_of_the_right_type_are_taken(sampler, options):
    assert get_sampler(recipe_with(sampler, options)).keywords == options


@pytest.mark.parametrize(("sampler", "option"), [(name, o) for name, info in SAMPLERS.items() for o in info.options])
def test_values_of_every_option_are_checked(sampler, option):
    with pytest.raises(TypeError, match=rf"^option '{option}' of sampler '{sampler}' must be .*, got b'1'\.$"):
        get_sampler(recipe_with(sampler, {option: b"1"}))
