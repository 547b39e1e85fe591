"""`verify` and `ditzoo verify`: each check passes for what is right and fails for what is wrong."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

import ditzoo
from ditzoo import registry
from ditzoo.cli import cli, main
from ditzoo.layers import relative_position_index
from ditzoo.models import DiT, SiT
from ditzoo.models.base import Checkpoint
from ditzoo.weights import Check, Verification, published, verify
from ditzoo.weights import network_checks as network
from ditzoo.weights.file_checks import fixed_input
from ditzoo.weights.published import agrees, official_count, published_cost, same_network
from tests.golden_cases import golden_case, golden_facts
from tests.zoo import TINY, lively

State = dict[str, Tensor]
ROOT = Path(__file__).parents[2]


def rows(result: Verification) -> dict[str, Check]:
    assert len({check.name for check in result.checks}) == len(result.checks)
    return {check.name: check for check in result.checks}


def statuses(result: Verification) -> dict[str, str]:
    return {check.name: check.status for check in result.checks}


def weights_of(name: str, **options: object) -> State:
    return {key: value.clone() for key, value in lively(name, **options).state_dict().items()}


@pytest.fixture
def no_golden(monkeypatch):
    """The golden forwards take a second, and are the same for every file."""
    monkeypatch.setattr("ditzoo.weights.verification.golden_checks", lambda *arguments: iter(()))


def verify_state(name: str, state: object, folder: Path, **options: object) -> Verification:
    torch.save(state, folder / "weights.pt")
    return verify(name, folder / "weights.pt", **options)


# The network alone.


def test_published_network_passes_every_check():
    result = verify("dit_xl_2.in256")
    assert statuses(result) == {
        **dict.fromkeys(("parameters", "state-dict names", "GMACs", "golden dit", "golden dit_probe"), "pass"),
        "network": "note",
        "weights": "not checked",
    }
    found = rows(result)
    assert found["parameters"].found == "675,129,632"
    assert found["parameters"].expected == "675,129,632"
    assert (found["state-dict names"].found, found["state-dict names"].expected) == ("292", "292 in all")
    assert found["GMACs"].found == "118.62"
    assert found["GMACs"].expected == "118.64 +- 0.598"
    assert found["golden dit"].expected == "at most 2e-05 of the largest"
    assert found["golden dit_probe"].expected == "at most 5e-05 of the largest"
    official = ("parameters", "state-dict names", "golden dit", "golden dit_probe")
    assert {found[row].source for row in official} == {"facebookresearch/DiT@ed81ce222909"}
    assert found["GMACs"].source == "arXiv:2212.09748, table 4"
    assert found["network"].found == "DiT for 4x32x32 inputs"
    assert (result.passed, result.hints, result.sampled_hash) == (True, (), None)
    assert result.summary() == "5 checks passed, 0 failed; 1 note, 1 not checked."


def test_a_size_of_ours_has_nothing_to_compare_with():
    result = verify("sit_ti_2")
    assert statuses(result) == {
        **dict.fromkeys(("network", "parameters", "state-dict names", "GMACs"), "note"),
        **dict.fromkeys(("golden sit", "golden sit_probe"), "pass"),
        "weights": "not checked",
    }
    assert rows(result)["parameters"].expected == "no official number"


@pytest.mark.parametrize("name", TINY)
def test_every_family_has_its_own_golden_rows(name):
    golden = [check for check in verify(name).checks if check.name.startswith("golden")]
    conditioning = ditzoo.model_info(name).config.get("conditioning", "adaln_zero")
    model = on_meta(name)
    if conditioning != "adaln_zero" or not model.has_original:
        assert [(check.name, check.status) for check in golden] == [("golden forward", "note")]
        what = f"conditioning {conditioning!r}" if model.has_original else f"class {type(model).__name__}"
        assert golden[0].found == f"none for {what}"
        assert golden[0].details == "no official implementation of it exists"
        return
    prefix = {"mdt": "mdtv1"}.get(name.partition("_")[0], name.partition("_")[0])
    assert {check.name for check in golden} >= {f"golden {prefix}", f"golden {prefix}_probe"}
    assert all(check.name.startswith(f"golden {prefix}") and check.status == "pass" for check in golden)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, "0.05"), (torch.float16, "0.01")])
def test_half_precision_has_bounds_of_its_own(dtype, bound):
    golden = [check for check in verify("uvit_ti_2", dtype=dtype).checks if check.name.startswith("golden")]
    assert len(golden) == 3
    for check in golden:
        assert check.status == "pass"
        assert check.expected.startswith(f"at most {bound} ")
        assert float(check.found.split()[2]) > 2e-4  # it was computed in that precision


@pytest.mark.parametrize(
    ("name", "row", "expected", "source"),
    [
        ("dit_xl_2_adaln", "parameters", "600M +- 3.5M", "arXiv:2212.09748, table 4"),
        ("dit_xl_2_crossattn", "parameters", "598M +- 3.49M", "arXiv:2212.09748, table 4"),
        ("dit_xl_2_incontext", "parameters", "449M +- 2.75M", "arXiv:2212.09748, table 4"),
        ("dit_xl_2_incontext", "GMACs", "119.37 +- 0.602", "arXiv:2212.09748, table 4"),
        ("mdtv2_xl_2.in256", "state-dict names", "394 in all", "sail-sg/MDT@7d26c2162c46"),
        ("uvit_h_2", "parameters", "500,832,016", "baofff/U-ViT@ce551708dc9c"),
        ("uvit_l_2", "GMACs", "77 +- 0.885", "a note quoting arXiv:2209.12152, second-hand"),
        ("mdt_xl_2", "GMACs", "119 +- 1.09", "a collection of models, second-hand"),
        ("diffit_xl_2.in256", "GMACs", "114 +- 1.07", "arXiv:2312.02139, table 9"),
    ],
)
def test_known_numbers(name, row, expected, source):
    check = next(check for check in network.network_checks(name, on_meta(name)) if check.name == row)
    assert (check.status, check.expected, check.source) == ("pass", expected, source)


def on_meta(name: str, **options: object) -> ditzoo.models.DiffusionTransformer:
    with torch.device("meta"):
        return ditzoo.create(name, **options)


def test_another_network_fails_the_known_numbers():
    small = on_meta("dit_s_2", depth=11)
    found = {check.name: check.status for check in network.network_checks("dit_s_2", small)}
    assert found == {"network": "note", "parameters": "FAIL", "state-dict names": "FAIL", "GMACs": "FAIL"}


def test_second_hand_costs_are_those_of_the_published_results():
    with (ROOT / "benchmarks" / "published.csv").open(newline="", encoding="utf-8") as file:
        results = list(csv.DictReader(file))
    quoted = [cost for cost in published.PUBLISHED_COSTS if "second-hand" in cost.source]
    assert [cost.name for cost in quoted] == ["uvit_l_2", "uvit_h_2", "mdt_xl_2"]
    for cost in quoted:
        rows = [row for row in results if row["name"].partition(".")[0] == cost.name and row["gmacs"] == cost.gmacs]
        origin, _, confidence = cost.source.rpartition(", ")
        assert confidence == "second-hand"
        assert any(origin in row["source"] for row in rows), cost.name
        assert {row["confidence"] for row in rows} == {"secondary"}


def test_every_official_count_is_known():
    for entry in golden_facts("param_counts").values():
        if not entry["options"]:
            assert official_count(entry["name"])[:2] == (entry["total"], entry["state_dict_keys"])
    for name in ditzoo.list_models(pretrained=True):
        assert (official_count(name) is None) == ditzoo.model_info(name).packaged, name
    assert official_count("dit_xl_2_adaln") is None


def test_names_of_one_network_share_what_is_known():
    assert same_network("uvit_l_2", "uvit_l_2.in256")  # they drop labels at different rates
    assert not same_network("uvit_l_4", "uvit_l_4.in64")
    assert not same_network("dit_s_2", "sit_s_2")
    assert published_cost("uvit_l_2.in256").gmacs == "77"
    assert published_cost("dit_xl_2.in256").gmacs == "118.64"
    assert published_cost("dit_xl_2.in512").gmacs == "524.60"
    assert published_cost("mdtv2_xl_2") is None


@pytest.mark.parametrize(
    ("value", "printed", "good"),
    [
        *((118.62, "118.64", True), (118.05, "118.64", True), (118.0, "118.64", False)),
        *((76.46, "77", True), (76.0, "77", False), (0.3638, "0.36", True), (0.368, "0.36", False)),
    ],
)
def test_printed_figures_agree_within_rounding_and_half_a_percent(value, printed, good):
    assert agrees(value, printed) is good


def test_a_network_that_computes_otherwise_fails(monkeypatch):
    gelu = F.gelu
    monkeypatch.setattr(nn.GELU, "forward", lambda self, x: gelu(x))
    found = rows(verify("dit_ti_2"))
    assert found["golden dit_probe"].status == "FAIL"
    error = float(found["golden dit_probe"].found.split()[2])
    assert 1e-4 < error < 1e-2


def test_a_network_that_stops_fails(monkeypatch):
    def broken(self, x):
        if x.is_meta:  # where multiply-adds are counted
            return x
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(nn.GELU, "forward", broken)
    check = rows(verify("dit_ti_2"))["golden dit"]
    assert (check.status, check.found) == ("FAIL", "stopped by a RuntimeError")
    assert check.details == "no kernel for this"


def test_float32_is_float32_and_the_setting_comes_back(monkeypatch):
    seen = []

    def errors(case, device, dtype):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        raise RuntimeError

    monkeypatch.setattr(network, "golden_errors", errors)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    verify("dit_ti_2")
    assert set(seen) == {("highest", False)}
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


class Other(DiT):
    pass


def test_a_registered_class_has_no_golden_outputs(registry_sandbox, tmp_path):
    ditzoo.register_model("other_ti_2", Other, ditzoo.model_info("dit_ti_2").config, family="other")
    state = weights_of("other_ti_2")
    result = verify_state("other_ti_2", state, tmp_path)
    check = rows(result)["golden forward"]
    assert (check.status, check.found) == ("note", "none for class Other")
    assert check.details == "no official outputs of it are recorded"
    assert rows(result)["layout"].found == "also that of dit_ti_2 and 1 more"
    assert rows(result)["layout"].details.startswith("names and shapes are also those of dit_ti_2, sit_ti_2;")
    assert "position table" not in rows(result)  # nothing says that it is the sin-cos table
    assert result.passed


# A file of weights.

GOOD = {
    **dict.fromkeys(("zip checksums", "names", "shapes", "dtypes", "finite values", "varied values"), "pass"),
    **dict.fromkeys(("loads", "forward"), "pass"),
    **dict.fromkeys(("file", "sampled hash"), "note"),
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.usefixtures("no_golden")
def test_good_weights_pass(name, tmp_path):
    state = weights_of(name)
    result = verify_state(name, state, tmp_path)
    found = rows(result)
    expected = dict(GOOD)
    model = lively(name)
    if hasattr(model, "pos_embed") and not model.pos_embed.requires_grad:
        expected["position table"] = "pass"
    if model.constant_buffers:
        expected["constant buffers"] = "not checked"
    plain_dit = name in ("dit_ti_2", "sit_ti_2")
    expected["layout"] = "note" if plain_dit else "pass"
    shown = statuses(result)
    assert {row: shown[row] for row in shown if row not in NETWORK_ROWS} == expected
    assert found["names"].found == f"{len(state)}"
    trained = sum(p.requires_grad and p.numel() > 1 for p in model.parameters())
    assert found["finite values"].found.startswith(f"in {len(state)} of {len(state)} tensors; largest ")
    assert found["varied values"].found == f"no constant among {trained} of {trained}"
    assert found["dtypes"].found == f"{len(state)} in float32"
    assert found["sampled hash"].found == f"{result.sampled_hash[:16]}..."
    assert result.passed
    assert result.hints == ()


NETWORK_ROWS = ("network", "parameters", "state-dict names", "GMACs")


@pytest.mark.parametrize("case", ["mdtv1", "mdtv2", "diffit"])
def test_constant_buffers_of_official_files_are_compared(case, tmp_path, registry_sandbox, no_golden):
    case = golden_case(case)
    ditzoo.register_model("small_ti_2", case.model_cls, case.options, family="small")
    result = verify_state("small_ti_2", case.state, tmp_path)
    count = sum(key.endswith("relative_position_index") for key in case.state)
    assert rows(result)["constant buffers"].found == f"{count} equal"
    assert rows(result)["names"].found == f"{len(case.state) - count}"
    assert result.passed
    state = case.state
    key = next(key for key in state if key.endswith("relative_position_index"))
    state[key] = state[key].T.contiguous()
    check = rows(verify_state("small_ti_2", state, tmp_path))["constant buffers"]
    assert (check.status, check.found, check.details) == ("FAIL", f"1 of {count} differ", key)


@pytest.mark.usefixtures("no_golden")
def test_every_container_and_wrapper_gives_the_same_result(tmp_path):
    state = weights_of("sit_ti_2")
    save_file(state, tmp_path / "a.safetensors")
    nested = {"ema": {f"module.{key}": value for key, value in state.items()}, "model": {}, "opt": [1]}
    torch.save({**nested, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "b.pt")
    results = [verify("sit_ti_2", tmp_path / name) for name in ("a.safetensors", "b.pt")]
    assert results[0].sampled_hash == results[1].sampled_hash
    container = ("file", "zip checksums")
    first, second = ([check for check in result.checks if check.name not in container] for result in results)
    assert first == second
    assert rows(results[0])["file"].found.startswith("safetensors, 1,3")
    assert rows(results[1])["file"].details == "weights under 'ema'"
    assert statuses(results[0])["zip checksums"] == "not checked"


@pytest.mark.usefixtures("no_golden")
def test_raw_weights_are_asked_for_or_all_there_is(tmp_path):
    ema = weights_of("sit_ti_2")
    raw = {key: value if key == "pos_embed" else value * 1.5 for key, value in ema.items()}
    results = [verify_state("sit_ti_2", {"ema": ema, "model": raw}, tmp_path, weights=w) for w in ("ema", "raw")]
    alone = verify_state("sit_ti_2", {"model": raw}, tmp_path)
    assert results[0].sampled_hash != results[1].sampled_hash == alone.sampled_hash
    assert rows(results[1])["file"].details == "weights under 'model'"
    assert rows(alone)["file"].details == "weights under 'model'; there is no 'ema'"


@pytest.mark.usefixtures("no_golden")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_and_computed_precision_are_independent(stored, dtype, tmp_path):
    state = {key: value.to(stored) for key, value in weights_of("dit_ti_2").items()}
    result = verify_state("dit_ti_2", state, tmp_path, dtype=dtype)
    assert result.passed
    assert rows(result)["dtypes"].found == f"52 in {str(stored).removeprefix('torch.')}"
    assert rows(result)["position table"].status == "pass"


@pytest.mark.usefixtures("no_golden")
def test_the_forward_is_that_of_the_file(tmp_path):
    """Its fingerprint, from the same weights and input in another way."""
    model = lively("sit_ti_2")
    x, t, y, text = fixed_input("sit_ti_2", model)
    assert text == "seed 0, t = 0.5, y = 0"
    assert float(x.flatten()[0]) == pytest.approx(1.764052, abs=1e-6)  # RandomState(0)'s first normal draw
    with torch.no_grad():
        output = model(x, t, y)
    rms, mean, first = output.square().mean().sqrt(), output.mean(), output.flatten()[0]
    check = rows(verify_state("sit_ti_2", model.state_dict(), tmp_path))["forward"]
    numbers = f"rms {rms:.4g}, mean {mean:.4g}, first {first:.4g}"
    assert (check.found, check.expected) == ("finite", "finite")
    assert check.details == f"{numbers} for the input of seed 0, t = 0.5, y = 0"
    assert fixed_input("dit_ti_2", model)[1].tolist() == [500]
    unconditional = ditzoo.create("uvit_s_2.cifar10", depth=1)
    assert fixed_input("uvit_s_2.cifar10", unconditional)[2:] == (None, "seed 0, t = 500")


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


def eight_bits(state: State) -> None:
    for key, value in state.items():
        state[key] = value.to(torch.float8_e4m3fn)


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
@pytest.mark.usefixtures("no_golden")
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
    """A name of published weights as small as a tiny model."""
    entry = registry._ENTRIES["dit_ti_2"]
    checkpoint = Checkpoint({}, "https://example.org/digits.pt", "none", "digits")
    architecture = replace(entry.architecture, checkpoints={"digits": checkpoint})
    registry._ENTRIES["dit_ti_2"] = replace(entry, architecture=architecture)
    return "dit_ti_2.digits"


@pytest.mark.usefixtures("no_golden")
def test_half_a_download_fails_for_published_weights(tagged, tmp_path):
    """A file of full size whose second half never came."""
    save_file(weights_of("dit_ti_2"), tmp_path / "weights.safetensors")
    content = (tmp_path / "weights.safetensors").read_bytes()
    half = len(content) // 2
    (tmp_path / "weights.safetensors").write_bytes(content[:half] + bytes(len(content) - half))
    results = {name: rows(verify(name, tmp_path / "weights.safetensors")) for name in ("dit_ti_2", tagged)}
    assert [results[name]["varied values"].status for name in results] == ["note", "FAIL"]
    assert results[tagged]["varied values"].found.endswith(" of 51 trained tensors are constant")


@pytest.mark.usefixtures("no_golden")
def test_one_constant_tensor_or_no_output_fails_for_published_weights(tagged, tmp_path):
    state = weights_of("dit_ti_2")
    assert verify_state(tagged, state, tmp_path).passed
    zero_gate(state)
    check = rows(verify_state(tagged, state, tmp_path))["varied values"]
    assert (check.status, check.found) == ("FAIL", "1 of 51 trained tensors are constant")
    fresh = rows(verify_state(tagged, ditzoo.create("dit_ti_2").state_dict(), tmp_path))["forward"]
    assert (fresh.status, fresh.found, fresh.expected) == ("FAIL", "zero everywhere", "finite, not all zero")


# What is compared is counted, and nothing else is read.


@pytest.mark.usefixtures("no_golden")
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


@pytest.mark.usefixtures("no_golden")
@pytest.mark.parametrize("key", ["vast", "pos_embed", "blocks.0.mlp.fc1.bias"])
def test_a_small_file_may_claim_a_vast_tensor(key, tmp_path):
    """Of a tensor that does not belong, no value is read: 1e11 of them would be 400 GB."""
    result = verify_state("dit_ti_2", {**weights_of("dit_ti_2"), key: torch.zeros(1).expand(10**11)}, tmp_path)
    assert (statuses(result)["names" if key == "vast" else "shapes"], result.passed) == ("FAIL", False)
    assert result.sampled_hash is None


@pytest.mark.usefixtures("no_golden")
@pytest.mark.filterwarnings("error")
def test_eight_bits_and_imaginary_parts_are_explained(tmp_path):
    for spoil, text in ((imaginary, "is in complex64"), (eight_bits, "take the authors' own file")):
        state = weights_of("dit_ti_2")
        spoil(state)
        check = rows(verify_state("dit_ti_2", state, tmp_path))["dtypes"]
        assert (check.status, check.expected) == ("FAIL", "floats of 16 to 64 bits")
        assert check.details.endswith(text)


@pytest.mark.usefixtures("no_golden")
def test_buffers_where_the_original_has_none_are_unexpected_names(tmp_path):
    state = {**weights_of("mdt_ti_2"), "hidden.relative_position_index": torch.zeros(16, 16, dtype=torch.int64)}
    check = rows(verify_state("mdt_ti_2", state, tmp_path))["names"]
    assert (check.status, check.details) == ("FAIL", "unexpected hidden.relative_position_index")


@pytest.mark.usefixtures("no_golden")
@pytest.mark.parametrize("spoil", [lambda index: index[:3], lambda index: index * 1j, lambda index: index > 0])
def test_a_buffer_of_another_kind_differs(spoil, tmp_path):
    state = weights_of("mdt_ti_2")
    table = next(key for key in state if key.endswith("relative_position_bias_table"))
    key = table.replace("bias_table", "index")
    state[key] = relative_position_index(4, 4)
    assert statuses(verify_state("mdt_ti_2", state, tmp_path))["constant buffers"] == "pass"
    state[key] = state[key].half()
    assert statuses(verify_state("mdt_ti_2", state, tmp_path))["constant buffers"] == "pass"
    state[key] = spoil(relative_position_index(4, 4))
    assert statuses(verify_state("mdt_ti_2", state, tmp_path))["constant buffers"] == "FAIL"


# Checksums.


@pytest.mark.usefixtures("no_golden")
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


@pytest.mark.usefixtures("no_golden")
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


# Texts.


def test_counts_of_one_are_singular():
    checks = (Check("a", "pass", ""), Check("b", "note", ""))
    result = Verification("dit_ti_2", None, torch.device("cpu"), torch.float32, checks)
    assert result.summary() == "1 check passed, 0 failed; 1 note, 0 not checked."
    result = replace(result, checks=checks * 2)
    assert result.summary() == "2 checks passed, 0 failed; 2 notes, 0 not checked."


@pytest.mark.usefixtures("no_golden")
def test_names_from_a_file_do_not_reach_the_terminal_raw(tmp_path):
    state = {**weights_of("dit_ti_2"), "\x1b[2Jgone": torch.ones(1), "two\nlines": 7, "long" * 999: torch.ones(1)}
    torch.save(state, tmp_path / "weights.pt")
    code, lines = run("dit_ti_2", "--checkpoint", str(tmp_path / "weights.pt"))
    assert code == 1
    details = next(line for line in lines if line.startswith("names: "))
    long = f"{'long' * 25}..."
    assert details == f"names: unexpected '\\x1b[2Jgone', {long}, 'two\\nlines' (of type int)"
    assert all(line.isprintable() for line in lines)
    state = {f"\x1b{key}": value for key, value in weights_of("dit_ti_2").items()}
    assert verify_state("dit_ti_2", state, tmp_path).hints[0].startswith("Every name carries '\\x1b' in front;")


@pytest.mark.usefixtures("no_golden")
def test_rows_fit_a_terminal(tmp_path):
    """Also where most is wrong."""
    state = weights_of("mdt_ti_2")
    eight_bits(state)
    torch.save({"model": state}, tmp_path / "weights.pt")
    for name in ("mdt_ti_2", "uvit_ti_2", "dit_ti_2_crossattn", "dit_xl_2"):
        _, lines = run(name, "--checkpoint", str(tmp_path / "weights.pt"))
        assert max(len(line) for line in lines[2 : lines.index("", 2)]) <= 110


def test_a_fresh_network_is_told(tmp_path, no_golden):
    found = rows(verify_state("dit_ti_2", ditzoo.create("dit_ti_2").state_dict(), tmp_path))
    assert found["varied values"].status == "note"
    assert found["varied values"].found == "31 of 51 trained tensors are constant"
    assert (found["forward"].status, found["forward"].found) == ("note", "zero everywhere, as of a fresh network")
    fresh = rows(verify_state("uvit_ti_2", ditzoo.create("uvit_ti_2").state_dict(), tmp_path))
    assert fresh["varied values"].status == "note"  # its output is not zero, its biases are


def test_a_recorded_hash_is_compared(tmp_path, monkeypatch, no_golden):
    state = weights_of("dit_ti_2")
    good = verify_state("dit_ti_2", state, tmp_path)
    monkeypatch.setitem(published.SAMPLED_HASHES, "dit_ti_2", good.sampled_hash)
    assert rows(verify_state("dit_ti_2", state, tmp_path))["sampled hash"].status == "pass"
    state["blocks.0.attn.qkv.bias"][0] += 1e-3
    check = rows(verify_state("dit_ti_2", state, tmp_path))["sampled hash"]
    assert (check.status, check.expected) == ("FAIL", f"{good.sampled_hash[:16]}...")


def test_a_file_may_be_for_another_network(tmp_path, no_golden):
    check = rows(verify_state("sit_ti_2", weights_of("dit_ti_2"), tmp_path))["layout"]
    assert (check.status, check.found) == ("note", "also that of dit_ti_2")
    assert check.details == (
        "names and shapes are also those of dit_ti_2; only the file's source can tell which it is for"
    )
    check = rows(verify_state("uvit_ti_2", weights_of("uvit_ti_2"), tmp_path))["layout"]
    assert (check.status, check.found) == ("pass", "of no other in the zoo")


# Hints.


def empty(name: str, **options: object) -> State:
    """Zeros of the right shapes that take no memory to speak of."""
    return {key: torch.zeros(()).expand(value.shape) for key, value in on_meta(name, **options).state_dict().items()}


@pytest.mark.usefixtures("no_golden")
@pytest.mark.parametrize(
    ("name", "other"),
    [("dit_ti_2", "mdtv2_ti_2"), ("mdt_ti_2", "uvit_ti_2"), ("dit_ti_2_adaln", "dit_ti_2_crossattn")],
)
def test_another_network_is_recognised(name, other, tmp_path):
    result = verify_state(name, weights_of(other), tmp_path)
    path = tmp_path / "weights.pt"
    assert result.hints == (f"The file fits {other}: run `ditzoo verify {other} --checkpoint {path}`.",)
    assert not result.passed


@pytest.mark.usefixtures("no_golden")
def test_another_size_is_recognised_by_its_tag(tmp_path, monkeypatch):
    monkeypatch.setattr("ditzoo.weights.verification.network_checks", lambda *arguments: iter(()))
    result = verify_state("dit_xl_2.in256", empty("dit_xl_2.in512"), tmp_path)
    assert rows(result)["shapes"].details == "pos_embed is 1x1024x1152 and should be 1x256x1152"
    assert result.hints[0].startswith("The file fits dit_xl_2.in512: run `ditzoo verify dit_xl_2.in512 --checkpoint ")
    result = verify_state("dit_xl_2.in512", empty("dit_xl_2"), tmp_path)
    assert result.hints[0].startswith("The file fits dit_xl_2, sit_xl_2: run `ditzoo verify dit_xl_2 --checkpoint ")


@pytest.mark.usefixtures("no_golden")
def test_another_number_of_classes_is_recognised(tmp_path):
    state = weights_of("dit_ti_2", num_classes=37)
    result = verify_state("dit_ti_2", state, tmp_path)
    assert result.hints == ("Only the label table differs: ditzoo.create('dit_ti_2', num_classes=37) takes the file.",)
    ditzoo.create("dit_ti_2", num_classes=37).load_state_dict(state, strict=True)
    result = verify_state("uvit_ti_2", weights_of("uvit_ti_2", num_classes=3), tmp_path)
    assert "num_classes=3)" in result.hints[0]


@pytest.mark.usefixtures("no_golden")
def test_a_size_that_the_zoo_does_not_name(tmp_path):
    result = verify_state("dit_ti_2", weights_of("dit_ti_2", depth=3), tmp_path)
    assert result.hints == ("The file fits no network of the zoo at its named size and options.",)


@pytest.mark.usefixtures("no_golden")
def test_a_prefix_is_named(tmp_path):
    state = {f"net.{key}": value for key, value in weights_of("dit_ti_2").items()}
    result = verify_state("dit_ti_2", state, tmp_path)
    assert statuses(result)["shapes"] == "not checked"
    assert statuses(result)["varied values"] == "not checked"
    assert result.hints == ("Every name carries 'net.' in front; save the state dict without it.",)


@pytest.mark.usefixtures("no_golden")
def test_the_layout_of_diffusers_is_named(tmp_path):
    state = {"pos_embed.proj.weight": torch.randn(4, 1, 2, 2), "transformer_blocks.0.attn1.to_q.weight": torch.eye(3)}
    result = verify_state("dit_ti_2", state, tmp_path)
    assert result.hints == (
        "The names are those of the diffusers library, whose files have another layout. Take the authors' own file, or "
        "read the whole folder with ditzoo.interop.load_diffusers().",
    )


# Arguments.


def test_wrong_arguments():
    with pytest.raises(ValueError, match="Did you mean dit_ti_2"):
        verify("dit_ti2")
    with pytest.raises(ValueError, match="'abacus' cannot be used here"):
        verify("dit_ti_2", device="abacus")
    with pytest.raises(ValueError, match="'meta' cannot be used here"):
        verify("dit_ti_2", device="meta")
    with pytest.raises(ValueError, match=r"must be float32, bfloat16 or float16, got torch\.int8"):
        verify("dit_ti_2", dtype=torch.int8)
    with pytest.raises(FileNotFoundError):
        verify("dit_ti_2", "nothing.pt")


def test_a_wrong_path_is_told_before_anything_is_computed(monkeypatch):
    def never(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("ditzoo.weights.verification.network_checks", never)
    with pytest.raises(FileNotFoundError):
        verify("dit_ti_2", "nothing.pt")


# The command.


def run(*arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, ["verify", *arguments])
    return result.exit_code, result.output.splitlines()


def test_the_command_prints_the_table_and_exits_with_0(tmp_path):
    torch.save(weights_of("sit_ti_2"), tmp_path / "weights.pt")
    code, lines = run("sit_ti_2", "--checkpoint", str(tmp_path / "weights.pt"))
    result = verify("sit_ti_2", tmp_path / "weights.pt")
    assert code == 0
    assert lines[0] == f"sit_ti_2 on cpu in float32; ditzoo {ditzoo.__version__}, torch {torch.__version__}"
    table = lines[2 : 3 + len(result.checks)]
    assert max(len(line) for line in table) <= 110
    places = [table[0].index(title) for title in ("check", "result", "found", "expected")]
    cells = [[line[a:b].strip() for a, b in zip(places, [*places[1:], None], strict=True)] for line in table[1:]]
    assert cells == [[check.name, check.status, check.found, check.expected] for check in result.checks]
    assert lines[3 + len(result.checks) :] == [
        "",
        f"layout: {rows(result)['layout'].details}",
        f"forward: {rows(result)['forward'].details}",
        "source of golden sit, golden sit_probe: willisma/SiT@947f95bd3a51",
        f"sampled hash: {result.sampled_hash} (compare it with that of other copies)",
        "11 checks passed, 0 failed; 7 notes, 0 not checked.",
    ]


@pytest.mark.usefixtures("no_golden")
def test_the_command_exits_with_1_if_a_check_fails(tmp_path):
    state = weights_of("mdt_ti_2")
    torch.save(state, tmp_path / "weights.pt")
    code, lines = run("dit_ti_2", "--checkpoint", str(tmp_path / "weights.pt"))
    assert code == 1
    assert ["names", "FAIL", "10", "missing,", "16", "unexpected", "52"] in [line.split() for line in lines]
    assert any(line.startswith("names: missing blocks.3.attn.qkv.weight, ") for line in lines)
    assert any(line.startswith("The file fits mdt_ti_2: run ") for line in lines)
    assert ", 1 failed; " in lines[-1]


def test_the_command_computes_in_the_precision_asked_for():
    code, lines = run("dit_ti_2", "--dtype", "bfloat16")
    assert (code, lines[0].split(";")[0]) == (0, "dit_ti_2 on cpu in bfloat16")
    assert sum("at most 0.05 of the largest" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dit_ti2"], "Did you mean dit_ti_2"),
        (["dit_ti_2", "--device", "abacus"], "'abacus' cannot be used here"),
        (["dit_ti_2", "--checkpoint", "nothing.pt"], "there is no file nothing.pt"),
        (["dit_ti_2", "--checkpoint", "."], "is a folder"),
        (["dit_ti_2", "--checkpoint", ""], "PATH is empty; name a file of weights."),
        (["dit_ti_2", "--checkpoint", "page.pt"], "is a web page"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.pt").write_text("<html>")
    with pytest.raises(SystemExit) as exit_info:
        main(["verify", *arguments])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ditzoo: ")
    assert error.count("\n") == 1
    assert text in error


def test_wrong_choices_exit_with_2():
    assert run("dit_ti_2", "--dtype", "float8")[0] == 2
    assert run("dit_ti_2", "--weights", "best")[0] == 2


def test_sit_is_no_dit():
    """The classes of one layout are told apart by their golden cases."""
    assert issubclass(SiT, DiT)
    assert {case.name for case in network.cases_of(SiT)} == {"sit", "sit_probe"}
    assert {case.name for case in network.cases_of(DiT)} == {"dit", "dit_probe"}
    assert registry.model_info("sit_ti_2").model_cls == "SiT"
