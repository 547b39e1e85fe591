"""The latent DiffiT (Hatamizadeh et al., arXiv:2312.02139).

Time and class enter through the attention: queries, keys and values are each a sum of a projection of the token
and a projection of the condition ("time-dependent self-attention", section 3.1). No adaptive layer norm, no gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from ditzoo.layers import (
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    RelativePositionBias,
    TimestepEmbedder,
    TokenMask,
    UnusedWeights,
    attend,
    frozen_positions,
    linear,
    plain_layer_norm,
    relative_position_index,
    sincos_position_table,
    unpatchify,
)
from ditzoo.models.base import DiffusionTransformer
from ditzoo.models.families import SD_VAE, Checkpoint, PublishedFile
from ditzoo.models.initialization import initialize_like_dit, zero_parameters
from ditzoo.models.tables import PositionTable
from ditzoo.recipe import Guidance, Recipe

Grid = tuple[int, int]


class TimeDependentAttention(RelativePositionBias):
    """Time-dependent multi-head self-attention (equations 3 to 6) with a relative-position bias.

    The bias table is this module's own parameter, as in the official state dict; hence the base class.

    Args:
        hidden_size: D.
        num_heads: heads that share D.
        grid: rows and columns of a window.
        condition_size: width of the condition; D where None.
    """

    def __init__(self, hidden_size: int, num_heads: int, grid: Grid, condition_size: int | None = None) -> None:
        super().__init__(grid, num_heads)
        self.num_heads = num_heads
        self.qkv = linear(hidden_size, 3 * hidden_size)
        self.qkv_temb = linear(condition_size or hidden_size, 3 * hidden_size)
        self.proj = linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        """Attend inside windows of n tokens; one of n = N in the latent model.

        Args:
            x: (B, N, D) tokens, one window after the other.
            c: (B, condition_size).
            index: (n, n) rows of the bias table, as `RelativePositionBias` takes them.
            grid: that `index` was made for.

        Returns:
            (B, N, D).
        """
        qkv = self.qkv(x) + self.qkv_temb(c)[:, None]  # (B, N, 3D)
        qkv = rearrange(qkv, "b (w n) d -> (b w) n d", n=index.shape[0])  # (B windows, n, 3D)
        return self.proj(attend(qkv, self.num_heads, super().forward(index, grid)).reshape(x.shape))

    def unused_weights(self) -> Iterator[UnusedWeights]:
        yield from super().unused_weights()
        width = self.qkv.in_features
        for name in ("qkv.bias", "qkv_temb.weight", "qkv_temb.bias"):
            yield UnusedWeights(name, range(width, 2 * width), "the softmax cancels what all keys have in common")


class DiffiTBlock(nn.Module):
    """Pre-norm time-dependent attention and MLP."""

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float, grid: Grid, condition_size: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = plain_layer_norm(hidden_size)
        self.attn = TimeDependentAttention(hidden_size, num_heads, grid, condition_size)
        self.norm2 = plain_layer_norm(hidden_size)
        self.mlp = Mlp(hidden_size, mlp_ratio)

    def forward(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid) -> Tensor:
        """Tokens x (B, N, D) and condition c -> (B, N, D); `index` and `grid` as the attention takes them."""
        x = x + self.attn(self.norm1(x), c, index, grid)
        return x + self.mlp(self.norm2(x))


class DiffiTFinalLayer(nn.Module):
    """Layer norm, SiLU and a linear map to the pixels of a patch; unconditioned."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = plain_layer_norm(hidden_size)
        self.act = nn.SiLU()
        self.linear = linear(hidden_size, patch_size * patch_size * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, p * p * C')."""
        return self.linear(self.act(self.norm_final(x)))


class DiffiT(DiffusionTransformer):
    """Latent DiffiT. Options as in `DiffusionTransformer`; defaults are those of the published model, which has
    28 blocks where the paper says 30. Attention spans the whole grid, without windows."""

    constant_buffers = ("relative_position_index",)
    label_table = "y_embedder.embedding_table.weight"
    patch_weight = "x_embedder.proj.weight"

    def __init__(
        self,
        *,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__(locals())
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(self.num_label_rows, hidden_size) if num_classes else None
        # Never trained, but a parameter: it is part of the official state dict and parameter count.
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens(), hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(DiffiTBlock(hidden_size, num_heads, mlp_ratio, self.grid) for _ in range(depth))
        self.final_layer = DiffiTFinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize()

    def initialize_weights(self) -> None:
        """Xavier and normal draws; the last layer is zero, so the output is too."""
        initialize_like_dit(self)
        self.pos_embed.data.copy_(sincos_position_table(self.hidden_size, self.grid))
        for module in self.modules():
            if isinstance(module, RelativePositionBias):
                module.reset_parameters()
        zero_parameters(self.final_layer)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        grid = self.check_inputs(x, t, y, mask)
        c = self.t_embedder(t)  # (B, D)
        if self.y_embedder is not None:
            c = c + self.y_embedder(y)  # (B, D)
        x = self.x_embedder(x) + frozen_positions(self.pos_embed, self.grid, grid)  # (B, N, D)
        index = relative_position_index(*grid, device=x.device)  # (N, N)
        for block in self.blocks:
            x = self.run_block(block, x, c, index, grid)  # (B, N, D)
        x = self.final_layer(x)  # (B, N, p * p * C')
        return unpatchify(x, self.patch_size, grid)  # (B, C', H, W)

    def position_tables(self) -> dict[str, PositionTable]:
        return {**super().position_tables(), "pos_embed": PositionTable("sincos", self.grid)}


#: Table 9 and the published command line, which says 4.4 where the paper says 4.6.
RECIPE = Recipe(
    prediction="epsilon",
    schedule="linear",
    variance="learned_range",
    loss="hybrid",
    guidance=Guidance(scale=4.4, channels=3, schedule="power_cosine", power=4.0),
    sampler="ddpm",
    num_inference_steps=250,
    pixel_rule="adm",
    **SD_VAE,
)
_RECIPES = {256: RECIPE, 512: replace(RECIPE, guidance=Guidance(scale=1.49, channels=3))}


def _checkpoint(resolution: int) -> Checkpoint:
    return Checkpoint(
        config={"input_size": resolution // 8},
        licence="CC-BY-NC-SA-4.0",
        data=f"ImageNet-1k at {resolution}x{resolution}",
        files=(PublishedFile(name=f"diffit_{resolution}.safetensors", repo_id="nvidia/DiffiT"),),
        recipe=_RECIPES[resolution],
    )


CHECKPOINTS = {"in256": _checkpoint(256), "in512": _checkpoint(512)}
