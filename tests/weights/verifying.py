"""Weights to verify, and what tests read out of a verification."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from ditzoo.weights import Check, Verification, verify
from tests.zoo import lively

State = dict[str, Tensor]


def rows(result: Verification) -> dict[str, Check]:
    assert len({check.name for check in result.checks}) == len(result.checks)
    return {check.name: check for check in result.checks}


def statuses(result: Verification) -> dict[str, str]:
    return {check.name: check.status for check in result.checks}


def weights_of(name: str, **options: object) -> State:
    return {key: value.clone() for key, value in lively(name, **options).state_dict().items()}


def verify_state(name: str, state: object, folder: Path, **options: object) -> Verification:
    torch.save(state, folder / "weights.pt")
    return verify(name, folder / "weights.pt", **options)


def eight_bits(state: State) -> None:
    """Store weights in a precision that no network here computes in."""
    for key, value in state.items():
        state[key] = value.to(torch.float8_e4m3fn)


def sparse_file(path: Path, shapes: State) -> Path:
    """Safetensors of zeros in the shapes of these tensors, which may be on the meta device: a hole on the disk."""
    dtypes, header, end = {torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}, {}, 0
    for key, tensor in shapes.items():
        place = [end, end + tensor.nbytes]
        header[key] = {"dtype": dtypes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path
