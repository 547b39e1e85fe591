"""MDT and MDTv2: masked diffusion transformer (Gao et al., arXiv:2303.14389).

DiT's blocks with a relative-position bias in every attention. In training a second pass sees only part of the
tokens: the encoder runs on the kept ones, a side-interpolater fills the others in, and the decoder predicts the
whole image. Version 2 gives the encoder long skips and hands every decoder block the embedded input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ditzoo.layers import (
    AdaLNFinalLayer,
    AdaLNZeroBlock,
    LabelEmbedder,
    PatchEmbed,
    RelativePositionBias,
    TimestepEmbedder,
    TokenMask,
    UnusedWeights,
    linear,
    relative_position_index,
    resize_position_table,
    sincos_position_table,
    unpatchify,
)
from ditzoo.models.base import DiffusionTransformer
from ditzoo.models.digits import DIGITS_RECIPE, TINY, digits_checkpoint
from ditzoo.models.dit import SIZES
from ditzoo.models.families import SD_VAE, Architecture, Checkpoint, Family, PublishedFile, pixel_recipe
from ditzoo.models.initialization import initialize_like_dit, zero_parameters
from ditzoo.models.options import check_integer, check_number
from ditzoo.models.tables import PositionTable
from ditzoo.recipe import Guidance, Recipe

Grid = tuple[int, int]


class MDTBlock(AdaLNZeroBlock):
    """DiT's block with a relative-position bias and, in MDTv2, a long skip merged at its entry."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, grid: Grid, skip: bool = False) -> None:
        rel_pos_bias = RelativePositionBias(grid, num_heads, spare_rows=3)
        super().__init__(hidden_size, num_heads, mlp_ratio, rel_pos_bias)
        self.skip_linear = linear(2 * hidden_size, hidden_size) if skip else None

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        index: Tensor | None = None,
        grid: Grid | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Tokens x and skip (B, N, D), condition c (B, D), `index` (N, N) or (B, N, N) into the bias table for
        `grid` -> (B, N, D)."""
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))  # type: ignore[list-item]
        return super().forward(x, c, index, grid)


class _MaskedDiffusionTransformer(DiffusionTransformer):
    """What both versions share: embeddings, masking, side-interpolater and output."""

    supports_masking = True
    training_options = (*DiffusionTransformer.training_options, "mask_ratio")
    constant_buffers = ("relative_position_index",)
    label_table = "y_embedder.embedding_table.weight"
    patch_weight = "x_embedder.proj.weight"

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self.mask_ratio: float | None = self.config["mask_ratio"]
        self.decode_layer: int = self.config["decode_layer"]
        name = type(self).__name__
        if self.mask_ratio is not None:
            self._check_mask_ratio(name, self.mask_ratio)
        check_integer(name, "decode_layer", self.decode_layer)
        if not 1 <= self.decode_layer <= self.depth:
            raise ValueError(f"{name}: decode_layer must be from 1 to depth ({self.depth}), got {self.decode_layer}.")
        tokens, hidden_size = self.num_tokens(), self.hidden_size
        self.x_embedder = PatchEmbed(self.patch_size, self.in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(self.num_label_rows, hidden_size) if self.num_classes else None
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, hidden_size))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, tokens, hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, hidden_size), requires_grad=self.mask_ratio is not None)
        self.sideblocks = nn.ModuleList([self._block()])
        self.final_layer = AdaLNFinalLayer(hidden_size, self.patch_size, self.out_channels)

    def _check_mask_ratio(self, name: str, ratio: float) -> None:
        check_number(name, "mask_ratio", ratio)
        if not 0 <= ratio < 1:
            raise ValueError(f"{name}: mask_ratio must be None or in [0, 1), got {ratio}.")
        if ratio + self.mask_ratio_spread >= 1:
            raise ValueError(
                f"{name}: mask_ratio must be below {1 - self.mask_ratio_spread:g}, got {ratio}: training draws from "
                f"mask_ratio to mask_ratio + {self.mask_ratio_spread}, which must stay below 1."
            )

    def _block(self, skip: bool = False) -> MDTBlock:
        return MDTBlock(self.hidden_size, self.num_heads, self.config["mlp_ratio"], self.grid, skip)

    def initialize_weights(self) -> None:
        """As DiT; positions start at the sin-cos table and are trained."""
        initialize_like_dit(self)
        table = sincos_position_table(self.hidden_size, self.grid)
        self.pos_embed.data.copy_(table)
        self.decoder_pos_embed.data.copy_(table)
        if self.mask_ratio is None:
            nn.init.zeros_(self.mask_token)
        else:
            nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, RelativePositionBias):
                module.reset_parameters()
            elif isinstance(module, MDTBlock):
                zero_parameters(module.adaLN_modulation)
        zero_parameters(self.final_layer)

    def position_tables(self) -> dict[str, PositionTable]:
        learned = PositionTable("learned", self.grid)
        return {**super().position_tables(), "pos_embed": learned, "decoder_pos_embed": learned}

    def unused_weights(self) -> list[UnusedWeights]:
        unused = super().unused_weights()
        if self.mask_ratio is None:
            reason = "only masked passes run it, and mask_ratio is None"
            own = [*(f"sideblocks.{name}" for name, _ in self.sideblocks.named_parameters()), "mask_token"]
            unused = [weights for weights in unused if weights.name not in own]
            unused += [UnusedWeights(name, None, reason) for name in own]
        return unused

    def encode(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid) -> Tensor:
        """Run the encoder on all or on the kept tokens: (B, K, D) -> (B, K, D)."""
        raise TypeError(f"{type(self).__name__} does not define encode().")

    def decode(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid, embedded: Tensor) -> Tensor:
        """Run the decoder on all tokens: (B, N, D) -> (B, N, D). `embedded` are the input's tokens."""
        raise TypeError(f"{type(self).__name__} does not define decode().")

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        grid = self.check_inputs(x, t, y, mask)
        if mask is not None and self.mask_ratio is None:
            raise ValueError(
                f"this {type(self).__name__} was built with mask_ratio=None, which freezes its mask token; "
                "build it with a mask_ratio (the papers use 0.3) to run it with a mask."
            )
        c = self.t_embedder(t)  # (B, D)
        if self.y_embedder is not None:
            c = c + self.y_embedder(y)  # (B, D)
        index = relative_position_index(*grid, device=x.device)  # (N, N)
        embedded = self.x_embedder(x) + resize_position_table(self.pos_embed, self.grid, grid)  # (B, N, D)
        decoder_positions = resize_position_table(self.decoder_pos_embed, self.grid, grid)  # (1, N, D)

        if mask is None:
            x = self.encode(embedded, c, index, grid) + decoder_positions  # (B, N, D)
        else:
            x = self.encode(mask.keep(embedded), c, mask.keep_pairs(index), grid)  # (B, K, D)
            x = self._interpolate(mask.restore(x, self.mask_token) + decoder_positions, c, index, grid, mask)
        x = self.decode(x, c, index, grid, embedded)  # (B, N, D)
        x = self.final_layer(x, c)  # (B, N, p * p * C')
        return unpatchify(x, self.patch_size, grid)  # (B, C', H, W)

    def _interpolate(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid, mask: TokenMask) -> Tensor:
        """The side-interpolater (section 3.3): one block guesses the masked tokens; kept ones pass by."""
        guess = self.run_block(self.sideblocks[0], x, c, index, grid)  # (B, N, D)
        masked = mask.mask[..., None].to(x.dtype)  # (B, N, 1)
        return masked * guess + (1 - masked) * x


class MDT(_MaskedDiffusionTransformer):
    """MDT, version 1. Shared options as in `DiffusionTransformer`; defaults are MDT-XL/2's.

    Args:
        mask_ratio: part of the tokens that training masks; None freezes the mask token at zero, and the model
            then takes no mask.
        decode_layer: how many of the `depth` blocks form the decoder, from 1 to `depth`.
    """

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
        mask_ratio: float | None = 0.3,
        decode_layer: int = 2,
    ) -> None:
        super().__init__(locals())
        self.blocks = nn.ModuleList(self._block() for _ in range(depth))
        self.initialize()

    def encode(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid) -> Tensor:
        for block in self.blocks[: -self.decode_layer]:
            x = self.run_block(block, x, c, index, grid)
        return x

    def decode(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid, embedded: Tensor) -> Tensor:
        for block in self.blocks[-self.decode_layer :]:
            x = self.run_block(block, x, c, index, grid)
        return x


class MDTv2(_MaskedDiffusionTransformer):
    """MDTv2. Shared options as in `DiffusionTransformer`; defaults are MDTv2-XL/2's.

    The encoder has two halves of (depth - decode_layer) // 2 blocks joined by long skips; where the difference
    is odd, the original loses a block, and so does this.

    Args:
        mask_ratio: least part of the tokens that training masks, below 0.8 (it draws from mask_ratio to mask_ratio +
            0.2 anew each step); None freezes the mask token at zero, and the model then takes no mask.
        decode_layer: decoder blocks, from 1 to `depth`.
    """

    mask_ratio_spread = 0.2

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
        mask_ratio: float | None = 0.3,
        decode_layer: int = 4,
    ) -> None:
        super().__init__(locals())
        half = (depth - decode_layer) // 2
        self.en_inblocks = nn.ModuleList(self._block() for _ in range(half))
        self.en_outblocks = nn.ModuleList(self._block(skip=True) for _ in range(half))
        self.de_blocks = nn.ModuleList(self._block(skip=True) for _ in range(decode_layer))
        self.initialize()

    def block_names(self) -> list[str]:
        half = range(len(self.en_inblocks))
        return [
            *(f"en_inblocks.{i}" for i in half),
            *(f"en_outblocks.{i}" for i in half),
            *(f"de_blocks.{i}" for i in range(self.decode_layer)),
        ]

    def encode(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid) -> Tensor:
        skips = []
        for block in self.en_inblocks:
            x = self.run_block(block, x, c, index, grid)
            skips.append(x)
        for block in self.en_outblocks:
            x = self.run_block(block, x, c, index, grid, skips.pop())
        return x

    def decode(self, x: Tensor, c: Tensor, index: Tensor, grid: Grid, embedded: Tensor) -> Tensor:
        # In a masked pass the embedded input shows the decoder the noisy content of masked tokens too.
        for block in self.de_blocks:
            x = self.run_block(block, x, c, index, grid, embedded)
        return x


def _published(file: str, revision: str | None = None) -> Checkpoint:
    return Checkpoint(
        config={},
        licence="none stated for the weights; the code is Apache-2.0",
        data="ImageNet-1k at 256x256",
        files=(PublishedFile(name=file, repo_id="shgao/MDT-XL2", revision=revision),),
    )


CHECKPOINTS = {
    "mdt_ti_2": {"digits": digits_checkpoint(replace(DIGITS_RECIPE, mask_ratio=0.3))},
    "mdtv2_ti_2": {
        "digits": digits_checkpoint(replace(DIGITS_RECIPE, mask_ratio=0.3, mask_ratio_spread=MDTv2.mask_ratio_spread))
    },
    # Whether the commit that brought version 2 still has the file of version 1 is not known.
    "mdt_xl_2": {"in256": _published("mdt_xl2_v1_ckpt.pt")},
    "mdtv2_xl_2": {"in256": _published("mdt_xl2_v2_ckpt.pt", revision="84bf27292f9b001c82f2863b55861752ab177507")},
}


#: Section 4.1, with guidance. Version 2 draws its mask ratio from [0.3, 0.5].
RECIPE = Recipe(
    prediction="epsilon",
    schedule="linear",
    variance="learned_range",
    loss="hybrid",
    guidance=Guidance(scale=3.8, channels=3, schedule="power_cosine", power=4.0),
    sampler="ddpm",
    num_inference_steps=250,
    pixel_rule="adm",
    mask_ratio=0.3,
    **SD_VAE,
)
RECIPE_V2 = replace(RECIPE, mask_ratio_spread=MDTv2.mask_ratio_spread, min_snr_gamma=5.0)


def _architecture(
    name: str, model_cls: type[DiffusionTransformer], recipe: Recipe, config: Mapping[str, Any], ours: bool = False
) -> Architecture:
    return Architecture(name, model_cls, config, ours, checkpoints=CHECKPOINTS.get(name, {}), recipe=recipe)


_TINY = {**TINY, "hidden_size": 64, "depth": 3, "num_heads": 4, "decode_layer": 1}
FAMILY = Family(
    name="mdt",
    title="MDT",
    summary="Masked token training with a side-interpolater; version 2 adds long skips.",
    paper="Masked Diffusion Transformer is a Strong Image Synthesizer, arXiv:2303.14389",
    recipe=RECIPE,
    architectures=[
        _architecture("mdt_ti_2", MDT, pixel_recipe(RECIPE), _TINY, ours=True),
        *(_architecture(f"mdt_{size}_2", MDT, RECIPE, options) for size, options in SIZES.items()),
        _architecture("mdtv2_ti_2", MDTv2, pixel_recipe(RECIPE_V2), _TINY, ours=True),
        *(
            _architecture(f"mdtv2_{size}_2", MDTv2, RECIPE_V2, {**options, "decode_layer": 6 if size == "s" else 4})
            for size, options in SIZES.items()
        ),
    ],
)
