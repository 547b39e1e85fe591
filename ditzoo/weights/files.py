"""Reading files of weights: safetensors and PyTorch checkpoints, without executing anything in them."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditzoo.models.state_dicts import unwrap_state
from ditzoo.weights.checks import message, short, shown

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
    if not str(path):
        raise ValueError("PATH is empty; name a file of weights.")
    path = Path(path)
    if path.is_dir():
        for stem in ("model", "diffusion_pytorch_model"):
            for suffix in (".safetensors", ".safetensors.index.json", ".bin"):
                if (path / f"{stem}{suffix}").is_file():
                    return read_checkpoint(path / f"{stem}{suffix}", weights=weights)
    if path.name.endswith(".index.json"):
        shards = dict.fromkeys(json.loads(path.read_text())["weight_map"].values())
        files = [read_checkpoint(path.parent / shard) for shard in shards]
        together = {name: tensor for file in files for name, tensor in file.tensors.items()}
        return WeightsFile(path, sum(file.num_bytes for file in files), "safetensors", None, together, {})
    content, container = _read(path)
    nest, state = _find_state(path, content, weights)
    place = "" if nest is None else f" under {nest!r}"
    if odd := [key for key in state if not isinstance(key, str)]:
        raise ValueError(f"{path} holds no state dict{place}: {shown(repr(odd[0]))} is no name of a parameter.")
    if not any(_is_plain(value) for value in state.values()):
        raise ValueError(f"{path} holds no weights{place}; {_where_else(content, nest, state)}")
    bare = unwrap_state(state, ())
    if len(bare) < len(state):
        raise ValueError(
            f"{path} has names that differ by the prefixes module. and _orig_mod. alone, so that it is not clear "
            "which weights are meant; keep one of each."
        )
    tensors = {name: value.detach() for name, value in bare.items() if _is_plain(value)}
    for name, tensor in tensors.items():
        _check_readable(path, name, tensor)
    others = {name: type(value).__name__ for name, value in bare.items() if name not in tensors}
    return WeightsFile(path, path.stat().st_size, container, nest, tensors, others)


def sampled_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a sample of the weights, the same whatever file they come from.

    For each name in sorted order it covers the name, the shape, and 64 values spread evenly over the tensor in its
    flattened (row-major) order, first and last included (all where there are no more), as little-endian float32. With n
    values, number i of the sample stands at i * (n - 1) // 63. A change of any one other value goes unnoticed.

    Raises:
        ValueError: a tensor holds something else than float16, bfloat16, float32 or float64.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{shown(name)} is in {short(tensor.dtype)}; give weights in floats of 16, 32 or 64 bits.")
        shape = "x".join(str(side) for side in tensor.shape)
        digest.update(f"{name}\0{shape}\0".encode())
        places = _sample_places(tensor.numel())
        # By coordinates: to flatten a tensor that is not contiguous would copy all of it.
        sample = tensor[torch.unravel_index(places, tensor.shape)] if tensor.ndim else tensor.reshape(1)
        digest.update(sample.to("cpu", torch.float32).numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def has_checksums(path: Path) -> bool:
    """Whether a zip archive has checksums: PyTorch can be told to save without."""
    with zipfile.ZipFile(path) as archive:
        return any(member.CRC for member in archive.infolist())


def damaged_member(path: Path) -> str | None:
    """The first entry of a zip archive whose bytes do not have its checksum; None if all have. Every byte is read."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as file:
                    while file.read(2**20):
                        pass
            except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, struct.error, UnicodeDecodeError):
                return member.filename
    return None


def _where_else(content: Mapping[Any, Any], nest: str | None, state: Mapping[Any, Any]) -> str:
    """What a file without weights in the right place holds instead."""
    raw = [name for name in RAW_NESTS if nest == "ema" and isinstance(content.get(name), Mapping)]
    if full := [name for name in raw if any(_is_plain(value) for value in content[name].values())]:
        return f"those of the last step are under {full[0]!r}: take them with --weights raw (weights='raw')."
    entries = ", ".join(shown(repr(key)) for key in list(state)[:5]) or "none"
    nests = ", ".join(repr(name) for name in RAW_NESTS)
    return f"its entries: {entries}. Weights are looked for at the top and under 'ema', {nests}."


def _check_readable(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse what has no values, or values that nothing here can look at."""
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{path} cannot be read: {shown(name)} has no values, it was saved from PyTorch's {tensor.device.type} "
            "device. Save the state dict of a network that has its weights."
        )
    if tensor.dtype not in _KNOWN_DTYPES:
        raise ValueError(_unknown_dtype(path, shown(name), short(tensor.dtype)))


def _unknown_dtype(path: Path, name: str, dtype: str) -> str:
    return f"{path} cannot be read: {name} is stored as {dtype}. Take a copy in floats of 16, 32 or 64 bits."


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
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link that points nowhere: {path.readlink()} is not there.")
    if not path.exists():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*") if p.is_file()], n=1)
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
            return {name: _tensor(path, file, name) for name in names}
    except SafetensorError as error:
        raise ValueError(_damaged(path, message(error))) from error


def _tensor(path: Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        if not str(error).startswith("Dtype not understood"):
            raise
        raise ValueError(_unknown_dtype(path, shown(name), str(file.get_slice(name).get_dtype()))) from error
    return tensor


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError(_damaged(path, "its zip archive has no end"))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, struct.error, ValueError) as error:
        raise ValueError(_damaged(path, message(error))) from error
    names = [member.filename for member in members]
    inside = {name.partition("/")[2] for name in names}
    if "data.pkl" not in inside:
        some = ", ".join(shown(name) for name in names[:3]) or "nothing"
        raise ValueError(f"{path} is a zip archive, but no PyTorch checkpoint: it holds {some}. Unpack it first.")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(
            f"{path} is a PyTorch checkpoint that was compressed again, so that its tensors cannot be mapped. Unpack "
            "it and pack it with `zip -0`, or ask its author for the original."
        )
    if "constants.pkl" in inside:
        raise ValueError(f"{path} is a TorchScript program, not weights; ask its author for a state dict.")


#: What reading a broken pickle raises.
_DAMAGE = (
    *(RuntimeError, EOFError, KeyError, AttributeError, TypeError, IndexError),
    *(ValueError, AssertionError, OverflowError, MemoryError, struct.error),
)


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
        except _DAMAGE as error:
            raise ValueError(_damaged(path, message(ValueError(str(error).strip().partition("\n")[0])))) from error


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
        raise ValueError(f"{path} holds averaged weights alone, under 'ema'; ask for those (--weights ema).")
    return None, content
