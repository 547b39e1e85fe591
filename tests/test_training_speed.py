"""`benchmarks/training_speed.py`: that both sides of a comparison do their work, and what it records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import ditzoo
from benchmarks import training_speed
from benchmarks.eager_speed import Comparison
from ditzoo.bench.results import ResultRow, read_rows
from ditzoo.data.latents import LatentCache
from ditzoo.metrics import Timing

README = Path(training_speed.__file__).parent / "README.md"
TINY_MODELS = {"dit_b_2": "dit_ti_2", "mdt_b_2": "mdt_ti_2", "mdtv2_b_2": "mdtv2_ti_2"}
TINY_CASES = [replace(case, model=TINY_MODELS[case.model], rounds=1) for case in training_speed.CASES]


def needs_diffusers() -> None:
    pytest.importorskip("diffusers", reason="compares with diffusers; pip install 'ditzoo[diffusers]'")


def row_of(case) -> ResultRow:
    timings = [Timing((0.9, 2.0, 3.3)), Timing((1.0, 2.0, 3.0)), Timing((0.5, 0.5))]
    return training_speed.result_row(case, Comparison(*timings))


def recorded() -> list[ResultRow]:
    rows, problems = read_rows(training_speed.RESULTS)
    assert problems == []
    return rows


# The sides.


def test_the_bare_loop_learns_to_predict_the_noise(monkeypatch):
    needs_diffusers()
    monkeypatch.setattr(training_speed, "OPTIONS", replace(training_speed.OPTIONS, learning_rate=1e-2))
    step = training_speed.bare_step(ditzoo.create("dit_ti_2"))
    losses = [step() for _ in range(20)]
    assert losses[0] == pytest.approx(1, abs=0.2)  # of a fresh network, whose output is zero
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_the_loop_makes_one_step_a_call():
    training = training_speed.training_of(ditzoo.create("dit_ti_2"))
    step = training_speed.step_of(training)
    assert [(done.number, done.seen, done.updated) for done in (step(), step())] == [(1, 8, True), (2, 16, True)]
    assert training.options.precision == "bfloat16"


def test_the_parts_of_a_step_train_the_model_of_the_loop(tmp_path):
    model = ditzoo.create("dit_ti_2")
    sides = training_speed.loop_and_parts(model, tmp_path)
    for side in sides:
        before = model.final_layer.linear.weight.clone()
        side()
        assert not torch.equal(model.final_layer.linear.weight, before)
        assert model.final_layer.linear.weight.grad is None


def test_cached_latents_are_read_as_training_does(tmp_path):
    model = ditzoo.create("dit_ti_2", in_channels=4, num_classes=3)
    sides = training_speed.reading_and_step(model, tmp_path)
    first, second = sides.first(), sides.first()
    assert first.x.shape == (8, 4, 8, 8)
    assert (first.numbers, second.numbers) == (range(8), range(8, 16))
    assert set(torch.cat([first.y, second.y]).tolist()) <= {0, 1, 2}
    cache = LatentCache(tmp_path, flip=True)
    assert len(cache) == 2048
    assert cache.manifest.has_variance
    assert cache.manifest.latent_shape == (4, 8, 8)


@pytest.mark.parametrize(("name", "blocks"), [("mdt_ti_2", "blocks"), ("mdtv2_ti_2", "en_inblocks")])
def test_the_masked_pass_leaves_half_of_the_tokens_out(name, blocks, tmp_path):
    model = ditzoo.create(name)
    tokens = []
    first = model.get_submodule(f"{blocks}.0")
    first.register_forward_hook(lambda module, arguments, output: tokens.append(arguments[0].shape[1]))
    for side in training_speed.masked_and_full(model, tmp_path):
        side()
    assert tokens == [8, 16]


# Rows, tables, the command.


def test_a_row_has_all_that_is_needed_to_judge_it():
    needs_diffusers()
    row = row_of(TINY_CASES[0])
    assert (row.suite, row.name) == ("training_speed", "dit_ti_2")
    assert row.settings == {"case": "loop", "precision": "bfloat16", "batch_size": 8}
    assert row.values["ratio"].value == pytest.approx(1.0)
    assert row.values["ratio"].unit == "time of `ditzoo.train` over time of bare loop around diffusers"
    assert row.values["limit"].value == pytest.approx(1.0526, abs=1e-4)
    assert row.values["roof"].value == pytest.approx(1024**3 / 0.5 / 1e9)
    assert ResultRow.from_json(row.to_json()) == row
    assert "limit" not in row_of(TINY_CASES[-1]).values


def test_report(monkeypatch):
    needs_diffusers()
    monkeypatch.setattr(training_speed, "CASES", TINY_CASES)
    lines = training_speed.report([row_of(case) for case in TINY_CASES][::-1]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:7]] == ["| loop", "| overhead", "| latents", "| mask", "| mask"]
    assert lines[2] == (
        "| loop | `dit_ti_2` | `ditzoo.train` / bare loop around diffusers | 1.000 (0.950 to 1.050) | 1.05 | "
        "2.000 (1.450 to 2.650) | 2.000 (1.500 to 2.500) | 3 | 2 |"
    )
    assert len(lines) == 9  # one origin for all rows


def test_the_command_measures_what_is_asked_for(tmp_path, monkeypatch):
    needs_diffusers()
    monkeypatch.setattr(training_speed, "CASES", TINY_CASES)
    monkeypatch.setattr(training_speed, "MEMORY_MODEL", "dit_ti_2")
    out = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(training_speed.main, ["overhead*", "memory * 8 checkpointed", "--out", str(out)])
    assert result.exit_code == 0, result.output
    (times, memory), problems = read_rows(out)
    assert problems == []
    assert (times.settings, times.values["pairs"].value) == (TINY_CASES[1].settings, 2)
    assert (memory.settings["batch_size"], memory.settings["grad_checkpointing"]) == (8, True)
    assert 0.005 < memory.values["peak"].value < 1
    assert training_speed.report([times, memory]) in result.stdout
    refused = CliRunner().invoke(training_speed.main, ["losses", "--out", str(out)])
    assert refused.exit_code == 2
    assert "no case matches 'losses'" in refused.output


# The recorded run.


def test_the_recorded_table_stands_in_the_readme():
    assert training_speed.report(recorded()) in README.read_text(encoding="utf-8")


def test_every_case_is_recorded_and_keeps_its_limit():
    rows = recorded()
    for case in training_speed.CASES:
        (row,) = [row for row in rows if (row.name, row.settings) == (case.model, case.settings)]
        assert row.values["ratio"].value <= (case.limit or 1), case.name
    memory = [row for row in rows if "peak" in row.values]
    peaks = {(row.settings["batch_size"], row.settings["grad_checkpointing"]): row.values["peak"] for row in memory}
    for size in training_speed.MEMORY_BATCHES:
        assert peaks[size, True].value < peaks[size, False].value
