"""Networks that are built unlike any of the zoo."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ditzoo.layers import Attention, LabelEmbedder, Mlp, PatchEmbed, TimestepEmbedder, unpatchify
from ditzoo.models import DiffusionTransformer


class ParallelBlock(nn.Module):
    """Attention and MLP side by side, the condition first, and handed on: nothing like the zoo's blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n1, self.n2, self.up, self.down = nn.LayerNorm(width), nn.LayerNorm(width), Mlp(width, 2.0), Mlp(width, 1)
        self.shift = nn.Linear(width, width)

    def forward(self, cond: Tensor, *, tokens: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if skip is not None:
            tokens = tokens + skip
        tokens = tokens + self.shift(cond)[:, None]
        return tokens + self.up(self.n1(tokens)) + self.down(self.n2(tokens)), cond


class Foreign(DiffusionTransformer):
    supports_masking = True

    def __init__(
        self,
        *,
        input_size: int = 8,
        patch_size: int = 2,
        in_channels: int = 1,
        hidden_size: int = 32,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        wiring: str = "plain",
    ) -> None:
        super().__init__(locals())
        self.wiring = wiring
        self.mask_ratio = 0.5 if wiring == "masked" else None
        self.cut, self.clock = PatchEmbed(patch_size, in_channels, hidden_size), TimestepEmbedder(hidden_size)
        self.names = LabelEmbedder(self.num_label_rows, hidden_size)
        self.blocks = nn.ModuleList(ParallelBlock(hidden_size) for _ in range(depth))
        self.out = nn.Linear(hidden_size, patch_size**2 * in_channels)
        self.masked_out = nn.Linear(hidden_size, patch_size**2 * in_channels)

    def initialize_weights(self) -> None:
        pass

    def forward(self, x, t, y=None, *, mask=None):
        grid = self.check_inputs(x, t, y, mask)
        x, c = self.cut(x), F.silu(self.clock(t) + self.names(y))
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            skip = None
            match self.wiring:
                case "in order" if i >= self.depth // 2:
                    skip = skips.pop(0)
                case "apart" if i >= self.depth // 2:
                    skip = skips.pop()
                case "each" if i:
                    skip = skips[0]
                case "one" if i == self.depth // 2:
                    skip = skips[2]
                case "last but one" if i > 1:
                    skip = skips[i - 2]
            x, c = block(c, tokens=x, skip=skip)
            if i < self.depth // 2 or self.wiring == "last but one":
                skips.append(x)
                if self.wiring == "apart":
                    x = x + c[:, None]
        return unpatchify((self.out if mask is None else self.masked_out)(x), self.patch_size, grid)


class WindowedBlock(nn.Module):
    """A convolution, then attention inside windows of 4x4 that the condition shifts, around a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.attn, self.shift = Attention(width, 4), nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv(F.silu(self.norm(x)))
        rows = h.shape[2] // 4
        tokens = rearrange(h, "b d (r p) (s q) -> (b r s) (p q) d", p=4, q=4)
        tokens = self.attn(tokens + self.shift(c)[:, None])
        return x + rearrange(tokens, "(b r s) (p q) d -> b d (r p) (s q)", r=rows, s=rows, p=4, q=4)


class UShaped(DiffusionTransformer):
    """Stages at falling and rising resolutions; skips join by concatenation, or by a scaled sum, one a block."""

    def __init__(
        self,
        *,
        input_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 3,
        hidden_size: int = 32,
        depth: int = 8,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        concatenate: bool = True,
    ) -> None:
        super().__init__(locals())
        self.concatenate = concatenate
        self.tokenizer = nn.Conv2d(in_channels, hidden_size, 3, padding=1)
        self.clock, self.names = TimestepEmbedder(hidden_size), LabelEmbedder(self.num_label_rows, hidden_size)
        self.encoder, self.decoder = (
            nn.ModuleList(nn.ModuleList(WindowedBlock(hidden_size) for _ in range(2)) for _ in range(2)) for _ in "ab"
        )
        self.down = nn.Conv2d(hidden_size, hidden_size, 3, stride=2, padding=1)
        self.up = nn.Conv2d(hidden_size, hidden_size, 3, padding=1)
        self.merge = nn.ModuleList(nn.Conv2d(2 * hidden_size, hidden_size, 1) for _ in range(4))
        self.head = nn.Conv2d(hidden_size, in_channels, 3, padding=1)

    def initialize_weights(self) -> None:
        pass

    def block_names(self) -> list[str]:
        return [f"{side}.{i}.{j}" for side in ("encoder", "decoder") for i in range(2) for j in range(2)]

    def forward(self, x, t, y=None, *, mask=None):
        self.check_inputs(x, t, y, mask)
        c, x, skips = self.clock(t) + self.names(y), self.tokenizer(x), []
        for stage, blocks in enumerate(self.encoder):
            for block in blocks:
                x = self.run_block(block, x, c)
                skips.append(x)
            x = self.down(x) if stage == 0 else x
        for stage, blocks in enumerate(self.decoder):
            for place, block in enumerate(blocks):
                skip = skips.pop()
                x = self.merge[2 * stage + place](torch.cat([x, skip], 1)) if self.concatenate else (x + skip) / 2
                x = self.run_block(block, x, c)
            x = self.up(F.interpolate(x, scale_factor=2)) if stage == 0 else x
        return self.head(F.silu(x))
