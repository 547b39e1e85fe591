"""What one call of a pipeline changes in the recipe of its weights."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ditzoo.diffusion import get_sampler
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Guidance, Recipe, Sampler

#: what `settings_of` takes beside recipe and model
SETTINGS = ("sampler", "num_inference_steps", "guidance_scale", "guidance", "sampler_options")


def settings_of(
    recipe: Recipe,
    model: DiffusionTransformer,
    *,
    sampler: Sampler | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance: Guidance | None = None,
    sampler_options: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe with what the caller changes: the settings that are saved with the samples.

    Another sampler starts from its own defaults. A model without a null label is sampled without the recipe's
    classifier-free guidance, and refuses one that is asked for.

    Raises:
        ValueError: for a sampler that does not go with the schedule, a step count out of range, guidance that the model
            cannot have, both a scale and a guidance, or a value that is no choice of its option.
        TypeError: for an option that the sampler does not have, or a value of the wrong type.
    """
    changes: dict[str, Any] = {}
    if sampler is not None and sampler != recipe.sampler:
        changes |= {"sampler": sampler, "sampler_options": {}}
    if num_inference_steps is not None:
        changes["num_inference_steps"] = check_whole("num_inference_steps", num_inference_steps, least=1)
    if sampler_options is not None:
        changes["sampler_options"] = sampler_options
    changes["guidance"] = _guidance(recipe, model, guidance_scale, guidance)
    settings = replace(recipe, **changes)
    get_sampler(settings)  # refuses wrong options
    return settings


def _guidance(recipe: Recipe, model: DiffusionTransformer, scale: float | None, guidance: Guidance | None) -> Guidance:
    if scale is not None and guidance is not None:
        raise ValueError("give guidance_scale or guidance, not both: a Guidance has a scale of its own.")
    if guidance is not None:
        if guidance.channels is not None and guidance.channels > model.in_channels:
            raise ValueError(
                f"{guidance.channels} guided channels are more than the model's {model.in_channels}; give that many, "
                "or None for all."
            )
        return guidance
    if scale is not None:
        chosen = replace(recipe.guidance, scale=scale)
        if advice := other_convention(chosen):
            warnings.warn(advice, stacklevel=_callers())
        return chosen
    if recipe.guidance.kind == "classifier_free" and model.null_label is None:
        return replace(recipe.guidance, scale=recipe.guidance.off)
    return recipe.guidance


def _callers() -> int:
    """How many calls lie between `warnings.warn` and the code that uses ditzoo."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == "ditzoo":
        frame, level = frame.f_back, level + 1
    return level


def check_whole(what: str, value: object, least: int) -> int:
    """`value`, of whatever kind of whole number it is.

    Raises:
        TypeError: for anything else.
        ValueError: for a number below `least`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be a whole number, got {value!r}.")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{what} must be {least} or more, got {number}.")
    return number


def other_convention(guidance: Guidance) -> str | None:
    """A hint where a scale looks like one of the other convention; None where it looks right."""
    scale = guidance.scale
    if guidance.convention == "dit" and 0 <= scale < 1:
        return (
            f"guidance_scale {scale:g} weakens the label: these weights are guided by u + s (c - u), which is off at "
            f"1. If you mean {scale:g} as U-ViT counts it, c + w (c - u), give {scale + 1:g}."
        )
    if guidance.convention == "uvit" and scale > 1:
        return (
            f"guidance_scale {scale:g} is {scale + 1:g} as DiT counts it: these weights are guided by c + w (c - u), "
            f"which is off at 0. If you mean DiT's {scale:g}, u + s (c - u), give {scale - 1:g}."
        )
    return None
