"""What the values of weights tell: the sampled hash, and the warning of NaN."""

from __future__ import annotations

import argparse
import hashlib
import struct
import warnings

import pytest
import torch
from safetensors.torch import save_file

from ditzoo.weights import load_state_dict, sampled_hash, warn_of_non_finite
from tests.zoo import lively

STATE = lively("dit_ti_2").state_dict()

# The sampled hash.


def test_the_sampled_hash_is_what_its_documentation_says():
    state = {"b": torch.arange(1000.0).reshape(10, 100), "a.weight": torch.tensor(3.0)}
    places = [i * 999 // 63 for i in range(64)]
    assert (places[0], places[1], places[-1]) == (0, 15, 999)
    content = b"a.weight\0\0" + struct.pack("<f", 3.0) + b"b\x0010x100\0" + struct.pack("<64f", *places)
    assert sampled_hash(state) == hashlib.sha256(content).hexdigest()


def test_the_sampled_hash_does_not_depend_on_the_file(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save({"ema": STATE, "args": argparse.Namespace()}, tmp_path / "b.pt")
    torch.save(dict(reversed(STATE.items())), tmp_path / "c.pt")
    torch.save({key: value.double() for key, value in STATE.items()}, tmp_path / "d.pt")
    torch.save(
        {key: value.mT.contiguous().mT if value.ndim > 1 else value for key, value in STATE.items()}, tmp_path / "e.pt"
    )
    assert {sampled_hash(load_state_dict(path)) for path in tmp_path.iterdir()} == {sampled_hash(STATE)}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["pos_embed"].view(-1)[0].add_(1e-6),
        lambda state: state["pos_embed"].view(-1)[-1].add_(1e-6),
        lambda state: state.update({"pos_embed": state["pos_embed"].reshape(1, 64, 16)}),
        lambda state: state.update({"position": state.pop("pos_embed")}),
        lambda state: state.pop("pos_embed"),
        lambda state: state.update({key: value.bfloat16() for key, value in state.items()}),
    ],
)
def test_a_change_of_weights_changes_the_hash(change):
    state = {key: value.clone() for key, value in STATE.items()}
    change(state)
    assert sampled_hash(state) != sampled_hash(STATE)


def test_the_sampled_hash_copies_no_tensor_and_refuses_other_numbers():
    vast = torch.ones(1).expand(10**11)  # 400 GB if it were copied
    assert sampled_hash({"a": vast.view(10, 10**10)}) != sampled_hash({"a": vast})
    assert sampled_hash({"a": torch.empty(0)}) != sampled_hash({"a": torch.empty(0, 2)})
    with pytest.raises(ValueError, match="a is in complex64; give weights in floats of 16, 32 or 64 bits"):
        sampled_hash({"a": torch.ones(1, dtype=torch.complex64)})


def test_a_value_outside_the_sample_does_not():
    state = {"a": torch.zeros(1000)}
    changed = {"a": torch.zeros(1000).index_fill(0, torch.tensor([1]), 1.0)}
    assert sampled_hash(state) == sampled_hash(changed)


# Values that are no numbers.

PRECISIONS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2, torch.complex64]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1234, 2**20 + 1])
def test_one_nan_or_infinity_is_found(dtype, value, place):
    tensors = {name: torch.ones(2**20 + 2).to(dtype) for name in ("a", "b")}
    tensors["b"][place] = value
    with pytest.warns(
        UserWarning, match=r"^model\.pt has NaN or infinite values in 1 of 2 tensors \(b\), so that"
    ) as found:
        assert warn_of_non_finite(tensors, source="model.pt") == ["b"]
    assert found[0].filename == __file__


def test_numbers_are_not_warned_of():
    tensors = {str(dtype): torch.ones(3).to(dtype) for dtype in PRECISIONS}
    tensors |= {
        "integers": torch.tensor([2**40]),
        "none": torch.empty(0),
        "scalar": torch.tensor(1.0),
        "largest": torch.tensor([torch.finfo(torch.float32).max] * 2),
        "strided": torch.ones(4, 4)[:, ::2],
        "meta": torch.empty(3, device="meta"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_of_non_finite(tensors) == []
