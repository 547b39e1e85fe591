"""Small models of every family, inputs for them, and what tests ask of them in more than one place."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import ditzoo
from ditzoo.layers import positions
from ditzoo.models import DiffusionTransformer, dit
from ditzoo.models.diffit import latent

#: The tiny models, one or more of every family.
TINY = ditzoo.list_models("*_ti*")
#: Those of one width and one resolution, whose patch size, width, depth and heads are options. A U shape derives them.
PLAIN = [name for name in TINY if "depth" in ditzoo.model_info(name).config]
#: Those that take a token mask.
MASKED = [name for name in TINY if ditzoo.create(name).supports_masking]
#: Their forward passes: names, and whether a mask is given.
PASSES = [(name, False) for name in TINY] + [(name, True) for name in MASKED]
#: Every name, published weights' included.
EVERY_NAME = ditzoo.list_models() + ditzoo.list_models(pretrained=True)


def lively(name: str, **options: Any) -> DiffusionTransformer:
    """A model in which every trainable parameter has an effect; the same at every call. Fresh ones keep gates and
    outputs at zero."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(5)
        return enliven(ditzoo.create(name, **options))


def of_depth(name: str, depth: int) -> dict[str, Any]:
    """Options for a network of `depth` blocks, or, in a U shape, of one block a stage."""
    config = ditzoo.model_info(name).config
    return {"depth": depth} if "depth" in config else {"blocks": [1] * len(config["blocks"])}


def shallow(name: str) -> dict[str, Any]:
    """Options for a network of one block or two of each kind: for shapes, which more blocks do not change."""
    masked = "decode_layer" in ditzoo.model_info(name).config
    return {**of_depth(name, 3 if masked else 2), **({"decode_layer": 1} if masked else {})}


def narrow(name: str) -> dict[str, Any]:
    """Options for a network of few blocks and small width, where that is an option."""
    width = {"hidden_size": 64, "num_heads": 4} if "depth" in ditzoo.model_info(name).config else {}
    return {**shallow(name), **width}


def distinct(names: Iterable[str], options: Callable[[str], dict[str, Any]] = lambda name: {}) -> list[str]:
    """One name for each of the networks that the names are with these options."""
    found: dict[str, str] = {}
    for name in names:
        info = ditzoo.model_info(name)
        key = json.dumps({"class": info.model_cls, **info.config, **options(name)}, sort_keys=True)
        found.setdefault(key, name)
    return list(found.values())


def enliven(model: DiffusionTransformer) -> DiffusionTransformer:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs(
    model: DiffusionTransformer, batch: int = 2, height: int | None = None, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, t and y for a model, on its device; the last label is the null label where there is one."""
    height, width = height or model.input_size, width or model.input_size
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(batch, model.in_channels, height, width, generator=generator)
    t = torch.randint(1000, (batch,), generator=generator)
    y = torch.randint(max(model.num_classes, 1), (batch,), generator=generator)
    if model.null_label is not None:
        y[-1] = model.null_label
    device = model.device
    return x.to(device, model.dtype), t.to(device), y.to(device) if model.num_classes else None


def resize_to_nearest(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """A mistake for tests to notice: at other sizes, position tables of these kinds (frozen, learned, relative) repeat
    their nearest neighbours."""
    modes = {"learned": "bicubic", "relative": "bilinear"}
    nearest = {modes[kind] for kind in kinds if kind in modes}

    def interpolate(image: Tensor, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
        if mode in nearest:
            return F.interpolate(image, size, mode="nearest")
        return F.interpolate(image, size, mode=mode, align_corners=align_corners)

    def frozen_positions(table: Tensor, trained_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        image = rearrange(table, "1 (h w) d -> 1 d h w", h=trained_grid[0])
        return rearrange(F.interpolate(image, grid, mode="nearest"), "1 d h w -> 1 (h w) d")

    monkeypatch.setattr(positions, "F", SimpleNamespace(interpolate=interpolate))
    if "frozen" in kinds:
        for module in (dit, latent):
            monkeypatch.setattr(module, "frozen_positions", frozen_positions)


@contextmanager
def no_draws() -> Iterator[None]:
    """Fails if a random number is drawn inside from a generator that torch, NumPy or Python share."""

    def states() -> dict[str, list[Any]]:
        numpy = np.random.get_state(legacy=False)
        return {
            "torch": torch.get_rng_state().tolist(),
            "NumPy": [numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"]],
            "Python": list(random.getstate()),
        }

    before = states()
    yield
    for library, state in states().items():
        assert state == before[library], f"a random number of {library}'s was drawn"


def largest_gradient(model: DiffusionTransformer) -> float:
    return max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)


def reached(model: DiffusionTransformer) -> set[str]:
    """Parameters with a gradient that is no rounding error: above 1e-10 of the largest one. Tell them in float64, whose
    errors are a million times smaller."""
    assert model.dtype == torch.float64
    floor = 1e-10 * largest_gradient(model)
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > floor}


def on_meta(name: str, **options: Any) -> DiffusionTransformer:
    """The shapes of a model without its memory."""
    with torch.device("meta"):
        return ditzoo.create(name, **options)
