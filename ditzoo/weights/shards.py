"""Writing weights as safetensors: one file, or shards of at most a given size and the index that names them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from torch import Tensor

from ditzoo.media.files import writing
from ditzoo.weights.checks import short, shown, some
from ditzoo.weights.index import INDEX_SUFFIX, is_plain_name
from ditzoo.weights.values import in_precision

#: Precisions in which copies can be written.
SAVED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: Precisions under the names that the safetensors format has for them.
_FORMAT_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0"},
    **{torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.complex64: "C64"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL"},
    **{torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8"},
}
#: Bytes, of which the header of a file is a multiple.
_ALIGNMENT = 8


def save_weights(
    tensors: Mapping[str, Tensor],
    folder: Path | str,
    *,
    stem: str = "model",
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
) -> list[Path]:
    """Write a state dict as safetensors: `model.safetensors`, or where it is larger than a shard may be,
    `model-00001-of-00003.safetensors` and so on, and `model.safetensors.index.json`, which says what is where.

    Everything is written under temporary names first, and earlier weights of the same stem are removed last, so that a
    folder keeps what it had if writing fails. Weights that are mapped from the folder itself can be written into it.

    Args:
        tensors: name -> tensor, on any device. Tied and non-contiguous ones are written out in full.
        folder: made where it is missing.
        stem: what the names of the files begin with.
        max_shard_size: bytes of a shard, or a text such as `"5GB"` (1 GB is 10^9 bytes). A larger tensor has a shard of
            its own.
        dtype: precision in which floating-point tensors are written, float16, bfloat16 or float32; None keeps theirs.
            Memory holds a copy of one tensor at a time.

    Returns:
        The files, the index last.

    Raises:
        ValueError: an argument that is not of these, a tensor that safetensors cannot hold, or a value that is finite
            and would be infinite in `dtype`: float16 ends at 65504, where bfloat16 has the range of float32.
        OSError: the files cannot be written.
    """
    folder = Path(folder)
    _check_arguments(tensors, stem, dtype)
    split = _split(tensors, stem, max_shard_size, dtype)
    index = folder / f"{stem}{INDEX_SUFFIX}"
    paths = [folder / name for name in split.filename_to_tensors]
    with ExitStack() as files:  # they get their names in the opposite order: the index last
        if split.is_sharded:
            content = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            files.enter_context(writing(index)).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path, names in zip(paths, split.filename_to_tensors.values(), strict=True):
            write_safetensors(files.enter_context(writing(path)), {name: tensors[name] for name in names}, dtype)
        if split.is_sharded:
            index.unlink(missing_ok=True)  # it must not name old shards beside new ones, even for a moment
    paths += [index] if split.is_sharded else []
    for old in _files_of(folder, stem):
        if old not in paths:
            old.unlink()
    return paths


def _check_arguments(tensors: Mapping[str, Tensor], stem: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in SAVED_DTYPES:
        raise ValueError(f"dtype must be None or one of {', '.join(map(short, SAVED_DTYPES))}, got {dtype!r}.")
    if not stem or not is_plain_name(f"{stem}.safetensors"):
        raise ValueError(f"stem must be the beginning of a file's name, without a folder, got {stem!r}.")
    if not tensors:
        raise ValueError("there are no tensors to write; give a state dict.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not _is_text(name):
            raise ValueError(f"{shown(repr(name))} cannot be the name of a tensor in a safetensors file; rename it.")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{shown(name)} is a {type(tensor).__name__}, no tensor; leave it out.")
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "without values, on the meta device" if tensor.is_meta else "sparse or quantized"
            raise ValueError(f"{shown(name)} is {kind}; safetensors holds plain tensors with their values.")


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _split(
    tensors: Mapping[str, Tensor], stem: str, max_shard_size: int | str, dtype: torch.dtype | None
) -> StateDictSplit:
    sizes = {name: tensor.numel() * _dtype_of(tensor, dtype).itemsize for name, tensor in tensors.items()}
    if not _is_size(max_shard_size):
        raise ValueError(
            "max_shard_size must be a positive number of bytes, or a text such as '5GB' or '200MB', got "
            f"{max_shard_size!r}."
        )
    pattern = stem.replace("{", "{{").replace("}", "}}") + "{suffix}.safetensors"
    return split_state_dict_into_shards_factory(
        sizes, get_storage_size=int, filename_pattern=pattern, max_shard_size=max_shard_size
    )


def _is_size(size: object) -> bool:
    if isinstance(size, str):
        return bool(re.fullmatch(r"[0-9]*\.?[0-9]+ ?[KMGT]B", size, re.IGNORECASE) and re.search("[1-9]", size))
    return isinstance(size, int) and not isinstance(size, bool) and size > 0


def _dtype_of(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write one file, tensor after tensor, so that memory holds a copy of one at a time where copies are needed.
    `save_file` of the safetensors library takes all at once.

    Args:
        path: of the file. It is written in place: give a temporary name.
        tensors: as `save_weights` takes them.
        dtype: likewise.

    Raises:
        ValueError: a precision that the format does not have, or a value that is finite and would be infinite.
        OSError: the file cannot be written.
    """
    kinds = {name: _dtype_of(tensor, dtype) for name, tensor in tensors.items()}
    for kind in kinds.values():
        if kind not in _FORMAT_NAMES:
            lacking = [shown(name) for name in kinds if kinds[name] == kind]
            raise ValueError(f"safetensors has no {short(kind)}, as {some(lacking)} is; convert it or leave it out.")
    names = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # aligned, each to its own size
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * kinds[name].itemsize
        header[name] = {
            "dtype": _FORMAT_NAMES[kinds[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes_of(in_precision(name, tensors[name], dtype)))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Row after row, whatever view of memory the tensor is: transposed, conjugate, expanded."""
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _files_of(folder: Path, stem: str) -> list[Path]:
    """What earlier calls with this stem may have written."""
    name = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(stem + INDEX_SUFFIX)}")
    return [path for path in folder.iterdir() if name.fullmatch(path.name)]
