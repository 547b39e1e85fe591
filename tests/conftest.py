"""What all tests share: threads, reproducible examples, and a registry that every test leaves as it found it."""

from uuid import uuid4

import pytest
import torch
from hypothesis import settings

from ditzoo import registry
from tests.hub_server import HubServer
from tests.pictures import write_pictures

# The same examples in every run, without a time limit: the machine may be busy.
settings.register_profile("ditzoo", deadline=None, derandomize=True)
settings.load_profile("ditzoo")

# Tiny models gain nothing from threads, and workers of pytest-xdist would fight over the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    # `torch.manual_seed` prepares to seed accelerators too, and walks the stack for it: half a millisecond, each time.
    torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """Each test has an empty cache, and the user's is left alone."""
    monkeypatch.setenv("DITZOO_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{uuid4().hex}"))


@pytest.fixture
def registry_sandbox(monkeypatch):
    """A copy of the registry to register into; the real one comes back after the test."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    registry._model_info.cache_clear()
    yield
    registry._model_info.cache_clear()


@pytest.fixture
def hub_server():
    """A server of this test's own that the Hub's client takes for the Hub."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 320 real pictures in two classes, for all tests to read."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")
