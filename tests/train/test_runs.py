"""Runs: what is left in a folder, that going on loses nothing, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ditzoo
from ditzoo.data import load_digits_split
from ditzoo.pipeline import Pipeline
from ditzoo.train import Training, make_config, run
from ditzoo.train import runs as runs_module
from ditzoo.train.monitor import MetricsFile
from ditzoo.weights.files import load_state_dict

#: Small networks of the families that train in different ways.
SMALL = {
    "dit_ti_2": {"depth": 2, "hidden_size": 16, "num_heads": 2},
    "mdtv2_ti_2": {"depth": 4, "decode_layer": 2, "hidden_size": 16, "num_heads": 2},
    "sit_ti_2": {"depth": 2, "hidden_size": 16, "num_heads": 2},
}


def settings(out, model="dit_ti_2", **given):
    return make_config(
        {
            "out": str(out),
            "model": model,
            "model_options": SMALL.get(model, {}),
            "num_images": 96,
            "batch_size": 8,
            "warmup_images": 16,
            "log_every": 20,
            "sample_every": 0,
            "checkpoint_every": 40,
            "recipe": {"num_inference_steps": 2},
            **given,
        }
    )


def curve(folder):
    rows = MetricsFile(folder / "metrics.jsonl").rows("train")
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def tensors(checkpoint):
    return {**load_state_dict(checkpoint / "training.safetensors"), **load_state_dict(checkpoint / "model.safetensors")}


def assert_same(first, second):
    assert curve(first.folder) == curve(second.folder)
    ours, theirs = tensors(first.checkpoint), tensors(second.checkpoint)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    progress = [json.loads((result.checkpoint / "training.json").read_text()) for result in (first, second)]
    for each in progress:
        each["extra"].pop("seconds")
        each.pop("files")
    assert progress[0] == progress[1]


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("dit_ti_2", {"flip": True, "ema_profiles": (0.1,), "weight_decay": 0.1, "accumulation": 2}),
        ("mdtv2_ti_2", {"optimizer": "adan", "betas": (0.98, 0.92, 0.99)}),
        ("sit_ti_2", {"precision": "bfloat16", "lr_schedule": "constant"}),
        ("diffit_unet_ti", {"grad_checkpointing": True}),
    ],
)
def test_a_run_in_parts_is_the_run_in_one(model, more, tmp_path):
    whole = run(settings(tmp_path / "whole", model, **more))
    part = run(settings(tmp_path / "parts", model, **more), stop_at=44)  # a last step beyond it, between two rows
    assert (part.seen, part.finished, part.checkpoint.name) == (48, False, "000000048")
    rest = run(settings(tmp_path / "parts", model, **more))
    assert (rest.seen, rest.finished, rest.checkpoint.name) == (96, True, "000000096")
    assert [row["seen"] for row in MetricsFile(rest.folder / "metrics.jsonl").rows("start")] == [0, 48]
    assert_same(whole, rest)


def test_a_run_is_the_loop_alone(tmp_path):
    """Checkpoints, samples and distances in between change nothing."""
    config = settings(tmp_path / "run", sample_every=32, evaluate_every=48, evaluation_samples=40, checkpoint_every=16)
    result = run(config)
    digits = load_digits_split("train")
    torch.manual_seed(config.seed)
    model = ditzoo.create("dit_ti_2", **SMALL["dit_ti_2"])
    plain = ditzoo.train.train(model, digits.images, digits.labels, ditzoo.model_info("dit_ti_2").recipe, config)
    kept = load_state_dict(result.checkpoint / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in plain.ema.state_dict().items())
    assert result.loss == pytest.approx(sum(plain.losses[-50:]) / len(plain.losses[-50:]), rel=1e-12)


def test_what_a_run_leaves(tmp_path):
    folder = tmp_path / "run"
    seen = []
    config = settings(folder, sample_every=48, evaluate_every=48, evaluation_samples=40, ema_profiles=(0.05, 0.1))
    result = run(config, command="ditzoo train", on_row=lambda row: seen.append((row["kind"], row["seen"])))
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == ["README.md", "checkpoints", "ema", "metrics.jsonl", "run.yaml", "samples", "samples.png"]
    assert [path.name for path in sorted((folder / "samples").iterdir())] == ["000000048.png", "000000096.png"]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["000000080", "000000096"]
    assert len(list((folder / "ema").iterdir())) == 2 * 3
    assert make_config(file=folder / "run.yaml") == config
    rows = MetricsFile(folder / "metrics.jsonl").rows()
    assert [(row["kind"], row["seen"]) for row in rows] == seen
    assert [row["seen"] for row in rows if row["kind"] == "train"] == [24, 40, 64, 80, 96]
    assert [row["seen"] for row in rows if row["kind"] == "evaluation"] == [48, 96]
    # The newest checkpoint is a model as any other.
    pipe = Pipeline.from_pretrained(folder)
    assert pipe.recipe.weights == "ema"
    details = pipe.model.details
    assert (details.data, details.training_command) == ("1,297 handwritten digits", "ditzoo train")
    assert [each.metric for each in details.results][1].startswith("Frechet distance (ditzoo digits classifier")
    assert details.results[1].value == pytest.approx(float(result.distance))
    assert "1,297 handwritten digits" in (folder / "README.md").read_text()
    # Once finished, the same call only says so.
    again = run(config)
    assert (again.finished, again.checkpoint, again.seen) == (True, result.checkpoint, 96)
    assert again.loss == pytest.approx(result.loss)


def test_a_term_signal_ends_the_step_and_saves(tmp_path):
    config = settings(tmp_path / "run", log_every=8)
    handler = signal.getsignal(signal.SIGTERM)

    def stop(row):
        if row["kind"] == "train" and row["seen"] == 24:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = run(config, on_row=stop)
    assert (stopped.stopped_by, stopped.finished) == (signal.SIGTERM, False)
    assert stopped.checkpoint.name == f"{stopped.seen:09d}"
    assert stopped.seen in (24, 32)  # Python hands a signal over between two of its instructions
    assert signal.getsignal(signal.SIGTERM) is handler
    rest = run(config)
    assert_same(run(settings(tmp_path / "whole", log_every=8)), rest)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    folder = tmp_path / "run"
    run(settings(folder), stop_at=8)
    with pytest.raises(
        ValueError, match=r"(?s)holds a run of other settings: .*learning_rate was 0.004, is 0.01.*over"
    ):
        run(settings(folder, learning_rate=0.01))
    # What does not change what is learned may change.
    run(settings(folder, log_every=8, keep_last=1), stop_at=16)
    result = run(settings(folder, learning_rate=0.01, overwrite=True), stop_at=8)
    assert result.seen == 8
    assert yaml.safe_load((folder / "run.yaml").read_text())["learning_rate"] == 0.01
    assert yaml.safe_load((folder / "run.yaml").read_text())["overwrite"] is False


def test_data_that_has_changed_is_refused(tmp_path, monkeypatch):
    run(settings(tmp_path / "run"), stop_at=8)
    rows = (tmp_path / "run/metrics.jsonl").read_text().replace('"data_fingerprint": "', '"data_fingerprint": "00')
    (tmp_path / "run/metrics.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=r"data 'digits' has changed since .*fingerprint was 00.*, is .*Restore"):
        run(settings(tmp_path / "run"))


def test_folders_that_are_no_run_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"mine holds something, but no run.yaml of a run; give another name with out"):
        run(settings(tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"no run.yaml"):
        run(settings(tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file is a file; give another name with out"):
        run(settings(tmp_path / "file"))


def test_two_runs_in_one_folder_are_refused(tmp_path):
    message = r"another process trains in .*run; wait for its end, or give another"
    with runs_module._claimed(tmp_path / "run"), pytest.raises(BlockingIOError, match=message):
        run(settings(tmp_path / "run"))
    run(settings(tmp_path / "run"), stop_at=8)


def test_an_error_before_training_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"mask_ratio"):
        run(settings(tmp_path / "run", recipe={"mask_ratio": 0.3}))
    assert not (tmp_path / "run").exists()


def spoil(model, at):
    """Let a weight become infinite after `at` steps of the loop."""
    steps = Training.steps

    def spoiled(self, *args, **kwargs):
        for step in steps(self, *args, **kwargs):
            if step.number == at:
                with torch.no_grad():
                    self.weights["final_layer.linear.bias"].fill_(float("inf"))
            yield step
            if step.number == at + 1:
                with torch.no_grad():
                    self.weights["final_layer.linear.bias"].zero_()

    return spoiled


def test_a_loss_that_is_not_finite_stops_and_names_the_newest_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "steps", spoil("dit_ti_2", 6))
    with pytest.raises(FloatingPointError, match=r"(?s)Step 7 \(56 images seen\).*loss inf.*000000040"):
        run(settings(tmp_path / "run"))


def test_steps_that_are_not_finite_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "steps", spoil("dit_ti_2", 6))
    result = run(settings(tmp_path / "run", on_non_finite="skip"))
    assert result.finished
    (event,) = MetricsFile(tmp_path / "run/metrics.jsonl").rows("event")
    assert event["event"] == "step left out"
    assert event["message"].startswith("step 7 (56 images seen) is left out: loss inf")
    assert all(row["loss"] is not None for row in curve(tmp_path / "run"))


def test_a_second_signal_interrupts_unless_it_is_the_first_one_again():
    with runs_module._StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as from a launcher that was told to end along with this process
        assert stop.received == signal.SIGTERM
        stop._at -= 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_too_little_space_is_known_before_writing(tmp_path, monkeypatch):
    run(settings(tmp_path / "run"), stop_at=8)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("ditzoo.train.checkpoints.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"the next checkpoint needs [\d,]+ bytes and .* has 1,000 free, so nothing was"):
        run(settings(tmp_path / "run"), stop_at=16)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["000000008"]


def kill(folder, times):
    program = [sys.executable, "-m", "tests.train.killing", str(folder), str(times)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.count("exit -9")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    assert kill(tmp_path, 3) == 3


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_too(tmp_path):
    assert kill(tmp_path, 20) >= 15
