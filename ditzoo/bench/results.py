"""Result rows: one JSON line each, with all that is needed to judge or repeat a number."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ditzoo import registry
from ditzoo.media.files import replacing
from ditzoo.models import DiffusionTransformer, EvaluationResult

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Value:
    """A number with its unit and, where it was measured repeatedly, its quartiles."""

    value: float
    unit: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if not (isinstance(number, int | float) or (number is None and name != "value")):
                raise TypeError(f"{name} must be a number, got {number!r}")


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One line of `results.jsonl`.

    Rows with the same `identity` answer the same question; a finished one is not measured again.
    """

    suite: str
    name: str
    """registry name of the model, or what a reference row stands for"""
    kind: Literal["model", "reference"]
    seed: int
    settings: Mapping[str, Any]
    """of the suite, the same for all rows of a table"""
    config: Mapping[str, Any] = field(default_factory=dict)
    """constructor arguments of the model"""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    frechet: Mapping[str, Any] = field(default_factory=dict)
    """extractor, number of samples and reference of the Frechet distance"""
    values: Mapping[str, Value] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    source_digest: str = ""
    """of ditzoo's own source files: rows of other code are not mixed into a table"""
    machine: Mapping[str, Any] = field(default_factory=dict)
    finished_at: str = ""
    """UTC, ISO 8601"""
    schema_version: int = SCHEMA_VERSION

    def identity(self) -> str:
        """What must agree for two rows to be the same measurement."""
        keys = ("suite", "name", "kind", "seed", "settings", "config", "recipe", "versions", "source_digest", "machine")
        return json.dumps({key: getattr(self, key) for key in keys}, sort_keys=True)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> ResultRow:
        """The row that `to_json` wrote.

        Raises:
            ValueError: for text that is no such row; the message says what is wrong with it.
        """
        try:
            entries = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(entries, dict):
            raise ValueError(f"a {type(entries).__name__} where a row was expected")
        if entries.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"schema version {entries.get('schema_version')!r}; this ditzoo reads version {SCHEMA_VERSION}"
            )
        known = {f.name for f in fields(cls)}
        unknown, missing = set(entries) - known, {"suite", "name", "kind", "seed", "settings"} - set(entries)
        if unknown or missing:
            what = [
                f"{word} {', '.join(sorted(keys))}"
                for word, keys in (("unknown", unknown), ("missing", missing))
                if keys
            ]
            raise ValueError("; ".join(what))
        try:
            entries["values"] = {name: Value(**value) for name, value in entries.get("values", {}).items()}
        except (TypeError, AttributeError) as error:
            raise ValueError(f"malformed values ({error})") from error
        return cls(**entries)


def evaluation_results(row: ResultRow) -> tuple[EvaluationResult, ...]:
    """The quality that a row measured, for the card of the model whose weights were measured."""
    extractor, reference = row.frechet.get("extractor", "unknown"), row.frechet.get("reference", "unknown")
    facts = [f"{row.frechet['num_samples']:,} samples"] if "num_samples" in row.frechet else []
    facts += [f"seed {row.seed}"]
    if "reference_samples" in row.frechet:
        facts.append(f"{row.frechet['reference_samples']:,} real images")
    source = f"ditzoo's {row.suite} benchmark" + (f", commit {row.commit[:12]}" if row.commit else "")
    names = {"frechet_distance": f"Frechet distance ({extractor})", "accuracy": f"accuracy ({extractor})"}
    return tuple(
        EvaluationResult(
            metric=words, value=row.values[name].value, dataset=reference, settings=", ".join(facts), source=source
        )
        for name, words in names.items()
        if name in row.values
    )


def results_for(
    path: Path, model_cls: type[DiffusionTransformer], config: Mapping[str, Any]
) -> tuple[EvaluationResult, ...]:
    """What a results file measured of the model of this class with these constructor arguments.

    A row does not say which weights were measured, so that there must be one alone.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: where it has no row of such a model, or several.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the results.jsonl of a benchmark.")
    rows = [row for row in read_rows(path)[0] if row.kind == "model"]
    found = [row for row in rows if dict(row.config) == dict(config) and _class_of(row) == model_cls.__name__]
    if not found:
        names = ", ".join(row.name for row in rows) or "none"
        raise ValueError(f"{path} has no row of a model with this configuration; its rows: {names}.")
    if len(found) > 1:
        which = ", ".join(f"{row.name} with seed {row.seed}, finished {row.finished_at}" for row in found)
        raise ValueError(
            f"{path} has {len(found)} rows of models with this configuration ({which}): give a file with the line "
            "that measured these weights alone."
        )
    return evaluation_results(found[0])


def _class_of(row: ResultRow) -> str | None:
    try:
        return registry.model_info(row.name).model_cls
    except ValueError:  # a model of another package, which is not there
        return None


def read_rows(path: Path) -> tuple[list[ResultRow], list[str]]:
    """All rows of a results file that can be read, and one complaint for each line that cannot.

    A file that does not exist has no rows.
    """
    rows, problems = [], []
    if not path.exists():
        return [], []
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(ResultRow.from_json(line))
        except ValueError as error:
            problems.append(f"{path} line {number} is damaged and was left out: {error}.")
    return rows, problems


def write_row(path: Path, row: ResultRow) -> None:
    """Append a row. The file is replaced as a whole, so it never ends in half a line."""
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    write_atomically(path, before + row.to_json().encode() + b"\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, then rename."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(device: str) -> dict[str, Any]:
    """Versions, commit, source digest and machine: the entries of a row that say where it comes from."""
    import torch

    machine = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    return {
        "versions": {
            "ditzoo": metadata.version("ditzoo"),
            "torch": torch.__version__,
            "numpy": metadata.version("numpy"),
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "source_digest": _source_digest(),
        "machine": machine,
    }


def _processor() -> str:
    """The processor's name; Linux tells it in /proc/cpuinfo alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


_PACKAGE = Path(__file__).resolve().parent.parent


def _commit() -> str | None:
    """Hash of the checkout that ditzoo runs from, `-dirty` behind it if it has changes; None outside of one."""
    root = _PACKAGE.parent
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        return None  # installed: a repository further up is somebody else's
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
