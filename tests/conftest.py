"""What all tests share: threads, reproducible examples, and a registry that every test leaves as it found it."""

import os

import pytest
import torch
from hypothesis import settings

from ditzoo import registry

# The same examples in every run, without a time limit: the machine may be busy.
settings.register_profile("ditzoo", deadline=None, derandomize=True)
settings.load_profile("ditzoo")

# Workers of pytest-xdist share the cores; threads of their own would only fight over them.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def registry_sandbox(monkeypatch):
    """A copy of the registry to register into; the real one comes back after the test."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    registry.model_info.cache_clear()
    yield
    registry.model_info.cache_clear()
