"""Weights that come with ditzoo: tiny models of the digits, in float16."""

from __future__ import annotations

from importlib.resources import as_file, files

from safetensors.torch import load_file
from torch import Tensor


def load_packaged(name: str) -> dict[str, Tensor]:
    """The state dict of a tagged name whose weights are packaged, in float32.

    Raises:
        FileNotFoundError: where the installation lacks the file.
    """
    bare, _, tag = name.partition(".")
    resource = files("ditzoo.weights") / tag / f"{bare}.safetensors"
    with as_file(resource) as path:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: this installation of ditzoo is incomplete; install it again.")
        return {key: value.float() for key, value in load_file(path).items()}
