"""Parameter counts of every official configuration."""

from typing import NamedTuple

import pytest

import ditzoo
from tests.golden_cases import golden_facts
from tests.zoo import EVERY_NAME, TINY, on_meta

OFFICIAL = golden_facts("param_counts")


class Published(NamedTuple):
    """A published network as its paper and its authors' configuration have it, which the registry must repeat."""

    size: tuple[int, int, int, int]
    """depth, hidden_size, num_heads, patch_size"""
    shape: tuple[int, int]
    """in_channels, input_size"""
    num_classes: int
    null_label: int | None
    num_params: int
    """of the network that the official code builds"""
    options: dict[str, object]
    """others of the family"""


_XL, _IN256, _IN512 = (28, 1152, 16, 2), (4, 32), (4, 64)
_UVIT = {"learn_sigma": False, "qkv_bias": False, "mlp_time_embed": False, "skip": True, "conv": True}
_UVIT_H = {**_UVIT, "conv": False}
_SIGMA = {"learn_sigma": True}
PUBLISHED = {
    "dit_xl_2.in256": Published(_XL, _IN256, 1000, 1000, 675_129_632, _SIGMA),
    "dit_xl_2.in512": Published(_XL, _IN512, 1000, 1000, 676_014_368, _SIGMA),
    "sit_xl_2.in256": Published(_XL, _IN256, 1000, 1000, 675_129_632, _SIGMA),
    "mdt_xl_2.in256": Published(_XL, _IN256, 1000, 1000, 699_778_144, {**_SIGMA, "decode_layer": 2}),
    "mdtv2_xl_2.in256": Published(_XL, _IN256, 1000, 1000, 742_263_904, {**_SIGMA, "decode_layer": 4}),
    "diffit_xl_2.in256": Published(_XL, _IN256, 1000, 1000, 561_330_144, _SIGMA),
    "diffit_xl_2.in512": Published(_XL, _IN512, 1000, 1000, 563_562_464, _SIGMA),
    "uvit_s_2.cifar10": Published((12, 512, 8, 2), (3, 32), 0, None, 44_255_328, _UVIT),
    "uvit_s_4.celeba64": Published((12, 512, 8, 4), (3, 64), 0, None, 44_292_228, _UVIT),
    "uvit_m_4.in64": Published((16, 768, 12, 4), (3, 64), 1000, None, 130_940_292, _UVIT),
    "uvit_l_4.in64": Published((20, 1024, 16, 4), (3, 64), 1000, None, 286_827_652, _UVIT),
    "uvit_l_2.in256": Published((20, 1024, 16, 2), _IN256, 1000, 1000, 286_763_172, _UVIT),
    "uvit_l_4.in512": Published((20, 1024, 16, 4), _IN512, 1000, 1000, 286_861_524, _UVIT),
    "uvit_h_2.in256": Published((28, 1152, 16, 2), _IN256, 1000, 1000, 500_832_016, _UVIT_H),
    "uvit_h_4.in512": Published((28, 1152, 16, 4), _IN512, 1000, 1000, 500_942_656, _UVIT_H),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tag_has_the_published_configuration(name):
    published, model = PUBLISHED[name], on_meta(name)
    assert (model.depth, model.hidden_size, model.num_heads, model.patch_size) == published.size
    assert (model.in_channels, model.input_size) == published.shape
    assert (model.num_classes, model.null_label) == (published.num_classes, published.null_label)
    assert {option: model.config[option] for option in published.options} == published.options
    assert sum(p.numel() for p in model.parameters()) == published.num_params


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
    for name in ditzoo.list_models():
        info = ditzoo.model_info(name)
        if info.config.get("conditioning", "adaln_zero") != "adaln_zero" or not on_meta(name).has_original:
            continue  # no official code: test_conditioning.py and test_diffit_unet.py compare with the papers
        tagged = {f"{name}.{tag}" for tag in info.tags}
        assert info.ours or {name, *tagged} & compared, name
    tags = ditzoo.list_models(pretrained=True)
    assert {name for name in tags if not ditzoo.model_info(name).packaged} == set(PUBLISHED)


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
