"""Files that passed `ditzoo verify` are recorded on this machine, and later ones are compared with them."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import ditzoo
from ditzoo import registry
from ditzoo.cli import cli
from ditzoo.models import Checkpoint, PublishedFile
from ditzoo.summary import describe
from ditzoo.weights import save_weights, verify
from ditzoo.weights.diffusers_names import diffusers_state
from ditzoo.weights.records import WeightsRecord, add_record, load_records, records_file
from tests.summary.reading import section
from tests.weights.verifying import rows, weights_of

NAME = "dit_ti_2.small"
TODAY = date.today().isoformat()
RECORD = WeightsRecord("weights.pt", 7, "a" * 64, "b" * 64, "c" * 40, "2026-01-02")


@pytest.fixture(autouse=True)
def _published(registry_sandbox, no_golden, monkeypatch):
    """A name of published weights as small as a tiny model, and only those checks that read the file."""
    monkeypatch.setattr("ditzoo.weights.file_checks.fitting", lambda shapes: [])
    entry = registry._ENTRIES["dit_ti_2"]
    files = (PublishedFile(name="small.pt", url="https://example.org/small.pt"),)
    checkpoint = Checkpoint(config={}, licence="none", data="digits", files=files)
    architecture = replace(entry.architecture, checkpoints={"small": checkpoint})
    registry._ENTRIES["dit_ti_2"] = replace(entry, architecture=architecture)


@pytest.fixture(scope="module")
def state():
    return weights_of("dit_ti_2")


@pytest.fixture
def path(tmp_path, state):
    save_file(state, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_a_file_that_passes_is_recorded(path):
    result = verify(NAME, path, record=True)
    check = rows(result)["record"]
    assert (check.status, check.found, result.passed) == ("note", "recorded, the first of this name", True)
    content = path.read_bytes()
    expected = WeightsRecord(
        file="small.safetensors",
        num_bytes=len(content),
        sampled_hash=result.sampled_hash,
        sha256=hashlib.sha256(content).hexdigest(),
        revision=None,
        date=TODAY,
    )
    assert load_records(NAME) == (expected,)
    assert load_records("dit_ti_2") == ()
    again = verify(NAME, path, record=True)
    assert rows(again)["record"].found == f"the file recorded on {TODAY}"
    assert load_records(NAME) == (expected,)


def test_nothing_is_recorded_unless_asked_for(path):
    assert "record" not in rows(verify(NAME, path))
    assert not records_file().exists()
    verify(NAME, path, record=True)
    assert rows(verify(NAME, path))["record"].found == f"the weights recorded on {TODAY}"


def test_another_file_of_the_same_weights(path, tmp_path, state):
    verify(NAME, path, record=True)
    torch.save({"ema": state}, tmp_path / "small.pt")
    check = rows(verify(NAME, tmp_path / "small.pt", record=True))["record"]
    assert check.found == f"another file of the weights recorded on {TODAY}; recorded"
    assert [record.file for record in load_records(NAME)] == ["small.safetensors", "small.pt"]


def test_the_copy_of_diffusers_has_the_same_weights(path, tmp_path, state):
    verify(NAME, path, record=True)
    transformer = tmp_path / "pipeline" / "transformer"
    transformer.mkdir(parents=True)
    (transformer / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    model = ditzoo.create("dit_ti_2")
    model.load_state_dict(state)
    (copy,) = save_weights(diffusers_state(model), transformer, stem="diffusion_pytorch_model")
    for checkpoint in (transformer.parent, transformer, copy):
        result = verify(NAME, checkpoint)
        assert result.passed
        assert rows(result)["names of diffusers"].found == "read as the official ones"
        assert rows(result)["record"].found == f"the weights recorded on {TODAY}"
    verify(NAME, transformer.parent, record=True)
    assert [record.file for record in load_records(NAME)] == [path.name, copy.name]
    assert load_records(NAME)[1].sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()
    sit = rows(verify("sit_ti_2", copy))  # of which diffusers has none
    assert "names of diffusers" not in sit
    assert sit["names"].status == "FAIL"


def test_other_weights_are_told(path, tmp_path, state):
    first = verify(NAME, path, record=True)
    save_file({key: value * 1.01 if key != "pos_embed" else value for key, value in state.items()}, tmp_path / "other")
    for record in (False, True):
        result = verify(NAME, tmp_path / "other", record=record)
        check = rows(result)["record"]
        assert (check.status, result.passed) == ("note", True)
        assert check.found == f"not the weights of {TODAY}" + "; recorded" * record
        size = path.stat().st_size
        assert check.details.startswith(
            f"the file recorded on {TODAY}, small.safetensors, has {size:,} bytes and the sampled hash "
            f"{first.sampled_hash}; this one has {size:,} bytes. One of them is another version or damaged"
        )


def test_what_fails_is_not_recorded_but_compared(path, tmp_path, state):
    verify(NAME, path, record=True)
    before = records_file().read_bytes()
    save_file({**state, "pos_embed": state["pos_embed"] + 1}, tmp_path / "shifted")
    result = verify(NAME, tmp_path / "shifted", record=True)
    assert not result.passed
    assert rows(result)["record"].found == f"not the weights of {TODAY}"
    save_file({"pos_embed": state["pos_embed"]}, tmp_path / "part")
    assert "record" not in rows(verify(NAME, tmp_path / "part", record=True))
    assert records_file().read_bytes() == before


def test_bare_names_and_packaged_weights_are_not_recorded(path):
    assert "record" not in rows(verify("dit_ti_2", path, record=True))
    assert "record" not in rows(verify("sit_ti_2.digits", record=True))
    assert not records_file().exists()


def test_the_revision_of_a_file_in_the_cache_of_the_hub(tmp_path, state):
    folder = tmp_path / "models--me--dit" / "snapshots" / ("d" * 40)
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    verify(NAME, folder / "model.safetensors", record=True)
    assert [record.revision for record in load_records(NAME)] == ["d" * 40]


def test_the_command_records_and_info_shows_it(path):
    printed = CliRunner().invoke(cli, ["verify", NAME, "--checkpoint", str(path)])
    assert printed.exit_code == 0
    assert re.search(r"^record +note +recorded, the first of this name$", printed.output, re.MULTILINE)
    (record,) = load_records(NAME)
    assert (
        f"recorded on this machine on {TODAY}: small.safetensors, {record.num_bytes:,} bytes, sha256 {record.sha256}, "
        f"sampled hash {record.sampled_hash}"
    ) in section(describe(NAME), "Weights")


# The file of records.


def test_records_are_kept_by_name_and_survive():
    for number in range(3):
        add_record("b", replace(RECORD, sha256=str(number)))
    add_record("a", replace(RECORD, revision=None, sha256=None))
    assert [record.sha256 for record in load_records("b")] == ["0", "1", "2"]
    assert load_records("a") == (replace(RECORD, revision=None, sha256=None),)
    content = json.loads(records_file().read_text())
    assert (content["schema_version"], list(content["records"])) == (1, ["a", "b"])


def test_records_of_several_threads_are_all_kept():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add_record("a", replace(RECORD, sha256=str(number))), range(16)))
    assert {record.sha256 for record in load_records("a")} == {str(number) for number in range(16)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"schema_version": 1, "records": {"dit_ti', "Unterminated string"),
        ("[]", "TypeError"),
        ('{"records": {}}', "KeyError: 'schema_version'"),
        ('{"schema_version": 2, "records": {}}', "its schema_version is 2, not 1"),
        ('{"schema_version": 1, "records": [1]}', "AttributeError"),
        ('{"schema_version": 1, "records": {"dit_ti_2.small": [{"file": "a"}]}}', "missing 5 required"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_a_damaged_file_is_told_and_left_alone(text, reason):
    records_file().parent.mkdir(parents=True)
    records_file().write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        load_records(NAME)
    assert str(caught.value).startswith(f"{records_file()}, where verified files are recorded, cannot be read (")
    assert "move the file away, and the next `ditzoo verify` starts a new one" in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(reason)):
        add_record(NAME, RECORD)
    assert records_file().read_text() == text


def test_a_damaged_file_stops_neither_verify_nor_info(path):
    records_file().parent.mkdir(parents=True)
    records_file().write_text("{")
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_records(NAME)
    result = verify(NAME, path, record=True)
    assert (rows(result)["record"].status, result.passed) == ("not checked", True)
    assert rows(result)["record"].details == str(caught.value)
    assert "cannot be read (" in section(describe(NAME), "Weights")
    assert records_file().read_text() == "{"


@pytest.mark.parametrize("wrong", [{"num_bytes": "7"}, {"sha256": 3}, {"date": None}])
def test_records_of_a_wrong_type_are_damage(wrong):
    add_record("a", RECORD)
    content = json.loads(records_file().read_text())
    content["records"]["a"][0].update(wrong)
    records_file().write_text(json.dumps(content))
    key, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=re.escape(f"cannot be read ({key} is {value!r})")):
        load_records("a")


def test_a_cache_that_cannot_be_written_fails_no_verification(path, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITZOO_CACHE", str(tmp_path / "file"))
    result = verify(NAME, path, record=True)
    assert result.passed
    assert rows(result)["record"].found == "the records cannot be used"
    assert "file" in rows(result)["record"].details
    assert ditzoo.model_info(NAME).source == "https://example.org/small.pt"
