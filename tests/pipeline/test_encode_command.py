"""`ditzoo encode`."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ditzoo import create, model_info
from ditzoo.cli import cli, main
from ditzoo.data import Digits, LatentCache
from ditzoo.media import load_codec
from ditzoo.pipeline.encoding import EncodeCommand
from tests.media.test_codec import needs_diffusers, small_kl


def encode(*arguments: object):
    return CliRunner().invoke(cli, ["encode", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of two pictures each; 32x48 pixels."""
    for number in range(4):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 32), 100).convert("RGB").save(path)
    return tmp_path / "pictures"


def test_digits_as_they_are_and_a_second_time(tmp_path):
    arguments = ("digits", tmp_path / "cache", "--model", "dit_ti_2", "--no-flip", "--shard-size", 1000)
    assert encode(*arguments).stdout.splitlines() == [
        f"Encoded 1,297 of 1,297 handwritten digits; {tmp_path / 'cache'} is complete."
    ]
    assert encode(*arguments).stdout.splitlines() == [
        f"Encoded 0 of 1,297 handwritten digits; {tmp_path / 'cache'} is complete."
    ]
    cache, digits = LatentCache(tmp_path / "cache"), Digits("train")
    assert torch.equal(cache.load([1296, 3], [0, 1], 0).x, digits.x[[1296, 3]])
    assert cache.label_names == tuple("0123456789")
    cache.check_fits(model_info("dit_ti_2").recipe)


def test_pictures_through_the_autoencoder_of_a_model(tmp_path, pictures):
    needs_diffusers()
    small_kl(scaling_factor=0.18215).save_pretrained(tmp_path / "vae")
    out = tmp_path / "cache"
    result = encode(
        *(pictures, out, "--model", "dit_xl_2", "--codec", tmp_path / "vae", "--size", 16),
        *("--codec-name", "stabilityai/sd-vae-ft-ema", "--dtype", "float16", "--batch-size", 3),
    )
    assert result.stdout.splitlines() == [f"Encoded 4 of 4 images of pictures in 2 classes; {out} is complete."]
    cache = LatentCache(out, flip=True)
    assert (cache.shape, cache.num_classes, cache.label_names) == ((4, 8, 8), 2, ("a", "b"))
    assert (cache.manifest.image_shape, cache.manifest.dtype) == ((3, 16, 16), "float16")
    cache.check_fits(model_info("dit_xl_2").recipe)
    cache.check_fits(model_info("dit_xl_2").recipe, codec=load_codec(tmp_path / "vae", scale=0.18215))
    model = create("dit_s_2", depth=1, num_classes=2, input_size=8).eval()
    assert model(cache.load([0, 3], [0, 1], 0).x, torch.tensor([1.0, 2.0]), torch.tensor([0, 1])).shape == (2, 8, 8, 8)


def test_the_size_is_that_of_the_model(tmp_path, pictures):
    needs_diffusers()
    small_kl().save_pretrained(tmp_path / "vae")
    encode(pictures, tmp_path / "cache", "--model", "dit_s_2", "--codec", tmp_path / "vae", "--no-flip")
    assert LatentCache(tmp_path / "cache").shape == (4, 32, 32)
    assert LatentCache(tmp_path / "cache").manifest.image_shape == (3, 64, 64)


def test_latents_of_another_autoencoder_than_the_recipe_names_are_told(tmp_path, pictures):
    needs_diffusers()
    vae, out = tmp_path / "vae", tmp_path / "cache"
    small_kl(scaling_factor=0.18215).save_pretrained(vae)
    lines = encode(pictures, out, "--model", "dit_s_2", "--codec", vae, "--size", 16).stdout.splitlines()
    assert lines[1].startswith(
        f"These are latents of {vae}, while the recipe of dit_s_2 names stabilityai/sd-vae-ft-ema. If the one is a "
        f"copy of the other, train with --codec {vae},"
    )
    LatentCache(out).check_fits(model_info("dit_s_2").recipe, codec=load_codec(vae, scale=0.18215))


def test_images_are_told_from_digits_and_labels_left_out(tmp_path, pictures):
    folder = pictures.rename(tmp_path / "digits_in_colour")
    encode(folder, tmp_path / "cache", "--codec", "pixels", "--size", 8, "--no-labels")
    cache = LatentCache(tmp_path / "cache")
    assert (cache.shape, cache.num_classes) == ((3, 8, 8), 0)


@pytest.mark.parametrize("out", ["pictures", "pictures/latents"])
def test_latents_and_images_have_folders_of_their_own(tmp_path, pictures, out):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{out} is in the folder of the images, .*pictures; give one outside"):
        encode(pictures, tmp_path / out, "--codec", "pixels", "--size", 8)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_process_of_several(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "cache"
    assert encode("digits", out, "--codec", "pixels", "--shard-size", 1000).stdout.splitlines() == [
        f"Encoded 297 of 1,297 handwritten digits; 1,000 in {out} are left to other processes."
    ]


def test_unreadable_pictures_are_named(tmp_path, pictures):
    (pictures / "a" / "2.png").write_bytes(b"no picture")
    result = encode(pictures, tmp_path / "cache", "--codec", "pixels", "--size", 8)
    first, last = result.stdout.splitlines()
    assert "2.png" in first
    assert last == f"Encoded 4 of 4 images of pictures in 2 classes; {tmp_path / 'cache'} is complete."


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("digits",), ("encoding needs an autoencoder: --model NAME", "--codec PLACE", "--codec pixels")),
        (("digits", "--model", "dit_xl2"), ("Unknown model 'dit_xl2'",)),
        (("digits", "--model", "dit_ti_2", "--scale", "2"), ("the recipe of dit_ti_2 has scale and shift, so leave",)),
        (("nowhere", "--codec", "pixels", "--size", "8"), ("nowhere",)),
        (("digits", "--codec", "nowhere"), ("there is no folder nowhere, and it is no model of the Hub",)),
        (("digits", "--codec", "pixels", "--size", "16"), ("digits are grey images of 8x8 pixels",)),
    ],
)
def test_errors_are_one_line_and_exit_with_2(arguments, texts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["encode", arguments[0], "out", *arguments[1:]])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ditzoo: ")
    assert error.count("\n") == 1
    assert all(text in error for text in texts)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(EncodeCommand, "run", interrupted)
    result = encode("digits", tmp_path, "--codec", "pixels")
    assert result.exit_code == 130
    assert f"Run the same command to go on with what is finished, in {tmp_path}." in result.output
