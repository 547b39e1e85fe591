"""Checks of a forward's arguments: each error names the network, what it got and what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditzoo.layers import TokenMask

if TYPE_CHECKING:
    from ditzoo.models.base import DiffusionTransformer


def check_arguments(
    model: DiffusionTransformer, x: Tensor, t: Tensor, y: Tensor | None, mask: TokenMask | None
) -> tuple[int, int]:
    """Refuse what `DiffusionTransformer.forward` documents; return the token grid."""
    name = type(model).__name__
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: x must be a floating-point tensor, got {kind}.")
    if x.ndim != 4 or x.shape[1] != model.in_channels:
        raise ValueError(
            f"{name} takes x of shape (B, {model.in_channels}, H, W), got {tuple(x.shape)}; build it with "
            "in_channels=... for another channel count."
        )
    batch = x.shape[0]
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: t must be a tensor of one time a sample, got {t!r}.")
    if t.ndim != 1 or t.shape[0] != batch:
        raise ValueError(f"{name}: t has shape {tuple(t.shape)}; give one time a sample: ({batch},).")
    grid = model.token_grid(x.shape[2], x.shape[3])
    _check_labels(model, y, batch)
    if mask is not None:
        _check_mask(model, mask, batch, grid[0] * grid[1])
    return grid


def _check_labels(model: DiffusionTransformer, y: Tensor | None, batch: int) -> None:
    name = type(model).__name__
    if model.num_classes == 0:
        if y is not None:
            raise ValueError(f"this {name} is unconditional (num_classes=0) and takes no y.")
        return
    if y is None:
        raise ValueError(
            f"y is missing: this {name} is conditioned on {model.num_classes} classes; give (B,) int64 labels, or "
            "build it with num_classes=0."
        )
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: y must be an int64 tensor, got {type(y).__name__}; use torch.tensor(y).")
    if y.dtype != torch.int64:
        raise TypeError(f"{name}: y must be int64, got {y.dtype}; use y.long().")
    if y.ndim != 1 or y.shape[0] != batch:
        raise ValueError(f"{name}: y has shape {tuple(y.shape)}; give one label a sample: ({batch},).")
    # A look at the values would synchronise an accelerator and break a trace; fake tensors have none.
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(y) is not Tensor  # type: ignore[attr-defined]
    if y.device.type == "cpu" and not tracing and batch:
        low, high = (int(v) for v in torch.aminmax(y))
        if low < 0 or high >= model.num_label_rows:
            null = f" ({model.null_label} is the null label)" if model.null_label is not None else ""
            raise ValueError(
                f"label {low if low < 0 else high} is out of range: this {name} takes labels from 0 to "
                f"{model.num_label_rows - 1}{null}."
            )


def _check_mask(model: DiffusionTransformer, mask: TokenMask, batch: int, num_tokens: int) -> None:
    name = type(model).__name__
    if not model.supports_masking:
        raise ValueError(f"{name} does not take a mask (its supports_masking is False); call it without mask=.")
    if not isinstance(mask, TokenMask):
        raise TypeError(f"{name}: mask is a {type(mask).__name__}; make a TokenMask with ditzoo.random_token_mask().")
    if mask.mask.shape != (batch, num_tokens):
        raise ValueError(
            f"{name}: mask covers {tuple(mask.mask.shape)} tokens, but x has ({batch}, {num_tokens}); make it with "
            f"ditzoo.random_token_mask({batch}, {num_tokens}, ratio)."
        )
