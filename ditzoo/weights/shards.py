"""Writing weights as safetensors: one file, or shards of at most a given size and the index that names them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ditzoo.media.files import writing
from ditzoo.weights.checks import message, short, shown, some
from ditzoo.weights.index import INDEX_SUFFIX, is_plain_name
from ditzoo.weights.values import is_finite, without_overlap

#: Precisions in which copies can be written.
SAVED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


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
            Of converted, tied and non-contiguous tensors there are copies in memory, one shard at a time.

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
            _write_shard(files.enter_context(writing(path)), {name: tensors[name] for name in names}, dtype)
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


def _write_shard(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    state = {name: tensor.detach().to("cpu", _dtype_of(tensor, dtype)) for name, tensor in tensors.items()}
    if overflowing := [shown(name) for name, tensor in state.items() if _has_new_infinity(tensors[name], tensor)]:
        raise ValueError(
            f"values beyond the range of {dtype} are in {some(overflowing)}, and would be written as infinity. "
            "bfloat16 has the range of float32; or keep the precision with dtype=None."
        )
    # safetensors refuses tied weights
    state = without_overlap({name: _in_full(tensor) for name, tensor in state.items()})
    try:
        save_file(state, path, metadata={"format": "pt"})
    except KeyError as error:  # of the table of precisions
        kind = short(error.args[0])
        lacking = [shown(name) for name, tensor in state.items() if tensor.dtype == error.args[0]]
        raise ValueError(f"safetensors has no {kind}, as {some(lacking)} is; convert it or leave it out.") from error
    except SafetensorError as error:
        raise OSError(message(error)) from error


def _has_new_infinity(tensor: Tensor, converted: Tensor) -> bool:
    if converted.dtype == tensor.dtype or is_finite(converted):
        return False
    return bool((converted.isinf() & tensor.cpu().isfinite()).any())


def _in_full(tensor: Tensor) -> Tensor:
    """Its values as they are to lie in the file: a view may say "transposed" or "conjugate" of others."""
    return tensor.resolve_conj().resolve_neg().contiguous()


def _files_of(folder: Path, stem: str) -> list[Path]:
    """What earlier calls with this stem may have written."""
    name = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(stem + INDEX_SUFFIX)}")
    return [path for path in folder.iterdir() if name.fullmatch(path.name)]
