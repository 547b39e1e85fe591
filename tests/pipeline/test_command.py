"""`ditzoo sample`."""

import dataclasses
import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ditzoo.cli import cli, main
from ditzoo.media import LatentCodec
from ditzoo.pipeline import Pipeline
from ditzoo.pipeline.command import SampleCommand
from ditzoo.pipeline.jobs import parts_of
from ditzoo.recipe import Guidance
from tests.pipeline.pipes import QUICK
from tests.zoo import lively


def sample(*arguments: object):
    return CliRunner().invoke(cli, ["sample", *map(str, arguments)], catch_exceptions=False)


def test_the_command_writes_a_grid(tmp_path):
    result = sample(
        "dit_ti_2.digits", "--classes", "0-9", "--per-class", 2, "--steps", 3, "--out", tmp_path / "grid.png"
    )
    assert result.output.splitlines() == [
        f"Wrote {tmp_path / 'grid.png'}: 20 images of dit_ti_2.digits, seed 0.",
        "ddim, 3 steps, guidance u + 1.5 (c - u); 3 evaluations and 6 forward passes an image.",
    ]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (10 * 64 + 9 * 2, 2 * 64 + 2)


def test_the_command_writes_folders_files_and_animations(tmp_path):
    sample("sit_ti_2.digits", "--classes", "three,7", "--num", 5, "--steps", 2, "--out", tmp_path / "folder")
    assert (tmp_path / "folder" / "labels.csv").read_text().splitlines()[5].split(",")[:2] == ["4", "3"]
    result = sample("sit_ti_2.digits", "--num", 3, "--steps", 2, "--sampler", "heun", "--out", tmp_path / "all.npz")
    assert result.output.splitlines()[1] == (
        "heun, 2 steps, guidance u + 1.5 (c - u); 4 evaluations and 8 forward passes an image."
    )
    with np.load(tmp_path / "all.npz") as file:
        assert file["arr_0"].shape == (3, 8, 8, 1)
    sample("sit_ti_2.digits", "--num", 3, "--steps", 4, "--out", tmp_path / "way.webp")
    with Image.open(tmp_path / "way.webp") as way:
        assert way.n_frames == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dit_ti_2.digts",), "Unknown tag 'digts' of dit_ti_2; its tags are: dit_ti_2.digits."),
        (("dit_s_2",), "No weights are published for dit_s_2."),
        (("uvit_h_2.in256",), "Google Drive cannot be downloaded by program. Open https://drive.google.com/file/d/"),
        (("dit_ti_2.digits", "--classes", "3-12"), "range '3-12' goes too far: classes go from 0 to 9."),
        (("dit_ti_2.digits", "--classes", "elf"), "no class is named 'elf'."),
        (("dit_ti_2.digits", "--sampler", "plms"), "unknown sampler 'plms'; choose one of ddpm, ddim,"),
        (("dit_ti_2.digits", "--steps", "0"), "num_inference_steps must be 1 or more, got 0."),
        (("dit_ti_2.digits", "--out", "a.jpg"), "a.jpg has none of the suffixes .png, .gif, .webp and .npz"),
        (("dit_ti_2.digits", "--per-class", "3"), "--per-class needs --classes, such as --classes 0-9."),
        (("dit_ti_2.digits", "--num", "9999"), "9999 images are too many for samples.png;"),
        (("dit_ti_2.digits", "--classes", "0-9", "--num", "3"), "--num 3 is too few for 10 classes; give 10 or more."),
        (("dit_ti_2.digits", "--tiling"), "dit_ti_2.digits has no autoencoder: leave out --tiling and --slicing."),
        (("dit_ti_2.digits", "--size", "9", "8"), "DiT: input of 9x8 is not divisible by patch_size 2"),
        (
            ("dit_ti_2.digits", "--guidance-interval", "3", "1"),
            "guidance interval (low, high) must satisfy 0 <= low < high, both finite, got (3.0, 1.0).",
        ),
        (
            ("dit_ti_2.digits", "--weak-model", "sit_ti_2.digits"),
            "the weak model sit_ti_2.digits has prediction='velocity'",
        ),
        (
            ("dit_ti_2.digits", "--weak-model", "diffit_unet_ti.digits"),
            "the weak model diffit_unet_ti.digits has prediction='edm' and the model prediction='v_prediction';",
        ),
    ],
)
def test_errors_of_the_command_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["sample", *arguments])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ditzoo: {message}")
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_guidance_by_interval_channels_and_a_weaker_model(tmp_path, monkeypatch):
    asked = []
    original = Pipeline.__call__

    def noted(self, *arguments, **options):
        asked.append((options["guidance"], self.weak_model))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Pipeline, "__call__", noted)
    common = ("dit_ti_2.digits", "--classes", "3", "--steps", 4, "--out", tmp_path / "grid.png")
    inside = sample(*common, "--guidance-interval", 0.5, 5, "--guidance-channels", 1, "--guidance-scale", 3)
    assert asked == [(Guidance(scale=3.0, interval=(0.5, 5.0), channels=1), None)]
    assert inside.output.splitlines()[1] == (
        "ddim, 4 steps, guidance u + 3 (c - u), 1 channels, where 0.5 < sigma / alpha <= 5; 4 evaluations and 6 "
        "forward passes an image."
    )
    weak = sample(*common, "--weak-model", "uvit_ti_2.digits")
    assert asked[1][0] == Guidance(scale=1.5, kind="autoguidance")
    assert asked[1][1].num_classes == 10
    assert weak.output.splitlines()[1] == (
        "ddim, 4 steps, guidance u + 1.5 (c - u), u by the weaker model; 4 evaluations and 8 forward passes an image."
    )


def test_a_scale_of_the_other_convention_is_warned_of_in_a_line(tmp_path):
    for more in ((), ("--guidance-interval", "0", "5")):
        arguments = ("dit_ti_2.digits", "--num", "1", "--steps", "2", "--guidance-scale", "0.4", *more)
        ended = subprocess.run(
            [sys.executable, "-m", "ditzoo", "sample", *arguments, "--out", tmp_path / "grid.png"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stderr.startswith("ditzoo: guidance_scale 0.4 weakens the label")
        assert len(ended.stderr.splitlines()) == 1


def test_the_null_label_is_written_null(tmp_path):
    sample("dit_ti_2.digits", "--classes", "3,null", "--steps", 2, "--out", tmp_path / "folder")
    rows = (tmp_path / "folder" / "labels.csv").read_text().splitlines()
    assert rows[1:] == ["0,3,3,0", "1,10,,0"]


def test_other_sizes_are_sampled(tmp_path):
    sample("dit_ti_2.digits", "--num", 2, "--steps", 2, "--size", 12, 8, "--out", tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as file:
        assert file["arr_0"].shape == (2, 12, 8, 1)


def test_a_picture_that_cannot_be_written_is_noticed_before_sampling(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *arguments, **options: 1 / 0)
    (tmp_path / "file").write_text("")
    (tmp_path / "grid.png").mkdir()
    for out, reason in (("file/grid.png", "Not a directory"), ("grid.png", "Is a directory")):
        with pytest.raises(SystemExit):
            main(["sample", "dit_ti_2.digits", "--out", str(tmp_path / out)])
        assert capsys.readouterr().err.startswith(f"ditzoo: {tmp_path / out} cannot be written: {reason}.")


def test_what_is_finished_is_written_when_a_value_is_no_number(tmp_path, capsys, monkeypatch):
    pipeline = Pipeline(lively("dit_ti_2"), QUICK)
    pipeline.model.register_forward_hook(
        lambda module, arguments, output: torch.full_like(output, torch.nan) if 4 in arguments[2] else output
    )
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *arguments, **options: pipeline)
    out = tmp_path / "grid.png"
    with pytest.raises(SystemExit) as ended:
        main(["sample", "dit", "--classes", "0-9", "--batch-size", "2", "--out", str(out)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "at step 1 of 4, in samples 4, 5." in error
    assert f"{out} has the 4 images before." in error
    with Image.open(out) as grid:
        assert grid.size == (4 * 64 + 3 * 2, 64)


def test_autoencoders_can_be_told_to_save_memory(monkeypatch):
    diffusers = pytest.importorskip("diffusers", reason="autoencoders are of diffusers")
    vae = diffusers.AutoencoderKL(
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )
    recipe = dataclasses.replace(QUICK, latent_codec="a/b", latent_scale=0.18215)
    pipeline = Pipeline(lively("dit_ti_2", in_channels=4), recipe, LatentCodec(vae, scale=0.18215))
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *arguments, **options: pipeline)
    SampleCommand(name="dit", out="grid.png", tiling=True, slicing=True)._pipeline()
    assert (pipeline.codec.tiling, pipeline.codec.slicing) == (True, True)
    SampleCommand(name="dit", out="grid.png", slicing=True)._pipeline()
    assert (pipeline.codec.tiling, pipeline.codec.slicing) == (False, True)


@pytest.mark.parametrize(("kind", "scale", "shift"), [("AutoencoderKL", 0.3, 0.1), ("AutoencoderTiny", 1.0, 0.0)])
def test_another_autoencoder_has_the_recipes_scale_and_a_tiny_one_its_own(tmp_path, monkeypatch, kind, scale, shift):
    diffusers = pytest.importorskip("diffusers", reason="autoencoders are of diffusers")
    makers = {
        "AutoencoderKL": lambda: diffusers.AutoencoderKL(
            latent_channels=4, block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.3, shift_factor=0.1
        ),
        "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
    }
    makers[kind]().save_pretrained(tmp_path / "vae")
    recipe = dataclasses.replace(QUICK, latent_codec="a/b", latent_scale=0.3, latent_shift=0.1)
    pipeline = Pipeline(lively("dit_ti_2", in_channels=4), recipe)
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *arguments, **options: pipeline)
    SampleCommand(name="dit", out=tmp_path / "grid.png", codec=str(tmp_path / "vae"))._pipeline()
    assert type(pipeline.codec.autoencoder).__name__ == kind
    assert (pipeline.codec.scale, pipeline.codec.shift) == (scale, shift)


def test_ctrl_c_tells_what_is_left(tmp_path, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "draw", stop)
    for out, text in (
        ("grid.png", "Stopped; nothing was written."),
        ("all.npz", "Stopped. Run the same command to go on with what is finished, in "),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["sample", "dit_ti_2.digits", "--out", str(tmp_path / out)])
        assert ended.value.code == 130
        assert text in capsys.readouterr().err


def test_a_job_that_is_finished_says_so(tmp_path, monkeypatch):
    arguments = ("dit_ti_2.digits", "--num", 2, "--steps", 2, "--out", tmp_path / "all.npz")
    with monkeypatch.context() as patched:
        patched.setattr("ditzoo.media.SampleStore.finalize", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(*arguments)
    assert sample(*arguments).output.splitlines()[1] == (
        "ddim, 2 steps, guidance u + 1.5 (c - u); all of them were finished earlier."
    )


@pytest.mark.parametrize("out", ["all.npz", "folder", "grid.png"])
def test_a_full_disk_is_named_and_leaves_no_half_file(tmp_path, capsys, monkeypatch, out):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("numpy.savez", full)
    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(SystemExit) as ended:
        main(["sample", "dit_ti_2.digits", "--num", "2", "--steps", "2", "--out", str(tmp_path / out)])
    assert ended.value.code == 2
    named = tmp_path / out if out == "grid.png" else parts_of(tmp_path / out) / "shard-000000.npz"
    assert capsys.readouterr().err == (
        f"ditzoo: {named} cannot be written: No space left on device. Free some space, or write elsewhere.\n"
    )
    assert not (tmp_path / out).exists()
    assert [path.name for path in parts_of(tmp_path / out).glob("*")] in ([], ["job.json"])
