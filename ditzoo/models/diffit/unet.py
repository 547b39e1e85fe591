"""The image-space DiffiT (Hatamizadeh et al., arXiv:2312.02139, section 3.2 and appendix H.1).

A U-shaped network over pixels: an encoder and a decoder of several resolutions, each of residual cells in which a
convolution is followed by a DiffiT block inside windows. No official code exists; what the paper leaves open is named
in `DiffiTUNet`.

Letters in shape comments: B batch, C input channels, C' output channels, H and W height and width of the input, h and w
those of a stage's feature map, D its channels, n tokens of a window, T width of the condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ditzoo.layers import LabelEmbedder, RelativePositionBias, TimestepEmbedder, TokenMask, relative_position_index
from ditzoo.models.base import DiffusionTransformer
from ditzoo.models.diffit.latent import DiffiTBlock, Grid
from ditzoo.models.initialization import initialize_like_dit, zero_parameters
from ditzoo.models.options import check_at_least, check_divisible
from ditzoo.models.tables import PositionTable

Joining = Literal["concat", "add"]


class Conv2d(nn.Conv2d):
    """A convolution of feature maps."""

    mac_part = "convolutions"


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of 32 groups, or of fewer where these would be unequal or have less than four channels."""
    most = min(32, max(channels // 4, 1))
    return nn.GroupNorm(next(count for count in range(most, 0, -1) if channels % count == 0), channels)


class DiffiTResBlock(DiffiTBlock):
    """The residual cell: x + Transformer(Conv3x3(Swish(GroupNorm(x))), c), the transformer being a DiffiT block.

    It runs inside windows, which start at the upper left corner of the map. Where they do not divide it, those at the
    lower and right border are cut off.
    """

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float, window: Grid, condition_size: int) -> None:
        super().__init__(channels, num_heads, mlp_ratio, window, condition_size)
        self.norm = group_norm(channels)
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.window = window

    def forward(self, x: Tensor, c: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        """Feature map x (B, D, h, w) and condition c (B, T), with `index` (n, n) of a whole window -> (B, D, h, w)."""
        h = self.conv(F.silu(self.norm(x)))
        strips = [
            _join([self._in_windows(part, c, index) for part in _cut(strip, 3, self.window[1])], 3)
            for strip in _cut(h, 2, self.window[0])
        ]
        return x + _join(strips, 2)

    def _in_windows(self, x: Tensor, c: Tensor, index: Tensor) -> Tensor:
        """The transformer over a part of the map that consists of equal windows, whole ones or cut-off ones."""
        p, q = min(x.shape[2], self.window[0]), min(x.shape[3], self.window[1])
        pairs = index.unflatten(1, self.window).unflatten(0, self.window)  # queries by row and column, then keys
        tokens = rearrange(x, "b d (r p) (s q) -> b (r s p q) d", p=p, q=q).contiguous()  # window after window
        tokens = super().forward(tokens, c, pairs[:p, :q, :p, :q].reshape(p * q, p * q), self.window)
        return rearrange(tokens, "b (r s p q) d -> b d (r p) (s q)", r=x.shape[2] // p, p=p, q=q)


def _cut(x: Tensor, dim: int, size: int) -> list[Tensor]:
    """The part of a map that multiples of `size` fill, and the rest, without an empty one."""
    whole = x.shape[dim] // size * size
    return [part for part in x.tensor_split([whole], dim) if part.shape[dim]]


def _join(parts: list[Tensor], dim: int) -> Tensor:
    """What `_cut` took apart; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class SkipJoin(nn.Module):
    """Joins the encoder's map to the decoder's and matches the channels, by a 1x1 convolution."""

    mac_part = "long skips"

    def __init__(self, channels_before: int, channels: int, how: Joining) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(channels_before + channels * (how == "concat"), channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, D before, h, w) and skip (B, D, h, w) -> (B, D, h, w)."""
        if self.how == "concat":
            return self.conv(torch.cat([x, skip], dim=1))
        return self.conv(x) + skip


class Stage(nn.Module):
    """One resolution of the encoder or decoder: what leads to it, and its cells. The network runs them."""

    def __init__(self, resample: nn.Module, match: nn.Module, blocks: Iterable[DiffiTResBlock]) -> None:
        super().__init__()
        self.resample = resample
        self.match = match
        self.blocks = nn.ModuleList(blocks)


class Head(nn.Module):
    """Group norm, Swish and a 3x3 convolution to the pixels; unconditioned."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.act = nn.SiLU()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, C', H, W)."""
        return self.conv(self.act(self.norm(x)))


class DiffiTUNet(DiffusionTransformer):
    """Image-space DiffiT. Defaults are those of FFHQ-64 in appendix H.1.

    Every pixel is a token: `patch_size` is 1, `hidden_size` and `num_heads` are those of the widest stage, `depth`
    counts all residual cells. These four are no options; the other shared options are as in `DiffusionTransformer`.
    Height and width must halve evenly from stage to stage. Relative positions are those inside a window, so that no
    table depends on the size of the input; at the border of a map that windows do not divide they are cut off.

    Not stated by the paper, and chosen here: the width of heads and MLP, how a skip joins, the groups of the norms, and
    that resampling keeps the channels (its tables read like that). Channels change by a 1x1 convolution at the start of
    a stage; in the decoder it is the one that joins the skip.

    Args:
        channels: of each stage, from the finest to the coarsest.
        blocks: residual cells of each stage in the encoder, and again in the decoder for all but the coarsest. Appendix
            I.1 says [1, 2, 2, 2] for FFHQ-64 and [2, 2, 2] for CIFAR-10, in place of H.1's fours.
        window_size: side of the attention's windows, 2 or more; no larger than the stage's map at `input_size`.
        head_size: channels of an attention head; divides those of every stage.
        condition_size: T, width of the time embedding, and of the label embedding that is added to it.
        skip_join: `"concat"` joins by a 1x1 convolution over both maps, `"add"` by a sum after one over the decoder's.
    """

    has_original = False
    label_table = "y_embedder.embedding_table.weight"
    patch_weight = "x_embedder.weight"

    def __init__(
        self,
        *,
        input_size: int = 64,
        in_channels: int = 3,
        channels: Sequence[int] = (128, 256, 256, 256),
        blocks: Sequence[int] = (4, 4, 4, 4),
        window_size: int = 8,
        head_size: int = 64,
        mlp_ratio: float = 4.0,
        condition_size: int = 512,
        skip_join: Joining = "concat",
        num_classes: int = 0,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
    ) -> None:
        channels, blocks = _numbers("channels", channels), _numbers("blocks", blocks)
        super().__init__(locals(), **_as_transformer(channels, blocks, head_size))
        self._check_options()

        def stage(i: int, resample: nn.Module, match: nn.Module) -> Stage:
            side = min(window_size, input_size >> i)
            cell = channels[i], channels[i] // head_size, mlp_ratio, (side, side), condition_size
            return Stage(resample, match, (DiffiTResBlock(*cell) for _ in range(blocks[i])))

        self.x_embedder = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.t_embedder = TimestepEmbedder(condition_size)
        self.y_embedder = LabelEmbedder(self.num_label_rows, condition_size) if num_classes else None
        self.encoder = nn.ModuleList([stage(0, nn.Identity(), nn.Identity())])
        self.decoder = nn.ModuleList()
        for i, (fine, coarse) in enumerate(pairwise(channels)):
            match = nn.Identity() if fine == coarse else Conv2d(fine, coarse, 1)
            self.encoder.append(stage(i + 1, Conv2d(fine, fine, 3, stride=2, padding=1), match))
            upsampler = nn.Sequential(nn.Upsample(scale_factor=2), Conv2d(coarse, coarse, 3, padding=1))
            self.decoder.insert(0, stage(i, upsampler, SkipJoin(coarse, fine, skip_join)))
        self.final_layer = Head(channels[0], self.head_channels)
        self.initialize()

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.config["channels"]) - 1)

    def block_names(self) -> list[str]:
        return [
            f"{half}.{i}.blocks.{j}"
            for half in ("encoder", "decoder")
            for i, stage in enumerate(getattr(self, half))
            for j in range(len(stage.blocks))
        ]

    def block_tokens(self, output: Tensor) -> Tensor:
        return rearrange(output, "b d h w -> b (h w) d")

    def initialize_weights(self) -> None:
        """DiT's draws, for convolutions too, and 0.02 for the bias tables; the last layer is zero, so the output is
        too."""
        initialize_like_dit(self)
        for module in self.modules():
            if isinstance(module, RelativePositionBias | nn.GroupNorm):
                module.reset_parameters()
        zero_parameters(self.final_layer.conv)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        self.check_inputs(x, t, y, mask)
        c = self.t_embedder(t)  # (B, T)
        if self.y_embedder is not None:
            c = c + self.y_embedder(y)  # (B, T)
        x = self.x_embedder(x)  # (B, D, H, W)
        skips: list[Tensor] = []
        stage: Any
        for stage in self.encoder:
            x = self._run_stage(stage, stage.match(stage.resample(x)), c)  # (B, D, h, w)
            skips.append(x)
        skips.pop()  # of the coarsest stage, which the decoder starts from
        for stage in self.decoder:
            x = self._run_stage(stage, stage.match(stage.resample(x), skips.pop()), c)  # (B, D, h, w)
        return self.final_layer(x)  # (B, C', H, W)

    def position_tables(self) -> dict[str, PositionTable]:
        return {name: replace(table, kind="window") for name, table in super().position_tables().items()}

    def _run_stage(self, stage: Any, x: Tensor, c: Tensor) -> Tensor:
        rows, columns = stage.blocks[0].window
        index = relative_position_index(rows, columns, device=x.device)  # (n, n)
        for block in stage.blocks:
            x = self.run_block(block, x, c, index)
        return x

    def _check_options(self) -> None:
        config, name = self.config, type(self).__name__
        check_at_least(name, "window_size", config["window_size"], 2)
        check_at_least(name, "condition_size", config["condition_size"], 1)
        if config["skip_join"] not in get_args(Joining):
            choices = ", ".join(get_args(Joining))
            raise ValueError(f"{name}: unknown skip_join {config['skip_join']!r}; choose one of {choices}.")
        if int(min(config["channels"]) * config["mlp_ratio"]) < 1:
            raise ValueError(f"{name}: mlp_ratio {config['mlp_ratio']} leaves the narrowest MLP no width; use 4.")
        check_divisible(name, "input_size", self.input_size, "the total downsampling", self.downsampling)
        if self.input_size == self.downsampling:
            raise ValueError(
                f"{name}: input_size {self.input_size} leaves the last of {len(config['channels'])} stages a single "
                f"token, which has nothing to attend to; use {2 * self.downsampling} or fewer stages."
            )


def _numbers(option: str, values: Sequence[int]) -> list[int]:
    """One number a stage, as a list, which is what JSON has."""
    if not isinstance(values, list | tuple) or not values:
        raise TypeError(f"DiffiTUNet: {option} must be a list of integers, one for each stage, got {values!r}.")
    for value in values:
        check_at_least("DiffiTUNet", option, value, 1)
    return list(values)


def _as_transformer(channels: list[int], blocks: list[int], head_size: int) -> dict[str, int]:
    """The options of a plain transformer: those of the widest stage, and all cells."""
    if len(channels) != len(blocks):
        raise ValueError(
            f"DiffiTUNet: channels {channels} and blocks {blocks} are for {len(channels)} and {len(blocks)} stages; "
            "give both one number a stage."
        )
    check_at_least("DiffiTUNet", "head_size", head_size, 1)
    for width in channels:
        check_divisible("DiffiTUNet", "channels", width, "head_size", head_size)
    widest, depth = max(channels), sum(blocks) + sum(blocks[:-1])
    return {"patch_size": 1, "hidden_size": widest, "depth": depth, "num_heads": widest // head_size}


#: CIFAR-10 and FFHQ-64 (appendix H.1, tables S.2 and S.3), and a tiny one, ours.
UNET_SIZES: dict[str, dict[str, Any]] = {
    "ti": {
        "input_size": 8,
        "in_channels": 1,
        "channels": [32, 64],
        "blocks": [2, 2],
        "window_size": 4,
        "head_size": 16,
        "condition_size": 64,
        "num_classes": 10,
    },
    "32": {"input_size": 32, "channels": [128, 256, 256], "blocks": [4, 4, 4], "window_size": 4},
    "64": {"input_size": 64, "channels": [128, 256, 256, 256], "blocks": [4, 4, 4, 4], "window_size": 8},
}
