"""Images to tokens and back."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cut an image into square patches and project each to a token, as in ViT (arXiv:2010.11929).

    Tokens are numbered row by row: the patch in row i and column j becomes token i * W / p + j.
    """

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D), contiguous."""
        # As a view, its strides would pass through every residual sum, and every norm would copy its input.
        return rearrange(self.proj(x), "b d h w -> b (h w) d").contiguous()


def unpatchify(x: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, p * p * C) -> (B, C, H, W) for a `grid` of (H / p, W / p) tokens.

    In a token's vector the channel runs fastest, then the column, then the row inside the patch.
    """
    return rearrange(
        x,
        "b (h w) (p q c) -> b c (h p) (w q)",
        h=grid[0],
        w=grid[1],
        p=patch_size,
        q=patch_size,
    )
