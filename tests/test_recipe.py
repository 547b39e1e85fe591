"""Recipes and guidance as data."""

import dataclasses
import json

import pytest

import ditzoo
from ditzoo.recipe import Guidance, Recipe

RECIPES = [
    Recipe(prediction="epsilon", schedule="linear"),
    Recipe(
        prediction="v_prediction",
        schedule="cosine",
        num_train_timesteps=100,
        guidance=Guidance(scale=3.8, channels=3, schedule="power_cosine", power=0.01),
        num_inference_steps=10,
        mask_ratio=0.3,
        mask_ratio_spread=0.2,
        weights="raw",
    ),
    Recipe(prediction="sample", schedule="scaled_linear", guidance=Guidance(scale=0.4, convention="uvit")),
    Recipe(
        prediction="velocity",
        schedule="flow_linear",
        sampler="heun",
        num_inference_steps=2000,
        latent_codec="stabilityai/sd-vae-ft-ema",
        latent_scale=0.18215,
    ),
]
FLOW = {"prediction": "velocity", "schedule": "flow_linear", "sampler": "euler"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_survives_json(recipe):
    text = json.dumps(recipe.to_dict())
    again = Recipe.from_dict(json.loads(text))
    assert again == recipe
    assert isinstance(again.guidance, Guidance)
    assert json.dumps(again.to_dict()) == text
    assert set(recipe.to_dict()) == {field.name for field in dataclasses.fields(Recipe)}


def test_missing_entries_have_their_defaults():
    recipe = Recipe.from_dict({"prediction": "epsilon", "schedule": "linear"})
    assert recipe == RECIPES[0]
    assert (recipe.num_train_timesteps, recipe.num_inference_steps, recipe.sampler) == (1000, 50, "ddim")
    assert (recipe.mask_ratio, recipe.weights, recipe.guidance.is_off) == (None, "ema", True)


def test_recipes_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES[0].schedule = "cosine"
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES[0].guidance.scale = 2.0
    assert dataclasses.replace(RECIPES[0], schedule="cosine").schedule == "cosine"


def test_equal_recipes_are_equal_and_hash_alike():
    again = Recipe.from_dict(RECIPES[1].to_dict())
    assert hash(again) == hash(RECIPES[1])
    assert len({*RECIPES, again}) == len(RECIPES)


def test_a_recipe_is_public():
    assert ditzoo.Recipe is Recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "noise"}, r"unknown prediction 'noise'; choose one of epsilon, v_prediction, sample, velocity"),
        ({"schedule": "sigmoid"}, r"unknown schedule 'sigmoid'; choose one of linear, scaled_linear, cosine, contin"),
        ({"sampler": "plms"}, r"unknown sampler 'plms'; choose one of ddim, ddpm"),
        ({"sampler": "euler"}, r"sampler 'euler' does not go with schedule 'linear'; choose one of ddim, ddpm"),
        ({**FLOW, "sampler": "ddim"}, r"sampler 'ddim' does not go with schedule 'flow_linear'; choose .* euler, heun"),
        (
            {**FLOW, "prediction": "epsilon"},
            r"prediction 'epsilon' does not go with schedule 'flow_linear': flow sched",
        ),
        ({"prediction": "velocity"}, r"prediction 'velocity' does not go with schedule 'linear'"),
        ({**FLOW, "num_inference_steps": 0}, r"num_inference_steps must be 1 or more, got 0"),
        ({**FLOW, "guidance": Guidance(schedule="power_cosine")}, r"power_cosine guidance counts timesteps"),
        ({"latent_scale": 0.0}, r"latent_scale must be a number above 0, got 0.0"),
        ({"latent_scale": float("nan")}, r"latent_scale must be a number above 0, got nan"),
        ({"num_train_timesteps": 0}, r"num_train_timesteps must be 1 or more, got 0"),
        ({"num_inference_steps": 0}, r"from 1 to num_train_timesteps \(1000\), got 0"),
        ({"num_inference_steps": 1001}, r"from 1 to num_train_timesteps \(1000\), got 1001"),
        ({"mask_ratio": 1.0}, r"mask_ratio 1\.0 \(\+ up to 0\.0\) must be at least 0 and stay below 1"),
        ({"mask_ratio": 0.9, "mask_ratio_spread": 0.2}, r"mask_ratio 0\.9 \(\+ up to 0\.2\)"),
        ({"mask_ratio": -0.5}, r"mask_ratio -0\.5"),
        ({"mask_ratio": -0.1, "mask_ratio_spread": 0.5}, r"mask_ratio -0\.1"),
        ({"mask_ratio": 0.9, "mask_ratio_spread": -0.5}, r"mask_ratio 0\.9 \(\+ up to -0\.5\)"),
    ],
)
def test_a_value_out_of_range_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"prediction": "epsilon", "schedule": "linear", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convention": "sit"}, r"unknown convention 'sit'; choose one of dit, uvit"),
        ({"schedule": "linear"}, r"unknown guidance schedule 'linear'; choose one of constant, power_cosine"),
        ({"channels": 0}, r"guided channels must be 1 or more, or None for all, got 0"),
    ],
)
def test_wrong_guidance_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**changes)


@pytest.mark.parametrize(
    ("guidance", "off"),
    [
        (Guidance(), True),
        (Guidance(scale=1.5), False),
        (Guidance(scale=0.0), False),  # unconditional, in this convention
        (Guidance(scale=0.0, convention="uvit"), True),
        (Guidance(scale=1.0, convention="uvit"), False),
    ],
)
def test_when_guidance_is_off(guidance, off):
    assert guidance.is_off == off


def test_entries_that_no_recipe_has_are_named():
    values = {**RECIPES[0].to_dict(), "steps": 3, "cfg": 2}
    with pytest.raises(ValueError, match=r"unknown recipe entries: cfg, steps\."):
        Recipe.from_dict(values)


def test_wrong_entries_of_a_file_are_checked_too():
    with pytest.raises(ValueError, match="unknown sampler 'plms'"):
        Recipe.from_dict({**RECIPES[0].to_dict(), "sampler": "plms"})
    with pytest.raises(ValueError, match="unknown convention 'other'"):
        Recipe.from_dict({**RECIPES[0].to_dict(), "guidance": {"convention": "other"}})


def test_which_recipes_are_flows():
    assert [recipe.is_flow for recipe in RECIPES] == [False, False, False, True]


@pytest.mark.parametrize("name", ditzoo.list_models() + ditzoo.list_models(pretrained=True))
def test_every_model_has_the_recipe_of_its_authors(name):
    info = ditzoo.model_info(name)
    recipe, config = info.recipe, info.config
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.is_flow == (info.family == "sit")
    # Latent models have four channels and an autoencoder; the others see pixels.
    assert (recipe.latent_codec is not None) == (config["in_channels"] == 4)
    assert recipe.latent_scale == (0.18215 if config["in_channels"] == 4 else 1.0)
    assert recipe.mask_ratio == config.get("mask_ratio")
    assert recipe.mask_ratio_spread == (0.2 if name.startswith("mdtv2") else 0.0)
    if config["num_classes"] == 0 or config["class_dropout_prob"] == 0:
        assert recipe.guidance.is_off


@pytest.mark.parametrize(
    ("name", "guidance", "sampler"),
    [
        ("dit_xl_2.in256", Guidance(scale=1.5, channels=3), ("ddpm", 250)),
        ("dit_xl_2.in512", Guidance(scale=1.5, channels=3), ("ddpm", 250)),
        ("sit_xl_2.in256", Guidance(scale=1.5, channels=3), ("heun", 125)),
        ("uvit_h_2.in256", Guidance(scale=0.4, convention="uvit"), ("dpm_solver++", 50)),
        ("uvit_h_4.in512", Guidance(scale=0.7, convention="uvit"), ("dpm_solver++", 50)),
        ("uvit_l_2.in256", Guidance(scale=0.4, convention="uvit"), ("dpm_solver", 50)),
        ("uvit_l_4.in512", Guidance(scale=0.7, convention="uvit"), ("dpm_solver", 50)),
        ("uvit_l_4.in64", Guidance(scale=0.0, convention="uvit"), ("dpm_solver", 50)),
        ("uvit_s_2.cifar10", Guidance(scale=0.0, convention="uvit"), ("euler_maruyama", 1000)),
        ("mdt_xl_2.in256", Guidance(scale=3.8, channels=3, schedule="power_cosine", power=4.0), ("ddpm", 250)),
        ("mdtv2_xl_2.in256", Guidance(scale=3.8, channels=3, schedule="power_cosine", power=4.0), ("ddpm", 250)),
        ("diffit_xl_2.in256", Guidance(scale=4.4, channels=3, schedule="power_cosine", power=4.0), ("ddpm", 250)),
        ("diffit_xl_2.in512", Guidance(scale=1.49, channels=3), ("ddpm", 250)),
    ],
)
def test_how_published_weights_are_sampled(name, guidance, sampler):
    recipe = ditzoo.model_info(name).recipe
    assert recipe.guidance == guidance
    assert (recipe.sampler, recipe.num_inference_steps) == sampler
