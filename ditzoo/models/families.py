"""How a family declares itself to the registry: its networks, their published weights, and how they are sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ditzoo.models.base import DiffusionTransformer
from ditzoo.recipe import Recipe

#: Licences that allow no commercial use, by their SPDX names.
NON_COMMERCIAL_LICENCES = ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0")


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One place where published weights lie: of `repo_id`, `url` and `drive_id` it has one.

    Attributes:
        name: of the file; in diffusers' layout that of the folder inside the repository.
        layout: whose parameter names it has, the authors' or diffusers'.
        repo_id: repository of the Hugging Face Hub.
        revision: commit of that repository; None where none is known.
        url: direct address.
        drive_id: file of Google Drive, which no program can fetch.
        num_bytes: size; None where it is not known.
        sha256: of the whole file; None where it is not known.
    """

    name: str
    layout: Literal["official", "diffusers"] = "official"
    repo_id: str | None = None
    revision: str | None = None
    url: str | None = None
    drive_id: str | None = None
    num_bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        places = [place for place in (self.repo_id, self.url, self.drive_id) if place is not None]
        if len(places) != 1:
            raise ValueError(f"{self.name} lies in one place: give repo_id, url or drive_id, got {places or 'none'}.")

    @property
    def fetched(self) -> Literal["Hub", "address", "by hand"]:
        """How it is to be had."""
        if self.drive_id is not None:
            return "by hand"
        return "address" if self.repo_id is None else "Hub"

    @property
    def page(self) -> str:
        """The address to open in a browser."""
        if self.url is not None:
            return self.url
        if self.repo_id is not None:
            return f"https://huggingface.co/{self.repo_id}"
        return f"https://drive.google.com/file/d/{self.drive_id}"

    @property
    def source(self) -> str:
        """The address without keys that it may carry, and the file's name where that is not its end."""
        address = self.page.partition("?")[0]
        return address if address.endswith(f"/{self.name}") else f"{address} ({self.name})"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Published weights: the tag behind the dot of `dit_xl_2.in256`.

    Attributes:
        config: what the published network changes against the bare name.
        licence: of the weights, by its SPDX name or in their authors' words.
        data: what it was trained on.
        files: where the weights lie; the first is the one to fetch. None if they come with ditzoo.
        source: where their authors put them; that of the first file where it is left out.
        ema: whether they are a moving average; None where the authors do not say.
        recipe: how it was trained and is sampled; the architecture's where None.
        packaged: whether the file comes with ditzoo.
    """

    config: Mapping[str, Any]
    licence: str
    data: str
    files: tuple[PublishedFile, ...] = ()
    source: str = ""
    ema: bool | None = None
    recipe: Recipe | None = None
    packaged: bool = False

    def __post_init__(self) -> None:
        if not self.source:
            if not self.files:
                raise ValueError("a Checkpoint needs files, or a source that says where its weights are.")
            object.__setattr__(self, "source", self.files[0].source)

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence is known to allow no commercial use."""
        return self.licence in NON_COMMERCIAL_LICENCES


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
