"""`verify` of a file of weights that is right, however it is stored, and what is noted about it."""

from __future__ import annotations

import argparse
import math

import pytest
import torch
from safetensors.torch import save_file

import ditzoo
from ditzoo.layers import relative_position_index
from ditzoo.models import DiT
from ditzoo.weights import published, verify
from ditzoo.weights.file_checks import fixed_input
from tests.golden_cases import golden_case
from tests.weights.verifying import rows, statuses, verify_state, weights_of
from tests.zoo import TINY, lively, on_meta

pytestmark = pytest.mark.usefixtures("no_golden")

NETWORK_ROWS = ("network", "parameters", "state-dict names", "GMACs")
GOOD = {
    **dict.fromkeys(("zip checksums", "names", "shapes", "dtypes", "finite values", "varied values"), "pass"),
    **dict.fromkeys(("loads", "forward"), "pass"),
    **dict.fromkeys(("file", "sampled hash"), "note"),
}


@pytest.mark.parametrize("name", TINY)
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


@pytest.mark.parametrize("case", ["mdtv1", "mdtv2", "diffit"])
def test_constant_buffers_of_official_files_are_compared(case, tmp_path, registry_sandbox):
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


def test_raw_weights_are_asked_for_or_all_there_is(tmp_path):
    ema = weights_of("sit_ti_2")
    raw = {key: value if key == "pos_embed" else value * 1.5 for key, value in ema.items()}
    results = [verify_state("sit_ti_2", {"ema": ema, "model": raw}, tmp_path, weights=w) for w in ("ema", "raw")]
    alone = verify_state("sit_ti_2", {"model": raw}, tmp_path)
    assert results[0].sampled_hash != results[1].sampled_hash == alone.sampled_hash
    assert rows(results[1])["file"].details == "weights under 'model'"
    assert rows(alone)["file"].details == "weights under 'model'; there is no 'ema'"


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_and_computed_precision_are_independent(stored, dtype, tmp_path):
    state = {key: value.to(stored) for key, value in weights_of("dit_ti_2").items()}
    result = verify_state("dit_ti_2", state, tmp_path, dtype=dtype)
    assert result.passed
    assert rows(result)["dtypes"].found == f"52 in {str(stored).removeprefix('torch.')}"
    assert rows(result)["position table"].status == "pass"


@pytest.mark.parametrize(("rounded", "status"), [(torch.float16, "pass"), (torch.bfloat16, "pass"), (None, "FAIL")])
def test_a_position_table_may_have_gone_through_half_precision(rounded, status, tmp_path):
    state = dict(weights_of("dit_ti_2"))
    table = state["pos_embed"]
    state["pos_embed"] = table + 2e-4 if rounded is None else table.to(rounded).float()
    assert rows(verify_state("dit_ti_2", state, tmp_path))["position table"].status == status


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


@pytest.mark.parametrize(
    ("name", "time", "text"),
    [
        ("dit_ti_2", 500, "seed 0, t = 500, y = 0"),
        ("uvit_ti_2", 500, "seed 0, t = 500, y = 0"),  # its levels are counted from 1
        ("uvit_s_2.cifar10", 499.5, "seed 0, t = 499.5"),  # continuous, and without labels
        ("sit_ti_2.digits", 0.5, "seed 0, t = 0.5, y = 0"),
        ("diffit_unet_ti.digits", math.log(80) / 8, "seed 0, t = 0.547753, y = 0"),
    ],
)
def test_the_forward_is_in_the_middle_of_the_recipes_times(name, time, text):
    found = fixed_input(name, on_meta(name))
    assert found[1].tolist() == pytest.approx([time])
    assert found[1].is_floating_point() == (time != 500)
    assert found[3] == text
    assert (found[2] is None) == (name == "uvit_s_2.cifar10")


def test_the_forward_of_a_model_without_a_recipe_is_at_timestep_500(registry_sandbox):
    ditzoo.register_model("plain_ti_2", DiT, ditzoo.model_info("dit_ti_2").config, family="plain")
    assert fixed_input("plain_ti_2", on_meta("plain_ti_2"))[1].tolist() == [500]


def test_a_fresh_network_is_told(tmp_path):
    found = rows(verify_state("dit_ti_2", ditzoo.create("dit_ti_2").state_dict(), tmp_path))
    assert found["varied values"].status == "note"
    assert found["varied values"].found == "31 of 51 trained tensors are constant"
    assert (found["forward"].status, found["forward"].found) == ("note", "zero everywhere, as of a fresh network")
    fresh = rows(verify_state("uvit_ti_2", ditzoo.create("uvit_ti_2").state_dict(), tmp_path))
    assert fresh["varied values"].status == "note"  # its output is not zero, its biases are


def test_a_recorded_hash_is_compared(tmp_path, monkeypatch):
    state = weights_of("dit_ti_2")
    good = verify_state("dit_ti_2", state, tmp_path)
    monkeypatch.setitem(published.SAMPLED_HASHES, "dit_ti_2", good.sampled_hash)
    assert rows(verify_state("dit_ti_2", state, tmp_path))["sampled hash"].status == "pass"
    state["blocks.0.attn.qkv.bias"][0] += 1e-3
    check = rows(verify_state("dit_ti_2", state, tmp_path))["sampled hash"]
    assert (check.status, check.expected) == ("FAIL", f"{good.sampled_hash[:16]}...")


def test_a_file_may_be_for_another_network(tmp_path):
    check = rows(verify_state("sit_ti_2", weights_of("dit_ti_2"), tmp_path))["layout"]
    assert (check.status, check.found) == ("note", "also that of dit_ti_2")
    assert check.details == (
        "names and shapes are also those of dit_ti_2; only the file's source or a recorded hash can tell which it is "
        "for"
    )
    check = rows(verify_state("uvit_ti_2", weights_of("uvit_ti_2"), tmp_path))["layout"]
    assert (check.status, check.found) == ("pass", "of no other in the zoo")


def test_buffers_where_the_original_has_none_are_unexpected_names(tmp_path):
    state = {**weights_of("mdt_ti_2"), "hidden.relative_position_index": torch.zeros(16, 16, dtype=torch.int64)}
    check = rows(verify_state("mdt_ti_2", state, tmp_path))["names"]
    assert (check.status, check.details) == ("FAIL", "unexpected hidden.relative_position_index")


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
