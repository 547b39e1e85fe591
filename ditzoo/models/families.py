"""How a family declares itself to the registry: its networks, their published weights, and how they are sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ditzoo.models.base import DiffusionTransformer
from ditzoo.recipe import Recipe


@dataclass(frozen=True)
class Checkpoint:
    """Published weights: the tag behind the dot of `dit_xl_2.in256`.

    Attributes:
        config: what the published network changes against the bare name.
        source: where its authors put it.
        licence: of the weights, in their authors' words.
        data: what it was trained on.
        recipe: how it was trained and is sampled; the architecture's where None.
        packaged: whether the file comes with ditzoo.
    """

    config: Mapping[str, Any]
    source: str
    licence: str
    data: str
    recipe: Recipe | None = None
    packaged: bool = False


@dataclass(frozen=True)
class Architecture:
    """One named network.

    Attributes:
        name: registry name, `family_size_patch`.
        model_cls: its class.
        config: constructor arguments; what is not named keeps the class's default.
        ours: True where no paper has this size; such models are marked in every table.
        checkpoints: published weights by tag.
        recipe: how the authors train and sample weights of this size that see the same kind of input, latents or
            pixels; the family's where None.
    """

    name: str
    model_cls: type[DiffusionTransformer]
    config: Mapping[str, Any]
    ours: bool = False
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Family:
    """What one model file offers the registry.

    Attributes:
        name: short name, as in `list_models(family="dit")`.
        title: name in print.
        summary: one sentence on what sets the family apart.
        paper: title and arXiv number.
        recipe: how the authors train and sample it, unless an architecture or a checkpoint says otherwise.
        architectures: its named networks.
    """

    name: str
    title: str
    summary: str
    paper: str
    recipe: Recipe
    architectures: Sequence[Architecture]


#: The published latent models see the latents of Stable Diffusion's fine-tuned autoencoder, scaled like this.
SD_VAE: dict[str, Any] = {"latent_codec": "stabilityai/sd-vae-ft-ema", "latent_scale": 0.18215}


def pixel_recipe(recipe: Recipe) -> Recipe:
    """The same recipe without an autoencoder and without a learned variance."""
    return replace(recipe, latent_codec=None, latent_scale=1.0, variance="fixed_large", loss="mse")
