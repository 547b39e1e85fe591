"""Noise schedules of discrete diffusion, and which of their timesteps a shorter process keeps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ditzoo.recipe import Schedule


def make_betas(schedule: Schedule, num_timesteps: int) -> Tensor:
    """Variances of the forward process's steps, (T,) float64.

    `"linear"` is DDPM's (arXiv:2006.11239) stretched to T steps, `"scaled_linear"` Stable Diffusion's, and
    `"cosine"` eq. 17 of arXiv:2102.09672.

    Raises:
        ValueError: for a schedule that is no table, or so few steps that a variance leaves (0, 1).
    """
    betas = _betas(schedule, num_timesteps) if num_timesteps > 0 else torch.ones(1)
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"{num_timesteps} timesteps are too few for the {schedule} schedule; the papers use 1000.")
    return betas


def _betas(schedule: Schedule, num_timesteps: int) -> Tensor:
    if schedule == "linear":
        stretch = 1000 / num_timesteps
        return torch.linspace(1e-4 * stretch, 0.02 * stretch, num_timesteps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(0.00085**0.5, 0.012**0.5, num_timesteps, dtype=torch.float64) ** 2
    if schedule == "cosine":

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        edges = [alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(edges)]
        return torch.tensor(betas, dtype=torch.float64)
    raise ValueError(f"schedule {schedule!r} has no table of betas; choose linear, scaled_linear or cosine.")


def space_timesteps(num_timesteps: int, spacing: int | str | Sequence[int]) -> list[int]:
    """Which of T timesteps a shorter process keeps, in ascending order, as in arXiv:2102.09672 and ADM.

    Args:
        num_timesteps: T.
        spacing: how many, spread evenly with both ends kept; `"10,15,20"` or `[10, 15, 20]` splits the T timesteps
            into as many equal sections and keeps that many of each; `"ddim50"` keeps every (T / 50)th from 0 on.

    Raises:
        ValueError: for no or more timesteps than there are, or a stride of DDIM that no integer gives.
    """
    if isinstance(spacing, str) and spacing.startswith("ddim"):
        return _strided(num_timesteps, _whole(spacing.removeprefix("ddim"), spacing))
    if isinstance(spacing, str):
        counts = [_whole(part, spacing) for part in spacing.split(",")]
    else:
        counts = [spacing] if isinstance(spacing, int) else list(spacing)
    if not counts:
        raise ValueError(f"spacing {spacing!r} keeps no timesteps; give how many to keep, 1 to {num_timesteps}.")
    size, longer = divmod(num_timesteps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 1 <= count <= length:
            raise ValueError(
                f"cannot keep {count} of {length} timesteps (spacing {spacing!r} of {num_timesteps}); give 1 to "
                f"{length}."
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0  # summed up step by step and rounded half to even, as the recorded timesteps are
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return kept


def _strided(num_timesteps: int, count: int) -> list[int]:
    for stride in range(1, num_timesteps):
        kept = list(range(0, num_timesteps, stride))
        if len(kept) == count:
            return kept
    raise ValueError(f"no whole stride keeps {count} of {num_timesteps} timesteps; try a divisor of {num_timesteps}.")


def _whole(text: str, spacing: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"spacing {spacing!r} is not understood; give a number of timesteps, '10,15,20' or 'ddim50'."
        ) from None
