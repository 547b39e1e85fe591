"""Constructor options out of range or of the wrong kind: every family names option, value and remedy."""

import pytest

import ditzoo
from ditzoo.models.options import check_options
from tests.zoo import MASKED, TINY

NAN = float("nan")
#: The messages are those of a plain transformer and of a U shape.
SHARED = [
    (
        {"input_size": 9},
        ValueError,
        "input_size 9 is not divisible by (patch_size|the total downsampling) 2; the next that is: 10",
    ),
    ({"patch_size": 3}, ValueError, "input_size 8 is not divisible by patch_size 3; the next that is: 9"),
    ({"hidden_size": 36, "num_heads": 8}, ValueError, "hidden_size 36 is not divisible by num_heads 8"),
    ({"hidden_size": 18, "num_heads": 3}, ValueError, "hidden_size 18 is not divisible by 4, as position"),
    ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
    ({"in_channels": -1}, ValueError, "in_channels must be at least 1, got -1"),
    ({"num_classes": -1}, ValueError, "num_classes must be at least 0, got -1"),
    ({"mlp_ratio": 0}, ValueError, "mlp_ratio must be above 0, got 0"),
    ({"mlp_ratio": -1.0}, ValueError, r"mlp_ratio must be above 0, got -1\.0"),
    ({"mlp_ratio": 0.001}, ValueError, r"mlp_ratio 0\.001 leaves the (narrowest )?MLP no width"),
    ({"mlp_ratio": "4"}, TypeError, "mlp_ratio must be a finite number, got '4'"),
    ({"mlp_ratio": NAN}, TypeError, "mlp_ratio must be a finite number, got nan"),
    ({"class_dropout_prob": 1.0}, ValueError, r"class_dropout_prob must be in \[0, 1\), got 1\.0"),
    ({"class_dropout_prob": -0.1}, ValueError, r"class_dropout_prob must be in \[0, 1\), got -0\.1"),
    ({"class_dropout_prob": None}, TypeError, "class_dropout_prob must be a finite number, got None"),
    ({"depth": 2.0}, TypeError, r"depth must be an integer, got 2\.0"),
    ({"depth": True}, TypeError, "depth must be an integer, got True"),
    ({"input_size": (8, 8)}, TypeError, r"input_size must be an integer, got \(8, 8\)"),
    ({"num_classes": None}, TypeError, "num_classes must be an integer, got None"),
    ({"num_heads": "4"}, TypeError, "num_heads must be an integer, got '4'"),
    ({"learn_sigma": "yes"}, TypeError, "learn_sigma must be True or False, got 'yes'"),
]
OF_MDT = [
    ({"decode_layer": 0}, ValueError, r"decode_layer must be from 1 to depth \(4\), got 0"),
    ({"decode_layer": 5}, ValueError, r"decode_layer must be from 1 to depth \(4\), got 5"),
    ({"decode_layer": 2.0}, TypeError, r"decode_layer must be an integer, got 2\.0"),
    ({"decode_layer": None}, TypeError, "decode_layer must be an integer, got None"),
    ({"decode_layer": True}, TypeError, "decode_layer must be an integer, got True"),
    ({"mask_ratio": 1.0}, ValueError, r"mask_ratio must be None or in \[0, 1\), got 1\.0"),
    ({"mask_ratio": -0.1}, ValueError, r"mask_ratio must be None or in \[0, 1\), got -0\.1"),
    ({"mask_ratio": "0.3"}, TypeError, "mask_ratio must be a finite number, got '0.3'"),
]
OF_MDTV2 = [
    ({"mask_ratio": ratio}, ValueError, rf"mask_ratio must be below 0\.8, got {ratio}: .* to mask_ratio \+ 0\.2, which")
    for ratio in (0.8, 0.9)
]
OF_U_VIT = [
    ({"conv": "no"}, TypeError, "conv must be True or False, got 'no'"),
    ({"skip": 0}, TypeError, "skip must be True or False, got 0"),
    ({"qkv_bias": None}, TypeError, "qkv_bias must be True or False, got None"),
    ({"mlp_time_embed": 1.0}, TypeError, r"mlp_time_embed must be True or False, got 1\.0"),
]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        *((name, *case) for name in TINY for case in SHARED if set(case[0]) <= set(ditzoo.model_info(name).config)),
        *((name, {"depth": 4, **options}, *rest) for name in MASKED for options, *rest in OF_MDT),
        *(("mdtv2_ti_2", *case) for case in OF_MDTV2),
        *(("uvit_ti_2", *case) for case in OF_U_VIT),
    ],
)
def test_a_wrong_option_is_named_with_its_value(name, options, error, message):
    cls = type(ditzoo.create(name)).__name__
    with pytest.raises(error, match=f"^{cls}: {message}"):
        ditzoo.create(name, **options)


def test_only_the_version_that_draws_its_mask_ratio_leaves_room_for_it():
    assert ditzoo.create("mdt_ti_2", mask_ratio=0.9).mask_ratio == 0.9
    assert ditzoo.create("mdtv2_ti_2", mask_ratio=0.79).mask_ratio == 0.79


def test_an_option_means_what_its_family_says():
    """U-ViT's `skip` is True or False, another family's may be a word."""
    options = {**ditzoo.model_info("dit_ti_2").config, "skip": "concat"}
    check_options("Mine", options)
    with pytest.raises(TypeError, match=r"^Mine: learn_sigma must be True or False, got 'no'"):
        check_options("Mine", {**options, "learn_sigma": "no"})


def test_u_vit_predicts_no_variance():
    with pytest.raises(ValueError, match=r"learn_sigma must be False, got True"):
        ditzoo.create("uvit_ti_2", learn_sigma=True)
