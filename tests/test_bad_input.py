"""Bad input that the tests of the single rooms do not cover: the error's type, the bad value, the remedy."""

import pytest
import torch

import ditzoo
from ditzoo.diffusion import make_betas
from ditzoo.models import DiffusionTransformer
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
        ({"prediction": "epsilon", "schedule": "linear", "gidance": {}}, "unknown recipe entries: gidance"),
        ({"prediction": "epsilon", "schedule": "linear", "guidance": {"scael": 1}}, "unknown recipe entries: scael"),
    ],
)
def test_a_damaged_recipe_is_a_value_error(values: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"learn_sigma": "yes"}, TypeError, "DiT: learn_sigma must be True or False, got 'yes'"),
        ({"mlp_ratio": "4"}, TypeError, "DiT: mlp_ratio must be a finite number, got '4'"),
        ({"class_dropout_prob": None}, TypeError, "DiT: class_dropout_prob must be a finite number, got None"),
        ({"mlp_ratio": float("nan")}, TypeError, "DiT: mlp_ratio must be a finite number, got nan"),
        ({"mlp_ratio": 0.001}, ValueError, "DiT: mlp_ratio 0.001 leaves the MLP no width"),
        ({"mlp_ratio": -1.0}, ValueError, "DiT: mlp_ratio must be above 0, got -1.0"),
    ],
)
def test_constructor_options_of_the_wrong_kind(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ditzoo.create("dit_ti_2", **options)


def test_a_name_that_is_no_string() -> None:
    with pytest.raises(TypeError, match="a model name is a string, got 5"):
        ditzoo.create(5)  # type: ignore[arg-type]


def test_the_abstract_class_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match=r"is no subclass of ditzoo\.models\.DiffusionTransformer"):
        ditzoo.register_model("nothing", DiffusionTransformer, family="dit")


def test_a_time_that_is_no_tensor() -> None:
    model = ditzoo.create("dit_ti_2")
    with pytest.raises(TypeError, match="t must be a tensor of one time a sample, got 5"):
        model(torch.zeros(1, 1, 8, 8), 5, torch.tensor([1]))


def test_inputs_that_are_no_tensors_of_the_right_kind() -> None:
    model, t, y = ditzoo.create("dit_ti_2"), torch.zeros(1), torch.tensor([1])
    with pytest.raises(TypeError, match="x must be a floating-point tensor, got list"):
        model([[0.0]], t, y)
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
        model(torch.zeros(1, 1, 8, 8, dtype=torch.int64), t, y)
    with pytest.raises(TypeError, match=r"y must be an int64 tensor, got list; use torch\.tensor"):
        model(torch.zeros(1, 1, 8, 8), t, [1])


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("uvit_ti_2", {"conv": "no"}, "UViT: conv must be True or False, got 'no'"),
        ("uvit_ti_2", {"skip": 0}, "UViT: skip must be True or False, got 0"),
        ("mdt_ti_2", {"mask_ratio": "0.3"}, "MDT: mask_ratio must be a finite number, got '0.3'"),
    ],
)
def test_family_options_of_the_wrong_kind(name: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        ditzoo.create(name, **options)


def test_a_size_that_the_patch_does_not_divide_names_the_next() -> None:
    with pytest.raises(ValueError, match="input_size 9 is not divisible by patch_size 2; the next that is: 10"):
        ditzoo.create("dit_ti_2", input_size=9)


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


def test_an_empty_input_has_no_tokens() -> None:
    with pytest.raises(ValueError, match=r"input of 0x8 is not divisible by patch_size 2; .* 2x8"):
        ditzoo.create("dit_ti_2").num_tokens(0, 8)
