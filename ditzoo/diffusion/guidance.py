"""Guidance: classifier-free (arXiv:2207.12598) in every convention the papers use, and by a weaker model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ditzoo.diffusion.process import Process
from ditzoo.recipe import Guidance

#: (x, t, y) -> prediction, t in the network's units
Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def guide(
    model: Denoiser,
    guidance: Guidance,
    null_label: int | None,
    *,
    num_train_timesteps: int = 1000,
    process: Process | None = None,
    weak_model: Denoiser | None = None,
) -> Denoiser:
    """A guided version of `model`, of the same signature.

    The conditional and the unconditional half run as one batch. Where the guidance is off, always, outside its interval
    or because a schedule has not risen yet, the conditional one runs alone. Channels that are not guided, and a learned
    variance, are the conditional prediction's.

    Args:
        model: called as model(x, t, y) with x (B, C, H, W), t (B,) and y (B,).
        guidance: scale, kind, convention, channels, schedule and interval.
        null_label: the label of the unconditional half; autoguidance needs none.
        num_train_timesteps: T of the power-cosine schedule.
        process: tells which time and noise level the network's t stands for; needed for `guidance.interval`, whose
            batches share one time. Without it, t counts timesteps.
        weak_model: stands in for the unconditional half under autoguidance.

    Raises:
        ValueError: if there is no null label, weak model or process to guide with.
    """
    if guidance.is_off:
        return model
    if guidance.kind == "autoguidance" and weak_model is None:
        raise ValueError("autoguidance needs weak_model=, a smaller or less trained model of the same kind.")
    if guidance.kind == "classifier_free" and weak_model is not None:
        raise ValueError("weak_model= is for Guidance(kind='autoguidance'); classifier-free guidance takes none.")
    if guidance.kind == "classifier_free" and null_label is None:
        raise ValueError(
            f"guidance with scale {guidance.scale} needs a null label, and this model has none: it was built with "
            "class_dropout_prob=0 or num_classes=0. Sample it with the guidance off."
        )
    if guidance.interval is not None and process is None:
        raise ValueError("guidance in an interval needs process=, which tells the noise level of a time.")

    def guided(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        timesteps = t if process is None else (t - process.time_offset) / process.time_scale
        scale = guidance_scale(guidance, timesteps, num_train_timesteps)
        if _off_at(guidance, scale) or (guidance.interval and not _inside(guidance.interval, process, t)):
            return model(x, t, y)
        if weak_model is not None:
            conditional, other = model(x, t, y), weak_model(x, t, y)
        else:
            conditional, other = _both_halves(model, x, t, y, null_label)
        channels = min(guidance.channels or x.shape[1], x.shape[1])  # a learned variance is never guided
        c, u = conditional[:, :channels], other[:, :channels]
        guided_channels = u + scale * (c - u) if guidance.convention == "dit" else c + scale * (c - u)
        return torch.cat([guided_channels, conditional[:, channels:]], dim=1)

    return guided


def _both_halves(
    model: Denoiser, x: Tensor, t: Tensor, y: Tensor | None, null_label: int | None
) -> tuple[Tensor, Tensor]:
    """Conditional and unconditional predictions, in one batch."""
    if y is None:
        raise ValueError("guidance needs class labels y, got None.")
    assert null_label is not None
    labels = torch.cat([y, torch.full_like(y, null_label)])
    conditional, unconditional = model(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
    return conditional, unconditional


def _off_at(guidance: Guidance, scale: Tensor | float) -> bool:
    """Whether the scale of these times guides none of them: power-cosine does not while there is almost only noise."""
    return isinstance(scale, Tensor) and bool((scale == guidance.off).all())


def _inside(interval: tuple[float, float], process: Process | None, t: Tensor) -> bool:
    """Whether the noise level of a batch's time lies in the interval."""
    assert process is not None
    low, high = interval
    return low < process.noise_level(process.process_time(float(t[0]))) <= high


def guidance_scale(guidance: Guidance, t: Tensor, num_train_timesteps: int = 1000) -> Tensor | float:
    """The scale at timesteps t (B,), counted from 0: a number, or (B, 1, 1, 1) for the power-cosine schedule of MDT
    (section 4.1 of arXiv:2303.14389)."""
    if guidance.schedule == "constant":
        return guidance.scale
    phase = (1 - t.float() / num_train_timesteps) ** guidance.power
    scale = guidance.off + (guidance.scale - guidance.off) * (1 - torch.cos(math.pi * phase)) / 2
    return scale.view(-1, 1, 1, 1)
