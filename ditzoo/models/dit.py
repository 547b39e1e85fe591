"""DiT: scalable diffusion models with transformers (Peebles and Xie, arXiv:2212.09748).

A plain vision transformer over patches. Time and class reach every block through adaptive layer norm whose
gates start at zero ("adaLN-Zero"), or in one of the paper's three other ways (section 3.2 and figure 3).

Letters in shape comments beyond those of `base`: S condition tokens, time and class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ditzoo.layers import (
    AdaLNFinalLayer,
    AdaLNZeroBlock,
    Attention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    TokenMask,
    UnusedWeights,
    frozen_positions,
    linear,
    modulate,
    plain_layer_norm,
    sincos_position_table,
    unpatchify,
)
from ditzoo.models.base import DiffusionTransformer
from ditzoo.models.digits import TINY, digits_checkpoint
from ditzoo.models.families import SD_VAE, Architecture, Checkpoint, Family, PublishedFile, pixel_recipe
from ditzoo.models.initialization import initialize_like_dit, zero_parameters
from ditzoo.models.tables import PositionTable
from ditzoo.recipe import Guidance, Recipe

Conditioning = Literal["adaln_zero", "adaln", "cross_attention", "in_context"]


class AdaLNBlock(nn.Module):
    """A pre-norm transformer block whose norms, but not its residuals, are modulated by c."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = plain_layer_norm(hidden_size)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = plain_layer_norm(hidden_size)
        self.mlp = Mlp(hidden_size, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), linear(hidden_size, 4 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x (B, N, D) and condition c (B, D) -> (B, N, D)."""
        shift_attn, scale_attn, shift_mlp, scale_mlp = self.adaLN_modulation(c).chunk(4, dim=-1)  # (B, D) each
        x = x + self.attn(modulate(self.norm1(x), shift_attn, scale_attn))
        return x + self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class InContextBlock(nn.Module):
    """A pre-norm transformer block as in ViT; the condition comes to it as tokens."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.mlp = Mlp(hidden_size, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S + N, D) -> (B, S + N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossAttention(nn.Module):
    """Multi-head attention of the tokens to the condition."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = linear(hidden_size, hidden_size)
        self.kv = linear(hidden_size, 2 * hidden_size)
        self.proj = linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x (B, N, D) and condition c (B, S, D) -> (B, N, D)."""
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = rearrange(self.kv(c), "b s (two h d) -> two b h s d", two=2, h=self.num_heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))

    def unused_weights(self) -> Iterator[UnusedWeights]:
        width = self.q.in_features
        yield UnusedWeights("kv.bias", range(width), "the softmax cancels a bias of the keys")


class CrossAttentionBlock(nn.Module):
    """A pre-norm transformer block with cross-attention to the condition between self-attention and MLP, as in
    the original transformer."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm_cross = nn.LayerNorm(hidden_size, eps=1e-6)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.mlp = Mlp(hidden_size, mlp_ratio)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens x (B, N, D) and condition c (B, S, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(self.norm_cross(x), c)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Layer norm and a linear map to the pixels of a patch; unconditioned."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6)
        self.linear = linear(hidden_size, patch_size * patch_size * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, p * p * C')."""
        return self.linear(self.norm_final(x))


BLOCKS: dict[Conditioning, type[nn.Module]] = {
    "adaln_zero": AdaLNZeroBlock,
    "adaln": AdaLNBlock,
    "cross_attention": CrossAttentionBlock,
    "in_context": InContextBlock,
}


class DiT(DiffusionTransformer):
    """DiT. Shared options as in `DiffusionTransformer`; defaults are DiT-XL/2's.

    Args:
        conditioning: how time and class reach the blocks (section 3.2). `"adaln_zero"`, the published model:
            they shift and scale both norms and gate both residuals, gates starting at zero. `"adaln"`: the same
            without gates. `"cross_attention"`: each block attends to them as a sequence of two.
            `"in_context"`: they are two more tokens, in front of the patches.
    """

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
        conditioning: Conditioning = "adaln_zero",
    ) -> None:
        super().__init__(locals())
        if conditioning not in get_args(Conditioning):
            raise ValueError(
                f"{type(self).__name__}: unknown conditioning {conditioning!r}; choose one of "
                f"{', '.join(get_args(Conditioning))}."
            )
        self.modulated = conditioning in ("adaln_zero", "adaln")
        if conditioning == "in_context":
            self.num_extra_tokens = 2 if num_classes else 1
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(self.num_label_rows, hidden_size) if num_classes else None
        # Never trained, but a parameter: it is part of the official state dict and parameter count.
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens(), hidden_size), requires_grad=False)
        block = BLOCKS[conditioning]
        self.blocks = nn.ModuleList(block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        final_layer = AdaLNFinalLayer if self.modulated else FinalLayer
        self.final_layer = final_layer(hidden_size, patch_size, self.head_channels)
        self.initialize()

    def initialize_weights(self) -> None:
        """Xavier and normal draws; every modulation and the last layer are zero, so the output is too."""
        initialize_like_dit(self)
        self.pos_embed.data.copy_(sincos_position_table(self.hidden_size, self.grid))
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, AdaLNZeroBlock | AdaLNBlock | AdaLNFinalLayer):
                zero_parameters(module.adaLN_modulation)
        zero_parameters(self.final_layer.linear)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        grid = self.check_inputs(x, t, y, mask)
        x = self.x_embedder(x) + frozen_positions(self.pos_embed, self.grid, grid)  # (B, N, D)
        c = self._condition(t, y)  # (B, D) or (B, S, D)
        if self.num_extra_tokens:
            x = torch.cat([c, x], dim=1)  # (B, S + N, D)
        for block in self.blocks:
            x = self.run_block(block, x) if self.num_extra_tokens else self.run_block(block, x, c)
        x = x[:, self.num_extra_tokens :]  # (B, N, D)
        x = self.final_layer(x, c) if self.modulated else self.final_layer(x)  # (B, N, p * p * C')
        return unpatchify(x, self.patch_size, grid)  # (B, C', H, W)

    def _condition(self, t: Tensor, y: Tensor | None) -> Tensor:
        """Time and class: their sum (B, D) for modulation, else a sequence (B, S, D)."""
        time = self.t_embedder(t)  # (B, D)
        if self.y_embedder is None:
            return time if self.modulated else time[:, None]
        label = self.y_embedder(y)  # (B, D)
        return time + label if self.modulated else torch.stack([time, label], dim=1)

    def position_tables(self) -> dict[str, PositionTable]:
        return {**super().position_tables(), "pos_embed": PositionTable("sincos", self.grid)}

    def unused_weights(self) -> list[UnusedWeights]:
        unused = super().unused_weights()
        if self.config["conditioning"] == "cross_attention" and self.y_embedder is None:
            reason = "an unconditional model's cross-attention sees one key, whatever the query"
            for i in range(self.depth):
                prefix = f"blocks.{i}"
                whole = ("norm_cross.weight", "norm_cross.bias", "cross_attn.q.weight", "cross_attn.q.bias")
                unused += [UnusedWeights(f"{prefix}.{name}", None, reason) for name in whole]
                unused.append(UnusedWeights(f"{prefix}.cross_attn.kv.weight", range(self.hidden_size), reason))
        return unused


SIZES = {
    "s": {"depth": 12, "hidden_size": 384, "num_heads": 6},
    "b": {"depth": 12, "hidden_size": 768, "num_heads": 12},
    "l": {"depth": 24, "hidden_size": 1024, "num_heads": 16},
    "xl": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
}


def _checkpoint(resolution: int) -> Checkpoint:
    file = f"DiT-XL-2-{resolution}x{resolution}.pt"
    return Checkpoint(
        config={"input_size": resolution // 8},
        licence="CC-BY-NC-4.0",
        data=f"ImageNet-1k at {resolution}x{resolution}",
        files=(
            PublishedFile(name=file, url=f"https://dl.fbaipublicfiles.com/DiT/models/{file}"),
            PublishedFile(name="transformer", layout="diffusers", repo_id=f"facebook/DiT-XL-2-{resolution}"),
        ),
        ema=True,
    )


CHECKPOINTS = {"dit_xl_2": {"in256": _checkpoint(256), "in512": _checkpoint(512)}}

#: Section 4 and table 2 (guided). The official code guides three of the four latent channels.
RECIPE = Recipe(
    prediction="epsilon",
    schedule="linear",
    variance="learned_range",
    loss="hybrid",
    guidance=Guidance(scale=1.5, channels=3),
    sampler="ddpm",
    num_inference_steps=250,
    **SD_VAE,
)

#: what the registry calls the paper's other conditionings
SUFFIXES: dict[str, Conditioning] = {"adaln": "adaln", "crossattn": "cross_attention", "incontext": "in_context"}
TINY_SIZE = {**TINY, "depth": 4, "hidden_size": 64, "num_heads": 4}

FAMILY = Family(
    name="dit",
    title="DiT",
    summary="A plain vision transformer over patches, conditioned in one of four ways.",
    paper="Scalable Diffusion Models with Transformers, arXiv:2212.09748",
    recipe=RECIPE,
    architectures=[
        Architecture(
            "dit_ti_2",
            DiT,
            TINY_SIZE,
            ours=True,
            recipe=pixel_recipe(RECIPE),
            checkpoints={"digits": digits_checkpoint()},
        ),
        *(
            Architecture(
                name := f"dit_{size}_{patch_size}",
                DiT,
                {"patch_size": patch_size, **options},
                checkpoints=CHECKPOINTS.get(name, {}),
            )
            for size, options in SIZES.items()
            for patch_size in (2, 4, 8)
        ),
        *(
            architecture
            for suffix, conditioning in SUFFIXES.items()
            for architecture in (
                Architecture(
                    f"dit_ti_2_{suffix}",
                    DiT,
                    {**TINY_SIZE, "conditioning": conditioning},
                    ours=True,
                    recipe=pixel_recipe(RECIPE),
                ),
                Architecture(f"dit_xl_2_{suffix}", DiT, {**SIZES["xl"], "conditioning": conditioning}),
            )
        ),
    ],
)
