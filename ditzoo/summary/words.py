"""Recipes and weights in words, for `ditzoo info` and for the tables of the documentation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from ditzoo.layers import UnusedWeights
from ditzoo.recipe import Guidance, Recipe


def guidance_formula(guidance: Guidance) -> str:
    """`u + 1.5 (c - u)`, with s for a scale that varies; c and u as in `Guidance`."""
    base = "u" if guidance.convention == "dit" else "c"
    scale = f"{guidance.scale:g}" if guidance.schedule == "constant" else "s"
    return f"{base} + {scale} (c - u)"


def guided_channels(guidance: Guidance, in_channels: int | None = None) -> str:
    """`all channels` or `first 3 channels`, of a network with `in_channels` where these are given."""
    count = guidance.channels
    return "all channels" if count is None or (in_channels and count >= in_channels) else f"first {count} channels"


def mask_ratio(recipe: Recipe) -> str:
    """`0.3`, `0.3 to 0.5` where it is drawn, or `none`."""
    if recipe.mask_ratio is None:
        return "none"
    most = f" to {recipe.mask_ratio + recipe.mask_ratio_spread:g}" if recipe.mask_ratio_spread else ""
    return f"{recipe.mask_ratio:g}{most}"


class UnusedGroup(NamedTuple):
    """Weights without effect that are the same in several layers.

    Attributes:
        names: of the parameters.
        rows: which rows of each have no effect, as `4 to 7, 12 to 15`; None for all.
        row_count: how many these are.
        shape: of one parameter.
        reason: why.
    """

    names: list[str]
    rows: str | None
    row_count: int
    shape: tuple[int, ...]
    reason: str

    @property
    def name(self) -> str:
        """`blocks.*.attn.qkv.bias`, or `*.attn.qkv.bias` where they are in several lists."""
        lists = {_at_last_number(name)[0] for name in self.names}
        prefix = next(iter(lists)) if len(lists) == 1 else ""
        return f"{prefix}.*.".removeprefix(".") * bool(any(lists)) + _at_last_number(self.names[0])[1]

    @property
    def values(self) -> int:
        """Weights without effect in all parameters together."""
        return len(self.names) * self.row_count * math.prod(self.shape[1:])


def unused_groups(model: nn.Module, unused: Iterable[UnusedWeights]) -> list[UnusedGroup]:
    """What `unused_weights()` of a model tells, like layers together."""
    groups: dict[tuple[object, ...], UnusedGroup] = {}
    for name, rows, reason in unused:
        shape = tuple(model.get_parameter(name).shape)
        words = None if rows is None else _ranges(rows)
        key = (_at_last_number(name)[1], words, shape, reason)
        groups.setdefault(key, UnusedGroup([], words, shape[0] if rows is None else len(rows), shape, reason))
        groups[key].names.append(name)
    return list(groups.values())


def _at_last_number(name: str) -> tuple[str, str]:
    """`blocks` and `attn.qkv.bias` of `blocks.3.attn.qkv.bias`; a name without a number has no first part."""
    match = re.fullmatch(r"(.*)\.\d+\.(.*)", name)
    return (match[1], match[2]) if match else ("", name)


def _ranges(rows: Iterable[int]) -> str:
    """`4 to 7, 12 to 15`."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in runs)
