"""Many samples on disk, and the command that makes them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ditzoo.cli import cli, main
from ditzoo.pipeline import sample_to_disk
from ditzoo.pipeline.jobs import device_of_launcher, process_of_launcher
from tests.pipeline.pipes import tiny

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def command(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ditzoo", "sample", "dit_ti_2.digits", *arguments],
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        return file["arr_0"], file["arr_1"]


def test_a_job_gives_the_samples_of_one_call(tmp_path):
    sample_to_disk(tiny(), tmp_path / "all.npz", 23, class_labels=[3, 1, 4], seed=5, shard_size=5, batch_size=4)
    images, labels = read(tmp_path / "all.npz")
    whole = tiny()([3, 1, 4], num_images=23, seed=5)
    assert labels.tolist() == whole.labels.tolist()
    assert np.abs(images.astype(int) - whole.pixels).max() <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["all.npz"]


def test_random_labels_are_those_of_one_call(tmp_path):
    sample_to_disk(tiny(), tmp_path / "all", 7, seed=5, shard_size=2)
    rows = [line.split(",") for line in (tmp_path / "all" / "labels.csv").read_text().splitlines()[1:]]
    assert [int(row[1]) for row in rows] == tiny()(num_images=7, seed=5).labels.tolist()


def test_processes_share_a_job(tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    sample_to_disk(tiny(), one, 11, seed=5, shard_size=2)
    sample_to_disk(tiny(), two, 11, seed=5, shard_size=2, process=(1, 2))
    assert not two.exists()  # process 0 puts the shards together
    sample_to_disk(tiny(), two, 11, seed=5, shard_size=2, process=(0, 2))
    for first, second in zip(read(one), read(two), strict=True):
        assert np.array_equal(first, second)


def test_a_stopped_job_makes_only_what_is_missing(tmp_path, monkeypatch):
    whole = tmp_path / "whole.npz"
    sample_to_disk(tiny(), whole, 12, seed=5, shard_size=3)

    made = []

    class KilledError(Exception):
        pass

    original = type(tiny()).__call__

    def counted(self, *arguments, **options):
        made.append(options["first_index"])
        if len(made) == 3:
            raise KilledError
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(tiny()), "__call__", counted)
    path = tmp_path / "stopped.npz"
    with pytest.raises(KilledError):
        sample_to_disk(tiny(), path, 12, seed=5, shard_size=3)
    assert not path.exists()
    with pytest.raises(ValueError, match=r"holds samples of another job: .*seed"):
        sample_to_disk(tiny(), path, 12, seed=6, shard_size=3)
    with pytest.raises(ValueError, match=r"holds samples of another job: .*guidance"):
        sample_to_disk(tiny(), path, 12, seed=5, shard_size=3, guidance_scale=3.0)
    sample_to_disk(tiny(), path, 12, seed=5, shard_size=3)
    assert made == [0, 3, 6, 6, 9]
    for first, second in zip(read(whole), read(path), strict=True):
        assert np.array_equal(first, second)


def test_a_job_knows_its_codec_and_refuses_what_it_does_not_take(tmp_path, monkeypatch):
    path = tmp_path / "all.npz"
    monkeypatch.setattr("ditzoo.media.SampleStore.finalize", lambda self, path, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample_to_disk(tiny(), path, 2)
    monkeypatch.setattr("ditzoo.pipeline.jobs._codec_fingerprint", lambda pipeline: {"name": "other"})
    with pytest.raises(ValueError, match=r"holds samples of another job: .*codec"):
        sample_to_disk(tiny(), path, 2)
    with pytest.raises(TypeError, match=r"a job of many samples has no option 'output'"):
        sample_to_disk(tiny(), path, 2, output="latents")


def test_what_is_there_is_not_written_over(tmp_path):
    path = tmp_path / "all.npz"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"all.npz is there already; give another path, or remove it"):
        sample_to_disk(tiny(), path, 2)
    assert path.read_bytes() == b"precious"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        sample_to_disk(tiny(), tmp_path / "file" / "all.npz", 2)


def test_launchers_tell_the_process():
    assert process_of_launcher({}) == (0, 1)
    assert device_of_launcher("cuda", {"LOCAL_RANK": "3"}) == "cuda:3"
    assert device_of_launcher("cuda", {}) == "cuda"
    assert device_of_launcher("cpu", {"LOCAL_RANK": "3"}) == "cpu"
    assert process_of_launcher({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    with pytest.raises(ValueError, match=r"RANK=4 and WORLD_SIZE=4 .* contradict"):
        process_of_launcher({"RANK": "4", "WORLD_SIZE": "4"})


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
    assert result.output.splitlines()[1] == "heun, 2 steps, guidance u + 1.5 (c - u)."
    assert read(tmp_path / "all.npz")[0].shape == (3, 8, 8, 1)
    sample("sit_ti_2.digits", "--num", 3, "--steps", 4, "--out", tmp_path / "way.webp")
    with Image.open(tmp_path / "way.webp") as way:
        assert way.n_frames == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dit_ti_2.digts",), "Unknown tag 'digts' of dit_ti_2; its tags are: dit_ti_2.digits."),
        (("dit_ti_2",), "dit_ti_2 names no weights; give one of its tags: dit_ti_2.digits."),
        (("dit_xl_2.in512",), "This release of ditzoo does not fetch weights."),
        (("dit_ti_2.digits", "--classes", "3-12"), "range '3-12' goes too far: classes go from 0 to 9."),
        (("dit_ti_2.digits", "--classes", "elf"), "no class is named 'elf'."),
        (("dit_ti_2.digits", "--sampler", "plms"), "unknown sampler 'plms'; choose one of ddpm, ddim,"),
        (("dit_ti_2.digits", "--steps", "0"), "num_inference_steps must be 1 or more, got 0."),
        (("dit_ti_2.digits", "--out", "a.jpg"), "a.jpg has none of the suffixes .png, .gif, .webp and .npz"),
        (("dit_ti_2.digits", "--per-class", "3"), "--per-class needs --classes, such as --classes 0-9."),
        (("dit_ti_2.digits", "--num", "9999"), "9999 images are too many for samples.png;"),
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


@pytest.mark.slow
def test_killed_at_any_moment_and_split_over_processes(tmp_path):
    """One process is killed outright, two of torchrun's finish its job; the samples are those of an undisturbed one."""
    options = ["--num-images", "2000", "--steps", "4", "--seed", "3"]
    assert command(*options, "--out", str(tmp_path / "whole.npz")).wait() == 0
    path = tmp_path / "killed.npz"
    victim = command(*options, "--out", str(path))
    parts = tmp_path / "killed.npz.parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("shard-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not path.exists()
    finished = len(list(parts.glob("shard-*.npz")))
    assert 1 <= finished < 4
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    job = [*launcher, "-m", "ditzoo", "sample", "dit_ti_2.digits", *options, "--out", str(path)]
    subprocess.run(job, env=ONE_THREAD, check=True, timeout=300, capture_output=True)
    for first, second in zip(read(tmp_path / "whole.npz"), read(path), strict=True):
        assert np.array_equal(first, second)
