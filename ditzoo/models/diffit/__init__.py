"""DiffiT: diffusion vision transformers (Hatamizadeh et al., arXiv:2312.02139), latent and in image space."""

from __future__ import annotations

from dataclasses import replace

from ditzoo.models.base import TINY, Architecture, Family, pixel_recipe
from ditzoo.models.diffit.latent import CHECKPOINTS, RECIPE, DiffiT
from ditzoo.models.diffit.unet import UNET_SIZES, DiffiTUNet
from ditzoo.models.dit import SIZES
from ditzoo.recipe import Guidance

__all__ = ["FAMILY", "DiffiT", "DiffiTUNet"]

# PLACEHOLDER: the authors train and sample by EDM, with 18 and 40 Heun steps, which a recipe cannot state yet.
UNET_RECIPES = dict.fromkeys(UNET_SIZES, replace(pixel_recipe(RECIPE), guidance=Guidance()))

_TINY = {**TINY, "depth": 4, "hidden_size": 80, "num_heads": 4}
FAMILY = Family(
    name="diffit",
    title="DiffiT",
    summary="Time-dependent self-attention in place of adaptive layer norm, with a relative-position bias.",
    paper="DiffiT: Diffusion Vision Transformers for Image Generation, arXiv:2312.02139",
    recipe=RECIPE,
    architectures=[
        Architecture("diffit_ti_2", DiffiT, _TINY, ours=True, recipe=pixel_recipe(RECIPE)),
        # Only XL is published; the smaller ones take DiT's sizes.
        *(Architecture(f"diffit_{size}_2", DiffiT, SIZES[size], ours=True) for size in ("s", "b", "l")),
        Architecture("diffit_xl_2", DiffiT, SIZES["xl"], checkpoints=CHECKPOINTS),
        *(
            Architecture(f"diffit_unet_{size}", DiffiTUNet, options, ours=size == "ti", recipe=UNET_RECIPES[size])
            for size, options in UNET_SIZES.items()
        ),
    ],
)
