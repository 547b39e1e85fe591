"""U-ViT: all are worth words (Bao et al., arXiv:2209.12152).

Time, class and patches are all tokens of one transformer; long skip connections join its first half to its
second, as in a U-Net.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ditzoo.layers import (
    Attention,
    Mlp,
    PatchEmbed,
    TokenMask,
    linear,
    resize_position_table,
    timestep_embedding,
    uninitialized_embedding,
    unpatchify,
)
from ditzoo.models.base import DiffusionTransformer
from ditzoo.models.digits import TINY, digits_checkpoint
from ditzoo.models.families import Architecture, Checkpoint, Family, PublishedFile, pixel_recipe
from ditzoo.models.options import check_boolean
from ditzoo.models.tables import PositionTable
from ditzoo.recipe import Guidance, Recipe


class UViTBlock(nn.Module):
    """A pre-norm transformer block that may first merge a long skip."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, skip: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = Mlp(hidden_size, mlp_ratio, approximate="none")
        self.skip_linear = linear(2 * hidden_size, hidden_size) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Tokens x and skip (B, N, D) -> (B, N, D)."""
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))  # type: ignore[list-item]
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(DiffusionTransformer):
    """U-ViT. Shared options as in `DiffusionTransformer`; defaults are U-ViT-L/2's for ImageNet 256x256.

    `depth` counts blocks as the original does, without the middle one: an even depth n runs n + 1 blocks, an
    odd one n. `class_dropout_prob` above 0 adds the null label's row, and nothing else: U-ViT's authors drop
    labels in the data set. `learn_sigma` must be False.

    Args:
        qkv_bias: give the projection to queries, keys and values a bias.
        mlp_time_embed: pass the sinusoids of the time through a two-layer MLP.
        conv: finish with a 3x3 convolution over the image.
        skip: join the two halves by long skip connections.
    """

    label_table = "label_emb.weight"
    patch_weight = "patch_embed.proj.weight"

    def __init__(
        self,
        *,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1024,
        depth: int = 20,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        qkv_bias: bool = False,
        mlp_time_embed: bool = False,
        conv: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__(locals())
        for option in ("qkv_bias", "mlp_time_embed", "conv", "skip"):
            check_boolean(type(self).__name__, option, self.config[option])
        if learn_sigma:
            raise ValueError("U-ViT predicts no variance: learn_sigma must be False, got True.")
        self.num_extra_tokens = 2 if num_classes else 1

        def block(skip: bool = False) -> UViTBlock:
            return UViTBlock(hidden_size, num_heads, mlp_ratio, qkv_bias, skip)

        half = depth // 2
        self.patch_embed = PatchEmbed(patch_size, in_channels, hidden_size)
        self.time_embed = (
            nn.Sequential(linear(hidden_size, 4 * hidden_size), nn.SiLU(), linear(4 * hidden_size, hidden_size))
            if mlp_time_embed
            else nn.Identity()
        )
        self.label_emb = uninitialized_embedding(self.num_label_rows, hidden_size) if num_classes else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_extra_tokens + self.num_tokens(), hidden_size))
        self.in_blocks = nn.ModuleList(block() for _ in range(half))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip) for _ in range(half))
        self.norm = nn.LayerNorm(hidden_size)
        self.decoder_pred = linear(hidden_size, patch_size * patch_size * in_channels)
        self.final_layer = nn.Conv2d(in_channels, in_channels, 3, padding=1) if conv else nn.Identity()
        self.initialize()

    def initialize_weights(self) -> None:
        """Truncated normals of standard deviation 0.02 for linear layers and positions, zero biases; the
        convolutions and the label table keep PyTorch's defaults, as in the original."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d | nn.Embedding):
                module.reset_parameters()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def block_names(self) -> list[str]:
        half = range(self.depth // 2)
        return [*(f"in_blocks.{i}" for i in half), "mid_block", *(f"out_blocks.{i}" for i in half)]

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        grid = self.check_inputs(x, t, y, mask)
        x = self.patch_embed(x)  # (B, N, D)
        time = self.time_embed(timestep_embedding(t, self.hidden_size).to(self.pos_embed.dtype))  # (B, D)
        tokens = [time[:, None].to(x.dtype), x]
        if self.label_emb is not None:
            tokens.insert(0, self.label_emb(y)[:, None].to(x.dtype))
        x = torch.cat(tokens, dim=1) + self._positions(grid)  # (B, 2 + N, D): class, time, patches

        skips = []
        for block in self.in_blocks:
            x = self.run_block(block, x)  # (B, 2 + N, D)
            skips.append(x)
        x = self.run_block(self.mid_block, x)
        for block in self.out_blocks:
            x = self.run_block(block, x, skips.pop())

        x = self.decoder_pred(self.norm(x))[:, self.num_extra_tokens :]  # (B, N, p * p * C)
        x = unpatchify(x, self.patch_size, grid)  # (B, C, H, W)
        return self.final_layer(x)

    def position_tables(self) -> dict[str, PositionTable]:
        tokens = ("class", "time") if self.num_classes else ("time",)
        return {**super().position_tables(), "pos_embed": PositionTable("learned", self.grid, tokens)}

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for `grid`; the extra tokens' rows are the same for every size."""
        if grid == self.grid:
            return self.pos_embed
        extra, patches = self.pos_embed.split([self.num_extra_tokens, self.num_tokens()], dim=1)
        return torch.cat([extra, resize_position_table(patches, self.grid, grid)], dim=1)


SIZES = {
    "s": {"depth": 12, "hidden_size": 512, "num_heads": 8},
    "s_deep": {"depth": 16, "hidden_size": 512, "num_heads": 8},
    "m": {"depth": 16, "hidden_size": 768, "num_heads": 12},
    "l": {"depth": 20, "hidden_size": 1024, "num_heads": 16},
    "h": {"depth": 28, "hidden_size": 1152, "num_heads": 16, "conv": False},
}

#: The 256x256 latent model H/2 (sections 5.1 and 5.2). U-ViT counts its guidance from 0: 0.4 is DiT's 1.4.
RECIPE = Recipe(
    prediction="epsilon",
    schedule="scaled_linear",
    time_offset=1.0,  # networks count the noise levels from 1
    guidance=Guidance(scale=0.4, convention="uvit"),
    sampler="dpmpp_3s",
    num_inference_steps=50,
    latent_codec="autoencoder_kl_ema",
    latent_scale=0.18215,
)
#: L/2 and L/4 train in continuous time, from 0 to 1, and are called with 999 t.
_CONTINUOUS = replace(
    RECIPE,
    schedule="continuous_vp",
    time_scale=999.0,
    time_offset=0.0,
    sampler="dpm_3s",
    end_time=1e-4,
    latent_codec="autoencoder_kl",
)
_AT_512 = Guidance(scale=0.7, convention="uvit")
_UNGUIDED = Guidance(scale=0.0, convention="uvit")
_PIXEL_SDE = replace(
    pixel_recipe(_CONTINUOUS),
    guidance=_UNGUIDED,
    sampler="euler_maruyama",
    end_time=None,
    num_inference_steps=1000,
)
_PIXEL_ODE = replace(pixel_recipe(_CONTINUOUS), guidance=_UNGUIDED)


def _checkpoint(file: str, drive_id: str, data: str, recipe: Recipe, **config: object) -> Checkpoint:
    return Checkpoint(
        config=config,
        licence="none stated for the weights; the code is MIT",
        data=data,
        files=(PublishedFile(name=file, drive_id=drive_id),),
        recipe=recipe,
    )


_IMAGENET = "ImageNet-1k at {0}x{0}"
_PIXELS = {"input_size": 64, "in_channels": 3}
# The published pixel models of ImageNet are conditional but know no null label.
_IMAGENET_64 = {**_PIXELS, "class_dropout_prob": 0.0}
CHECKPOINTS = {
    "uvit_s_2": {
        "cifar10": _checkpoint(
            "cifar10_uvit_small.pth",
            "1yoYyuzR_hQYWU0mkTj659tMTnoCWCMv-",
            "CIFAR-10",
            _PIXEL_SDE,
            input_size=32,
            in_channels=3,
            num_classes=0,
        )
    },
    "uvit_s_4": {
        "celeba64": _checkpoint(
            "celeba64_uvit_small.pth",
            "13YpbRtlqF1HDBNLNRlKxLTbKbKeLE06C",
            "CelebA 64x64",
            _PIXEL_SDE,
            **_PIXELS,
            num_classes=0,
        )
    },
    "uvit_m_4": {
        "in64": _checkpoint(
            "imagenet64_uvit_mid.pth",
            "1igVgRY7-A0ZV3XqdNcMGOnIGOxKr9azv",
            _IMAGENET.format(64),
            _PIXEL_ODE,
            **_IMAGENET_64,
        )
    },
    "uvit_l_2": {
        "in256": _checkpoint(
            "imagenet256_uvit_large.pth",
            "1w7T1hiwKODgkYyMH9Nc9JNUThbxFZgs3",
            _IMAGENET.format(256),
            _CONTINUOUS,
            class_dropout_prob=0.15,
        )
    },
    "uvit_l_4": {
        "in64": _checkpoint(
            "imagenet64_uvit_large.pth",
            "19rmun-T7RwkNC1feEPWinIo-1JynpW7J",
            _IMAGENET.format(64),
            _PIXEL_ODE,
            **_IMAGENET_64,
        ),
        "in512": _checkpoint(
            "imagenet512_uvit_large.pth",
            "1mkj4aN2utHMBTWQX9l1nYue9vleL7ZSB",
            _IMAGENET.format(512),
            replace(_CONTINUOUS, guidance=_AT_512),
            input_size=64,
            class_dropout_prob=0.15,
        ),
    },
    "uvit_h_2": {
        "in256": _checkpoint(
            "imagenet256_uvit_huge.pth",
            "13StUdrjaaSXjfqqF7M47BzPyhMAArQ4u",
            _IMAGENET.format(256),
            RECIPE,
        )
    },
    "uvit_h_4": {
        "in512": _checkpoint(
            "imagenet512_uvit_huge.pth",
            "1uegr2o7cuKXtf2akWGAN2Vnlrtw5YKQq",
            _IMAGENET.format(512),
            replace(RECIPE, guidance=_AT_512),
            input_size=64,
        )
    },
}

#: Bare names see latents: a size has the recipe of its published latent model, or else H/2's.
_LATENT = {
    name: checkpoint.recipe
    for name, checkpoints in CHECKPOINTS.items()
    for checkpoint in checkpoints.values()
    if checkpoint.recipe is not None and checkpoint.recipe.latent_codec
}

_TINY = {**TINY, "depth": 2, "hidden_size": 96, "num_heads": 8, "conv": False}
FAMILY = Family(
    name="uvit",
    title="U-ViT",
    summary="Time, class and patches as tokens, with long skip connections between the two halves.",
    paper="All are Worth Words: A ViT Backbone for Diffusion Models, arXiv:2209.12152",
    recipe=RECIPE,
    architectures=[
        Architecture(
            "uvit_ti_2",
            UViT,
            _TINY,
            ours=True,
            recipe=pixel_recipe(RECIPE),
            checkpoints={"digits": digits_checkpoint()},
        ),
        *(
            Architecture(
                name := f"uvit_{size}_{patch_size}",
                UViT,
                {"patch_size": patch_size, **SIZES[size]},
                ours=size == "s_deep",  # the authors condition this size on text only
                recipe=_LATENT.get(name, RECIPE),
                checkpoints=CHECKPOINTS.get(name, {}),
            )
            for size, patch_size in [
                ("s", 2),
                ("s", 4),
                ("s_deep", 2),
                ("m", 4),
                ("l", 2),
                ("l", 4),
                ("h", 2),
                ("h", 4),
            ]
        ),
    ],
)
