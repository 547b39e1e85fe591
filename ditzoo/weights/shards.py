"""Weights in several files, with an index that says which tensor is in which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

MAX_SHARD_SIZE = "5GB"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def save_weights(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    stem: str = "model",
    max_shard_size: int | str = MAX_SHARD_SIZE,
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """Write one safetensors file or, above `max_shard_size`, several and an index."""
    limit = max_shard_size if isinstance(max_shard_size, int) else _num_bytes(max_shard_size)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        tensor = (tensor if dtype is None else tensor.to(dtype)).contiguous()
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        paths = [folder / f"{stem}.safetensors"]
    else:
        paths = [folder / f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        weight_map = {name: path.name for shard, path in zip(shards, paths, strict=True) for name in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    for shard, path in zip(shards, paths, strict=True):
        save_file(shard, path, metadata={"format": "pt"})
    return paths


def _num_bytes(text: str) -> int:
    try:
        return int(float(text[:-2]) * _UNITS[text[-2:].upper()])
    except (KeyError, ValueError) as error:
        raise ValueError(f"max_shard_size must be bytes or such as '5GB', got {text!r}.") from error
