"""What a verification is made of: checks with a result, and their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Status = Literal["pass", "FAIL", "note", "not checked"]
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was looked at.
        status: `"pass"` or `"FAIL"` where it was compared with something known; `"note"` where there is nothing to
            compare with; `"not checked"` where it was not looked at.
        found: what it is here, or why it was not checked.
        expected: what it should be.
        details: names of the weights that are meant, or what else does not fit into the table.
        source: where the expected value is from.
    """

    name: str
    status: Status
    found: str
    expected: str = ""
    details: str = ""
    source: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        name: registry name.
        checkpoint: the file of weights; None if none was given.
        device: where the forward passes ran.
        dtype: their precision.
        checks: in order.
        hints: what may be the matter with a file that fails.
        sampled_hash: of the file's weights; None without a file, and where they are not the network's.
    """

    name: str
    checkpoint: Path | None
    device: torch.device
    dtype: torch.dtype
    checks: tuple[Check, ...]
    hints: tuple[str, ...] = ()
    sampled_hash: str | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return self.count("FAIL") == 0

    def count(self, status: Status) -> int:
        """How many checks have this status."""
        return sum(check.status == status for check in self.checks)

    def summary(self) -> str:
        """One sentence of counts. Notes are neither passed nor failed."""
        passed, notes = self.count("pass"), self.count("note")
        return (
            f"{passed} {'check' if passed == 1 else 'checks'} passed, {self.count('FAIL')} failed; "
            f"{notes} {'note' if notes == 1 else 'notes'}, {self.count('not checked')} not checked."
        )


def compare(row: str, good: bool, found: str, expected: str, *, details: str = "", source: str = "") -> Check:
    return Check(row, "pass" if good else "FAIL", found, expected, details, source)


def some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def shown(name: str) -> str:
    """A name from a file, fit for a terminal: one line, no control characters, not endless."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def message(error: Exception | str, most: int = 300) -> str:
    """What an error or a stranger says, fit for a terminal likewise."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))[:most]


def checked_device(device: torch.device | str) -> torch.device:
    """The device, on which tensors can be.

    Raises:
        ValueError: they cannot; the message names it and the reason.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); cpu always can.") from error
    return found
