"""Parameter counts of every official configuration."""

import pytest

import ditzoo
from tests.golden_cases import golden_facts
from tests.zoo import EVERY_NAME, TINY, on_meta

OFFICIAL = golden_facts("param_counts")


@pytest.mark.parametrize("configuration", OFFICIAL)
def test_parameters_are_as_many_as_the_official_ones(configuration):
    official = OFFICIAL[configuration]
    model = on_meta(official["name"], **official["options"])
    assert sum(p.numel() for p in model.parameters()) == official["total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == official["trainable"]


@pytest.mark.parametrize("configuration", OFFICIAL)
def test_state_dict_is_the_official_one_without_constant_buffers(configuration):
    official = OFFICIAL[configuration]
    model = on_meta(official["name"], **official["options"])
    state = model.state_dict()
    # The originals keep one index beside every relative-position table.
    constant = sum(key.endswith("relative_position_bias_table") for key in state)
    assert len(state) == official["state_dict_keys"] - constant
    assert (constant > 0) == bool(model.constant_buffers)


def test_every_published_size_is_compared():
    compared = {entry["name"] for entry in OFFICIAL.values()}
    configs = [ditzoo.model_info(name).config for name in compared]
    for name in ditzoo.list_models():
        info = ditzoo.model_info(name)
        if info.config.get("conditioning", "adaln_zero") != "adaln_zero" or not on_meta(name).has_original:
            continue  # no official code: test_conditioning.py and test_diffit_unet.py compare with the papers
        tagged = {f"{name}.{tag}" for tag in info.tags}
        assert info.ours or {name, *tagged} & compared, name
    for name in ditzoo.list_models(pretrained=True):
        assert ditzoo.model_info(name).packaged or ditzoo.model_info(name).config in configs, name


@pytest.mark.parametrize("name", EVERY_NAME)
def test_model_info_counts_what_the_model_has(name):
    model, info = on_meta(name), ditzoo.model_info(name)
    assert info.num_params == sum(p.numel() for p in model.parameters())
    assert info.num_trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert info.num_tokens == (model.input_size // info.patch_size) ** 2
    assert (info.depth, info.hidden_size, info.num_heads) == (model.depth, model.hidden_size, model.num_heads)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_tiny(name):
    info = ditzoo.model_info(name)
    # DiT's other conditionings keep the size of dit_ti_2, and need fewer parameters for it.
    least = 300_000 if info.config.get("conditioning", "adaln_zero") == "adaln_zero" else 200_000
    assert least <= info.num_params <= 600_000
    shape = {key: info.config[key] for key in ("input_size", "in_channels", "num_classes", "learn_sigma")}
    assert shape == {"input_size": 8, "in_channels": 1, "num_classes": 10, "learn_sigma": False}
    assert info.ours


def test_every_family_has_a_tiny_model():
    assert {ditzoo.model_info(name).family for name in TINY} == set(ditzoo.list_families())
