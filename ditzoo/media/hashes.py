"""A fingerprint of weights that takes milliseconds, whatever their size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def sampled_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a sample of the weights, the same whatever file they come from.

    For each name in sorted order it covers the name, the shape, and 64 values spread evenly over the tensor in its
    flattened (row-major) order, first and last included (all where there are no more), as little-endian float32. With n
    values, number i of the sample stands at i * (n - 1) // 63. A change of any one other value goes unnoticed.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        shape = "x".join(str(side) for side in tensor.shape)
        digest.update(f"{name}\0{shape}\0".encode())
        places = _sample_places(tensor.numel())
        # By coordinates: to flatten a tensor that is not contiguous would copy all of it.
        sample = tensor[torch.unravel_index(places, tensor.shape)] if tensor.ndim else tensor.reshape(1)
        digest.update(sample.to("cpu", torch.float32).numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _sample_places(count: int) -> Tensor:
    if count <= 64:
        return torch.arange(count)
    return torch.arange(64) * (count - 1) // 63
