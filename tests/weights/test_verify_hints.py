"""What `verify` advises where a file does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ditzoo
from ditzoo.weights import Verification, verify
from tests.weights.verifying import rows, sparse_file, statuses, verify_state, weights_of
from tests.zoo import on_meta

pytestmark = pytest.mark.usefixtures("no_golden")


def verify_empty(name: str, other: str, folder: Path) -> Verification:
    """Verify, as weights of `name`, what has the names and shapes of `other`, and values that nobody reads."""
    shapes = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in on_meta(other).state_dict().items()}
    return verify(name, sparse_file(folder / "weights.safetensors", shapes))


@pytest.mark.parametrize(
    ("name", "other"),
    [("dit_ti_2", "mdtv2_ti_2"), ("mdt_ti_2", "uvit_ti_2"), ("dit_ti_2_adaln", "dit_ti_2_crossattn")],
)
def test_another_network_is_recognised(name, other, tmp_path):
    result = verify_state(name, weights_of(other), tmp_path)
    path = tmp_path / "weights.pt"
    assert result.hints == (f"The file fits {other}: run `ditzoo verify {other} --checkpoint {path}`.",)
    assert not result.passed


def test_another_size_is_recognised_by_its_tag(tmp_path, monkeypatch):
    monkeypatch.setattr("ditzoo.weights.verification.network_checks", lambda *arguments: iter(()))
    result = verify_empty("dit_xl_2.in256", "dit_xl_2.in512", tmp_path)
    assert rows(result)["shapes"].details == "pos_embed is 1x1024x1152 and should be 1x256x1152"
    assert result.hints[0].startswith("The file fits dit_xl_2.in512: run `ditzoo verify dit_xl_2.in512 --checkpoint ")
    result = verify_empty("dit_xl_2.in512", "dit_xl_2", tmp_path)
    assert result.hints[0].startswith("The file fits dit_xl_2, sit_xl_2: run `ditzoo verify dit_xl_2 --checkpoint ")


def test_another_number_of_classes_is_recognised(tmp_path):
    state = weights_of("dit_ti_2", num_classes=37)
    result = verify_state("dit_ti_2", state, tmp_path)
    assert result.hints == (
        "ditzoo.create('dit_ti_2', num_classes=37) takes the file: its label table has 38 rows, the last for the null "
        "label.",
    )
    ditzoo.create("dit_ti_2", num_classes=37).load_state_dict(state, strict=True)
    result = verify_state("uvit_ti_2", weights_of("uvit_ti_2", num_classes=3), tmp_path)
    assert "num_classes=3)" in result.hints[0]


def test_a_size_that_the_zoo_does_not_name(tmp_path):
    result = verify_state("dit_ti_2", weights_of("dit_ti_2", depth=3), tmp_path)
    assert result.hints == ("The file fits no network of the zoo at its named size and options.",)


def test_a_prefix_is_named(tmp_path):
    state = {f"net.{key}": value for key, value in weights_of("dit_ti_2").items()}
    result = verify_state("dit_ti_2", state, tmp_path)
    assert statuses(result)["shapes"] == "not checked"
    assert statuses(result)["varied values"] == "not checked"
    assert result.hints == ("Every name carries 'net.' in front; save the state dict without it.",)


def test_the_layout_of_diffusers_is_named(tmp_path):
    state = {"pos_embed.proj.weight": torch.randn(4, 1, 2, 2), "transformer_blocks.0.attn1.to_q.weight": torch.eye(3)}
    result = verify_state("dit_ti_2", state, tmp_path)
    assert result.hints == (
        "The names are those of the diffusers library, whose files have another layout. Take the authors' own file, or "
        "the whole folder, which ditzoo.create(name, checkpoint=folder) and `ditzoo convert` read.",
    )
