"""The feed-forward layer of a transformer block."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ditzoo.layers.linear import linear


class Mlp(nn.Module):
    """Linear, GELU, Linear. `approximate` picks GELU's tanh form or the exact one ("none")."""

    def __init__(self, hidden_size: int, mlp_ratio: float, approximate: Literal["tanh", "none"] = "tanh") -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.fc1 = linear(hidden_size, inner)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = linear(inner, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fc2(self.act(self.fc1(x)))
