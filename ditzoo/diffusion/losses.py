"""Training objectives over any callable model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ditzoo.diffusion.draws import TrainingDraws
from ditzoo.diffusion.process import FlowMatching, GaussianDiffusion


def denoising_loss(
    model: Callable[..., Tensor],
    process: GaussianDiffusion | FlowMatching,
    x0: Tensor,
    y: Tensor | None,
    draws: TrainingDraws,
    *,
    null_label: int | None = None,
    class_dropout_prob: float = 0.0,
    mask: object = None,
) -> Tensor:
    """Mean squared error between the prediction and its target, one number a sample: (B,) float32.

    Args:
        model: called as model(x_t, t, y, mask=mask).
        process: gives x_t and the target.
        x0: (B, C, H, W) images in [-1, 1] or latents.
        y: (B,) labels; None for an unconditional model.
        draws: times, noise and label uniforms of this pass.
        null_label: replaces the labels whose uniform lies below `class_dropout_prob`.
        class_dropout_prob: how often to drop a label.
        mask: handed on to the model.

    Raises:
        ValueError: where the model returns another shape than x0's, as with a learned variance.
    """
    t, noise = draws.t.to(x0.device), draws.noise.to(x0.device)
    if y is not None and null_label is not None:
        y = torch.where(draws.label_uniform.to(y.device) < class_dropout_prob, null_label, y)
    prediction = model(process.add_noise(x0, noise, t), t, y, mask=mask)
    if prediction.shape != x0.shape:
        raise ValueError(
            f"the model returned {tuple(prediction.shape)} for x0 of {tuple(x0.shape)}; this loss trains no variance: "
            "build the model with learn_sigma=False."
        )
    error = prediction.float() - process.target(x0, noise, t)
    return error.square().flatten(1).mean(dim=1)


def training_loss(
    model: Callable[..., Tensor],
    process: GaussianDiffusion | FlowMatching,
    x0: Tensor,
    y: Tensor | None,
    passes: Sequence[TrainingDraws],
    *,
    null_label: int | None = None,
    class_dropout_prob: float = 0.0,
    mask: object = None,
) -> Tensor:
    """The loss of a step, a scalar: the plain pass and, where `mask` is given, MDT's masked one, each weighted 1
    (section 3.4 of arXiv:2303.14389). Arguments as `denoising_loss`, with one set of draws a pass.

    Raises:
        ValueError: for another number of draws than passes.
    """
    masks = [None] if mask is None else [None, mask]
    if len(passes) != len(masks):
        raise ValueError(
            f"{len(passes)} sets of draws for {len(masks)} passes; call draw_training(..., num_passes={len(masks)})."
        )
    losses = [
        denoising_loss(
            model,
            process,
            x0,
            y,
            draws,
            null_label=null_label,
            class_dropout_prob=class_dropout_prob,
            mask=pass_mask,
        )
        for draws, pass_mask in zip(passes, masks, strict=True)
    ]
    return torch.stack([loss.mean() for loss in losses]).sum()
