"""What `ditzoo verify` noted on this machine about files of published weights that passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock

from ditzoo.media.files import writing
from ditzoo.weights.cache import cache_folder
from ditzoo.weights.checks import Check

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class WeightsRecord:
    """One file that passed.

    Attributes:
        file: its name.
        num_bytes: its size.
        sampled_hash: of the weights that were read from it.
        sha256: of the whole file; None where the weights are in several files.
        revision: commit of the Hub, where the file lay in the Hub's cache.
        date: of the verification, `YYYY-MM-DD`.
    """

    file: str
    num_bytes: int
    sampled_hash: str
    sha256: str | None
    revision: str | None
    date: str

    @classmethod
    def of(cls, path: Path, num_bytes: int, sampled_hash: str) -> WeightsRecord:
        """Of a file, or a folder, that passed today. Every byte of a file is read."""
        sha256 = None
        if path.is_file() and path.suffix != ".json":  # an index of shards
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path.name, num_bytes, sampled_hash, sha256, _revision(path), date.today().isoformat())

    def is_same_file(self, other: WeightsRecord) -> bool:
        """Whether both are of the same bytes, and of the same weights in them."""
        mine, others = ((each.num_bytes, each.sha256, each.sampled_hash) for each in (self, other))
        return mine == others


def records_file() -> Path:
    """The file that holds the records of this machine."""
    return cache_folder() / "records.json"


def load_records(name: str) -> tuple[WeightsRecord, ...]:
    """The records of a tagged name, oldest first.

    Raises:
        ValueError: the records file is damaged; the message says what to do.
        OSError: it cannot be read.
    """
    return _load(records_file()).get(name, ())


def add_record(name: str, record: WeightsRecord) -> None:
    """Add a record, unless there is one of the same file. A damaged records file is left as it is.

    Raises:
        ValueError: the records file is damaged; the message says what to do.
        OSError: it cannot be written.
    """
    path = records_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        records = _load(path)
        known = records.get(name, ())
        if any(record.is_same_file(other) for other in known):
            return
        records[name] = (*known, record)
        content = {key: [asdict(each) for each in value] for key, value in sorted(records.items())}
        with writing(path) as temporary:
            text = json.dumps({"schema_version": _SCHEMA_VERSION, "records": content}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")


def record_check(
    name: str, path: Path, num_bytes: int, sampled_hash: str, *, passed: bool, record: bool
) -> Check | None:
    """Compare weights with the records of their name and, if they passed, record them.

    Args:
        name: tagged name of published weights.
        path: the file of weights.
        num_bytes: its size.
        sampled_hash: of the weights.
        passed: whether all other checks passed.
        record: whether to record the file.

    Returns:
        A note: another file need not be a wrong one. None where there is nothing to say.
    """
    try:
        known = load_records(name)
        new = WeightsRecord.of(path, num_bytes, sampled_hash) if record and passed else None
        found, details = _compared(known, new, num_bytes, sampled_hash)
        if new is not None:
            add_record(name, new)
            if not any(new.is_same_file(other) for other in known):
                found = f"{found}; recorded" if known else "recorded, the first of this name"
        return Check("record", "note", found, details=details) if found else None
    except (OSError, ValueError) as error:
        return Check("record", "not checked", "the records cannot be used", details=str(error))


def _compared(
    known: Sequence[WeightsRecord], new: WeightsRecord | None, num_bytes: int, sampled_hash: str
) -> tuple[str, str]:
    """What the records say of these weights, and details where they are other ones."""
    if not known:
        return "", ""
    if new is not None and (same := next(filter(new.is_same_file, known), None)):
        return f"the file recorded on {same.date}", ""
    if same := next((record for record in known if record.sampled_hash == sampled_hash), None):
        kind = "another file of " if new is not None else ""
        return f"{kind}the weights recorded on {same.date}", ""
    latest = known[-1]
    return f"not the weights of {latest.date}", (
        f"the file recorded on {latest.date}, {latest.file}, has {latest.num_bytes:,} bytes and the sampled hash "
        f"{latest.sampled_hash}; this one has {num_bytes:,} bytes. One of them is another version or damaged: compare "
        "both with the authors' file"
    )


def _load(path: Path) -> dict[str, tuple[WeightsRecord, ...]]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {content['schema_version']!r}, not {_SCHEMA_VERSION}")
        return {name: tuple(map(_record, each)) for name, each in content["records"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise ValueError(
            f"{path}, where verified files are recorded, cannot be read ({reason}). Nothing is lost but the records: "
            "move the file away, and the next `ditzoo verify` starts a new one."
        ) from error


def _record(entry: Mapping[str, Any]) -> WeightsRecord:
    record = WeightsRecord(**entry)
    optional = ("sha256", "revision")
    for field in fields(record):
        value, kind = getattr(record, field.name), int if field.name == "num_bytes" else str
        if not (isinstance(value, kind) or (value is None and field.name in optional)):
            raise ValueError(f"{field.name} is {value!r}")
    return record


def _revision(path: Path) -> str | None:
    """The commit of a file in the Hub's cache: `models--owner--name/snapshots/COMMIT/...`."""
    parts = path.absolute().parts
    for place, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[place + 1] == "snapshots":
            return parts[place + 2]
    return None
