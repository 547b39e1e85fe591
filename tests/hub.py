"""The Hub's cache on this machine, filled by hand and read offline."""

from __future__ import annotations

import shutil
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def cached_repository(monkeypatch, cache: Path, name: str, folder: Path) -> Path:
    """Put a copy of a folder where the Hub's client keeps repository `owner/name`, and go offline; returns the copy."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    return Path(shutil.copytree(folder, repository / "snapshots" / REVISION))
