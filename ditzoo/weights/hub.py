"""Files from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class DownloadError(OSError):
    """Something could not be fetched; the message says why, and what to do."""


def fetch_file(repo_id: str, filename: str, *, revision: str | None = None) -> Path:
    """A file of a repository, in the Hub's cache."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, filename, revision=revision))


def fetch_folder(repo_id: str, *, revision: str | None = None, patterns: Sequence[str] = ("*",)) -> Path:
    """The files of a repository that match, in the Hub's cache."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[*patterns]))
