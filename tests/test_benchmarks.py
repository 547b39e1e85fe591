"""The scripts in benchmarks/ that measure: comparison with diffusers, timing in pairs, result rows, recorded tables."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from ditzoo.bench.results import ResultRow, Value, read_rows
from ditzoo.layers import PatchEmbed
from ditzoo.metrics import Timing

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


eager_speed = load("eager_speed")
scheduler_parity = load("scheduler_parity")
conversion_memory = load("conversion_memory")
loading = load("loading")
Case, Comparison = eager_speed.Case, eager_speed.Comparison

TINY_CASES = [
    Case("forward", "dit_ti_2", "float32", 1, limit=1.03, rounds=1),
    Case("forward", "dit_ti_2", "bfloat16", 3, limit=1.03, rounds=1),
    Case("train", "dit_ti_2", "float32", 2, limit=1.05, rounds=1),
    Case("train", "dit_ti_2", "autocast", 2, limit=1.05, rounds=1),
]


def needs_diffusers() -> None:
    pytest.importorskip("diffusers", reason="compares with diffusers; pip install 'ditzoo[diffusers]'")


class FakeMachine:
    """A clock that only moves while work is done; work grows dearer by `drift` a second."""

    def __init__(self, drift: float = 0.0) -> None:
        self.elapsed = 0.0
        self.drift = drift
        self.calls = ""

    def clock(self) -> float:
        return self.elapsed

    def task(self, letter: str, seconds: float):
        def run() -> None:
            self.calls += letter
            self.elapsed += seconds * (1 + self.drift * self.elapsed)

        return run

    def compare(self, ours: float, theirs: float, rounds: int):
        tasks = [self.task(*task) for task in (("o", ours), ("t", theirs), ("r", 1.0))]
        return eager_speed.compare(*tasks, rounds=rounds, clock=self.clock)


# The two networks.


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "config", [{}, {"in_channels": 4, "learn_sigma": True, "input_size": 16}], ids=["plain", "sigma"]
)
def test_both_networks_agree(case, config):
    needs_diffusers()
    ours, theirs = eager_speed.work_of(eager_speed.build_pair(case.model, **config), case)
    assert eager_speed.check_agreement(ours, theirs, case) <= (1e-5 if case.precision == "float32" else 3e-2)
    results = ours()
    assert [tensor.ndim for tensor in results] == ([4] if case.task == "forward" else [0, 4])
    assert all(bool(tensor.any()) for tensor in results)
    # A learning rate of 0: a step later nothing has changed.
    assert all(torch.equal(before, after) for before, after in zip(results, ours(), strict=True))


def test_every_weight_is_compared():
    needs_diffusers()
    pair, case = eager_speed.build_pair("dit_ti_2", depth=2), TINY_CASES[0]
    for name, parameter in pair.theirs.named_parameters():
        if name.endswith("to_k.bias"):
            continue  # the softmax cancels it
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.5 * torch.randn(parameter.shape)
        with pytest.raises(RuntimeError, match=r"forward dit_ti_2 float32 1: .* differ by .* more than 0\.0001"):
            eager_speed.check_agreement(*eager_speed.work_of(pair, case), case)
        parameter.data.copy_(kept)
    assert eager_speed.check_agreement(*eager_speed.work_of(pair, case), case) <= 1e-5


def test_frequencies_of_the_timestep_are_compared():
    needs_diffusers()
    pair, case = eager_speed.build_pair("dit_ti_2"), TINY_CASES[0]
    pair.theirs.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift = 1
    with pytest.raises(RuntimeError, match="differ by"):
        eager_speed.check_agreement(*eager_speed.work_of(pair, case), case)


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_different_results_are_refused(wrong):
    one, other = (lambda: (torch.ones(2), torch.ones(3))), (lambda: (torch.ones(2), torch.tensor([1.0, wrong, 1.0])))
    for pair in ((one, other), (other, one)):
        with pytest.raises(RuntimeError, match="differ by"):
            eager_speed.check_agreement(*pair, TINY_CASES[0])
    assert eager_speed.check_agreement(one, one, TINY_CASES[0]) == 0


def test_difference_is_relative_to_the_largest_value():
    difference = eager_speed.relative_difference(torch.tensor([1.0, -8.0]), torch.tensor([2.0, -10.0]))
    assert difference == pytest.approx(0.2)


# Timing in pairs.


def test_each_network_is_first_in_half_of_the_pairs():
    machine = FakeMachine()
    comparison = machine.compare(3.0, 2.0, rounds=3)
    assert machine.calls == "ottor" * 4  # one round to find out how long the functions take
    assert comparison.ratios == pytest.approx([1.5] * 6)
    assert comparison.ours.seconds == pytest.approx([3.0] * 6)
    assert comparison.theirs.median == pytest.approx(2.0)
    assert comparison.roof.seconds == pytest.approx([1.0] * 3)


def test_pairs_are_neighbours():
    seconds = iter(range(1, 100))
    machine = FakeMachine()

    def task() -> None:
        machine.elapsed += next(seconds)

    comparison = eager_speed.compare(task, task, task, rounds=2, clock=machine.clock)
    # The first five calls find out how long the functions take; the fifth of each round is the roof.
    assert comparison.ours.seconds == (6, 9, 11, 14)
    assert comparison.theirs.seconds == (7, 8, 12, 13)
    assert comparison.ratios == (6 / 7, 9 / 8, 11 / 12, 14 / 13)


def test_a_slowing_machine_does_not_change_the_ratio():
    machine = FakeMachine(drift=0.01)
    comparison = machine.compare(0.3, 0.3, rounds=10)
    assert comparison.ours.seconds[-1] > 1.1 * comparison.ours.seconds[0]
    assert eager_speed.spread(comparison.ratios, "").value == pytest.approx(1, abs=1e-3)


def test_median_and_quartiles():
    assert eager_speed.spread((5.0, 1.0, 2.0, 4.0, 3.0), "s") == Value(3.0, "s", low=2.0, high=4.0)


def test_tokens_reach_the_blocks_contiguous():
    """As a transposed view they cost 2 to 4 % of a forward pass of DiT-XL/2: every layer norm copies its input."""
    assert PatchEmbed(2, 3, 8)(torch.randn(2, 3, 8, 6)).is_contiguous()


# Rows, files, tables.


def row_of(case, monkeypatch) -> ResultRow:
    monkeypatch.setattr(eager_speed.metadata, "version", lambda package: f"1.2 of {package}")
    timings = [Timing((0.9, 2.0, 3.3)), Timing((1.0, 2.0, 3.0)), Timing((0.5, 0.5))]
    return eager_speed.result_row(case, {"depth": 4}, 1e-7, Comparison(*timings))


def test_a_row_has_all_that_is_needed_to_judge_it(monkeypatch):
    row = row_of(TINY_CASES[2], monkeypatch)
    assert (row.suite, row.name, row.kind, row.seed) == ("eager_speed", "dit_ti_2", "model", 0)
    assert row.settings == {"task": "train", "precision": "float32", "batch_size": 2}
    assert row.values["ratio"].value == pytest.approx(1.0)
    assert (row.values["ratio"].low, row.values["ratio"].high) == pytest.approx((0.95, 1.05))
    assert row.values["limit"].value == 1.05
    assert row.values["pairs"] == Value(3, "pairs of measurements")
    assert (row.values["ditzoo"].low, row.values["ditzoo"].high) == pytest.approx((1.45, 2.65))
    assert row.values["diffusers"] == Value(2.0, "s a training step of 2 images", 1.5, 2.5)
    assert row.values["difference"].value == 1e-7
    assert row.values["roof"].value == pytest.approx(1024**3 / 0.5 / 1e9)
    assert row.values["roof"].unit == "GMACs/s of a float32 product of 1024x1024 matrices"
    assert row.versions["diffusers"] == "1.2 of diffusers"
    assert {"ditzoo", "torch", "python"} <= set(row.versions)
    assert {"processor", "cores", "threads"} <= set(row.machine)
    assert row.source_digest
    assert row.finished_at
    assert ResultRow.from_json(row.to_json()) == row


@pytest.mark.parametrize("case", TINY_CASES[1:], ids=lambda case: case.name)
def test_roof_has_the_precision_of_the_products(case, monkeypatch):
    precision = "float32" if case.precision == "float32" else "bfloat16"
    assert precision in row_of(case, monkeypatch).values["roof"].unit


def test_a_case_measured_again_replaces_its_row(tmp_path, monkeypatch):
    path = tmp_path / "new" / "rows.jsonl"
    first, second = (row_of(case, monkeypatch) for case in TINY_CASES[:2])
    eager_speed.record(path, first)
    eager_speed.record(path, second)
    again = replace(first, finished_at="later")
    eager_speed.record(path, again)
    assert read_rows(path) == ([second, again], [])


def test_report(monkeypatch):
    monkeypatch.setattr(eager_speed, "CASES", TINY_CASES)
    rows = [row_of(case, monkeypatch) for case in TINY_CASES]
    header, rule, *lines = eager_speed.report(rows[::-1]).splitlines()
    assert header.count("|") == rule.count("|") == lines[0].count("|") == 11
    assert lines[2] == (
        "| train | `dit_ti_2` | float32 | 2 | 1.000 (0.950 to 1.050) | 1.05 | "
        "2.000 (1.450 to 2.650) | 2.000 (1.500 to 2.500) | 3 | 2 |"
    )
    assert [line.split(" | ")[2] for line in lines[:4]] == ["float32", "bfloat16", "float32", "autocast"]
    assert lines[4] == ""
    assert len(lines) == 6  # one origin for all rows
    assert "diffusers 1.2 of diffusers" in lines[5]
    other = replace(rows[0], source_digest="of other code")
    assert len(eager_speed.report([other, *rows[1:]]).splitlines()) == 2 + 4 + 1 + 2


def test_the_command_measures_what_is_asked_for(tmp_path, monkeypatch):
    needs_diffusers()
    monkeypatch.setattr(eager_speed, "CASES", TINY_CASES)
    out = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(eager_speed.main, ["* float32 1", "train * autocast *", "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows, problems = read_rows(out)
    assert problems == []
    assert [row.settings for row in rows] == [TINY_CASES[0].settings, TINY_CASES[3].settings]
    assert eager_speed.report(rows) in result.stdout
    for row in rows:
        assert row.values["pairs"].value == 2
        assert all(value.value > 0 for name, value in row.values.items() if name != "difference")
        for private in (platform.node(), str(Path.home()), str(BENCHMARKS.parent)):
            assert private not in row.to_json()


def test_a_pattern_without_a_case_is_refused(tmp_path):
    result = CliRunner().invoke(eager_speed.main, ["bckward*", "--out", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 2
    assert "no case matches 'bckward*'" in result.output
    assert "forward dit_xl_2 float32 1" in result.output
    assert not list(tmp_path.iterdir())


def test_the_cases_are_those_that_the_project_promises():
    forward = {(precision, batch): 1.03 for precision in ("float32", "bfloat16") for batch in (1, 4)}
    found = {(c.precision, c.batch_size): c.limit for c in eager_speed.CASES if c.task == "forward"}
    assert found == forward
    assert {case.model for case in eager_speed.CASES if case.task == "forward"} == {"dit_xl_2"}
    training = [case for case in eager_speed.CASES if case.task == "train"]
    assert {(case.model, case.limit) for case in training} == {("dit_b_2", 1.05)}


def test_the_recorded_speeds_keep_what_the_project_promises():
    limits = {(case.model, str(case.settings)): case.limit for case in eager_speed.CASES}
    for row in read_rows(eager_speed.RESULTS)[0]:
        assert row.values["limit"].value == limits[row.name, str(row.settings)], row.settings
        assert row.values["ratio"].value <= row.values["limit"].value, row.settings


def test_recorded_table_stands_in_the_readme():
    rows, problems = read_rows(eager_speed.RESULTS)
    assert problems == []
    assert sorted((row.name, str(row.settings)) for row in rows) == sorted(
        (case.model, str(case.settings)) for case in eager_speed.CASES
    )
    assert eager_speed.report(rows) in (BENCHMARKS / "README.md").read_text(encoding="utf-8"), (
        f"copy into benchmarks/README.md:\n{eager_speed.report(rows)}"
    )


# Loading of weights.


def recorded_loading() -> tuple[dict, list]:
    content = json.loads(loading.RESULTS.read_text())
    return content["origin"], [loading.Row(**row) for row in content["rows"]]


def test_recorded_loading_stands_in_the_readme():
    origin, rows = recorded_loading()
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert loading.table(rows) in readme, f"copy into benchmarks/README.md:\n{loading.table(rows)}"
    assert loading.origin_line(origin) in readme, f"copy into benchmarks/README.md:\n{loading.origin_line(origin)}"


def test_the_recorded_loading_keeps_what_the_project_promises():
    _, rows = recorded_loading()
    assert [(row.model, row.dtype, row.kind, row.files > 1) for row in rows] == [
        ("dit_xl_2", dtype, kind, size != "5GB") for dtype, kind, size in loading.CASES
    ]
    for row in rows:
        assert row.memory <= loading.MOST_MEMORY * row.weights
        if row.dtype == "bfloat16":
            assert row.load[1] < loading.MOST_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_loading_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(
        loading,
        "CASES",
        [("bfloat16", "safetensors", "5GB"), ("float32", "safetensors", "0.7MB"), ("float32", "PyTorch", "5GB")],
    )
    out = tmp_path / "rows.json"
    result = CliRunner().invoke(loading.main, ["--out", str(out), "--model", "dit_ti_2", "--repeats", "2"])
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    first, second, third = rows = [loading.Row(**row) for row in content["rows"]]
    assert loading.table(rows) in result.output
    assert loading.origin_line(content["origin"]) in result.output
    assert [row.files for row in rows] == [1, 2, 1]
    assert third.weights == second.weights == 2 * first.weights > 10**6
    for row in rows:
        assert 0 < row.load[0] <= row.load[1] <= row.load[2]


def test_a_row_of_loading_in_the_table():
    row = loading.Row("dit_ti_2", "bfloat16", "safetensors", 3, 2 * 10**9, (0.1, 0.2, 0.3), 21 * 10**8, 10**8)
    assert loading.table([row]).splitlines()[2] == (
        "| `dit_ti_2` | bfloat16 | safetensors | 3 | 2.00 GB | 0.200 s (0.100 to 0.300) | 1.050 | 0.050 |"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_peak_of_memory_is_seen():
    Path("/proc/self/clear_refs").write_text("5")
    start = loading.status()
    block = torch.ones(25 * 10**6)
    full = loading.status()
    del block
    assert full["RssAnon"] - start["RssAnon"] == pytest.approx(10**8, rel=0.05)
    assert loading.status()["VmHWM"] - start["VmRSS"] == pytest.approx(10**8, rel=0.05)


# Schedulers of diffusers.


def recorded_parity() -> tuple[dict[str, str], list]:
    content = json.loads(scheduler_parity.RESULTS.read_text())
    return content["versions"], [scheduler_parity.Row(**row) for row in content["rows"]]


def test_recorded_parity_stands_in_the_readme():
    versions, rows = recorded_parity()
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert scheduler_parity.table(rows) in readme
    assert ", ".join(f"{name} {version}" for name, version in versions.items()) in readme


def test_samplers_and_schedulers_agree_where_they_are_told_the_same_times(tmp_path):
    needs_diffusers()
    out = tmp_path / "rows.json"
    result = CliRunner().invoke(scheduler_parity.main, ["--out", str(out)])
    assert result.exit_code == 0, result.output
    measured = json.loads(out.read_text())
    assert scheduler_parity.versions() == measured["versions"]
    _, recorded = recorded_parity()
    assert len(measured["rows"]) == len(recorded)
    for row, known in zip(measured["rows"], recorded, strict=True):
        assert (row["scheduler"], row["settings"], row["compared_with"]) == (
            known.scheduler,
            known.settings,
            known.compared_with,
        )
        if known.deviation < 1e-5:
            assert row["deviation"] < 1e-5, row
        else:
            assert row["deviation"] == pytest.approx(known.deviation, rel=1e-2), row


def test_a_deviation_is_of_the_largest_value():
    ones = [torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 4.0)]
    assert scheduler_parity.deviation([ones[0] + 1, ones[1]], ones) == pytest.approx(0.25)
    assert scheduler_parity.deviation(ones, ones) == 0


# Memory of conversions.


def recorded_conversions() -> list:
    content = json.loads(conversion_memory.RESULTS.read_text())
    return [conversion_memory.Row(**row) for row in content["rows"]]


def test_recorded_conversions_stand_on_the_page():
    page = (BENCHMARKS.parent / "docs" / "converting.md").read_text(encoding="utf-8")
    assert conversion_memory.table(recorded_conversions()) in page


def test_conversions_keep_what_the_project_promises():
    rows = {row.conversion: row.ratio for row in recorded_conversions()}
    assert len(rows) == len(conversion_memory.CONVERSIONS)
    in_memory = rows.pop("official.pt to half.pt, bfloat16")  # PyTorch writes a file from copies of all tensors
    assert 1.2 < in_memory < 1.6
    assert all(0.9 < ratio <= 1.2 for ratio in rows.values())


def test_memory_of_a_conversion_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion_memory, "MODEL", "dit_ti_2")
    monkeypatch.setattr(conversion_memory, "CONVERSIONS", conversion_memory.CONVERSIONS[:1])
    [row] = conversion_memory.measure(tmp_path)
    assert row.conversion == "official.pt to ditzoo"
    assert row.source_bytes == (tmp_path / "official.pt").stat().st_size
    assert 0 < row.peak_bytes < 2e8
    assert (tmp_path / "ditzoo" / "model.safetensors").is_file()
