"""JSON from strangers: read without surprises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from ditzoo.weights.checks import message

#: Configurations have a few kilobytes, and the index of a large model a few hundred.
MAX_BYTES = 32 * 2**20


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: where the file cannot be read.
        ValueError: for a file that is too large, no JSON, or JSON of something else than an object; numbers that JSON
            does not have (NaN, Infinity), and names that stand twice in one object, are refused too.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, and at most {MAX_BYTES:,} are read; it is not what it should be.")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep; it is not what it should be.") from error
    except ValueError as error:  # no UTF-8, no JSON, or refused below
        raise ValueError(f"{path} is no JSON ({message(error)}); save or fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__} where an object was expected; save or fetch it again."
        )
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.60} stands twice")
        found[name] = value
    return found
