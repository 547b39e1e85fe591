"""Many samples on disk."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ditzoo.diffusion import NonFiniteSampleError
from ditzoo.media import SampleStore
from ditzoo.pipeline import Pipeline, sample_to_disk
from ditzoo.pipeline.jobs import device_of_launcher, parts_of, process_of_launcher
from tests.pipeline.pipes import QUICK, tiny
from tests.zoo import lively

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

    original = Pipeline.draw

    def counted(self, settings, labels, indices, *arguments, **options):
        made.append(indices[0])
        if len(made) == 3:
            raise KilledError
        return original(self, settings, labels, indices, *arguments, **options)

    monkeypatch.setattr(Pipeline, "draw", counted)
    path = tmp_path / "stopped.npz"
    with pytest.raises(KilledError):
        sample_to_disk(tiny(), path, 12, seed=5, shard_size=3)
    assert not path.exists()
    with pytest.raises(ValueError, match=r"holds samples of another job: .*seed"):
        sample_to_disk(tiny(), path, 12, seed=6, shard_size=3)
    with pytest.raises(ValueError, match=r"holds samples of another job: .*guidance"):
        sample_to_disk(tiny(), path, 12, seed=5, shard_size=3, guidance_scale=3.0)
    rest = sample_to_disk(tiny(), path, 12, seed=5)  # in shards of the size that is there
    assert made == [0, 3, 6, 6, 9]
    assert rest == (6, 4, 8)  # images, evaluations and forward passes
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
    with pytest.raises(TypeError, match=r"a job has no option 'output'; its settings are sampler, num_inference"):
        sample_to_disk(tiny(), path, 2, output="latents")
    with pytest.raises(ValueError, match=r"all.png must end with .npz, or have no suffix to become a folder"):
        sample_to_disk(tiny(), tmp_path / "all.png", 2)
    for wrong, message in (
        ({"size": 8}, "size must be the height and width"),
        ({"process": 3}, r"process must be a process's number and their count, such as \(0, 8\), got 3"),
        ({"shard_size": 2.5}, "shard_size must be a whole number, got 2.5"),
    ):
        with pytest.raises(TypeError, match=message):
            sample_to_disk(tiny(), tmp_path / "other.npz", 2, **wrong)
    for wrong, message in (
        ({"process": (2, 2)}, r"process must be from \(0, 2\) to \(1, 2\), got \(2, 2\)"),
        ({"shard_size": 0}, "shard_size must be 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_to_disk(tiny(), tmp_path / "other.npz", 2, **wrong)
    with pytest.raises(ValueError, match=r"2 images are too few for 3 class_labels; make 3 or more"):
        sample_to_disk(tiny(), path, 2, class_labels=[1, 2, 3])


def test_every_finished_batch_is_kept_when_a_value_is_no_number(tmp_path):
    pipeline = Pipeline(lively("dit_ti_2"), QUICK)

    def spoil(module, arguments, output):
        return torch.full_like(output, torch.nan) if 7 in arguments[2] else output

    path = tmp_path / "all.npz"
    handle = pipeline.model.register_forward_hook(spoil)
    with pytest.raises(NonFiniteSampleError, match=r"at step 1 of 4, in samples 6, 7, 8\."):
        sample_to_disk(pipeline, path, 10, class_labels=range(1, 11), batch_size=3)
    handle.remove()
    assert len(list(parts_of(path).glob("shard-*.npz"))) == 2
    assert sample_to_disk(pipeline, path, 10, class_labels=range(1, 11), batch_size=2).images == 4
    whole = pipeline(range(1, 11))
    assert np.abs(read(path)[0].astype(int) - whole.pixels).max() <= 1


@pytest.mark.parametrize("last_word", ["finalize", "rename", "rmtree"])
def test_killed_while_the_shards_are_cleared_up(tmp_path, monkeypatch, last_word):
    """The file is there whole or not at all; the same job ends well while its shards tell whose file it is."""
    path = tmp_path / "all.npz"

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if last_word == "finalize":
            patched.setattr("ditzoo.media.SampleStore.finalize", killed)
        elif last_word == "rename":
            patched.setattr(Path, "rename", killed)
        else:
            patched.setattr("ditzoo.pipeline.jobs._remove", lambda folder: killed() if folder.exists() else None)
        with pytest.raises(KeyboardInterrupt):
            sample_to_disk(tiny(), path, 5, seed=5)
    assert path.exists() == (last_word != "finalize")
    if last_word != "rmtree":
        assert sample_to_disk(tiny(), path, 5, seed=5).images == 0
    with pytest.raises(FileExistsError, match=r"all.npz is there already; give another path, or remove it"):
        sample_to_disk(tiny(), path, 5, seed=5)
    assert [left.name for left in tmp_path.iterdir()] == ["all.npz"]
    assert np.array_equal(read(path)[0], tiny()(num_images=5, seed=5).pixels)


def test_a_file_beside_an_unfinished_job_is_not_written_over(tmp_path):
    path = tmp_path / "all.npz"
    sample_to_disk(tiny(), path, 4, batch_size=2, process=(1, 2))
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"all.npz is there already, and .*all.npz.parts is not finished"):
        sample_to_disk(tiny(), path, 4, batch_size=2)
    assert path.read_bytes() == b"precious"


def test_process_0_waits_until_the_others_have_mended_their_damaged_shards(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("ditzoo.pipeline.jobs._SECONDS_OF_PATIENCE", 0)
    monkeypatch.setattr("ditzoo.pipeline.jobs._SECONDS_BETWEEN_LOOKS", 0.01)
    path, made = tmp_path / "all.NPZ", []
    job = {"num_images": 8, "seed": 5, "batch_size": 2}
    sample_to_disk(tiny(), path, process=(1, 2), **job)
    for shard in (1, 3):
        (parts_of(path) / f"shard-00000{shard}.npz").write_bytes(b"half a shard")
    first = threading.Thread(target=lambda: made.append(sample_to_disk(tiny(), path, process=(0, 2), **job)))
    first.start()
    while "Waiting for 2 shards of the other processes" not in caplog.text:
        assert first.is_alive()
        time.sleep(0.01)
    assert not path.exists()
    made.append(sample_to_disk(tiny(), path, process=(1, 2), **job))
    first.join(60)
    assert sorted(made) == [(4, 4, 8), (4, 4, 8)]  # each its own
    assert [left.name for left in tmp_path.iterdir()] == ["all.NPZ"]
    assert np.array_equal(read(path)[0], tiny()(num_images=8, seed=5).pixels)


def test_a_process_that_comes_late_finds_the_job_ended(tmp_path, monkeypatch):
    """Its shards were whole, and process 0 puts all together while it still reads them."""
    path, job = tmp_path / "all.npz", {"num_images": 8, "seed": 5, "batch_size": 2}
    sample_to_disk(tiny(), path, process=(1, 2), **job)
    missing_shards = SampleStore.missing_shards

    def late(self, *arguments):
        if arguments == (1, 2):
            sample_to_disk(tiny(), path, process=(0, 2), **job)
        return missing_shards(self, *arguments)

    monkeypatch.setattr(SampleStore, "missing_shards", late)
    assert sample_to_disk(tiny(), path, process=(1, 2), **job).images == 0
    assert [left.name for left in tmp_path.iterdir()] == ["all.npz"]


def test_one_process_alone_draws_a_bar(tmp_path, capsys):
    for process in ((1, 2), (0, 2)):
        sample_to_disk(tiny(), tmp_path / "all.npz", 4, batch_size=2, process=process, progress=True)
        told = capsys.readouterr().err
        assert ("sampling" in told) == (process == (0, 2))
    assert "8/8 steps" in told  # two images of its own, four steps each


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
    with pytest.raises(ValueError, match=r"RANK='0' and WORLD_SIZE='abc' .* are to be numbers; unset them"):
        process_of_launcher({"WORLD_SIZE": "abc"})


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
