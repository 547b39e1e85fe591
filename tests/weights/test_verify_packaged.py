"""`verify` of the weights that come with ditzoo, and the hashes recorded of them."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import ditzoo
from ditzoo.cli import cli
from ditzoo.weights import load_state_dict, sampled_hash, verify
from ditzoo.weights.packaged import load_packaged, packaged_file
from ditzoo.weights.published import SAMPLED_HASHES
from tests.weights.verifying import rows

pytestmark = pytest.mark.usefixtures("no_golden")

PACKAGED = [name for name in ditzoo.list_models(pretrained=True) if ditzoo.model_info(name).packaged]


def test_the_hash_of_every_packaged_file_is_recorded():
    assert len(PACKAGED) >= 7
    assert sorted(SAMPLED_HASHES) == sorted(PACKAGED)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_recorded_hash_is_that_of_the_file(name):
    with packaged_file(name) as path:
        found = sampled_hash(load_state_dict(path))
    assert found == SAMPLED_HASHES[name], f"new weights? Record in ditzoo/weights/published.py: {found}"
    assert sampled_hash(load_packaged(name)) == found  # in float32


@pytest.mark.parametrize("name", PACKAGED)
def test_without_a_file_the_packaged_one_is_verified(name):
    result = verify(name)
    found = rows(result)
    with packaged_file(name) as path:
        assert result.checkpoint == path
        given = verify(name, path)
    assert result.checks[1:] == given.checks
    assert (result.checks[0].name, result.checks[0].found) == ("weights", "those that come with ditzoo")
    assert result.sampled_hash == SAMPLED_HASHES[name]
    assert (found["sampled hash"].status, found["loads"].status, found["forward"].status) == ("pass", "pass", "pass")
    assert result.passed


def test_a_bare_name_has_no_packaged_weights():
    assert rows(verify("dit_ti_2"))["weights"].status == "not checked"


def test_the_file_of_another_network_of_the_same_layout_fails():
    with packaged_file("dit_ti_2.digits") as path:
        result = verify("sit_ti_2.digits", path)
    assert [check.name for check in result.checks if check.status == "FAIL"] == ["sampled hash"]
    check = rows(result)["sampled hash"]
    assert check.found == f"{SAMPLED_HASHES['dit_ti_2.digits'][:16]}..."
    assert check.expected == f"{SAMPLED_HASHES['sit_ti_2.digits'][:16]}..."
    assert check.details == "it is the one recorded for dit_ti_2.digits"


def test_the_command_exits_with_1_for_the_file_of_another_network():
    with packaged_file("dit_ti_2.digits") as path:
        codes = [
            CliRunner().invoke(cli, ["verify", name, "--checkpoint", str(path)]).exit_code
            for name in ("sit_ti_2.digits", "dit_ti_2.digits")
        ]
    assert codes == [1, 0]


def test_a_bare_name_is_told_whose_file_it_is():
    with packaged_file("dit_ti_2.digits") as path:
        check = rows(verify("sit_ti_2", path))["sampled hash"]
    assert (check.status, check.expected) == ("note", "not recorded")
    assert check.details == "it is the one recorded for dit_ti_2.digits"


def test_a_changed_copy_fails(tmp_path):
    with packaged_file("mdt_ti_2.digits") as path:
        state = load_file(path)
    state["x_embedder.proj.bias"][0] += 0.25
    save_file(state, tmp_path / "copy.safetensors")
    check = rows(verify("mdt_ti_2.digits", tmp_path / "copy.safetensors"))["sampled hash"]
    assert (check.status, check.details) == ("FAIL", "")
