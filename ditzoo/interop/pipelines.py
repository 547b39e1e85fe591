"""diffusers' `DiTPipeline` in memory, of any model whose images it draws as ditzoo does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ditzoo.interop.dit import is_expressible, to_diffusers
from ditzoo.interop.package import import_diffusers
from ditzoo.interop.schedulers import make_scheduler
from ditzoo.interop.transformer import PIPELINE_NULL_LABEL, DiffusersTransformer
from ditzoo.media import LatentCodec
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe


def make_pipeline(
    model: DiffusionTransformer, recipe: Recipe, codec: LatentCodec, label_names: Iterable[str] | None = None
) -> Any:
    """The `DiTPipeline` of a model, its recipe and its autoencoder.

    A DiT that is told a scheduler's timesteps becomes diffusers' own class, changed so that it computes what `model`
    does; every other model stands in as a `DiffusersTransformer`, which translates times and labels.

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        ValueError: for a schedule whose scheduler the pipeline cannot drive, classes of which it takes one for the null
            label, or latents that it would scale in another way.
    """
    diffusers = import_diffusers("to_diffusers")
    _check_schedule(recipe)
    _check_classes(model)
    _check_codec(codec)
    transformer: Any = DiffusersTransformer(model, recipe)
    tells_timesteps = recipe.is_discrete and recipe.time_scale == 1 and recipe.time_offset == 0
    if tells_timesteps and model.num_classes == PIPELINE_NULL_LABEL and is_expressible(model):
        transformer = to_diffusers(model, patch=True)
    return diffusers.DiTPipeline(
        transformer=transformer,
        vae=codec.autoencoder,
        scheduler=make_scheduler(recipe),
        id2label=None if label_names is None else dict(enumerate(label_names)),
    )


def _check_schedule(recipe: Recipe) -> None:
    if not (recipe.is_discrete or recipe.schedule == "continuous_vp"):
        raise ValueError(
            f"DiTPipeline cannot sample schedule {recipe.schedule!r}, only linear, scaled_linear, cosine and "
            "continuous_vp: it cannot drive the schedulers of flows and EDM. Sample with ditzoo's own pipeline; "
            "flow_linear also with DiffusersTransformer and make_scheduler in a loop of your own (docs/diffusers.md)."
        )


def _check_classes(model: DiffusionTransformer) -> None:
    if model.num_classes > PIPELINE_NULL_LABEL:
        raise ValueError(
            f"DiTPipeline takes label {PIPELINE_NULL_LABEL} for no class, and that is one of the model's "
            f"{model.num_classes} classes, which it would guide away from. Sample with ditzoo's own pipeline."
        )


def _check_codec(codec: LatentCodec) -> None:
    if codec.shift != 0:
        raise ValueError(
            f"DiTPipeline has no place for the shift {codec.shift:g} of the latents of {codec.name}. Sample with "
            "ditzoo's own pipeline."
        )
    theirs = codec.autoencoder.config.scaling_factor
    if not math.isclose(codec.scale, theirs, rel_tol=1e-6):
        raise ValueError(
            f"DiTPipeline would divide latents by {theirs:g}, the scaling_factor in the configuration of {codec.name}, "
            f"and these are scaled by {codec.scale:g}. Where that is right, say so in the configuration: "
            f"codec.autoencoder.register_to_config(scaling_factor={codec.scale!r})."
        )
