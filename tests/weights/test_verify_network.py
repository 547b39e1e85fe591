"""`verify` of a network alone: each check passes for the network that the name stands for and fails for another."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ditzoo
from ditzoo import registry
from ditzoo.models import DiT, SiT
from ditzoo.weights import network_checks as network
from ditzoo.weights import published, verify
from ditzoo.weights.published import agrees, official_count, published_cost
from tests.golden_cases import golden_facts
from tests.weights.verifying import rows, statuses, verify_state, weights_of
from tests.zoo import TINY, on_meta


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


def test_another_network_fails_the_known_numbers():
    small = on_meta("dit_s_2", depth=11)
    found = {check.name: check.status for check in network.network_checks("dit_s_2", small)}
    assert found == {"network": "note", "parameters": "FAIL", "state-dict names": "FAIL", "GMACs": "FAIL"}


def test_second_hand_costs_are_those_of_the_published_results():
    quoted = [cost for cost in published.PUBLISHED_COSTS if "second-hand" in cost.source]
    assert [cost.name for cost in quoted] == ["uvit_l_2", "uvit_h_2", "mdt_xl_2"]
    for cost in quoted:
        rows = [
            row
            for row in published.result_rows()
            if row["name"].partition(".")[0] == cost.name and row["gmacs"] == cost.gmacs
        ]
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
    assert registry.same_network("uvit_l_2", "uvit_l_2.in256")  # they drop labels at different rates
    assert not registry.same_network("uvit_l_4", "uvit_l_4.in64")
    assert not registry.same_network("dit_s_2", "sit_s_2")
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


def test_sit_is_no_dit():
    """The classes of one layout are told apart by their golden cases."""
    assert issubclass(SiT, DiT)
    assert {case.name for case in network.cases_of(SiT)} == {"sit", "sit_probe"}
    assert {case.name for case in network.cases_of(DiT)} == {"dit", "dit_probe"}
    assert registry.model_info("sit_ti_2").model_cls == "SiT"
