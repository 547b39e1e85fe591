"""Rows of numbers, pictures and distances from real images, while a model trains."""

import json
import math
import os
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import ditzoo
from ditzoo.data import load_digits_split
from ditzoo.data.source import TensorSource
from ditzoo.media import to_uint8
from ditzoo.metrics import FeatureStatistics, FrechetDistance
from ditzoo.metrics.digits import DIGITS_EXTRACTOR, load_digits_classifier
from ditzoo.metrics.inception import INCEPTION_EXTRACTOR, load_inception
from ditzoo.train.monitor import Evaluator, MetricsFile, Trackers, distance_values, draw_grid, evaluate
from tests.pipeline.pipes import QUICK, tiny
from tests.zoo import lively

DIGITS = TensorSource(*load_digits_split("train"), name="1,297 digits")
COLOURS = TensorSource(torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1, None)


@pytest.fixture
def metrics(tmp_path):
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    for seen in (32, 64, 96):
        file.append("train", seen, loss=1 / seen)
    return file


# Rows.


def test_rows_come_back_as_they_were_written(metrics):
    metrics.append("event", 96, event="spike", message="the loss is 5")
    assert metrics.rows("train") == [{"kind": "train", "seen": seen, "loss": 1 / seen} for seen in (32, 64, 96)]
    assert metrics.rows()[-1] == {"kind": "event", "seen": 96, "event": "spike", "message": "the loss is 5"}
    assert MetricsFile(metrics.path.with_name("other.jsonl")).rows() == []


def test_a_row_is_one_write(metrics, monkeypatch):
    """What a kill can leave of a row is its beginning, never a row in two places."""
    writes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: writes.append(data) or write(file, data))
    metrics.append("train", 128, loss=2.0, grad_norm=1.0)
    assert writes == [b'{"kind": "train", "seen": 128, "loss": 2.0, "grad_norm": 1.0}\n']


def test_numbers_that_are_not_finite_are_null(metrics):
    metrics.append("train", 128, loss=math.nan, grad_norm=math.inf)
    assert metrics.path.read_text().splitlines()[-1] == (
        '{"kind": "train", "seen": 128, "loss": null, "grad_norm": null}'
    )


def test_half_a_line_is_passed_over_and_replaced(metrics):
    whole = metrics.path.read_bytes()
    metrics.path.write_bytes(whole + b'{"kind": "train", "se')
    assert [row["seen"] for row in metrics.rows()] == [32, 64, 96]
    metrics.append("train", 128, loss=0.0)
    assert [row["seen"] for row in metrics.rows()] == [32, 64, 96, 128]
    assert metrics.path.read_bytes().startswith(whole)


def test_a_file_that_is_half_a_line_starts_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kin')
    file = MetricsFile(path)
    file.append("train", 1)
    assert file.rows() == [{"kind": "train", "seen": 1}]


def test_rows_after_a_checkpoint_are_dropped(metrics):
    lines = metrics.path.read_bytes().splitlines(keepends=True)
    metrics.path.write_bytes(b"".join(lines) + b'{"kind"')
    metrics.truncate(64)
    assert metrics.path.read_bytes() == b"".join(lines[:2])
    metrics.truncate(0)
    assert metrics.rows() == []
    MetricsFile(metrics.path.with_name("none.jsonl")).truncate(5)  # of a run that has written nothing


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b'{"seen": 3}\n'])
def test_a_damaged_line_in_the_middle_is_named(metrics, line):
    lines = metrics.path.read_bytes().splitlines(keepends=True)
    metrics.path.write_bytes(lines[0] + line + lines[1])
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is no row of metrics: b.*Remove that line"):
        metrics.rows()


# Trackers.


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_the_rows_and_a_resumed_run_hides_what_it_writes_again(tmp_path):
    run = tmp_path / "run"
    trackers = Trackers(["tensorboard"], run=run, config={"batch_size": 32, "betas": (0.9, 0.99), "freeze": None})
    file = MetricsFile(run / "metrics.jsonl", trackers)
    for seen in (32, 64, 96):
        file.append("train", seen, loss=float(seen), message="text")
    trackers.close()
    again = Trackers(["tensorboard"], run=run, config={}, seen=64)
    again.log({"kind": "train", "seen": 96, "loss": 5.0})
    again.close()
    assert scalars(run / "tensorboard") == {"train/loss": [(32, 32.0), (64, 64.0), (96, 5.0)]}
    anew = Trackers(["tensorboard"], run=run, config={})  # as after a kill before the first checkpoint
    anew.log({"kind": "train", "seen": 32, "loss": 7.0})
    anew.close()
    assert scalars(run / "tensorboard") == {"train/loss": [(32, 7.0)]}


def test_every_tracker_gets_every_row(monkeypatch, tmp_path):
    """Weights & Biases without its servers: a class in its place in accelerate's list."""
    from accelerate import tracking

    calls = []

    class Recorder:
        name, requires_logging_directory = "wandb", False

        def __init__(self, project, **options):
            calls.append(("new", project, options))

        def start(self):
            calls.append("start")

        def store_init_configuration(self, values):
            calls.append(values)

        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(tracking, "_available_trackers", ["wandb"])
    trackers = Trackers(["wandb"], run=tmp_path / "mine", config={"seed": 1, "betas": (0.9, 0.99)})
    MetricsFile(tmp_path / "m.jsonl", trackers).append("evaluation", 64, frechet_distance=2.5, extractor="x", gone=None)
    trackers.close()
    run_id = (tmp_path / "mine" / "wandb" / "run-id").read_text()
    options = {"name": "mine", "dir": str(tmp_path / "mine"), "id": run_id, "resume": "allow"}
    assert len(run_id) == 32
    Trackers(["wandb"], run=tmp_path / "mine", config={}, seen=64)
    again = calls[5:]
    del calls[5:]
    assert again == [("new", "ditzoo", options), "start", {}]  # a run that goes on is the same one there
    assert calls == [
        ("new", "ditzoo", options),
        "start",
        {"seed": 1, "betas": "(0.9, 0.99)"},
        (64, {"evaluation/frechet_distance": 2.5, "evaluation/extractor": "x"}),
        "finish",
    ]


def test_trackers_that_are_unknown_or_missing_are_named(monkeypatch, tmp_path):
    from accelerate import tracking

    with pytest.raises(ValueError, match=r"unknown tracker 'tensorbord'; choose from .*tensorboard.*wandb"):
        Trackers(["tensorbord"], run=tmp_path, config={})
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ImportError, match=r'tensorboard is not installed: pip install "ditzoo\[trackers\]"'):
        Trackers(["tensorboard"], run=tmp_path, config={})
    with pytest.raises(ImportError, match="wandb is not installed: pip install wandb"):
        Trackers(["wandb"], run=tmp_path, config={})
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'pip install "ditzoo\[train\]"'):
        Trackers(["tensorboard"], run=tmp_path, config={})


# Grids.


def test_a_grid_has_a_column_for_each_class_and_the_same_noise_each_time(tmp_path):
    model = lively("dit_ti_2")
    path = tmp_path / "samples" / "000000032.png"
    caption = draw_grid(model, QUICK, path, seed=3, rows=2, columns=5)
    assert caption == "Classes, from left to right: 0, 2, 4, 7, 9."
    first = np.asarray(Image.open(path))
    assert Image.open(path).info["Description"] == caption
    assert model.training
    draw_grid(model, QUICK, path, seed=3, rows=2, columns=5)
    assert np.array_equal(first, np.asarray(Image.open(path)))
    draw_grid(model, QUICK, path, seed=4, rows=2, columns=5)
    assert not np.array_equal(first, np.asarray(Image.open(path)))


def test_the_first_images_of_a_grid_are_those_of_the_pipeline(tmp_path):
    path = tmp_path / "grid.png"
    draw_grid(lively("dit_ti_2"), QUICK, path, seed=3, rows=1, columns=10)
    samples = tiny()(list(range(10)), seed=3)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(samples.grid(10, scale=samples.scale)))


def test_a_grid_of_an_unconditional_model(tmp_path):
    path = tmp_path / "grid.png"
    assert draw_grid(lively("dit_ti_2", num_classes=0), QUICK, path, rows=1, columns=3) == ""
    assert Image.open(path).width > 2 * Image.open(path).height


def test_a_model_that_blows_up_leaves_no_picture(tmp_path):
    model = lively("dit_ti_2")
    with torch.no_grad():
        model.final_layer.linear.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        draw_grid(model, QUICK, tmp_path / "grid.png", rows=1, columns=2)
    assert list(tmp_path.iterdir()) == []
    assert model.training


# Distances.


def test_digits_are_compared_with_the_held_out_ones():
    model = lively("dit_ti_2")
    found = evaluate(model, QUICK, DIGITS, num_samples=40, seed=1, batch_size=16)
    classifier = load_digits_classifier()
    samples = tiny()(num_images=40, seed=1).tensor()
    statistics = [
        FeatureStatistics.from_features(classifier.features(images), extractor=DIGITS_EXTRACTOR)
        for images in (samples, to_uint8(load_digits_split("test").images).float() / 127.5 - 1)
    ]
    expected = FrechetDistance.between(*statistics, name="held-out digits")
    assert found.value == pytest.approx(expected.value, rel=1e-4)
    assert replace(found, value=0) == replace(expected, value=0)
    assert model.training


def test_the_packaged_weights_are_nearer_than_random_ones():
    evaluator = Evaluator(QUICK, DIGITS, num_samples=40)
    trained = ditzoo.create("dit_ti_2.digits", pretrained=True)
    assert float(evaluator(trained)) < 0.5 * float(evaluator(lively("dit_ti_2")))


def test_processes_can_share_the_samples():
    model, evaluator = lively("dit_ti_2"), Evaluator(QUICK, DIGITS, num_samples=40, batch_size=16)
    parts = [evaluator.features(model, share) for share in (range(0, 13), range(13, 13), range(13, 40))]
    assert evaluator.distance(torch.cat(parts)).value == pytest.approx(evaluator(model).value, rel=1e-5)


def test_a_row_of_metrics_has_all_that_a_distance_depends_on():
    distance = FrechetDistance(2.5, "x", 40, "held-out digits", 500, rank_deficient=True)
    row = distance_values(distance)
    assert json.loads(json.dumps(row)) == {
        "frechet_distance": 2.5,
        "extractor": "x",
        "num_samples": 40,
        "reference": "500 held-out digits",
        "rank_deficient": True,
    }


class FakeInception(torch.nn.Module):
    """Mean and spread of each channel: features whose distance can be worked out by hand."""

    def __init__(self, *args):
        super().__init__()

    def forward(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        x = images.float()
        return (torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1),)


def fake_torch_fidelity(monkeypatch, make):
    module = ModuleType("torch_fidelity")
    module.feature_extractor_inceptionv3 = SimpleNamespace(
        FeatureExtractorInceptionV3=make, URL_INCEPTION_V3="https://example.org/weights/inception.pth"
    )
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)


def test_other_images_are_compared_with_the_training_data(monkeypatch):
    fake_torch_fidelity(monkeypatch, FakeInception)
    model = lively("dit_ti_2", in_channels=3, input_size=16, num_classes=0)
    found = evaluate(model, QUICK, COLOURS, num_samples=8, batch_size=5)
    assert (found.extractor, found.num_samples) == (INCEPTION_EXTRACTOR, 8)
    assert (found.reference, found.reference_samples) == ("training images", 8)
    (real,) = FakeInception()(to_uint8(COLOURS.x[[0, 2, 5, 7, 10, 12, 15, 17]]))
    reference = Evaluator(QUICK, COLOURS, num_samples=8, batch_size=5).reference
    assert np.allclose(reference.mean, real.mean(0).numpy())


def test_latents_are_decoded(monkeypatch):
    fake_torch_fidelity(monkeypatch, FakeInception)
    decoded = []

    class Decoder:
        def decode(self, latents):
            decoded.append(latents)
            return latents[:, :3]

    latents = TensorSource(torch.rand(6, 4, 8, 8), None)
    recipe = replace(QUICK, latent_codec="someone/vae", latent_scale=0.18215)
    evaluator = Evaluator(recipe, latents, num_samples=4, codec=Decoder())
    assert evaluator.reference_name == "decoded training latents"
    (real,) = FakeInception()(to_uint8(latents.x[[0, 1, 3, 4], :3]))
    assert np.allclose(evaluator.reference.mean, real.mean(0).numpy())
    assert torch.equal(torch.cat(decoded), latents.x[[0, 1, 3, 4]])


def test_what_cannot_be_read_of_the_data_is_told(monkeypatch, caplog):
    fake_torch_fidelity(monkeypatch, FakeInception)

    class Torn(TensorSource):
        def load(self, indices, numbers, seed):
            return super().load(indices, numbers, seed)._replace(unreadable=("5.png is torn",))

    evaluator = Evaluator(QUICK, Torn(COLOURS.x, None), num_samples=8)
    assert evaluator.reference.num_samples == 8
    assert caplog.messages == ["5.png is torn"]


def test_grey_images_get_three_channels(monkeypatch):
    fake_torch_fidelity(monkeypatch, FakeInception)
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    features = load_inception()(grey)
    assert features[0, :3].tolist() == [127.5] * 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [(URLError("no route"), "no route"), (RuntimeError("invalid hash value\nmore"), "invalid hash value")],
)
def test_weights_of_inception_that_cannot_be_had_are_told_at_the_start(monkeypatch, error, reason):
    def make(*args):
        raise error

    fake_torch_fidelity(monkeypatch, make)
    with pytest.raises(OSError, match=rf"{reason}.*example\.org/weights/inception\.pth.*checkpoints/inception\.pth"):
        Evaluator(QUICK, COLOURS, num_samples=8)


def test_without_torch_fidelity_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r'pip install "ditzoo\[eval\]"'):
        Evaluator(QUICK, COLOURS, num_samples=8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "clip"}, "unknown features 'clip'; choose one of auto, digits, inception"),
        ({"features": "digits"}, "for images of 1x8x8 pixels, and images in memory is images of 3x16x16"),
        ({"num_samples": 1}, "evaluation_samples must be 2 or more, got 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Evaluator(QUICK, COLOURS, **{"num_samples": 8, **options})
