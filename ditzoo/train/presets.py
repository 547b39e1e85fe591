"""Settings of the papers, each with where it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    name: str
    values: Mapping[str, Any]

    def settings(self) -> dict[str, Any]:
        return dict(self.values)


def get_preset(name: str) -> Preset:
    return Preset(name, {})
