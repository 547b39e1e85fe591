"""Where ditzoo keeps what it fetches and notes for a user. Files of the Hub are in the Hub's own cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`DITZOO_CACHE` if it is set, or `ditzoo` in `XDG_CACHE_HOME`, or `~/.cache/ditzoo`; it need not exist."""
    if own := os.environ.get("DITZOO_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ditzoo"
