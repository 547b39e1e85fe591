"""`create`: options, devices, weights, and what the errors say when a name or an option is wrong."""

import re

import pytest
import torch

import ditzoo
from ditzoo.registry import MissingWeightsError
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


@pytest.mark.parametrize("name", ["me/my-dit", "./runs/my.dit"])
def test_a_repository_or_folder_in_the_place_of_a_name_is_told_how_it_is_loaded(name):
    with pytest.raises(
        ValueError, match=rf"^Unknown model '{name}'\. .* is 'hf-hub:{name}', .*from_pretrained\('{name}'\)"
    ):
        ditzoo.create(name)


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


BY_HAND = [name for name in TAGGED if any(file.fetched == "by hand" for file in ditzoo.model_info(name).files)]


@pytest.mark.parametrize("name", BY_HAND)
def test_what_no_program_can_fetch_is_named(name):
    (file,) = ditzoo.model_info(name).files
    message = (
        f"Google Drive cannot be downloaded by program. Open https://drive.google.com/file/d/{file.drive_id}, save "
        f'{file.name}, then ditzoo.create("{name}", checkpoint="path/to/{file.name}").'
    )
    with pytest.raises(MissingWeightsError, match=re.escape(message)):
        ditzoo.create(name, pretrained=True)


def test_a_bare_name_has_the_weights_of_the_tag_that_builds_it():
    model = ditzoo.create("dit_ti_2", pretrained=True)
    tagged = ditzoo.create("dit_ti_2.digits", pretrained=True)
    assert model.details == tagged.details
    assert model.details.name == "dit_ti_2.digits"
    for name, value in tagged.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(MissingWeightsError, match=r'create\("uvit_h_2\.in256", checkpoint='):
        ditzoo.create("uvit_h_2", pretrained=True)
    with pytest.raises(MissingWeightsError, match=r'create\("uvit_l_2\.in256", checkpoint='):  # other label dropping
        ditzoo.create("uvit_l_2", pretrained=True)


def test_a_bare_name_whose_tags_build_other_networks_names_them():
    message = r"^uvit_l_4 has no weights at its own .*; those that there are: uvit_l_4\.in64, uvit_l_4\.in512\.$"
    with pytest.raises(MissingWeightsError, match=message):
        ditzoo.create("uvit_l_4", pretrained=True)


def test_pretrained_where_nothing_is_published_names_what_is():
    with pytest.raises(MissingWeightsError) as caught:
        ditzoo.create("dit_s_2", pretrained=True)
    packaged = [name for name in TAGGED if ditzoo.model_info(name).packaged]
    others = [name for name in TAGGED if name not in packaged]
    assert {"dit_ti_2.digits", "mdt_xl_2.in256"} <= {packaged[2], *others}
    assert str(caught.value) == (
        f"No weights are published for dit_s_2. Those of {', '.join(packaged)} come with ditzoo; published by their "
        f"authors are those of {', '.join(others)}. Weights of your own are loaded by ditzoo.create('dit_s_2', "
        "checkpoint=path)."
    )


@pytest.mark.parametrize("name", [name for name in TAGGED if ditzoo.model_info(name).packaged])
def test_packaged_weights_are_the_model_in_float32(name):
    model = ditzoo.create(name, pretrained=True)
    info = ditzoo.model_info(name)
    assert (model.dtype, model.training, model.load_result.is_exact) == (torch.float32, True, True)
    assert (model.details.name, model.details.recipe, model.details.data) == (name, info.recipe, info.data)
    assert model.details.licence == "Apache-2.0"
    assert len(model.details.label_names) == 10
    assert ditzoo.create(name, pretrained=True, dtype=torch.float16).dtype == torch.float16


def test_weights_go_to_the_default_device():
    with torch.device("meta"):
        assert ditzoo.create("dit_ti_2", pretrained=True).device.type == "meta"


def test_a_name_that_is_no_string():
    with pytest.raises(TypeError, match=r"a model name is a string, got 5\."):
        ditzoo.create(5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pretrained": "in256"}, TypeError, "pretrained must be True or False, got 'in256'"),
        ({"dtype": "float16"}, TypeError, "dtype must be None, or torch's float16, .*, got 'float16'"),
        ({"dtype": torch.int8}, ValueError, r"dtype must be None, or .*, got torch\.int8"),
        ({"dtype": torch.float8_e4m3fn}, ValueError, r"dtype must be None, or .*, got torch\.float8_e4m3fn"),
        ({"weights": "raw"}, ValueError, "weights='raw' says which to load, .*: add pretrained=True"),
    ],
)
def test_arguments_that_say_nothing(options, error, message):
    with pytest.raises(error, match=message):
        ditzoo.create("dit_ti_2", **options)
