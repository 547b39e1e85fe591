"""What several files of tests share."""

from dataclasses import replace

import pytest

from ditzoo import registry
from ditzoo.models import Checkpoint, PublishedFile


@pytest.fixture
def no_golden(monkeypatch):
    """The golden forwards take a second, and are the same for every file."""
    monkeypatch.setattr("ditzoo.weights.verification.golden_checks", lambda *arguments: iter(()))


@pytest.fixture
def published(registry_sandbox):
    """Registers files as those of `dit_ti_2.small`."""

    def publish(*files: PublishedFile) -> str:
        entry = registry._ENTRIES["dit_ti_2"]
        checkpoint = Checkpoint(config={}, licence="none", data="digits", files=files)
        architecture = replace(entry.architecture, checkpoints={"small": checkpoint})
        registry._ENTRIES["dit_ti_2"] = replace(entry, architecture=architecture)
        return "dit_ti_2.small"

    return publish
