"""Bad input that the tests of the single rooms do not cover: the error's type, the bad value, the remedy."""

import pytest
import torch

import ditzoo
from ditzoo.diffusion import make_betas
from ditzoo.recipe import Guidance, Recipe
from ditzoo.train import TrainOptions, train

RECIPE = Recipe(prediction="v_prediction", schedule="cosine")


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 10), ("linear", 20), ("cosine", 0), ("linear", -1)])
def test_too_few_timesteps_are_refused(schedule: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"{steps} timesteps are too few for the {schedule} schedule.*1000"):
        make_betas(schedule, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"weights": "emma"}, ValueError, "unknown weights 'emma'; choose one of ema, raw"),
        ({"guidance": {"scale": 2.0}}, TypeError, r"guidance must be a Guidance, got {'scale': 2.0}; Recipe.from_dict"),
        ({"mask_ratio": -0.1}, ValueError, "mask_ratio -0.1"),
        ({"mask_ratio": 0.9, "mask_ratio_spread": 0.2}, ValueError, r"mask_ratio 0.9 \(\+ up to 0.2\)"),
    ],
)
def test_recipe_entries_out_of_range(values: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Recipe(**{"prediction": "epsilon", "schedule": "linear", **values})  # type: ignore[arg-type]


def test_a_guidance_scale_must_be_finite() -> None:
    with pytest.raises(ValueError, match="guidance scale must be a finite number, got nan"):
        Guidance(scale=float("nan"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"schedule": "linear"}, "a recipe needs prediction"),
        ({"prediction": "epsilon", "schedule": "linear", "gidance": {}}, "unknown recipe entries: 'gidance'"),
        ({"prediction": "epsilon", "schedule": "linear", "guidance": {"scael": 1}}, "unknown recipe entries: 'scael'"),
    ],
)
def test_a_damaged_recipe_is_a_value_error(values: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {"ema": s, "opt": {}, "args": None},
    ],
)
def test_what_training_scripts_wrap_around_a_state_dict_is_taken_off(wrap) -> None:
    source, target = ditzoo.create("mdt_ti_2"), ditzoo.create("mdt_ti_2")
    torch.nn.init.normal_(source.final_layer.linear.weight)
    target.load_state_dict(wrap(source.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_learned_variance_is_not_trained_by_accident() -> None:
    model = ditzoo.create("dit_ti_2", learn_sigma=True)
    with pytest.raises(ValueError, match=r"returned \(4, 2, 8, 8\) where \(4, 1, 8, 8\) is needed.*learn_sigma=False"):
        train(model, torch.zeros(4, 1, 8, 8), torch.arange(4), RECIPE, TrainOptions(num_images=4))


def test_a_data_set_needs_images_and_a_label_for_each() -> None:
    model = ditzoo.create("dit_ti_2")
    with pytest.raises(ValueError, match="no images to train on"):
        train(model, torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), RECIPE, TrainOptions(num_images=4))
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        train(model, torch.zeros(4, 1, 8, 8), torch.arange(3), RECIPE, TrainOptions(num_images=4))
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        TrainOptions(num_images=4, seed=-1)
