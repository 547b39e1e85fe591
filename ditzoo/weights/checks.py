"""What a verification is made of: checks with a result, and their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Status = Literal["pass", "FAIL", "note", "not checked"]


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was looked at.
        status: `"pass"` or `"FAIL"` where it was compared with something known; `"note"` where there is nothing to
            compare with; `"not checked"` where it was not looked at.
        found: what it is here, or why it was not checked.
        expected: what it should be.
        details: names of the weights that are meant, where there are some.
    """

    name: str
    status: Status
    found: str
    expected: str = ""
    details: str = ""


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
        sampled_hash: of the file's weights; None without a file.
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
        return (
            f"{self.count('pass')} checks passed, {self.count('FAIL')} failed; {self.count('note')} notes, "
            f"{self.count('not checked')} not checked."
        )


def compare(row: str, good: bool, found: str, expected: str) -> Check:
    return Check(row, "pass" if good else "FAIL", found, expected)


def some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def message(error: Exception, most: int = 300) -> str:
    return " ".join(str(error).split())[:most]
