"""SiT: scalable interpolant transformers (Ma et al., arXiv:2401.08740).

DiT's network, trained by flow matching: time runs from 0 (noise) to 1 (data), and the network predicts the velocity
along the straight line between them (sections 2 and 3).
"""

from __future__ import annotations

from torch import Tensor

from ditzoo.layers import TokenMask, UnusedWeights
from ditzoo.models.digits import DIGITS_FLOW_RECIPE, digits_checkpoint
from ditzoo.models.dit import SIZES, TINY_SIZE, DiT
from ditzoo.models.families import SD_VAE, Architecture, Checkpoint, Family, PublishedFile, pixel_recipe
from ditzoo.recipe import Guidance, Recipe


class SiT(DiT):
    """SiT. Options as in `DiT`; defaults are SiT-XL/2's.

    Times `t` are in [0, 1], 0 being noise, and are embedded unscaled. With `learn_sigma` the last layer has the
    weights of a variance, as in the published file, but `forward` drops it: `out_channels` is C.
    """

    returns_variance = False
    last_time = 1.0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        return super().forward(x, t, y, mask=mask)[:, : self.out_channels]  # (B, C, H, W)

    def unused_weights(self) -> list[UnusedWeights]:
        unused = super().unused_weights()
        if self.learn_sigma:
            # The channel runs fastest in the vector of a patch.
            channels = range(self.patch_size**2 * self.head_channels)
            rows = [row for row in channels if row % self.head_channels >= self.out_channels]
            reason = "outputs of a variance, which forward drops"
            unused += [UnusedWeights(f"final_layer.linear.{name}", rows, reason) for name in ("weight", "bias")]
        return unused


CHECKPOINTS = {
    "sit_xl_2": {
        "in256": Checkpoint(
            config={},
            licence="none stated for the weights; the code is MIT",
            data="ImageNet-1k at 256x256",
            files=(
                # Dropbox calls it SiT-XL-2-256.pt; the key belongs to the authors' public address.
                PublishedFile(
                    name="SiT-XL-2-256x256.pt",
                    url="https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt"
                    "?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0",
                ),
            ),
            source="https://github.com/willisma/SiT (SiT-XL-2-256x256.pt, by its download.py)",
        )
    }
}

#: The guided deterministic sampler of table 7: Heun, 250 evaluations. The published file has the weights of a variance.
RECIPE = Recipe(
    prediction="velocity",
    schedule="flow_linear",
    guidance=Guidance(scale=1.5, channels=3),
    sampler="heun",
    num_inference_steps=125,
    **SD_VAE,
)

FAMILY = Family(
    name="sit",
    title="SiT",
    summary="DiT's network trained by flow matching: it predicts the velocity from noise to data.",
    paper="SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers, "
    "arXiv:2401.08740",
    recipe=RECIPE,
    architectures=[
        Architecture(
            "sit_ti_2",
            SiT,
            TINY_SIZE,
            ours=True,
            recipe=pixel_recipe(RECIPE),
            checkpoints={"digits": digits_checkpoint(DIGITS_FLOW_RECIPE)},
        ),
        *(
            Architecture(name := f"sit_{size}_2", SiT, options, checkpoints=CHECKPOINTS.get(name, {}))
            for size, options in SIZES.items()
        ),
    ],
)
