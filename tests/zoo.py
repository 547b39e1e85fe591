"""Small models of every family, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ditzoo
from ditzoo.models import DiffusionTransformer

#: The tiny models, one or more of every family.
TINY = ditzoo.list_models("*_ti*")
#: Those of one width and one resolution, whose patch size, width, depth and heads are options. A U shape derives them.
PLAIN = [name for name in TINY if "depth" in ditzoo.model_info(name).config]
#: Those that take a token mask.
MASKED = [name for name in TINY if ditzoo.create(name).supports_masking]
#: Every name, published weights' included.
EVERY_NAME = ditzoo.list_models() + ditzoo.list_models(pretrained=True)


def lively(name: str, **options: Any) -> DiffusionTransformer:
    """A model in which every trainable parameter has an effect; the same at every call. Fresh ones keep gates and
    outputs at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return enliven(ditzoo.create(name, **options))


def of_depth(name: str, depth: int) -> dict[str, Any]:
    """Options for a network of `depth` blocks, or, in a U shape, of one block a stage."""
    config = ditzoo.model_info(name).config
    return {"depth": depth} if "depth" in config else {"blocks": [1] * len(config["blocks"])}


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


def on_meta(name: str, **options: Any) -> DiffusionTransformer:
    """The shapes of a model without its memory."""
    with torch.device("meta"):
        return ditzoo.create(name, **options)
