"""Reading weights: a safetensors file, shards of it, a PyTorch checkpoint, or a folder that holds one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ditzoo.models.state_dicts import unwrap_state
from ditzoo.weights.checks import short, shown
from ditzoo.weights.index import read_shards, weights_in
from ditzoo.weights.pytorch_files import is_pytorch, read_pytorch
from ditzoo.weights.refusals import damaged, no_weights, read_head, unknown_dtype
from ditzoo.weights.safetensors_files import is_safetensors, read_safetensors

Nest = Literal["ema", "raw"]
#: Where training scripts put the weights of the last step.
RAW_NESTS = ("model", "state_dict")
#: Precisions in which weights are kept.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: What else a tensor in a file may hold. Packed 4-bit numbers, for one, are unknown.
_KNOWN_DTYPES = (
    *FLOATS,
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.bool),
)


@dataclass(frozen=True)
class WeightsFile:
    """Weights on disk. Tensors are read when they are used, if the format allows.

    Attributes:
        path: what was asked for: a file, an index of shards or a folder.
        files: the files that hold the tensors: one, or the shards.
        num_bytes: their size.
        container: `"safetensors"` or `"PyTorch"`.
        nest: the entry of the file in which the weights stood, such as `"ema"`; None where they are all of it.
        tensors: name -> tensor on the CPU, without the prefixes `module.` and `_orig_mod.`.
        others: entries among the weights that are no tensors: name -> type.
    """

    path: Path
    files: tuple[Path, ...]
    num_bytes: int
    container: str
    nest: str | None
    tensors: dict[str, Tensor]
    others: dict[str, str]


def load_state_dict(path: Path | str, *, weights: Nest | None = None) -> dict[str, Tensor]:
    """The state dict on disk, ready for `model.load_state_dict(state, assign=True)`.

    Args:
        path: a safetensors file, the index of its shards (`model.safetensors.index.json`) or a PyTorch checkpoint, told
            apart by content; or a folder that holds one of `model.safetensors`, `diffusion_pytorch_model.safetensors`
            and their indexes, or `diffusion_pytorch_model.bin`.
        weights: of a training checkpoint, the moving average (`"ema"`) or the last step (`"raw"`); None takes the
            average where there is one. Of a bare state dict nobody can tell which it is.

    Returns:
        Name -> tensor on the CPU, mapped from the file: memory is used when a tensor is.

    Raises:
        OSError: no such file, a shard is missing, or a folder without weights.
        ValueError: the file is damaged, holds no weights or not those asked for, or would run code; an index names
            files elsewhere; a folder holds several sets of weights.
    """
    return read_checkpoint(path, weights=weights).tensors


def read_checkpoint(path: Path | str, *, weights: Nest | None = None) -> WeightsFile:
    """As `load_state_dict`, with what else the file tells. The same errors."""
    check_nest(weights)
    if not str(path):
        raise ValueError("PATH is empty; name a file of weights.")
    path = Path(path)
    content, container, files = _read(weights_in(path) if path.is_dir() else path)
    nest, state = _find_state(path, content, weights)
    place = "" if nest is None else f" under {nest!r}"
    if odd := [key for key in state if not isinstance(key, str)]:
        key = repr(odd[0]) if isinstance(odd[0], int | float) else f"a {type(odd[0]).__name__}"  # others may nest deep
        raise ValueError(f"{path} holds no state dict{place}: {shown(key)} is no name of a parameter.")
    if not any(_is_plain(value) for value in state.values()):
        raise ValueError(f"{path} holds no weights{place}; {_where_else(content, nest, state)}")
    bare = unwrap_state(state, ())
    if len(bare) < len(state):
        raise ValueError(
            f"{path} has names that differ by the prefixes module. and _orig_mod. alone, so that it is not clear "
            "which weights are meant; keep one of each."
        )
    num_bytes = sum(file.stat().st_size for file in files)
    tensors = {name: value.detach() for name, value in bare.items() if _is_plain(value)}
    for name, tensor in tensors.items():
        _check_readable(path, name, tensor, num_bytes)
    others = {name: type(value).__name__ for name, value in bare.items() if name not in tensors}
    return WeightsFile(path, files, num_bytes, container, nest, tensors, others)


def check_nest(weights: object) -> None:
    """Refuse what names no weights of a training checkpoint."""
    if weights not in (None, *get_args(Nest)):
        raise ValueError(f"weights must be 'ema', 'raw' or None, got {weights!r}.")


def kind_of(nest: str | None) -> Nest | None:
    """Which weights stand in an entry of a training checkpoint; None for those of a bare state dict."""
    if nest is None:
        return None
    return "raw" if nest in RAW_NESTS else "ema"


def _read(path: Path) -> tuple[Any, str, tuple[Path, ...]]:
    """Content and container of a file, or of the shards of an index, and the files that hold it."""
    head = read_head(path)
    if is_safetensors(head):
        return read_safetensors(path), "safetensors", (path,)
    if is_pytorch(head):
        return read_pytorch(path), "PyTorch", (path,)
    if head.lstrip().startswith(b"{"):
        tensors, shards = read_shards(path)
        return tensors, "safetensors", shards
    raise ValueError(no_weights(path, head))


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _where_else(content: Mapping[Any, Any], nest: str | None, state: Mapping[Any, Any]) -> str:
    """What a file without weights in the right place holds instead."""
    raw = [name for name in RAW_NESTS if nest == "ema" and isinstance(content.get(name), Mapping)]
    if full := [name for name in raw if any(_is_plain(value) for value in content[name].values())]:
        return f"those of the last step are under {full[0]!r}: take them with --weights raw (weights='raw')."
    entries = ", ".join(shown(repr(key)) for key in list(state)[:5]) or "none"
    nests = ", ".join(repr(name) for name in RAW_NESTS)
    return f"its entries: {entries}. Weights are looked for at the top and under 'ema', {nests}."


def _check_readable(path: Path, name: str, tensor: Tensor, num_bytes: int) -> None:
    """Refuse what has no values, values that nothing here can look at, or more of them than the files have room for."""
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{path} cannot be read: {shown(name)} has no values, it was saved from PyTorch's {tensor.device.type} "
            "device. Save the state dict of a network that has its weights."
        )
    if tensor.dtype not in _KNOWN_DTYPES:
        raise ValueError(unknown_dtype(path, shown(name), short(tensor.dtype)))
    if tensor.nbytes > num_bytes:  # a pickle can claim any shape for one value, with strides of 0
        raise ValueError(damaged(path, f"{shown(name)} claims {tensor.nbytes:,} bytes, more than there are"))


def _find_state(path: Path, content: Any, weights: Nest | None) -> tuple[str | None, Mapping[str, Any]]:
    """The state dict in what a file holds, and the name of its nest."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict.")
    nests = {name: content[name] for name in ("ema", *RAW_NESTS) if isinstance(content.get(name), Mapping)}
    order = {"ema": ("ema",), "raw": RAW_NESTS, None: ("ema", *RAW_NESTS)}[weights]
    for name in order:
        if name in nests:
            return name, nests[name]
    if nests and weights == "ema":
        raise ValueError(
            f"{path} holds no averaged weights; those of the last step are under {next(iter(nests))!r}: take them with "
            "--weights raw (weights='raw')."
        )
    if nests:
        raise ValueError(f"{path} holds averaged weights alone, under 'ema'; ask for those (--weights ema).")
    return None, content
