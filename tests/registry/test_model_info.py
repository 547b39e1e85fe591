"""What the registry tells about a name, and what a tag changes."""

import re

import pytest

import ditzoo
from tests.zoo import EVERY_NAME, on_meta

TAGGED = ditzoo.list_models(pretrained=True)
PUBLISHED = [name for name in TAGGED if not name.endswith(".digits")]


def test_a_bare_name():
    info = ditzoo.model_info("dit_xl_2")
    assert (info.name, info.family, info.model_cls) == ("dit_xl_2", "dit", "DiT")
    assert (info.num_params, info.num_trainable_params, info.num_tokens) == (675_129_632, 674_834_720, 256)
    assert info.paper == "Scalable Diffusion Models with Transformers, arXiv:2212.09748"
    assert (info.ours, info.tags) == (False, ("in256", "in512"))
    assert (info.source, info.licence, info.data) == (None, None, None)
    assert info.config == on_meta("dit_xl_2").config


def test_a_tag():
    info = ditzoo.model_info("dit_xl_2.in512")
    assert (info.config["input_size"], info.num_tokens) == (64, 1024)
    assert info.source == "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt"
    assert (info.licence, info.data) == ("CC-BY-NC-4.0", "ImageNet-1k at 512x512")


@pytest.mark.parametrize("name", TAGGED)
def test_every_tag_says_where_its_weights_are_and_under_which_licence(name):
    info = ditzoo.model_info(name)
    assert info.licence
    assert info.packaged == info.ours == name.endswith(".digits")
    assert info.source.startswith("packaged with ditzoo" if info.packaged else "https://")
    assert re.search("digits" if info.packaged else "ImageNet|CIFAR|CelebA", info.data)


def test_what_the_caller_does_with_the_configuration_is_forgotten():
    ditzoo.model_info("dit_s_2").config["depth"] = 99
    assert ditzoo.model_info("dit_s_2").config["depth"] == 12


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"Unknown model 'dit_xxl_2'\. Did you mean dit_xl_2"):
        ditzoo.model_info("dit_xxl_2")


# A tag carries its own configuration: side, channels, classes, null label.


@pytest.mark.parametrize(
    ("name", "side", "channels", "classes", "null"),
    [
        ("dit_xl_2.in256", 32, 4, 1000, 1000),
        ("dit_xl_2.in512", 64, 4, 1000, 1000),
        ("uvit_s_2.cifar10", 32, 3, 0, None),
        ("uvit_s_4.celeba64", 64, 3, 0, None),
        ("uvit_m_4.in64", 64, 3, 1000, None),
        ("uvit_l_4.in64", 64, 3, 1000, None),
        ("uvit_l_2.in256", 32, 4, 1000, 1000),
        ("uvit_h_2.in256", 32, 4, 1000, 1000),
        ("uvit_l_4.in512", 64, 4, 1000, 1000),
        ("uvit_h_4.in512", 64, 4, 1000, 1000),
        ("mdt_xl_2.in256", 32, 4, 1000, 1000),
        ("mdtv2_xl_2.in256", 32, 4, 1000, 1000),
        ("diffit_xl_2.in256", 32, 4, 1000, 1000),
        ("diffit_xl_2.in512", 64, 4, 1000, 1000),
    ],
)
def test_the_configuration_of_a_tag(name, side, channels, classes, null):
    model = on_meta(name)
    assert (model.input_size, model.in_channels) == (side, channels)
    assert (model.num_classes, model.null_label) == (classes, null)


@pytest.mark.parametrize("name", ditzoo.list_models(family="uvit", pretrained=True))
def test_only_the_huge_u_vits_end_without_a_convolution(name):
    assert on_meta(name).config["conv"] == (not name.startswith(("uvit_h", "uvit_ti")))


#: What U-ViT's authors offer, by their README: the file, its id at Google Drive, and the probability with which their
#: data set drops labels; no labels and no null label where it is 0.
UVIT_FILES = {
    "uvit_s_2.cifar10": ("cifar10_uvit_small.pth", "1yoYyuzR_hQYWU0mkTj659tMTnoCWCMv-", None),
    "uvit_s_4.celeba64": ("celeba64_uvit_small.pth", "13YpbRtlqF1HDBNLNRlKxLTbKbKeLE06C", None),
    "uvit_m_4.in64": ("imagenet64_uvit_mid.pth", "1igVgRY7-A0ZV3XqdNcMGOnIGOxKr9azv", 0.0),
    "uvit_l_4.in64": ("imagenet64_uvit_large.pth", "19rmun-T7RwkNC1feEPWinIo-1JynpW7J", 0.0),
    "uvit_l_2.in256": ("imagenet256_uvit_large.pth", "1w7T1hiwKODgkYyMH9Nc9JNUThbxFZgs3", 0.15),
    "uvit_h_2.in256": ("imagenet256_uvit_huge.pth", "13StUdrjaaSXjfqqF7M47BzPyhMAArQ4u", 0.1),
    "uvit_l_4.in512": ("imagenet512_uvit_large.pth", "1mkj4aN2utHMBTWQX9l1nYue9vleL7ZSB", 0.15),
    "uvit_h_4.in512": ("imagenet512_uvit_huge.pth", "1uegr2o7cuKXtf2akWGAN2Vnlrtw5YKQq", 0.1),
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("uvit")])
def test_files_of_u_vit_and_its_dropped_labels_are_those_of_the_authors(name):
    file, drive_id, dropped = UVIT_FILES[name]
    info = ditzoo.model_info(name)
    assert info.source == f"https://drive.google.com/file/d/{drive_id} ({file})"
    if dropped is None:
        assert info.config["num_classes"] == 0
    else:
        assert (info.config["num_classes"], info.config["class_dropout_prob"]) == (1000, dropped)


#: Addresses of the other families' files.
SOURCES = {
    "dit_xl_2.in256": "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
    "dit_xl_2.in512": "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt",
    "mdt_xl_2.in256": "https://huggingface.co/shgao/MDT-XL2 (mdt_xl2_v1_ckpt.pt)",
    "mdtv2_xl_2.in256": "https://huggingface.co/shgao/MDT-XL2 (mdt_xl2_v2_ckpt.pt)",
    "diffit_xl_2.in256": "https://huggingface.co/nvidia/DiffiT (diffit_256.safetensors)",
    "diffit_xl_2.in512": "https://huggingface.co/nvidia/DiffiT (diffit_512.safetensors)",
    "sit_xl_2.in256": "https://github.com/willisma/SiT (SiT-XL-2-256x256.pt, by its download.py)",
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith("uvit")])
def test_files_of_the_other_families_are_those_of_the_authors(name):
    assert ditzoo.model_info(name).source == SOURCES[name]


def test_options_override_a_tag():
    assert on_meta("dit_xl_2.in512", num_classes=7).config["num_classes"] == 7
    assert on_meta("dit_xl_2.in512", input_size=16).input_size == 16


def test_a_bare_name_is_not_its_tag():
    assert on_meta("dit_xl_2").input_size == 32
    assert on_meta("uvit_l_4").in_channels == 4


def test_an_unknown_tag_is_named_with_the_known_ones():
    message = r"Unknown tag 'in1024' of dit_xl_2; its tags are: dit_xl_2\.in256, dit_xl_2\.in512\."
    with pytest.raises(ValueError, match=message):
        ditzoo.create("dit_xl_2.in1024")
    with pytest.raises(ValueError, match=r"Unknown tag 'in256' of dit_s_2; .* no published weights"):
        ditzoo.create("dit_s_2.in256")


@pytest.mark.parametrize("name", EVERY_NAME)
def test_every_name_builds_the_configuration_that_it_tells(name):
    assert on_meta(name).config == ditzoo.model_info(name).config
