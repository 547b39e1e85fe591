"""Adaptive layer norm: a condition c shifts, scales and gates each block (DiT, section 3.2 of
arXiv:2212.09748)."""

from __future__ import annotations

from torch import Tensor, nn

from ditzoo.layers.attention import Attention, RelativePositionBias
from ditzoo.layers.linear import linear
from ditzoo.layers.mlp import Mlp


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, with x (B, N, D) and one shift and scale (B, D) a sample."""
    return x * (1 + scale[:, None]) + shift[:, None]


def plain_layer_norm(hidden_size: int) -> nn.LayerNorm:
    """Layer norm without learned scale or shift."""
    return nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)


class AdaLNZeroBlock(nn.Module):
    """A pre-norm transformer block whose norms and residuals are modulated by c; zero gates at first make
    it the identity."""

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float, rel_pos_bias: RelativePositionBias | None = None
    ) -> None:
        super().__init__()
        self.norm1 = plain_layer_norm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, rel_pos_bias=rel_pos_bias)
        self.norm2 = plain_layer_norm(hidden_size)
        self.mlp = Mlp(hidden_size, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor, index: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens x (B, N, D) and condition c (B, D) -> (B, N, D); `index` and `grid` as `Attention` takes them."""
        modulation = self.adaLN_modulation(c).chunk(6, dim=-1)  # six of (B, D)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        h = self.attn(modulate(self.norm1(x), shift_attn, scale_attn), index, grid)  # (B, N, D)
        x = x + gate_attn[:, None] * h
        h = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))  # (B, N, D)
        return x + gate_mlp[:, None] * h


class AdaLNFinalLayer(nn.Module):
    """Modulated layer norm and a linear map to the pixels of a patch."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = plain_layer_norm(hidden_size)
        self.linear = linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x (B, N, D) and condition c (B, D) -> (B, N, p * p * C')."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)  # (B, D) each
        return self.linear(modulate(self.norm_final(x), shift, scale))
