"""The linear layer of every model."""

from __future__ import annotations

from torch import nn


class _UndrawnOnMeta(nn.Linear):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A `torch.nn.Linear` that draws no weights on the meta device.

    There is nothing to draw there, yet PyTorch's own draw takes longer than the rest of building a large network, and
    the registry builds every network of the zoo to count its parameters.
    """
    layer: nn.Linear = _UndrawnOnMeta(in_features, out_features, bias)
    layer.__class__ = nn.Linear  # tools that replace or watch layers look for this very type
    return layer
