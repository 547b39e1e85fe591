"""What stays in float32 while autocast computes matrix products in lower precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def keep_norms_in_float32(model: nn.Module) -> None:
    """Have every norm of a model compute in float32 under autocast, on the CPU as autocast has it on GPUs.

    A linear layer in the residual stream, such as those of U-ViT's skip connections, makes it bfloat16, which has 8
    bits; its norm would pass that precision on. Softmax is computed in float32 by attention's kernels, losses by
    `ditzoo.diffusion.loss_terms`.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.register_forward_pre_hook(_widen)


def _widen(norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not torch.is_autocast_enabled(inputs[0].device.type):
        return None
    # Under FSDP a norm's weights come in the precision in which they travel, which the input must share.
    weight = norm.weight
    return inputs[0].to(torch.float32 if weight is None else weight.dtype), *inputs[1:]
