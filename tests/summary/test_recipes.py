"""Recipes in words."""

import math
import re
import sys

import pytest
import torch

import ditzoo
from ditzoo.diffusion import guide, make_process
from ditzoo.metrics import MacCount
from ditzoo.recipe import Guidance, Recipe
from ditzoo.summary import describe
from tests.summary.foreign import Foreign
from tests.summary.reading import section

#: where the recipes of these names come from
TITLES = {
    "dit_xl_2": "Recipe (of the published dit_xl_2.in256 and dit_xl_2.in512)",
    "dit_xl_2_incontext": "Recipe (of the family's published dit_xl_2.in256 and dit_xl_2.in512)",
    "dit_ti_2": "Recipe (of the family's published dit_xl_2.in256 and dit_xl_2.in512, adapted to pixels)",
    "diffit_s_2": "Recipe (of the family's published diffit_xl_2.in256)",
    "diffit_unet_32": "Recipe (of the paper; no weights of it are published)",
    "diffit_unet_64": "Recipe (of the paper; no weights of it are published)",
    "diffit_unet_ti": "Recipe (of the paper; no weights of it are published)",
    "uvit_h_4": "Recipe (of the published uvit_h_4.in512)",
    "uvit_l_4": "Recipe (of the published uvit_l_4.in512)",
    "uvit_m_4": "Recipe (of the family's published uvit_h_2.in256; uvit_m_4.in64 has another)",
    "uvit_s_2": "Recipe (of the family's published uvit_h_2.in256; uvit_s_2.cifar10 has another)",
    "uvit_s_deep_2": "Recipe (of the family's published uvit_h_2.in256)",
    "uvit_m_4.in64": "Recipe",
    "dit_ti_2.digits": "Recipe",
}


@pytest.fixture(autouse=True)
def _words_alone(monkeypatch):
    """Descriptions without what takes longest, and tells nothing of recipes."""
    module = sys.modules["ditzoo.summary.describe"]
    monkeypatch.setattr(module, "count_macs", lambda model: MacCount(1, 0, {}, {"other": 1}, (1,)))
    monkeypatch.setattr(module, "draw_blocks", lambda model, *, ascii: "")


@pytest.mark.parametrize("name", TITLES)
def test_the_heading_says_where_a_recipe_comes_from(name):
    assert re.findall(r"^Recipe.*$", describe(name), re.MULTILINE) == [TITLES[name]]


def test_recipes_in_words():
    guided = section(describe("mdtv2_s_2"), "Recipe (of the family's published mdtv2_xl_2.in256)")
    assert (
        "u + s (c - u) on the first 3 channels, s = 1 + 2.8 (1 - cos(pi (1 - t / 1000)^4)) / 2, "
        "from 1 in noise to 3.8 at t = 0; c with the label, u with the null label"
    ) in guided
    assert "masking 0.3 to 0.5 of the tokens, drawn anew each step, in a second pass over each training" in guided
    tiny = section(describe("dit_ti_2"), TITLES["dit_ti_2"])
    assert "guidance u + 1.5 (c - u) on all channels; c with" in tiny  # three, of the one that it has
    assert "autoencoder none: the model sees pixels" in tiny
    continuous = section(describe("uvit_l_2.in256"), "Recipe")
    assert "guidance c + 0.4 (c - u) on all channels" in continuous
    assert "schedule continuous_vp: the variance-preserving SDE, in continuous time guidance" in continuous
    assert "sampler dpm_3s, 50 steps: 100 forward passes an image autoencoder" in continuous
    assert "guidance none sampler euler_maruyama, 1,000 steps: 1,000 forward passes" in section(
        describe("uvit_s_2.cifar10"), "Recipe"
    )
    flow = section(describe("sit_ti_2"), "Recipe (of the family's published sit_xl_2.in256, adapted to pixels)")
    assert "velocity: data - noise schedule flow_linear: the straight line from noise at time 0 to data" in flow
    assert "sampler heun, 125 steps: 500 forward passes" in flow


def in_words(name: str, recipe: Recipe) -> str:
    """The section of a recipe, registered under this name."""
    ditzoo.register_model(name, Foreign, family="foreign", recipe=recipe)
    return section(describe(name), "Recipe")


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("flow_linear", "data - noise"),
        ("flow_gvp", "alpha' * data + sigma' * noise, where ' is the derivative in time"),
        ("flow_vp", "alpha' * data + sigma' * noise, where ' is the derivative in time"),
    ],
)
def test_velocities_in_words_are_what_is_computed(schedule, words, registry_sandbox):
    recipe = Recipe(prediction="velocity", schedule=schedule)
    assert in_words("foreign_ti_2", recipe).startswith(f"prediction velocity: {words} schedule {schedule}: ")
    process, t = make_process(recipe), 0.3
    data, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -0.7)
    d_alpha, d_sigma = process.derivatives(t)
    formula = words.partition(",")[0].replace("alpha'", "d_alpha").replace("sigma'", "d_sigma")
    told = eval(formula, {"data": data, "noise": noise, "d_alpha": d_alpha, "d_sigma": d_sigma})
    torch.testing.assert_close(told, process.target(data, noise, torch.tensor([t])))


def test_autoguidance_names_the_weaker_model(registry_sandbox):
    given = {"prediction": "velocity", "schedule": "flow_linear", "sampler": "heun", "num_inference_steps": 10}
    text = in_words("foreign_ti_2", Recipe(**given, guidance=Guidance(scale=2.0, kind="autoguidance")))
    assert (
        "guidance u + 2 (c - u) on all channels; kind autoguidance; c from the model, u from a weaker model for the "
        "same label sampler heun, 10 steps: 20 forward passes an image, and as many of the weaker model autoencoder"
    ) in text
    assert "null label" not in text
    off = in_words("foreign_ti_3", Recipe(**given, guidance=Guidance(kind="autoguidance")))
    assert "guidance none sampler heun, 10 steps: 20 forward passes an image autoencoder" in off


def test_what_has_no_words_is_told_where_it_differs_from_its_default(registry_sandbox):
    given = {"prediction": "epsilon", "schedule": "linear"}
    plain = in_words("foreign_ti_2", Recipe(**given, guidance=Guidance(scale=2.0)))
    assert plain.endswith("samples from the moving average of the weights")
    guidance = Guidance(scale=2.0, interval=(0.3, 5.0))
    text = in_words("foreign_ti_3", Recipe(**given, guidance=guidance, time_offset=1.0, sampler_options={"eta": 1.0}))
    assert "guidance u + 2 (c - u) on all channels; interval (0.3, 5.0); c with the label" in text
    assert text.endswith(" time offset 1.0 sampler options {'eta': 1.0}")


def test_guidance_in_words_is_what_is_computed():
    """The printed power-cosine scale, evaluated, is that of `guide`."""
    recipe = ditzoo.model_info("mdt_xl_2").recipe
    assert recipe is not None
    text = section(describe("mdt_s_2"), "Recipe (of the family's published mdt_xl_2.in256)")
    formula = re.search(r"s = (.*?), from", text)
    assert formula is not None
    conditional, unconditional = torch.full((1, 4, 1, 1), 2.0), torch.full((1, 4, 1, 1), 1.0)
    guided = guide(lambda x, t, y: torch.cat([conditional, unconditional]), recipe.guidance, null_label=7)
    for t in (0, 250, 700, 999):
        out = guided(conditional, torch.tensor([t]), torch.tensor([1]))
        code = formula[1].replace("cos(pi ", "cos(pi * ").replace("^", "**").replace(" (1", " * (1", 1)
        scale = eval(code, {"cos": math.cos, "pi": math.pi, "t": t})
        assert out[0, 0, 0, 0].item() == pytest.approx(1 + scale * (2 - 1), rel=1e-5)
        assert out[0, 3, 0, 0].item() == 2
