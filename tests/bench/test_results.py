"""Result rows survive a round trip, and a damaged file costs no more than its damaged lines."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ditzoo.bench.results import SCHEMA_VERSION, ResultRow, Value, provenance, read_rows, write_atomically, write_row

ROW = ResultRow(
    suite="quick",
    name="dit_ti_2",
    kind="model",
    seed=3,
    settings={"num_samples": 1000, "train": {"betas": [0.9, 0.95]}},
    config={"depth": 3},
    recipe={"schedule": "cosine"},
    values={"gmacs": Value(0.005, "GMACs"), "speed": Value(10.0, "images/s", low=9.0, high=11.0)},
)


def test_a_row_equals_itself_after_json() -> None:
    line = ROW.to_json()
    assert "\n" not in line
    assert ResultRow.from_json(line) == ROW
    assert json.loads(line)["schema_version"] == SCHEMA_VERSION


def test_identity_ignores_results_and_sees_settings() -> None:
    assert replace(ROW, values={}, finished_at="later", commit="abc").identity() == ROW.identity()
    for change in ({"seed": 4}, {"settings": {}}, {"config": {}}, {"source_digest": "x"}, {"machine": {"cores": 1}}):
        assert replace(ROW, **change).identity() != ROW.identity()


def test_rows_are_appended_in_order(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    others = [replace(ROW, seed=seed) for seed in range(3)]
    for row in others:
        write_row(path, row)
    assert read_rows(path) == (others, [])
    assert path.read_bytes().endswith(b"\n")
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "results.jsonl") == ([], [])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"suite": "qui', "not JSON"),
        ("[1, 2]", "a list where a row was expected"),
        ('{"schema_version": 99}', "schema version 99; this ditzoo reads version 1"),
        ('{"schema_version": 1, "suite": "quick"}', "missing kind, name, seed, settings"),
        (ROW.to_json().replace('"seed"', '"sead"'), "unknown sead; missing seed"),
        (ROW.to_json().replace('"unit"', '"unti"'), "malformed values"),
        (ROW.to_json().replace("0.005", '"much"'), "malformed values"),
        ("\xff\x00", "not JSON"),
    ],
)
def test_a_damaged_line_is_named_and_the_rest_is_used(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(f"{ROW.to_json()}\n".encode() + line.encode("latin-1") + f"\n\n{ROW.to_json()}".encode())
    rows, problems = read_rows(path)
    assert rows == [ROW, ROW]
    assert len(problems) == 1
    assert f"{path} line 2 is damaged and was left out" in problems[0]
    assert complaint in problems[0]


def test_writing_after_a_truncated_line_keeps_both(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"suite": "qui')
    write_row(path, ROW)
    rows, problems = read_rows(path)
    assert rows == [ROW]
    assert len(problems) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    write_row(path, ROW)
    before = path.read_bytes()

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ditzoo.bench.results.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"half")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        replace(ROW, values={"loss": Value(float("nan"), "1")}).to_json()


def test_provenance_names_versions_and_machine_but_no_path_or_host() -> None:
    import platform

    origin = provenance("cpu")
    assert set(origin["versions"]) == {"ditzoo", "torch", "numpy", "python"}
    assert origin["machine"]["device"] == "cpu"
    text = json.dumps(origin)
    assert str(Path(__file__).parents[2]) not in text
    assert platform.node() not in text
