"""The tiny models of every family: digits in, for tests, teaching and the quick benchmark."""

from __future__ import annotations

from typing import Any

from ditzoo.models.families import Checkpoint
from ditzoo.recipe import Guidance, Recipe

#: Their options, in every family.
TINY: dict[str, Any] = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "num_classes": 10,
    "learn_sigma": False,
}

#: How the tiny models learn the digits, in the quick benchmark and for the weights that come with ditzoo.
DIGITS_RECIPE = Recipe(
    prediction="v_prediction",
    schedule="cosine",
    guidance=Guidance(scale=1.5),
    sampler="ddim",
    num_inference_steps=25,
)
#: The same for families that learn by flow matching, with as many evaluations a sample.
DIGITS_FLOW_RECIPE = Recipe(
    prediction="velocity",
    schedule="flow_linear",
    guidance=Guidance(scale=1.5),
    sampler="euler",
    num_inference_steps=25,
)
#: The same for families that learn by EDM: 25 evaluations in 13 steps.
DIGITS_EDM_RECIPE = Recipe(
    prediction="edm",
    schedule="edm",
    guidance=Guidance(scale=1.5),
    sampler="edm_heun",
    num_inference_steps=13,
)
DIGITS_DATA = "1,297 handwritten digits of 8x8 pixels, scikit-learn's load_digits"


def digits_checkpoint(recipe: Recipe = DIGITS_RECIPE) -> Checkpoint:
    """Packaged weights of a tiny model."""
    return Checkpoint(
        config={},
        licence="Apache-2.0",
        data=DIGITS_DATA,
        source="packaged with ditzoo; benchmarks/train_digits_weights.py trains them",
        ema=True,
        recipe=recipe,
        packaged=True,
    )
