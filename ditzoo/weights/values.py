"""The values of weights: a fingerprint of them, whether they are numbers or share memory, and other precisions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ditzoo.media import hashes
from ditzoo.weights.checks import short, shown, some
from ditzoo.weights.files import FLOATS

#: Values that are converted at a time, where PyTorch cannot compare them as they are.
_CHUNK = 2**20


def sampled_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a sample of the weights, the same whatever file they come from.

    For each name in sorted order it covers the name, the shape, and 64 values spread evenly over the tensor in its
    flattened (row-major) order, first and last included (all where there are no more), as little-endian float32. With n
    values, number i of the sample stands at i * (n - 1) // 63. A change of any one other value goes unnoticed.

    Raises:
        ValueError: a tensor holds something else than float16, bfloat16, float32 or float64.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{shown(name)} is in {short(tensor.dtype)}; give weights in floats of 16, 32 or 64 bits.")
    return hashes.sampled_hash(tensors)


def warn_of_non_finite(tensors: Mapping[str, Tensor], *, source: object = "the state dict") -> list[str]:
    """Warn of weights that are NaN or infinite: every output of the network would be NaN.

    Every value is read once, without a copy: 0.03 s a GB from memory, more where the file has to be read from disk.

    Args:
        tensors: name -> tensor, on any device. Integers, and tensors without values (on the meta device), are let be.
        source: where they are from, for the text.

    Returns:
        Names of the tensors that hold such values.
    """
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor.detach())]
    if broken:
        warnings.warn(
            f"{source} has NaN or infinite values in {len(broken):,} of {len(tensors):,} tensors "
            f"({some([shown(name) for name in broken])}), so that the network computes nothing but NaN. Fetch or train "
            "the weights again.",
            stacklevel=2,
        )
    return broken


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. Integers and tensors without values have none of these."""
    if tensor.is_meta or not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    # NaN if any value is. A test of each value would take forty times as long, and a copy.
    return all(bool(torch.isfinite(torch.stack(part.aminmax())).all()) for part in _comparable(tensor))


def in_precision(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor on the CPU, in another precision if it is of floats.

    Args:
        name: for the message.
        tensor: shared with the result where nothing has to change.
        dtype: None keeps the tensor's.

    Raises:
        ValueError: a value is finite and would be infinite.
    """
    tensor = tensor.detach().cpu()
    if dtype in (None, tensor.dtype) or not tensor.is_floating_point():
        return tensor
    converted = tensor.to(dtype)
    if not is_finite(converted) and (converted.isinf() & tensor.isfinite()).any():
        largest = tensor[tensor.isfinite()].abs().max()
        raise ValueError(
            f"{shown(name)} has values up to {float(largest):.3g}, and {short(converted.dtype)} ends at "
            f"{torch.finfo(dtype).max:.3g}: they would be written as infinity. bfloat16 has the range of float32; or "
            "keep the precision (dtype=None)."
        )
    return converted


def _comparable(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, or parts of it, in a precision that PyTorch compares."""
    if tensor.dtype in FLOATS:
        yield tensor
    else:
        yield from (part.float() for part in tensor.flatten().split(_CHUNK))


def without_overlap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same contiguous tensors, those copied that share memory with one before them."""
    result, end = dict(tensors), 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            result[name] = tensor.clone()
        else:
            end = tensor.data_ptr() + tensor.nbytes
    return result
