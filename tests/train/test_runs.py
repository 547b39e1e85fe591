"""Runs: what is left in a folder, that going on loses nothing, and what is refused."""

import json
import multiprocessing
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
from ditzoo.train import signals as signals_module
from ditzoo.train.claiming import claimed
from ditzoo.train.devices import Devices
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


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, None), (signal.SIGINT, KeyboardInterrupt)])
def test_a_second_signal_interrupts_only_where_a_person_sends_it(number, error, tmp_path, monkeypatch):
    monkeypatch.setattr(signals_module, "_SAME_SIGNAL", 0.0)

    def stop(row):
        if row["kind"] == "train" and row["seen"] == 24:
            for _ in range(2):
                signal.raise_signal(number)

    config = settings(tmp_path / "run", log_every=8)
    if error is None:
        assert run(config, on_row=stop).checkpoint.name == "000000032"
    else:
        with pytest.raises(error):
            run(config, on_row=stop)
        assert not (tmp_path / "run/checkpoints").exists()
    assert run(config).finished


def test_a_run_grows_under_a_constant_learning_rate(tmp_path):
    options = {"lr_schedule": "constant", "log_every": 8, "checkpoint_every": 1000}
    run(settings(tmp_path / "grown", num_images=48, **options))
    assert_same(run(settings(tmp_path / "whole", **options)), run(settings(tmp_path / "grown", **options)))
    # From an end between two batches it goes on with the rest of that batch.
    run(settings(tmp_path / "odd", num_images=44, **options))
    assert run(settings(tmp_path / "odd", num_images=64, **options)).finished
    assert [row["seen"] for row in curve(tmp_path / "odd")] == [8, 16, 24, 32, 40, 44, 48, 56, 64]
    assert curve(tmp_path / "odd")[:5] == curve(tmp_path / "whole")[:5]


def test_stopping_before_the_first_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"stop_at must be 1 or more, got 0"):
        run(settings(tmp_path / "run"), stop_at=0)
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_killed_while_it_made_its_folder_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.yaml.partial-0123456789abcdef").write_text("model: di")
    run(settings(folder), stop_at=16)
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    # So does one that was to delete what was there.
    monkeypatch.setattr(runs_module, "remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(settings(folder, seed=1, overwrite=True))
    monkeypatch.undo()
    assert run(settings(folder, seed=1, overwrite=True), stop_at=8).seen == 8


def test_samples_that_are_not_finite_give_no_distance_and_stop_nothing(tmp_path, monkeypatch):
    def fail(self, model, indices):
        raise FloatingPointError("samples 0 to 3 are not finite")

    monkeypatch.setattr(runs_module.Evaluator, "features", fail)
    result = run(settings(tmp_path / "run", evaluate_every=48, evaluation_samples=4))
    assert (result.finished, result.distance) == (True, None)
    events = MetricsFile(tmp_path / "run/metrics.jsonl").rows("event")
    assert [(row["seen"], row["event"]) for row in events] == [(48, "no distance"), (96, "no distance")]
    assert events[0]["message"] == "samples 0 to 3 are not finite"


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


def test_processes_with_other_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Devices, "broadcast", lambda self, value: "ab" * 32)
    with pytest.raises(
        ValueError, match=r"data 'digits' of process 0 is not that .* instead of abababababab\. Give all"
    ):
        run(settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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
    with claimed(tmp_path / "run"), pytest.raises(BlockingIOError, match=message):
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
    with pytest.raises(FloatingPointError, match=r"(?s)Step 7 \(56 images seen\).*loss inf.*000000040") as error:
        run(settings(tmp_path / "run", num_workers=1))
    # What holds on to the error, as a notebook does, holds on to no process.
    assert error.tb is not None
    assert multiprocessing.active_children() == []


def test_steps_that_are_not_finite_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "steps", spoil("dit_ti_2", 6))
    result = run(settings(tmp_path / "run", on_non_finite="skip"))
    assert result.finished
    (event,) = MetricsFile(tmp_path / "run/metrics.jsonl").rows("event")
    assert event["event"] == "step left out"
    assert event["message"].startswith("step 7 (56 images seen) is left out: loss inf")
    assert all(tensor.isfinite().all() for tensor in tensors(result.checkpoint).values())
    assert all(row["loss"] is not None for row in curve(tmp_path / "run"))


def test_a_signal_that_comes_on_two_ways_is_one():
    with signals_module.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # as from a launcher that was told to end along with this process
        assert stop.received == signal.SIGINT
        stop._at -= 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


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
    assert done.stdout.count("kill ") == times


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    kill(tmp_path, 3)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_too(tmp_path):
    kill(tmp_path, 20)
