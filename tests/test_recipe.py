"""Recipes and guidance as data."""

import dataclasses
import json
from typing import get_args

import pytest

import ditzoo
from ditzoo import recipe as recipe_module
from ditzoo.recipe import DISCRETE_SAMPLERS, Guidance, Recipe

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
    Recipe(
        prediction="epsilon",
        schedule="linear",
        variance="learned_range",
        loss="rescaled_hybrid",
        min_snr_gamma=5.0,
        sampler="ddim",
        sampler_options={"eta": 1.0},
        pixel_rule="adm",
        licence="MIT",
        source="somewhere",
    ),
    Recipe(
        prediction="edm",
        schedule="edm",
        sampler="edm_heun",
        end_time=0.01,
        guidance=Guidance(scale=2.0, kind="autoguidance", interval=(0.2, 5.0)),
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
        ({"sampler": "plms"}, r"unknown sampler 'plms'; choose one of ddpm, ddim, dpmpp_2m"),
        ({"sampler": "euler"}, r"sampler 'euler' does not go with schedule 'linear'; choose one of ddpm, ddim, dpmpp_"),
        (
            {**FLOW, "sampler": "ddpm"},
            r"sampler 'ddpm' does not go with schedule 'flow_linear'; .* euler, heun, dopri5",
        ),
        (
            {**FLOW, "prediction": "sample"},
            r"prediction 'sample' does not go .* predict 'velocity' or 'epsilon' or 'score'",
        ),
        (
            {"prediction": "velocity"},
            r"prediction 'velocity' does not go with schedule 'linear', whose networks predict",
        ),
        ({**FLOW, "num_inference_steps": 0}, r"num_inference_steps must be from 1 to 1,000,000, got 0"),
        ({**FLOW, "guidance": Guidance(schedule="power_cosine")}, r"power_cosine guidance counts timesteps"),
        (
            {"schedule": "edm", "sampler": "edm_heun"},
            r"prediction 'epsilon' does not go with schedule 'edm', whose networks predict 'edm'\.",
        ),
        (
            {"schedule": "continuous_vp", "sampler": "ddpm"},
            r"sampler 'ddpm' does not go with .* choose one of ddim, dpm",
        ),
        ({"variance": "learned"}, r"unknown variance 'learned'; choose one of fixed_small, fixed_large, learned_range"),
        ({"loss": "l1"}, r"unknown loss 'l1'; choose one of mse, hybrid, rescaled_hybrid, vlb"),
        ({"loss_weighting": "snr"}, r"unknown loss_weighting 'snr'; choose one of none, velocity, likelihood"),
        ({"weights": "last"}, r"unknown weights 'last'; choose one of ema, raw"),
        ({"pixel_rule": "round"}, r"unknown pixel_rule 'round'; choose one of dit, adm"),
        (
            {"variance": "learned_range"},
            r"loss 'mse' does not train variance 'learned_range': 'mse' goes with the fixed",
        ),
        ({"loss": "hybrid"}, r"loss 'hybrid' does not train variance 'fixed_large'"),
        (
            {"schedule": "continuous_vp", "variance": "learned_range", "loss": "hybrid"},
            r"'learned_range' is of DDPM's steps, which schedule 'continuous_vp' does not make; choose one of the sc",
        ),
        (
            {**FLOW, "min_snr_gamma": 5.0},
            r"min_snr_gamma weights the schedules linear, scaled_linear, cosine, not 'flow",
        ),
        ({"min_snr_gamma": 0.0}, r"min_snr_gamma must be above 0, or None, got 0\.0"),
        ({"time_distribution": "normal"}, r"unknown time_distribution 'normal'; choose one of uniform, logit_normal"),
        ({"time_std": 0.0}, r"time_std must be a number above 0, got 0\.0"),
        (
            {"prediction": "edm", "schedule": "edm", "time_distribution": "logit_normal"},
            r"time_distribution 'logit_normal' does not go with schedule 'edm', which draws log\(sigma\)",
        ),
        (
            {"loss_weighting": "velocity"},
            r"loss_weighting 'velocity' is for flows that predict 'epsilon' or 'score', n",
        ),
        ({**FLOW, "loss_weighting": "likelihood"}, r"not for 'velocity' under 'flow_linear'; use 'none'"),
        ({"end_time": 0.1}, r"end_time goes with schedules in continuous time, got 0\.1 for 'linear'; use None"),
        (
            {**FLOW, "end_time": 0.0},
            r"end_time must be above 0 and at most 1 under 'flow_linear', or None .*, got 0\.0",
        ),
        (
            {**FLOW, "end_time": 1.5},
            r"end_time must be above 0 and at most 1 under 'flow_linear', or None .*, got 1\.5",
        ),
        *(
            (
                {"prediction": prediction, "schedule": "flow_vp", "end_time": 1.0},
                r"end_time must be above 0 and below 1 under 'flow_vp' \(at 1 the noise falls infinitely fast\), or "
                r"None for the schedule's own end, got 1\.0",
            )
            for prediction in ("velocity", "epsilon", "score")
        ),
        (
            {"prediction": "edm", "schedule": "edm", "end_time": 90.0},
            r"end_time must be above 0 and at most 80 under 'edm'",
        ),
        ({"time_scale": 0.0}, r"time_scale must be a number above 0, got 0\.0"),
        ({"time_offset": float("inf")}, r"time_offset must be a finite number, got inf"),
        ({"latent_scale": 0.0}, r"latent_scale must be a number above 0, got 0.0"),
        ({"latent_scale": float("nan")}, r"latent_scale must be a finite number, got nan"),
        ({"num_train_timesteps": 0}, r"num_train_timesteps must be from 1 to 1,000,000, got 0"),
        ({"num_train_timesteps": 10**12}, r"num_train_timesteps must be from 1 to 1,000,000, got 1000000000000\."),
        ({**FLOW, "num_inference_steps": 10**400}, r"num_inference_steps must be from 1 to 1,000,000, got 10{59}\."),
        ({"time_offset": 10**400}, r"time_offset must be a finite number, got 10{59}\."),
        ({"num_inference_steps": 0}, r"num_inference_steps must be from 1 to 1,000,000, got 0"),
        *(
            (
                {"sampler": sampler, "num_inference_steps": 1001},
                r"num_inference_steps must be from 1 to num_train_timesteps \(1000\) under 'linear', got 1001",
            )
            for sampler in DISCRETE_SAMPLERS
        ),
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
        ({"licence": 3}, r"licence must be a string, got 3\."),
        ({"latent_codec": ["a"]}, r"latent_codec must be a string, got \['a'\]"),
        ({"num_inference_steps": 2.5}, r"num_inference_steps must be a whole number, got 2\.5"),
        ({"num_inference_steps": 50.0}, r"num_inference_steps must be a whole number, got 50\.0"),
        ({"num_inference_steps": "50"}, r"num_inference_steps must be a whole number, got '50'"),
        ({"num_train_timesteps": True}, r"num_train_timesteps must be a whole number, got True"),
        ({"latent_scale": "0.18215"}, r"latent_scale must be a number, got '0\.18215'"),
        ({"time_scale": None}, r"time_scale must be a number, got None"),
        ({"mask_ratio": "0.3"}, r"mask_ratio must be a number, got '0\.3'"),
        ({"min_snr_gamma": "5"}, r"min_snr_gamma must be a number, got '5'"),
        ({**FLOW, "end_time": "1"}, r"end_time must be a number, got '1'"),
        ({"guidance": {"scale": 1.5}}, r"guidance must be a Guidance, got .*; Recipe\.from_dict\(\) takes plain dicts"),
        ({"sampler_options": "eta"}, r"sampler_options must be a mapping of names to values, got 'eta'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(changes, message):
    with pytest.raises(TypeError, match=message):
        Recipe(**{"prediction": "epsilon", "schedule": "linear", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "1.5"}, r"guidance scale must be a number, got '1\.5'"),
        ({"scale": None}, r"guidance scale must be a number, got None"),
        ({"power": True}, r"guidance power must be a number, got True"),
        ({"channels": 3.0}, r"guided channels must be a whole number, got 3\.0"),
        ({"interval": 2.0}, r"guidance interval must be two noise levels \(low, high\), got 2\.0"),
        ({"interval": (0.1, "5")}, r"guidance interval must be two noise levels \(low, high\), got \(0\.1, '5'\)"),
    ],
)
def test_guidance_of_the_wrong_type_is_named(changes, message):
    with pytest.raises(TypeError, match=message):
        Guidance(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cfg"}, r"unknown guidance kind 'cfg'; choose one of classifier_free, autoguidance"),
        ({"scale": float("nan")}, r"guidance scale must be a finite number, got nan"),
        ({"power": float("nan")}, r"guidance power must be a finite number, got nan"),
        ({"power": 0.0}, r"guidance power must be above 0, got 0\.0"),
        (
            {"interval": (2.0, 1.0)},
            r"interval \(low, high\) must satisfy 0 <= low < high, both finite, got \(2\.0, 1\.0\)",
        ),
        ({"interval": (-1.0, 1.0)}, r"must satisfy 0 <= low < high, both finite, got \(-1\.0, 1\.0\)"),
        ({"interval": (0, 10**400)}, r"must satisfy 0 <= low < high, both finite, got \(0, 10{55}\."),
        ({"interval": (0.0, float("inf"))}, r"must satisfy 0 <= low < high, both finite, got \(0\.0, inf\)"),
        ({"convention": "sit"}, r"unknown guidance convention 'sit'; choose one of dit, uvit"),
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
    with pytest.raises(ValueError, match=r"unknown recipe entries: 'cfg', 'steps'\."):
        Recipe.from_dict(values)


def test_wrong_entries_of_a_file_are_checked_too():
    with pytest.raises(ValueError, match="unknown sampler 'plms'"):
        Recipe.from_dict({**RECIPES[0].to_dict(), "sampler": "plms"})
    with pytest.raises(ValueError, match="unknown guidance convention 'other'"):
        Recipe.from_dict({**RECIPES[0].to_dict(), "guidance": {"convention": "other"}})
    with pytest.raises(ValueError, match=r"a recipe needs prediction and schedule\."):
        Recipe.from_dict({})
    with pytest.raises(TypeError, match=r"guidance must be a mapping of names to values, got 1\.5"):
        Recipe.from_dict({**RECIPES[0].to_dict(), "guidance": 1.5})
    with pytest.raises(ValueError, match=r"unknown recipe entries: '\\x1b\[2J'\.$"):
        Recipe.from_dict({**RECIPES[0].to_dict(), "\x1b[2J": 1})


def test_which_recipes_are_flows_and_which_have_a_table_of_levels():
    assert [recipe.is_flow for recipe in RECIPES] == [False, False, False, True, False, False]
    assert [recipe.is_discrete for recipe in RECIPES] == [True, True, True, False, True, False]


@pytest.mark.parametrize("schedule", get_args(recipe_module.Schedule))
def test_every_schedule_has_a_prediction_and_each_of_its_samplers_is_accepted(schedule):
    prediction = {"edm": "edm"}.get(schedule, "epsilon")
    recipe = Recipe(prediction=prediction, schedule=schedule)
    assert set(recipe.samplers) < set(get_args(recipe_module.Sampler))
    for sampler in get_args(recipe_module.Sampler):
        if sampler in recipe.samplers:
            assert dataclasses.replace(recipe, sampler=sampler).sampler == sampler
        else:
            with pytest.raises(ValueError, match=", ".join(recipe.samplers)):
                dataclasses.replace(recipe, sampler=sampler)


def test_guidance_interval_comes_back_as_a_pair():
    guidance = Guidance(scale=2.0, interval=[1, 5])
    assert guidance.interval == (1.0, 5.0)
    assert hash(guidance) == hash(Guidance(scale=2.0, interval=(1.0, 5.0)))


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


_POWER_COSINE = Guidance(scale=3.8, channels=3, schedule="power_cosine", power=4.0)
_DIT = {
    "schedule": "linear", "variance": "learned_range", "loss": "hybrid",
    "sampler": ("ddpm", 250), "codec": ("stabilityai/sd-vae-ft-ema", 0.18215),
}  # fmt: skip
_UVIT = {"schedule": "scaled_linear", "time": (1.0, 1.0), "sampler": ("dpmpp_3s", 50),
         "codec": ("autoencoder_kl_ema", 0.18215)}  # fmt: skip
_CONTINUOUS = {"schedule": "continuous_vp", "time": (999.0, 0.0), "end_time": 1e-4, "sampler": ("dpm_3s", 50)}
_UNGUIDED = Guidance(scale=0.0, convention="uvit")
_SDE = {"guidance": _UNGUIDED, **_CONTINUOUS, "end_time": None, "sampler": ("euler_maruyama", 1000)}
_DIGITS = {
    "prediction": "v_prediction", "schedule": "cosine", "guidance": Guidance(scale=1.5), "sampler": ("ddim", 25),
}  # fmt: skip

#: How the authors train and sample each of their weights, read in their papers, READMEs and evaluation scripts and not
#: in this library. What a row leaves out: noise prediction, fixed variance and squared error, T = 1000, times as they
#: are, pixels, DiT's rounding, no masks, averaged weights.
PUBLISHED = {
    "dit_xl_2.in256": {**_DIT, "guidance": Guidance(scale=1.5, channels=3)},
    "dit_xl_2.in512": {**_DIT, "guidance": Guidance(scale=1.5, channels=3)},
    "mdt_xl_2.in256": {**_DIT, "guidance": _POWER_COSINE, "pixel_rule": "adm", "mask": (0.3, 0.0)},
    "mdtv2_xl_2.in256": {
        **_DIT, "guidance": _POWER_COSINE, "pixel_rule": "adm", "mask": (0.3, 0.2), "min_snr_gamma": 5.0,
    },
    "diffit_xl_2.in256": {**_DIT, "guidance": dataclasses.replace(_POWER_COSINE, scale=4.4), "pixel_rule": "adm"},
    "diffit_xl_2.in512": {**_DIT, "guidance": Guidance(scale=1.49, channels=3), "pixel_rule": "adm"},
    "sit_xl_2.in256": {
        "prediction": "velocity", "schedule": "flow_linear", "guidance": Guidance(scale=1.5, channels=3),
        "sampler": ("heun", 125), "codec": ("stabilityai/sd-vae-ft-ema", 0.18215),
    },
    "uvit_h_2.in256": {**_UVIT, "guidance": Guidance(scale=0.4, convention="uvit")},
    "uvit_h_4.in512": {**_UVIT, "guidance": Guidance(scale=0.7, convention="uvit")},
    "uvit_l_2.in256": {
        **_CONTINUOUS, "guidance": Guidance(scale=0.4, convention="uvit"), "codec": ("autoencoder_kl", 0.18215),
    },
    "uvit_l_4.in512": {
        **_CONTINUOUS, "guidance": Guidance(scale=0.7, convention="uvit"), "codec": ("autoencoder_kl", 0.18215),
    },
    "uvit_l_4.in64": {**_CONTINUOUS, "guidance": _UNGUIDED},
    "uvit_m_4.in64": {**_CONTINUOUS, "guidance": _UNGUIDED},
    "uvit_s_2.cifar10": _SDE,
    "uvit_s_4.celeba64": _SDE,
    # Our own, as the quick benchmark trains and samples.
    "dit_ti_2.digits": _DIGITS,
    "uvit_ti_2.digits": _DIGITS,
    "diffit_ti_2.digits": _DIGITS,
    "mdt_ti_2.digits": {**_DIGITS, "mask": (0.3, 0.0)},
    "mdtv2_ti_2.digits": {**_DIGITS, "mask": (0.3, 0.2)},
    "sit_ti_2.digits": {**_DIGITS, "prediction": "velocity", "schedule": "flow_linear", "sampler": ("euler", 25)},
    "diffit_unet_ti.digits": {**_DIGITS, "prediction": "edm", "schedule": "edm", "sampler": ("edm_heun", 13)},
}  # fmt: skip


@pytest.mark.parametrize("name", ditzoo.list_models(pretrained=True))
def test_published_weights_are_trained_and_sampled_as_their_authors_do(name):
    assert name in PUBLISHED, f"{name} has no row of facts"
    facts, info = PUBLISHED[name], ditzoo.model_info(name)
    codec, scale = facts.get("codec", (None, 1.0))
    time_scale, time_offset = facts.get("time", (1.0, 0.0))
    mask_ratio, spread = facts.get("mask", (None, 0.0))
    sampler, steps = facts["sampler"]
    assert info.recipe == Recipe(
        prediction=facts.get("prediction", "epsilon"),
        schedule=facts["schedule"],
        num_train_timesteps=1000,
        time_scale=time_scale,
        time_offset=time_offset,
        end_time=facts.get("end_time"),
        variance=facts.get("variance", "fixed_large"),
        loss=facts.get("loss", "mse"),
        loss_weighting="none",
        min_snr_gamma=facts.get("min_snr_gamma"),
        guidance=facts["guidance"],
        sampler=sampler,
        num_inference_steps=steps,
        sampler_options={},
        latent_codec=codec,
        latent_scale=scale,
        latent_shift=0.0,
        pixel_rule=facts.get("pixel_rule", "dit"),
        mask_ratio=mask_ratio,
        mask_ratio_spread=spread,
        weights="ema",
        licence=info.licence,
        source=info.source,
    )


#: Whose recipe each bare name has: that of weights of its size which see latents, as bare names do, or else of its
#: family. Tiny names, and DiffiT's in image space, are below.
BARE = {
    **{f"dit_{size}_{patch}": "dit_xl_2.in256" for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)},
    **{f"dit_xl_2_{way}": "dit_xl_2.in256" for way in ("adaln", "crossattn", "incontext")},
    **{f"{kind}_{size}_2": f"{kind}_xl_2.in256" for kind in ("mdt", "mdtv2", "sit") for size in ("s", "b", "l", "xl")},
    **{f"diffit_{size}_2": "diffit_xl_2.in256" for size in ("s", "b", "l", "xl")},
    "uvit_h_2": "uvit_h_2.in256",
    "uvit_h_4": "uvit_h_4.in512",
    "uvit_l_2": "uvit_l_2.in256",
    "uvit_l_4": "uvit_l_4.in512",
    # Weights of these sizes see pixels, or there are none.
    **dict.fromkeys(["uvit_m_4", "uvit_s_2", "uvit_s_4", "uvit_s_deep_2"], "uvit_h_2.in256"),
}


@pytest.mark.parametrize("name", BARE)
def test_bare_names_have_the_recipe_of_published_weights(name):
    published = ditzoo.model_info(BARE[name]).recipe
    assert ditzoo.model_info(name).recipe == dataclasses.replace(published, licence=None, source=None)


@pytest.mark.parametrize("name", sorted(set(ditzoo.list_models()) - set(BARE)))
def test_tiny_names_have_their_familys_recipe_for_pixels_and_the_image_space_ones_that_of_the_paper(name):
    recipe = ditzoo.model_info(name).recipe
    if name.startswith("diffit_unet"):
        steps = 40 if name == "diffit_unet_64" else 18
        assert recipe == Recipe(prediction="edm", schedule="edm", sampler="edm_heun", num_inference_steps=steps)
        return
    kind, _, size = name.partition("_")
    assert size.startswith("ti_2")
    published = ditzoo.model_info({"uvit": "uvit_h_2.in256"}.get(kind, f"{kind}_xl_2.in256")).recipe
    assert recipe == dataclasses.replace(
        published, latent_codec=None, latent_scale=1.0, variance="fixed_large", loss="mse", licence=None, source=None
    )


def test_the_facts_are_of_weights_that_exist():
    assert sorted(PUBLISHED) == sorted(ditzoo.list_models(pretrained=True))


#: of the weights, in their authors' words
LICENCES = {
    "dit": "CC-BY-NC-4.0",
    "mdt": "none stated for the weights; the code is Apache-2.0",
    "mdtv2": "none stated for the weights; the code is Apache-2.0",
    "diffit": "CC-BY-NC-SA-4.0",
    "sit": "none stated for the weights; the code is MIT",
    "uvit": "none stated for the weights; the code is MIT",
}


@pytest.mark.parametrize("name", ditzoo.list_models(pretrained=True))
def test_recipes_of_published_weights_name_their_licence_and_source(name):
    recipe = ditzoo.model_info(name).recipe
    if name.endswith(".digits"):
        assert (recipe.licence, recipe.source.split(";")[0]) == ("Apache-2.0", "packaged with ditzoo")
    else:
        assert recipe.licence == LICENCES[name.partition("_")[0]]
        assert recipe.source.startswith("https://")
    bare = ditzoo.model_info(name.partition(".")[0]).recipe
    assert (bare.licence, bare.source) == (None, None)
