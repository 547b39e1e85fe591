"""The packaged golden cases: what they hold, that they can be rebuilt anywhere, and that a wrong network fails them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ditzoo
from ditzoo.models import DiffusionTransformer
from ditzoo.weights.golden import FOLDER, cases_of, golden_cases, golden_errors, golden_tensors
from ditzoo.weights.network_checks import HALF_PRECISION
from ditzoo.weights.published import PARAM_COUNTS_FILE
from tests.golden_cases import checksum, draw_state, golden_case, golden_facts
from tests.weights import pack_golden

CASES = {case.name: case for case in golden_cases()}


def test_packaged_files_are_what_the_script_makes():
    for path, content in pack_golden.files().items():
        assert path.read_bytes() == content, f"{path}: run `python -m tests.weights.pack_golden`"


def test_packaged_files_are_small():
    files = [*FOLDER.iterdir(), PARAM_COUNTS_FILE]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 250_000


@pytest.mark.parametrize("name", CASES)
def test_redrawn_weights_are_the_recorded_ones_bit_for_bit(name):
    """From what the package knows alone; the checksum is that of the recording."""
    assert checksum(draw_state(CASES[name])) == golden_facts(name)["weights"]["sha256"]


@pytest.mark.parametrize("name", CASES)
def test_networks_have_the_redrawn_weights(name):
    state, drawn = CASES[name].build().state_dict(), draw_state(CASES[name])
    assert set(state) == {key for key in drawn if key.rpartition(".")[2] != "relative_position_index"}
    for key, value in state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, drawn[key]), key


@pytest.mark.parametrize("name", CASES)
def test_packaged_inputs_and_outputs_are_the_recorded_ones(name):
    packed, recorded = golden_tensors(name), golden_case(name)
    assert {f"out.{output}" for output in CASES[name].outputs} == {key for key in packed if key.startswith("out.")}
    assert {"in.x", "in.t", "out.forward"} <= set(packed)
    for key, value in packed.items():
        assert torch.equal(value, recorded[key]), key
    assert CASES[name].tolerance == recorded.facts["relative_tolerance"]
    assert CASES[name].options == recorded.options


def test_every_published_class_has_an_ordinary_case_and_a_probe():
    for name in ditzoo.list_models():
        if ditzoo.model_info(name).ours:
            continue
        with torch.device("meta"):
            model_cls = type(ditzoo.create(name))
        cases = cases_of(model_cls)
        if not model_cls.has_original:
            assert not cases
            continue
        assert {bool(case.post_scale) for case in cases} == {True, False}, name
        assert any("forward_masked" in case.outputs for case in cases) == name.startswith("mdt")


def test_sources_are_the_official_repositories():
    for case in golden_cases():
        official = golden_facts(case.name)["official"]
        assert case.source == f"{official['repo']}@{official['commit'][:12]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_networks_reproduce_them(name, dtype):
    bound = {torch.float32: CASES[name].tolerance, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    errors = golden_errors(CASES[name], "cpu", dtype)
    assert tuple(errors) == CASES[name].outputs
    assert max(errors.values()) <= bound
    if dtype != torch.float32:  # it was computed in that precision
        assert min(errors.values()) > 1e-4


def wrong_gelu(model: DiffusionTransformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "none" if module.approximate == "tanh" else "tanh"


def wrong_eps(model: DiffusionTransformer) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if module.eps == 1e-6 else 1e-6


def one_weight_off(model: DiffusionTransformer) -> None:
    next(p for name, p in model.named_parameters() if name.endswith("mlp.fc1.weight")).data[0, 0] += 0.1


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("probe")])
@pytest.mark.parametrize("mistake", [wrong_gelu, wrong_eps, one_weight_off])
def test_probes_notice_a_mistake(name, mistake, monkeypatch):
    case = CASES[name]
    model = case.build()
    mistake(model)
    monkeypatch.setattr(type(case), "build", lambda self: model)
    assert max(golden_errors(case, "cpu", torch.float32).values()) > 2 * case.tolerance


def test_values_that_are_not_numbers_are_no_small_error(monkeypatch):
    model = CASES["dit"].build()
    model.final_layer.linear.bias.data[0] = torch.nan
    monkeypatch.setattr(type(CASES["dit"]), "build", lambda self: model)
    assert not any(error <= 1 for error in golden_errors(CASES["dit"], "cpu", torch.float32).values())


def test_the_page_tells_number_bounds_and_measured_differences():
    page = " ".join((Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8").split())
    assert f"inputs and outputs of {len(CASES)} small networks" in page
    for dtype, bound in HALF_PRECISION.items():
        measured = max(max(golden_errors(case, "cpu", dtype).values()) for case in golden_cases())
        row = re.search(rf"\| `{str(dtype).removeprefix('torch.')}` \| {bound:g} \| up to ([\d.]+) \|", page)
        assert row is not None
        assert 0.5 * measured < float(row[1]) < 2 * measured  # another CPU rounds otherwise


def test_the_recipe_has_its_name():
    assert json.loads((FOLDER / "cases.json").read_text())["recipe"] == "ditzoo-golden-v1"
    assert all(case.tag.startswith("ditzoo-golden-v1/") for case in golden_cases())
