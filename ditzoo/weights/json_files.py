"""JSON from strangers: read without surprises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from ditzoo.weights.checks import message, shown

#: Longest JSON that is parsed, a configuration, a header or an index: enough for 100,000 tensors.
MAX_BYTES = 10**7


def read_json_object(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        constants: whether to take NaN and Infinity, which diffusers writes, though JSON does not have them.

    Raises:
        OSError: where the file cannot be read.
        ValueError: for a file that is too large, what `parse_json` refuses, or JSON of something else than an object.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; JSON of at most {MAX_BYTES:,} is read. Fetch it again.")
    try:
        content = parse_json(path.read_bytes(), constants=constants)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({message(error)}); save or fetch it again.") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path} holds a {kind} where an object was expected; save or fetch it again.")
    return content


def parse_json(text: bytes, *, constants: bool = False) -> Any:
    """JSON in which no key stands twice: of two equal ones, readers differ in which they take. Without `constants` also
    without NaN and Infinity.

    Raises:
        ValueError: it is no such JSON, or nested too deep.
    """
    try:
        parse_constant = float if constants else _refuse_constant
        return json.loads(text.decode("utf-8"), parse_constant=parse_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(repr(name))} stands there twice")
        found[name] = value
    return found
