"""Pipelines of tiny models for tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import ditzoo
from ditzoo.diffusion import GaussianDiffusion, ddim_sample, guide, sample_noise
from ditzoo.media import LabelNames
from ditzoo.models.digits import DIGITS_EDM_RECIPE, DIGITS_FLOW_RECIPE, DIGITS_RECIPE
from ditzoo.pipeline import Pipeline
from ditzoo.recipe import Recipe
from tests.zoo import lively

#: the tiny models that come with weights
PACKAGED = [name for name in ditzoo.list_models(pretrained=True) if ditzoo.model_info(name).packaged]
#: few steps, so that tests are quick
QUICK = replace(DIGITS_RECIPE, num_inference_steps=4)
QUICK_FLOW = replace(DIGITS_FLOW_RECIPE, num_inference_steps=4)
QUICK_EDM = replace(DIGITS_EDM_RECIPE, num_inference_steps=4)


@cache
def tiny(name: str = "dit_ti_2", **options: object) -> Pipeline:
    """With random weights in which everything has an effect."""
    recipe = QUICK_FLOW if name.startswith("sit") else QUICK_EDM if "unet" in name else QUICK
    model = lively(name, **options)
    return Pipeline(model, recipe, label_names=LabelNames.digits() if model.num_classes == 10 else None, name=name)


def by_hand(pipeline: Pipeline, labels, recipe: Recipe, seed: int, indices):
    """What DDIM gives without the pipeline."""
    model = pipeline.model
    shape = (model.in_channels, model.input_size, model.input_size)
    guided = guide(model, recipe.guidance, model.null_label)
    noise = sample_noise(seed, indices, shape)
    return ddim_sample(guided, GaussianDiffusion(recipe), noise, labels, num_inference_steps=recipe.num_inference_steps)
