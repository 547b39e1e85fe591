"""Recipes and weights in words, for `ditzoo info`, the report of the benchmark and the tables of the documentation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from typing import NamedTuple

from torch import nn

from ditzoo.layers import UnusedWeights
from ditzoo.models import PublishedFile
from ditzoo.recipe import Guidance, Recipe
from ditzoo.weights import PublishedResult


def unusual(settings: Recipe | Guidance, known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names and values of what differs from its default and is not `known`: fields for which there are no words."""
    for field in fields(settings):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(settings, field.name)
        if field.name not in known and value != default:
            yield field.name.replace("_", " "), str(value)


def guidance_formula(guidance: Guidance) -> str:
    """`u + 1.5 (c - u)`, with s for a scale that varies; c and u as in `Guidance`."""
    base = "u" if guidance.convention == "dit" else "c"
    scale = f"{guidance.scale:g}" if guidance.schedule == "constant" else "s"
    return f"{base} + {scale} (c - u)"


def guided_channels(guidance: Guidance, in_channels: int | None = None) -> str:
    """`all channels` or `first 3 channels`, of a network with `in_channels` where these are given."""
    count = guidance.channels
    return "all channels" if count is None or (in_channels and count >= in_channels) else f"first {count} channels"


def guidance_in_words(guidance: Guidance, timesteps: int, in_channels: int) -> str:
    """Formula, channels and schedule of the guidance of a network with `in_channels`; `none` where it is off."""
    if guidance.is_off:
        return "none"
    text = f"{guidance_formula(guidance)} on {guided_channels(guidance, in_channels).replace('first', 'the first')}"
    if guidance.schedule == "power_cosine":
        off = 1 if guidance.convention == "dit" else 0
        rise = f"{guidance.scale - off:g} (1 - cos(pi (1 - t / {timesteps})^{guidance.power:g})) / 2"
        text += f", s = {f'{off} + ' * bool(off)}{rise}, from {off} in noise to {guidance.scale:g} at t = 0"
    others = unusual(guidance, {"scale", "convention", "channels", "schedule", "power"})
    return "; ".join([text, *(f"{name} {value}" for name, value in others)])


def mask_ratio(recipe: Recipe) -> str:
    """`0.3`, `0.3 to 0.5` where it is drawn, or `none`."""
    if recipe.mask_ratio is None:
        return "none"
    most = f" to {recipe.mask_ratio + recipe.mask_ratio_spread:g}" if recipe.mask_ratio_spread else ""
    return f"{recipe.mask_ratio:g}{most}"


def file_facts(file: PublishedFile) -> str:
    """`7 bytes; sha256 and revision not verified`; only files of the Hub have revisions."""
    facts = {
        "size": file.num_bytes and f"{file.num_bytes:,} bytes",
        "sha256": file.sha256 and f"sha256 {file.sha256}",
        "revision": file.revision and f"revision {file.revision}",
    }
    if file.repo_id is None:
        del facts["revision"]
    known = [fact for fact in facts.values() if fact]
    unknown = [name for name, fact in facts.items() if not fact]
    last = " and ".join(filter(None, [", ".join(unknown[:-1]), *unknown[-1:]]))
    return "; ".join([*known, *([f"{last} not verified"] if last else [])])


def result_settings(result: PublishedResult) -> str:
    """Guidance and sampler of a printed result: `guidance 1.50, first 3 channels; 250 DDPM`."""
    guidance = "no guidance" if result.guidance == "none" else f"guidance {result.guidance}"
    return "; ".join(filter(None, [guidance, result.sampler]))


def score(value: float) -> str:
    """With two digits behind the point, as papers print it, or more where there are more."""
    return max(f"{value:.2f}", f"{value:g}", key=len)


class UnusedGroup(NamedTuple):
    """Weights without effect that are the same in several layers: which rows of each, as `4 to 7, 12 to 15` or None
    for all, how many these are, the shape of each, and why."""

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
