"""Reading a safetensors file: a header in JSON, and behind it the bytes of the tensors, which are mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditzoo.weights.checks import message, shown
from ditzoo.weights.json_files import MAX_BYTES, parse_json
from ditzoo.weights.refusals import damaged, no_weights, read_head, unknown_dtype

#: Beyond this the first bytes are no length of a header, but text.
_MAX_LENGTH = 10**8


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these bytes is one."""
    return head[8:9] == b"{" and _header_length(head) < _MAX_LENGTH


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor, mapped from the file.

    The safetensors library checks, before there is any tensor, that the tensors lie behind one another without gaps
    and overlaps, end with the file, and have the bytes that their shapes and types need.

    Raises:
        OSError: no such file.
        ValueError: it is no safetensors file, or its header lies.
    """
    head = read_head(path)
    if not is_safetensors(head):
        raise ValueError(no_weights(path, head))
    if _header_length(head) > MAX_BYTES:
        raise ValueError(
            f"{path} has a header of {_header_length(head):,} bytes, more than the {MAX_BYTES:,} that names and "
            "shapes of any weights need; it is no file of weights."
        )
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            tensors = {name: _tensor(path, file, name) for name in names}
        _check_keys(path)
    except (SafetensorError, TypeError, RuntimeError) as error:  # the last two: sides of 2^63 and more
        raise ValueError(damaged(path, message(error))) from error
    return tensors


def _header_length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def _tensor(path: Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        if not str(error).startswith("Dtype not understood"):
            raise
        raise ValueError(unknown_dtype(path, shown(name), str(file.get_slice(name).get_dtype()))) from error
    return tensor


def _check_keys(path: Path) -> None:
    """The library takes the last of two equal names."""
    with path.open("rb") as file:
        length = _header_length(file.read(8))
        try:
            parse_json(file.read(length))
        except ValueError as error:
            raise ValueError(damaged(path, message(error))) from error
