"""DiT: scalable diffusion models with transformers (Peebles and Xie, arXiv:2212.09748).

A plain vision transformer over patches. Time and class reach every block through adaptive layer norm whose
gates start at zero ("adaLN-Zero", section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditzoo.layers import (
    AdaLNFinalLayer,
    AdaLNZeroBlock,
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    TokenMask,
    frozen_positions,
    sincos_position_table,
    unpatchify,
)
from ditzoo.models.base import (
    TINY,
    Architecture,
    Checkpoint,
    DiffusionTransformer,
    Family,
    initialize_like_dit,
    zero_parameters,
)


class DiT(DiffusionTransformer):
    """DiT with adaLN-Zero conditioning. Options as in `DiffusionTransformer`; defaults are DiT-XL/2's."""

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
        self.blocks = nn.ModuleList(AdaLNZeroBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = AdaLNFinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize()

    def initialize_weights(self) -> None:
        """Xavier and normal draws; every modulation and the last layer are zero, so the output is too."""
        initialize_like_dit(self)
        self.pos_embed.data.copy_(sincos_position_table(self.hidden_size, self.grid))
        zero_parameters(
            self.final_layer, *(m.adaLN_modulation for m in self.modules() if isinstance(m, AdaLNZeroBlock))
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        grid = self.check_inputs(x, t, y, mask)
        c = self.t_embedder(t)  # (B, D)
        if self.y_embedder is not None:
            c = c + self.y_embedder(y)  # (B, D)
        x = self.x_embedder(x) + frozen_positions(self.pos_embed, self.grid, grid)  # (B, N, D)
        for block in self.blocks:
            x = self.run_block(block, x, c)  # (B, N, D)
        x = self.final_layer(x, c)  # (B, N, p * p * C')
        return unpatchify(x, self.patch_size, grid)  # (B, C', H, W)


SIZES = {
    "s": {"depth": 12, "hidden_size": 384, "num_heads": 6},
    "b": {"depth": 12, "hidden_size": 768, "num_heads": 12},
    "l": {"depth": 24, "hidden_size": 1024, "num_heads": 16},
    "xl": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
}

_LICENCE = "CC-BY-NC-4.0"
CHECKPOINTS = {
    "dit_xl_2": {
        "in256": Checkpoint(
            config={"input_size": 32},
            source="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
            licence=_LICENCE,
            data="ImageNet-1k at 256x256",
        ),
        "in512": Checkpoint(
            config={"input_size": 64},
            source="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt",
            licence=_LICENCE,
            data="ImageNet-1k at 512x512",
        ),
    },
}

FAMILY = Family(
    name="dit",
    title="DiT",
    summary="A plain vision transformer conditioned through adaptive layer norm (adaLN-Zero).",
    paper="Scalable Diffusion Models with Transformers, arXiv:2212.09748",
    architectures=[
        Architecture("dit_ti_2", DiT, {**TINY, "depth": 4, "hidden_size": 64, "num_heads": 4}, ours=True),
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
    ],
)
