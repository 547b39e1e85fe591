"""Weights that come with ditzoo: tiny models of the digits, in float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


@contextmanager
def packaged_file(name: str) -> Iterator[Path]:
    """The file of a tagged name whose weights are packaged; on disk as long as the context lasts.

    Raises:
        FileNotFoundError: where the installation lacks the file.
    """
    bare, _, tag = name.partition(".")
    with as_file(files("ditzoo.weights") / tag / f"{bare}.safetensors") as path:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: this installation of ditzoo is incomplete; install it again.")
        yield path


def load_packaged(name: str) -> dict[str, Tensor]:
    """The state dict in a `packaged_file`, in float32. The same error."""
    with packaged_file(name) as path:
        return {key: value.float() for key, value in load_file(path).items()}
