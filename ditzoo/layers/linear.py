"""The linear layer of every model."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """`torch.nn.Linear`, which draws no weights on the meta device.

    There is nothing to draw there, yet PyTorch's own draw takes longer than the rest of building a large network, and
    the registry builds every network of the zoo to count its parameters.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
