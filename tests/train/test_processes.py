"""Several processes: the same run as one, and a run that changes their number on the way."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from ditzoo.train import make_config, run
from ditzoo.train.monitor import MetricsFile
from ditzoo.weights.files import load_state_dict

SMALL = {"depth": 4, "decode_layer": 2, "hidden_size": 16, "num_heads": 2}
SETTINGS = {
    "model": "mdtv2_ti_2",
    "num_images": 128,
    "batch_size": 16,
    "log_every": 16,
    "sample_every": 0,
    "checkpoint_every": 64,
    "device": "cpu",
    "flip": True,
}


def flags():
    yield "--flip"
    yield from (f"--model-options={name}={value}" for name, value in SMALL.items())
    yield from (f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items() if name != "flip")


def start(processes, out, *more, **options):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ditzoo", "train", *flags(), f"--out={out}", *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def train(processes, out, *more):
    """Run the command in so many processes; one of them here, which spares it to import torch."""
    if processes == 1:
        stop = [int(flag.partition("=")[2]) for flag in more if flag.startswith("--stop-at")]
        run(make_config({**SETTINGS, "model_options": SMALL, "out": str(out)}), stop_at=stop[0] if stop else None)
        return ""
    process = start(processes, out, *more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def curve(folder):
    return [row["loss"] for row in MetricsFile(folder / "metrics.jsonl").rows("train")]


def assert_close(folder, whole):
    # In float32, sums in another order: what differs is rounding, which Adam's division by small gradients enlarges.
    assert curve(folder) == pytest.approx(curve(whole), rel=2e-6)
    for name in ("model", "training"):
        file = f"checkpoints/000000128/{name}.safetensors"
        ours, theirs = load_state_dict(folder / file), load_state_dict(whole / file)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=2e-4)


def test_two_processes_train_as_one_does_and_one_goes_on_after_them(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(1, whole)
    said = train(2, parts, "--stop-at=64")
    assert said.count("Stopped at 64 images, as told. The same command goes on from") == 1
    train(1, parts)
    starts = MetricsFile(parts / "metrics.jsonl").rows("start")
    assert [(row["seen"], row["processes"]) for row in starts] == [(0, 2), (64, 1)]
    assert_close(parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(2, 1), (1, 2), (2, 4)])
def test_sharded_weights_train_as_whole_ones_do_and_runs_change_between_them(numbers, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(1, whole)
    for processes, stop in zip(numbers, ("--stop-at=64", "--stop-at=128"), strict=True):
        train(processes, parts, stop, *(["--fsdp"] if processes > 1 else []))
    assert_close(parts, whole)


@pytest.mark.slow
def test_a_launcher_that_is_told_to_end_leaves_a_checkpoint(tmp_path):
    process = start(2, tmp_path / "run", "--num-images=1000000", "--checkpoint-every=1000000", "--accumulation=2")
    metrics = MetricsFile(tmp_path / "run/metrics.jsonl")
    deadline = time.monotonic() + 120
    while not metrics.rows("train"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert f"goes on from {checkpoint}" in said
    assert int(checkpoint.name) >= 16


@pytest.mark.slow
def test_processes_share_samples_and_tell_of_every_unreadable_file(tmp_path):
    """Of three processes one has no sample to draw, and each file is met by one of them."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(24):
        Image.new("L", (8, 8), number * 8).save(data / f"{number:02d}.png")
    broken = {data / f"{number:02d}.png" for number in (3, 11, 20)}
    for path in broken:
        path.write_bytes(b"")
    changes = {"data": str(data), "num_classes": 0, "batch_size": 12, "num_images": 48, "evaluate_every": 24}
    changes |= {"evaluation_samples": 2, "evaluation_features": "digits", "recipe": "num_inference_steps=2"}
    train(3, tmp_path / "three", *(f"--{name.replace('_', '-')}={value}" for name, value in changes.items()))
    metrics = MetricsFile(tmp_path / "three/metrics.jsonl")
    messages = {row["message"] for row in metrics.rows("event") if row["event"] == "unreadable"}
    assert {path for path in broken if any(message.startswith(str(path)) for message in messages)} == broken
    config = make_config(
        {
            **SETTINGS,
            "model_options": SMALL,
            **changes,
            "recipe": {"num_inference_steps": 2},
            "out": str(tmp_path / "one"),
        }
    )
    distance = run(config).distance
    assert [row["seen"] for row in metrics.rows("evaluation")] == [24, 48]
    assert metrics.rows("evaluation")[-1]["frechet_distance"] == pytest.approx(float(distance), rel=1e-3)
