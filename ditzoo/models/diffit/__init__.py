"""DiffiT: diffusion vision transformers (Hatamizadeh et al., arXiv:2312.02139), latent and in image space."""

from __future__ import annotations

from dataclasses import replace

from ditzoo.models.diffit.latent import CHECKPOINTS, RECIPE, DiffiT
from ditzoo.models.diffit.unet import UNET_SIZES, DiffiTUNet
from ditzoo.models.digits import DIGITS_EDM_RECIPE, TINY, digits_checkpoint
from ditzoo.models.dit import SIZES
from ditzoo.models.families import Architecture, Family, pixel_recipe
from ditzoo.recipe import Recipe

__all__ = ["FAMILY", "DiffiT", "DiffiTUNet"]

#: Appendix H.1: EDM, deterministic, with 18 steps for CIFAR-10 and 40 for FFHQ-64.
EDM_RECIPE = Recipe(prediction="edm", schedule="edm", sampler="edm_heun", num_inference_steps=18)
UNET_RECIPES = {**dict.fromkeys(UNET_SIZES, EDM_RECIPE), "64": replace(EDM_RECIPE, num_inference_steps=40)}
#: the tiny one has weights of the digits
_UNET_CHECKPOINTS = {"ti": {"digits": digits_checkpoint(DIGITS_EDM_RECIPE)}}

_TINY = {**TINY, "depth": 4, "hidden_size": 80, "num_heads": 4}
FAMILY = Family(
    name="diffit",
    title="DiffiT",
    summary="Time-dependent self-attention in place of adaptive layer norm, with a relative-position bias.",
    paper="DiffiT: Diffusion Vision Transformers for Image Generation, arXiv:2312.02139",
    recipe=RECIPE,
    architectures=[
        Architecture(
            "diffit_ti_2",
            DiffiT,
            _TINY,
            ours=True,
            recipe=pixel_recipe(RECIPE),
            checkpoints={"digits": digits_checkpoint()},
        ),
        # Only XL is published; the smaller ones take DiT's sizes.
        *(Architecture(f"diffit_{size}_2", DiffiT, SIZES[size], ours=True) for size in ("s", "b", "l")),
        Architecture("diffit_xl_2", DiffiT, SIZES["xl"], checkpoints=CHECKPOINTS),
        *(
            Architecture(
                f"diffit_unet_{size}",
                DiffiTUNet,
                options,
                ours=size == "ti",
                recipe=UNET_RECIPES[size],
                checkpoints=_UNET_CHECKPOINTS.get(size, {}),
            )
            for size, options in UNET_SIZES.items()
        ),
    ],
)
