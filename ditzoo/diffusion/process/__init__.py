"""From data to noise and back: one class for each kind of process."""

from __future__ import annotations

from typing import Any

from ditzoo.diffusion.process.base import LOG_SNR_LIMIT, Estimate, Process, Spacing
from ditzoo.diffusion.process.continuous import EDM, ContinuousVP, FlowMatching
from ditzoo.diffusion.process.gaussian import GaussianDiffusion, ReverseStep
from ditzoo.recipe import Recipe

__all__ = [
    "EDM",
    "LOG_SNR_LIMIT",
    "ContinuousVP",
    "Estimate",
    "FlowMatching",
    "GaussianDiffusion",
    "Process",
    "ReverseStep",
    "Spacing",
    "make_process",
]


def make_process(recipe: Recipe) -> Process:
    """The process that a recipe's schedule names."""
    process: Process
    if recipe.is_discrete:
        process = GaussianDiffusion(recipe)
    elif recipe.is_flow:
        path: Any = recipe.schedule.removeprefix("flow_")
        process = FlowMatching(path, recipe.prediction, recipe.time_scale, recipe.time_offset, recipe.loss_weighting)
    elif recipe.schedule == "edm":
        process = EDM(recipe.prediction)
    else:
        process = ContinuousVP(recipe.prediction, recipe.time_scale, recipe.time_offset)
    if recipe.end_time is not None:
        process.end = recipe.end_time
    if recipe.time_distribution == "logit_normal":
        process.logit_normal = recipe.time_mean, recipe.time_std
    return process
