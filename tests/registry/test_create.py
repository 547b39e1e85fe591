"""`create`: options, devices, weights, and what the errors say when a name or an option is wrong."""

import re

import pytest
import torch

import ditzoo
from tests.zoo import TINY

TAGGED = ditzoo.list_models(pretrained=True)


def test_the_model_is_trainable_and_on_the_default_device():
    model = ditzoo.create("dit_ti_2", num_classes=3)
    assert model.training
    assert model.config["num_classes"] == 3
    with torch.device("meta"):
        assert ditzoo.create("dit_ti_2").device.type == "meta"


def test_options_do_not_change_the_registry():
    before = ditzoo.create("dit_ti_2").config
    ditzoo.create("dit_ti_2", depth=1).config["num_heads"] = 99
    assert ditzoo.create("dit_ti_2").config == before


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("dit_xl2", "dit_xl_2"),
        ("DiT_XL_2", "dit_xl_2"),
        ("DiT-XL/2", "dit_xl_2"),
        ("uvit_hh_2", "uvit_h_2"),
        ("mdt2_xl_2", "mdt_xl_2"),
        ("dit_xl_3.in256", "dit_xl_2"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, suggested):
    bare = re.escape(name.partition(".")[0])
    with pytest.raises(
        ValueError, match=rf"Unknown model '{bare}'\. Did you mean .*{suggested}.*ditzoo\.list_models\(\)"
    ):
        ditzoo.create(name)


def test_a_name_like_no_other_suggests_nothing():
    with pytest.raises(
        ValueError, match=r"^Unknown model 'q'\. ditzoo\.list_models\(\) or `ditzoo list` gives all names\.$"
    ):
        ditzoo.create("q")


@pytest.mark.parametrize(
    ("name", "option", "suggested"),
    [
        ("dit_ti_2", "num_clases", "num_classes"),
        ("uvit_ti_2", "mlp_time_embedding", "mlp_time_embed"),
        ("mdt_ti_2", "maskratio", "mask_ratio"),
        ("diffit_ti_2", "patchsize", "patch_size"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_nearest(name, option, suggested):
    message = rf"{name} has no option '{option}'\. Did you mean .*{suggested}.*Its options: input_size, "
    with pytest.raises(TypeError, match=message):
        ditzoo.create(name, **{option: 1})


@pytest.mark.parametrize(
    ("name", "option"), [("dit_ti_2", "mask_ratio"), ("diffit_ti_2", "decode_layer"), ("mdt_ti_2", "conv")]
)
def test_an_option_of_another_family_is_refused(name, option):
    with pytest.raises(TypeError, match=f"{name} has no option '{option}'"):
        ditzoo.create(name, **{option: 1})


@pytest.mark.parametrize("name", TINY)
def test_the_class_itself_refuses_an_unknown_option_too(name):
    with pytest.raises(TypeError, match="hidden_dim"):
        type(ditzoo.create(name))(hidden_dim=3)


@pytest.mark.parametrize("name", [name for name in TAGGED if not ditzoo.model_info(name).packaged])
def test_pretrained_names_where_the_weights_are(name):
    info = ditzoo.model_info(name)
    message = (
        f"does not fetch weights. Those of {name} are at {info.source} (licence: {info.licence}); load the file "
        f"with ditzoo.Pipeline.from_pretrained({name!r}, checkpoint=path), or the official state dict with "
        f"ditzoo.create({name!r}).load_state_dict(state)."
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        ditzoo.create(name, pretrained=True)


def test_pretrained_without_a_tag_names_the_tags():
    with pytest.raises(RuntimeError, match=r"dit_xl_2 names no weights; give one of its tags: dit_xl_2\.in256, "):
        ditzoo.create("dit_xl_2", pretrained=True)


def test_pretrained_where_nothing_is_published_names_what_is():
    with pytest.raises(RuntimeError) as caught:
        ditzoo.create("dit_s_2", pretrained=True)
    packaged = [name for name in TAGGED if ditzoo.model_info(name).packaged]
    others = [name for name in TAGGED if name not in packaged]
    assert {"dit_ti_2.digits", "mdt_xl_2.in256"} <= {packaged[2], *others}
    assert str(caught.value) == (
        f"No weights are published for dit_s_2. Those of {', '.join(packaged)} come with ditzoo. Published elsewhere "
        f"are those of {', '.join(others)}, which this release does not fetch; ditzoo.model_info(name).source says "
        "where they are."
    )


def test_a_name_that_is_no_string():
    with pytest.raises(TypeError, match=r"a model name is a string, got 5\."):
        ditzoo.create(5)
