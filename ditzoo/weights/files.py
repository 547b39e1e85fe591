"""Reading files of weights: safetensors and PyTorch checkpoints, without executing anything in them."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditzoo.models.base import unwrap_state

Nest = Literal["ema", "raw"]
#: Where training scripts put the weights of the last step.
RAW_NESTS = ("model", "state_dict")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights. Its tensors are read from disk when they are used, if the format allows.

    Attributes:
        path: the file.
        num_bytes: its size.
        container: `"safetensors"` or `"PyTorch"`.
        nest: the entry of the file in which the weights stood, such as `"ema"`; None where they are all of it.
        tensors: name -> tensor on the CPU, without the prefixes `module.` and `_orig_mod.`.
        others: entries among the weights that are no tensors: name -> type.
    """

    path: Path
    num_bytes: int
    container: str
    nest: str | None
    tensors: dict[str, Tensor]
    others: dict[str, str]


def load_state_dict(path: Path | str, *, weights: Nest = "ema") -> dict[str, Tensor]:
    """The state dict in a file, ready for `model.load_state_dict(state, assign=True)`.

    Args:
        path: a safetensors file or a PyTorch checkpoint, told apart by content.
        weights: of a training checkpoint that holds both, the moving average (`"ema"`) or the last step (`"raw"`).

    Returns:
        Name -> tensor on the CPU, mapped from the file: memory is used when a tensor is.

    Raises:
        OSError: no such file, or a folder.
        ValueError: the file is damaged, holds no weights or not those asked for, or would run code.
    """
    return read_checkpoint(path, weights=weights).tensors


def read_checkpoint(path: Path | str, *, weights: Nest = "ema") -> WeightsFile:
    """As `load_state_dict`, with what else the file tells. The same errors."""
    if weights not in get_args(Nest):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}.")
    path = Path(path)
    content, container = _read(path)
    nest, state = _find_state(path, content, weights)
    place = "" if nest is None else f" under {nest!r}"
    if odd := [key for key in state if not isinstance(key, str)]:
        raise ValueError(f"{path} holds no state dict{place}: {odd[0]!r} is no name of a parameter.")
    if not any(_is_plain(value) for value in state.values()):
        entries = ", ".join(repr(key) for key in list(state)[:5]) or "none"
        raise ValueError(
            f"{path} holds no weights{place}; its entries: {entries}. Weights are looked for at the top and under "
            f"'ema', {', '.join(repr(name) for name in RAW_NESTS)}."
        )
    bare = unwrap_state(state, ())
    if len(bare) < len(state):
        raise ValueError(
            f"{path} has names that differ by the prefixes module. and _orig_mod. alone, so that it is not clear "
            "which weights are meant; keep one of each."
        )
    tensors = {name: value.detach() for name, value in bare.items() if _is_plain(value)}
    others = {name: type(value).__name__ for name, value in bare.items() if name not in tensors}
    return WeightsFile(path, path.stat().st_size, container, nest, tensors, others)


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
        sample = tensor.reshape(-1)[places].to("cpu", torch.float32)
        digest.update(sample.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _sample_places(count: int) -> Tensor:
    if count <= 64:
        return torch.arange(count)
    return torch.arange(64) * (count - 1) // 63


def _read(path: Path) -> tuple[Any, str]:
    """Content and container of a file."""
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix in _SUFFIXES)
        inside = f"such as {path / files[0]}" if files else f"one that ends with {', '.join(_SUFFIXES)}; it has none"
        raise IsADirectoryError(f"{path} is a folder; name a file of weights in it, {inside}.")
    if not path.exists():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else " Check the path."
        raise FileNotFoundError(f"there is no file {path}.{hint}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty (0 bytes); fetch it again.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 10**8:
        return _read_safetensors(path), "safetensors"
    if head.startswith(b"PK"):
        _check_zip(path)
        return _read_pytorch(path, mmap=True), "PyTorch"
    if head[:1] == b"\x80":  # a bare pickle, as PyTorch wrote before version 1.6
        return _read_pytorch(path, mmap=False), "PyTorch"
    raise ValueError(_no_weights(path, head))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(_damaged(path, str(error))) from error


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError(_damaged(path, "its zip archive has no end"))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}
    if "data.pkl" not in inside:
        some = ", ".join(names[:3]) or "nothing"
        raise ValueError(f"{path} is a zip archive, but no PyTorch checkpoint: it holds {some}. Unpack it first.")
    if "constants.pkl" in inside:
        raise ValueError(f"{path} is a TorchScript program, not weights; ask its author for a state dict.")


def _read_pytorch(path: Path, mmap: bool) -> Any:
    # DiT's and SiT's training scripts keep their options as a Namespace, which is a bare record.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            refused = re.findall(r"GLOBAL ([\w.]+)", str(error))
            if not refused:
                raise ValueError(_damaged(path, "its pickle cannot be read")) from error
            raise ValueError(
                f"{path} holds more than weights: reading it would run {', '.join(dict.fromkeys(refused))}, which "
                "could be any code, and is refused. Ask its author for a safetensors file or a bare state dict."
            ) from error
        except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise ValueError(_damaged(path, str(error).strip().partition("\n")[0])) from error


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged or cut off ({reason}); it has {path.stat().st_size:,} bytes. Compare with the size at its "
        "source and fetch it again."
    )


def _no_weights(path: Path, head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return f"{path} is a web page, not weights: its source asked for something first. Open the link in a browser."
    if text.startswith(b"version https://git-lfs"):
        return f"{path} is the pointer that stands for a large file in Git; fetch the file itself with `git lfs pull`."
    if text.startswith(b"{"):
        return f"{path} is JSON, not weights. Weights split over several files are not read in this release."
    return (
        f"{path} is no file of weights: neither safetensors nor a PyTorch checkpoint. It begins with {head[:16]!r}; "
        "if it is an archive, unpack it first."
    )


def _find_state(path: Path, content: Any, weights: Nest) -> tuple[str | None, Mapping[str, Any]]:
    """The state dict in what a file holds, and the name of its nest."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict.")
    nests = {name: content[name] for name in ("ema", *RAW_NESTS) if isinstance(content.get(name), Mapping)}
    order = ("ema", *RAW_NESTS) if weights == "ema" else RAW_NESTS
    for name in order:
        if name in nests:
            return name, nests[name]
    if nests:  # raw weights were asked for
        raise ValueError(f"{path} holds averaged weights alone, under 'ema'; ask for those.")
    return None, content
