"""A folder that several processes and runs fill: a JSON file in it says of what, before anything else is there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ditzoo.media.files import writing


def claim(
    path: Path, content: Mapping[str, Any], *, shards: str, what: str, names: Collection[str] = ()
) -> dict[str, Any]:
    """Write a folder's JSON file, or compare with the one that is there.

    Args:
        path: of the file.
        content: JSON-safe.
        shards: pattern of the files in the folder that are nothing without this one.
        what: is in the folder, for messages: `"samples of another job"`.
        names: entries that are for people, and may differ.

    Returns:
        What the file holds, where 4.0 may stand for 4.

    Raises:
        ValueError: the file says something else (the message names the entries that differ), is damaged, or is missing
            where there are shards.
        TypeError: JSON cannot hold the content.
        OSError: the folder cannot be written; the message names it.
    """
    text = plain(content)
    # In this order: another process writes the file before its first shard.
    has_shards = any(path.parent.glob(shards))
    if not path.exists():
        if has_shards:
            raise ValueError(
                f"{path.parent} holds shards without a {path.name} that says of what; give another folder."
            )
        with writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    there = read(path)
    then, now = (
        {key: value for key, value in entries.items() if key not in names} for entries in (there, json.loads(text))
    )
    if differing := list(_differences(then, now)):
        raise ValueError(
            f"{path.parent} holds {what}: {'; '.join(differing)}. Give another folder, or remove this one."
        )
    return there


def read(path: Path) -> dict[str, Any]:
    """The content of a folder's JSON file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError(f"it holds a {type(there).__name__}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder, or give another one.") from error
    return there


def plain(content: Mapping[str, Any]) -> str:
    """The text of the file.

    Raises:
        TypeError: JSON cannot hold the content.
    """
    try:
        return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise TypeError(f"the fingerprint of a job must be JSON: {error}.") from error


def _differences(there: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`entry was 1, is 2` for each entry that differs, however deep it stands."""
    for key in sorted({*there, *now}):
        before, after = there.get(key, _ABSENT), now.get(key, _ABSENT)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, "" if key == "fingerprint" else f"{prefix}{key}.")
        elif before != after or isinstance(before, bool) != isinstance(after, bool):
            yield f"{prefix}{key} was {_shown(before)}, is {_shown(after)}"


_ABSENT = object()


def _shown(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)
