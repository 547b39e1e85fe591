"""Multi-head self-attention, with an optional additive bias on the scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ditzoo.layers.linear import linear
from ditzoo.layers.positions import resize_relative_position_table
from ditzoo.layers.unused import UnusedWeights


def attend(qkv: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over packed projections.

    Args:
        qkv: (B, N, 3D): queries, keys and values one after the other, heads contiguous in each.
        num_heads: heads that share D.
        bias: (H, N, N) or (B, H, N, N), added to the scaled scores before the softmax.

    Returns:
        (B, N, D), heads concatenated.
    """
    q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads)
    mask = None if bias is None else bias.to(q.dtype)
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h n d -> b n (h d)")


class RelativePositionBias(nn.Module):
    """A learned attention bias for each head and each 2-D offset between query and key (Swin, eq. 4 of
    arXiv:2103.14030).

    Args:
        grid: rows and columns of the token grid that the table is made for.
        num_heads: H.
        spare_rows: rows at the table's end that no offset uses; MDT's tables carry three.
    """

    def __init__(self, grid: tuple[int, int], num_heads: int, spare_rows: int = 0) -> None:
        super().__init__()
        self.grid = grid
        self.spare_rows = spare_rows
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + spare_rows
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, index: Tensor, grid: tuple[int, int]) -> Tensor:
        """Look the bias up.

        Args:
            index: (..., N, N) int64 from `relative_position_index(*grid)`, or rows and columns of it.
            grid: the token grid that `index` was made for; the table is resized where it differs.

        Returns:
            (..., H, N, N), contiguous.
        """
        table: Tensor = self.relative_position_bias_table
        if grid != self.grid:
            table = resize_relative_position_table(table, self.grid, grid)
        return rearrange(F.embedding(index, table), "... q k h -> ... h q k").contiguous()

    def unused_weights(self) -> Iterator[UnusedWeights]:
        if self.spare_rows:
            rows = self.relative_position_bias_table.shape[0]
            spare = range(rows - self.spare_rows, rows)
            yield UnusedWeights("relative_position_bias_table", spare, "spare rows that no offset uses")


class Attention(nn.Module):
    """Self-attention with one packed projection `qkv`, an output projection `proj`, and a relative-position bias
    where one is given."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        rel_pos_bias: RelativePositionBias | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = linear(hidden_size, hidden_size)
        self.rel_pos_bias = rel_pos_bias

    def forward(self, x: Tensor, index: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `index` and `grid` as `RelativePositionBias` takes them, if there is one."""
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias(index, grid)
        return self.proj(attend(self.qkv(x), self.num_heads, bias))

    def unused_weights(self) -> Iterator[UnusedWeights]:
        if self.qkv.bias is not None:
            width = self.qkv.in_features
            yield UnusedWeights("qkv.bias", range(width, 2 * width), "the softmax cancels a bias of the keys")
