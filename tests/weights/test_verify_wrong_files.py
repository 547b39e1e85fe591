"""`verify` of a file of weights in which something is wrong."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import ditzoo
from ditzoo import registry
from ditzoo.models import Checkpoint
from ditzoo.weights import Check, verify
from tests.weights.verifying import State, eight_bits, rows, sparse_file, statuses, verify_state, weights_of
from tests.zoo import on_meta

pytestmark = pytest.mark.usefixtures("no_golden")

# What is wrong with a file: name -> (change of the weights, statuses that differ from good weights, texts).


def lost(state: State) -> None:
    del state["blocks.1.attn.qkv.bias"], state["x_embedder.proj.weight"]


def added(state: State) -> None:
    state["blocks.4.attn.qkv.bias"] = torch.ones(3)


def number_added(state: State) -> None:
    state["step"] = 7


def other_shape(state: State) -> None:
    state["blocks.1.attn.qkv.bias"] = state["blocks.1.attn.qkv.bias"][:7]


def nan(state: State) -> None:
    state["blocks.2.mlp.fc1.weight"][3, 5] = torch.nan


def infinite(state: State) -> None:
    state["blocks.2.mlp.fc1.weight"][3, 5] = -torch.inf


def zero(state: State) -> None:
    for value in state.values():
        value.zero_()


def all_ones(state: State) -> None:
    for key, value in state.items():
        if key != "pos_embed":
            value.fill_(1)


def zero_gate(state: State) -> None:
    state["blocks.0.adaLN_modulation.1.weight"].zero_()


def rows_for_columns(state: State) -> None:
    state["pos_embed"] = torch.cat(state["pos_embed"].chunk(2, dim=-1)[::-1], dim=-1)


def integers(state: State) -> None:
    state["blocks.0.mlp.fc1.weight"] = (100 * state["blocks.0.mlp.fc1.weight"]).to(torch.int8)


def imaginary(state: State) -> None:
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"] * (1 + 1j)


def without_values(state: State) -> None:
    for value in state.values():
        value.fill_(torch.nan)


UNUSABLE = {
    **dict.fromkeys(("loads", "forward", "sampled hash"), "not checked"),
    **dict.fromkeys(("layout", "position table")),
}
WRONG: dict[Callable[[State], None], tuple[dict[str, str | None], dict[str, str]]] = {
    lost: (
        {"names": "FAIL", **UNUSABLE},
        {"names": "2 missing, 0 unexpected: missing x_embedder.proj.weight, blocks.1.attn.qkv.bias"},
    ),
    added: ({"names": "FAIL", **UNUSABLE}, {"names": "0 missing, 1 unexpected: unexpected blocks.4.attn.qkv.bias"}),
    number_added: (
        {"names": "FAIL", **UNUSABLE},
        {"names": "0 missing, 1 unexpected: unexpected step (of type int)"},
    ),
    other_shape: (
        {"shapes": "FAIL", **UNUSABLE},
        {"shapes": "1 differ: blocks.1.attn.qkv.bias is 7 and should be 192"},
    ),
    nan: (
        {"finite values": "FAIL", "forward": "FAIL"},
        {
            "finite values": "NaN or infinity in 1 of 52 tensors: blocks.2.mlp.fc1.weight",
            "forward": "64 of 64 values are NaN or infinite: ",
        },
    ),
    infinite: (
        {"finite values": "FAIL", "forward": "FAIL"},
        {"finite values": "NaN or infinity in 1 of 52 tensors: blocks.2.mlp.fc1.weight"},
    ),
    zero: (
        {"varied values": "FAIL", "position table": "FAIL", "forward": "note"},
        {
            "varied values": "51 of 51 trained tensors are constant: ",
            "forward": "zero everywhere, as of a fresh network",
        },
    ),
    all_ones: ({"varied values": "FAIL"}, {"varied values": "51 of 51 trained tensors are constant: "}),
    zero_gate: (
        {"varied values": "note"},
        {"varied values": "1 of 51 trained tensors are constant: blocks.0.adaLN_modulation.1.weight"},
    ),
    rows_for_columns: ({"position table": "FAIL"}, {}),
    integers: (
        {"dtypes": "FAIL", **UNUSABLE},
        {"dtypes": "51 in float32, 1 in int8: blocks.0.mlp.fc1.weight is in int8"},
    ),
    imaginary: (
        {"dtypes": "FAIL", **UNUSABLE},
        {"dtypes": "51 in float32, 1 in complex64: blocks.0.mlp.fc1.weight is in complex64"},
    ),
    eight_bits: (
        {"dtypes": "FAIL", **UNUSABLE, "finite values": "not checked", "varied values": "not checked"},
        {"dtypes": "52 in float8_e4m3fn: pos_embed is in float8_e4m3fn, "},
    ),
    without_values: (
        {"finite values": "FAIL", "varied values": "not checked", "position table": "FAIL", "forward": "FAIL"},
        {
            "finite values": "NaN or infinity in 52 of 52 tensors: ",
            "varied values": "no trained tensor can be compared",
        },
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_file_is_found(wrong, tmp_path):
    state = weights_of("dit_ti_2")
    good = verify_state("dit_ti_2", state, tmp_path)
    wrong(state)
    bad = verify_state("dit_ti_2", state, tmp_path)
    changes, texts = WRONG[wrong]
    expected = {**statuses(good), **changes}
    assert statuses(bad) == {row: status for row, status in expected.items() if status is not None}
    assert bad.passed == ("FAIL" not in changes.values())
    for row, text in texts.items():
        check = rows(bad)[row]
        assert f"{check.found}: {check.details}".startswith(text)
    assert (bad.sampled_hash is None) == (statuses(bad)["sampled hash"] == "not checked")
    assert (good.sampled_hash == bad.sampled_hash) == (wrong in (nan, infinite))


# Trained weights: what is a note for a fresh network fails.


@pytest.fixture
def tagged(registry_sandbox):
    """A name of published weights as small as a tiny model, of which no hash is recorded."""
    entry = registry._ENTRIES["dit_ti_2"]
    checkpoint = Checkpoint(config={}, source="https://example.org/small.pt", licence="none", data="digits")
    architecture = replace(entry.architecture, checkpoints={"small": checkpoint})
    registry._ENTRIES["dit_ti_2"] = replace(entry, architecture=architecture)
    return "dit_ti_2.small"


def test_half_a_download_fails_for_published_weights(tagged, tmp_path):
    """A file of full size whose second half never came."""
    save_file(weights_of("dit_ti_2"), tmp_path / "weights.safetensors")
    content = (tmp_path / "weights.safetensors").read_bytes()
    half = len(content) // 2
    (tmp_path / "weights.safetensors").write_bytes(content[:half] + bytes(len(content) - half))
    results = {name: rows(verify(name, tmp_path / "weights.safetensors")) for name in ("dit_ti_2", tagged)}
    assert [results[name]["varied values"].status for name in results] == ["note", "FAIL"]
    assert results[tagged]["varied values"].found.endswith(" of 51 trained tensors are constant")


def test_one_constant_tensor_or_no_output_fails_for_published_weights(tagged, tmp_path):
    state = weights_of("dit_ti_2")
    assert verify_state(tagged, state, tmp_path).passed
    zero_gate(state)
    check = rows(verify_state(tagged, state, tmp_path))["varied values"]
    assert (check.status, check.found) == ("FAIL", "1 of 51 trained tensors are constant")
    fresh = rows(verify_state(tagged, ditzoo.create("dit_ti_2").state_dict(), tmp_path))["forward"]
    assert (fresh.status, fresh.found, fresh.expected) == ("FAIL", "zero everywhere", "finite, not all zero")


# What is compared is counted, and nothing else is read.


def test_a_part_of_the_weights_is_counted_as_a_part(tmp_path):
    state = dict(list(weights_of("dit_ti_2").items())[:3])
    assert "pos_embed" in state
    found = rows(verify_state("dit_ti_2", state, tmp_path))
    assert found["finite values"].found.startswith("in 3 of 52 tensors; largest ")
    assert found["varied values"].found == "no constant among 2 of 51"
    found = rows(verify_state("dit_ti_2", {"pos_embed": state["pos_embed"]}, tmp_path))
    assert statuses_of(found, "finite values", "varied values") == ["pass", "not checked"]
    found = rows(verify_state("dit_ti_2", {"something": torch.ones(3)}, tmp_path))
    assert statuses_of(found, "dtypes", "finite values", "varied values") == ["not checked"] * 3


def statuses_of(found: dict[str, Check], *names: str) -> list[str]:
    return [found[name].status for name in names]


@pytest.mark.parametrize("key", ["unknown", "pos_embed", "blocks.0.mlp.fc1.bias"])
def test_of_a_tensor_that_does_not_fit_no_value_is_read(key, tmp_path):
    """4 GB in a file that is mostly a hole."""
    shapes = {**on_meta("dit_ti_2").state_dict(), key: torch.empty(10**9, device="meta")}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = verify("dit_ti_2", sparse_file(tmp_path / "weights.safetensors", shapes))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6  # of 1 kB
    assert (statuses(result)["names" if key == "unknown" else "shapes"], result.passed) == ("FAIL", False)
    assert result.sampled_hash is None


@pytest.mark.filterwarnings("error")
def test_eight_bits_and_imaginary_parts_are_explained(tmp_path):
    for spoil, text in ((imaginary, "is in complex64"), (eight_bits, "take the authors' own file")):
        state = weights_of("dit_ti_2")
        spoil(state)
        check = rows(verify_state("dit_ti_2", state, tmp_path))["dtypes"]
        assert (check.status, check.expected) == ("FAIL", "floats of 16 to 64 bits")
        assert check.details.endswith(text)


# Checksums.


def test_a_flipped_byte_fails_the_checksums(tmp_path):
    """One that no other check notices."""
    path = tmp_path / "weights.pt"
    state = weights_of("dit_ti_2")
    assert statuses(verify_state("dit_ti_2", state, tmp_path))["zip checksums"] == "pass"
    content = bytearray(path.read_bytes())
    content[content.index(state["blocks.2.mlp.fc1.weight"].numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)
    result = verify("dit_ti_2", path)
    assert [check.name for check in result.checks if check.status == "FAIL"] == ["zip checksums"]
    place = list(state).index("blocks.2.mlp.fc1.weight")
    assert rows(result)["zip checksums"].details == f"weights/data/{place} is damaged; fetch the file again"


def test_files_without_checksums_are_not_checked(tmp_path):
    torch.save(weights_of("dit_ti_2"), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights_of("dit_ti_2"), tmp_path / "bare.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    found = [rows(verify("dit_ti_2", tmp_path / name))["zip checksums"] for name in ("old.pt", "bare.pt")]
    assert [(check.status, check.found) for check in found] == [
        ("not checked", "not a zip archive"),
        ("not checked", "saved without any"),
    ]
