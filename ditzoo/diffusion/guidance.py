"""Classifier-free guidance (arXiv:2207.12598), in every convention the papers use."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ditzoo.recipe import Guidance

#: (x, t, y) -> prediction
Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def guide(model: Denoiser, guidance: Guidance, null_label: int | None, *, num_train_timesteps: int = 1000) -> Denoiser:
    """A guided version of `model`, of the same signature.

    The conditional and the unconditional half run as one batch; where the guidance is off, only the conditional
    one runs. Channels that are not guided, and a learned variance, are those of the conditional half.

    Args:
        model: called as model(x, t, y) with x (B, C, H, W), t (B,) and y (B,).
        guidance: scale, convention, channels and schedule.
        null_label: the label of the unconditional half.
        num_train_timesteps: T of the power-cosine schedule.

    Raises:
        ValueError: if there is no null label to guide with.
    """
    if guidance.is_off:
        return model
    if null_label is None:
        raise ValueError(
            f"guidance with scale {guidance.scale} needs a null label, and this model has none: it was built with "
            "class_dropout_prob=0 or num_classes=0. Sample it with the guidance off."
        )

    def guided(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            raise ValueError("guidance needs class labels y, got None.")
        labels = torch.cat([y, torch.full_like(y, null_label)])
        both = model(torch.cat([x, x]), torch.cat([t, t]), labels)  # (2B, C', H, W)
        conditional, unconditional = both.chunk(2)
        channels = guidance.channels or x.shape[1]
        c, u = conditional[:, :channels], unconditional[:, :channels]
        scale = _scale(guidance, t, num_train_timesteps)
        guided_channels = u + scale * (c - u) if guidance.convention == "dit" else c + scale * (c - u)
        return torch.cat([guided_channels, conditional[:, channels:]], dim=1)

    return guided


def _scale(guidance: Guidance, t: Tensor, num_train_timesteps: int) -> Tensor | float:
    """The scale at times t: a number, or (B, 1, 1, 1) for the power-cosine schedule of MDT (section 4.1 of
    arXiv:2303.14389)."""
    if guidance.schedule == "constant":
        return guidance.scale
    phase = (1 - t.float() / num_train_timesteps) ** guidance.power
    off = 1.0 if guidance.convention == "dit" else 0.0
    scale = off + (guidance.scale - off) * (1 - torch.cos(math.pi * phase)) / 2
    return scale.view(-1, 1, 1, 1)
