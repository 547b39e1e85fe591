"""Presets: all build, each value says where it is from, and the papers' are the papers'."""

import math

import pytest

from ditzoo import list_models, model_info
from ditzoo.bench import QUICK
from ditzoo.train.config import make_config
from ditzoo.train.network import meta_network
from ditzoo.train.presets import get_preset, list_presets


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_of_a_model_of_its_name(name: str) -> None:
    preset = get_preset(name)
    config = make_config({"preset": name})
    assert config.model in (name, name.partition(".")[0])
    info = model_info(config.model)
    assert info.recipe is not None
    assert set(config.model_options) <= set(info.config)
    assert preset.num_samples > 1_000
    assert config.num_images % config.batch_size == 0, "the authors count whole steps"


@pytest.mark.parametrize("name", list_presets())
def test_every_value_has_a_source(name: str) -> None:
    for setting in get_preset(name).values.values():
        assert setting.confidence in ("stated", "recalled", "ours")
        assert len(setting.source) > 10
        if setting.confidence != "ours":
            assert any(sign in str(setting) for sign in ("arXiv:", "github.com/", "the preset's name"))


def test_every_published_weight_has_a_preset() -> None:
    assert set(list_models(pretrained=True)) <= set(list_presets())


def test_every_tiny_model_has_the_quick_benchmarks_settings() -> None:
    tiny = list_presets("*.digits")
    assert {name.removesuffix(".digits") for name in tiny} == set(QUICK.default_models())
    for name in tiny:
        config = make_config({"preset": name})
        assert config.model == name
        for option in ("num_images", "batch_size", "learning_rate", "lr_schedule", "betas", "ema_decay"):
            assert getattr(config, option) == getattr(QUICK.train, option)


@pytest.mark.parametrize(
    ("name", "steps", "settings"),
    [
        (
            "dit_xl_2.in256",
            7_000_000,
            {"batch_size": 256, "learning_rate": 1e-4, "weight_decay": 0.0, "ema_decay": 0.9999, "warmup_images": 0},
        ),
        ("dit_xl_2.in512", 3_000_000, {"batch_size": 256, "flip": True, "lr_schedule": "constant"}),
        ("dit_b_4.in256", 400_000, {"batch_size": 256, "optimizer": "adamw", "max_grad_norm": math.inf}),
        ("sit_xl_2.in256", 7_000_000, {"batch_size": 256, "learning_rate": 1e-4}),
        ("uvit_l_2.in256", 300_000, {"batch_size": 1_024}),
        ("uvit_h_2.in256", 500_000, {"batch_size": 1_024}),
        ("uvit_s_2.cifar10", 500_000, {"batch_size": 128}),
        ("mdt_xl_2.in256", 6_500_000, {"batch_size": 256, "learning_rate": 3e-4, "optimizer": "adamw"}),
        ("mdtv2_xl_2.in256", 5_400_000, {"learning_rate": 5e-4, "optimizer": "adan", "max_grad_norm": 1.0}),
        ("diffit_xl_2.in512", 1_500_000, {"learning_rate": 1e-4, "batch_size": 512}),
        ("diffit_unet_32.cifar10", 200_000, {"batch_size": 512, "learning_rate": 1e-3}),
        ("diffit_unet_64.ffhq64", 200_000, {"batch_size": 256, "learning_rate": 2e-4}),
    ],
)
def test_the_papers_settings(name: str, steps: int, settings: dict) -> None:
    config = make_config({"preset": name})
    assert config.num_images == steps * config.batch_size
    assert {option: getattr(config, option) for option in settings} == settings


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dit_xl_2.in256", {"betas", "max_grad_norm", "precision"}),
        ("diffit_xl_2.in256", {"num_images", "optimizer", "weight_decay", "flip"}),
        ("mdtv2_xl_2.in256", {"betas", "weight_decay", "flip"}),
    ],
)
def test_what_no_source_says_is_ours(name: str, settings: set[str]) -> None:
    values = get_preset(name).values
    assert settings <= {option for option, setting in values.items() if setting.confidence == "ours"}
    assert str(values["betas"]).startswith("ours: ")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mdt_xl_2.in256", {"num_images", "batch_size"}),
        ("mdtv2_s_2.in256", {"num_images", "batch_size"}),
        ("diffit_xl_2.in512", {"batch_size", "learning_rate", "ema_decay"}),
        ("uvit_h_2.in256", {"learning_rate", "betas", "weight_decay", "warmup_images"}),
        ("sit_b_2.in256", {"batch_size", "learning_rate", "ema_decay"}),
    ],
)
def test_what_was_not_read_in_the_source_is_to_be_compared_with_it(name: str, settings: set[str]) -> None:
    values = get_preset(name).values
    assert settings <= {option for option, setting in values.items() if setting.confidence == "recalled"}
    assert str(values[min(settings)]).startswith("recalled, check it: ")


def test_larger_latents_have_larger_networks() -> None:
    for name, side in (("dit_xl_2.in512", 64), ("sit_xl_2.in512", 64), ("uvit_l_4.in64", 64), ("sit_b_2.in256", 32)):
        assert meta_network(make_config({"preset": name})).input_size == side


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'mdt2_xl_2\.in256'\. Did you mean mdtv2_xl_2\.in256"):
        get_preset("mdt2_xl_2.in256")
