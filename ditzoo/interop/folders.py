"""Folders that diffusers' `DiTPipeline` loads, from a DiT and its recipe, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ditzoo.interop.dit import check_expressible, empty_transformer, from_diffusers, warn_of_deviation
from ditzoo.interop.package import import_diffusers
from ditzoo.interop.schedulers import make_scheduler, recipe_of_pipeline
from ditzoo.media import LabelNames
from ditzoo.media.codec import is_hub_id, quiet_download
from ditzoo.media.files import writing_folder
from ditzoo.models import DiT, ModelDetails
from ditzoo.recipe import Recipe
from ditzoo.weights.diffusers_extra import EXTRA_FILE, Extra, extra_entries, parse_extra
from ditzoo.weights.diffusers_names import (
    PIPELINE_INDEX,
    POSITIONS,
    TRANSFORMER,
    WEIGHTS_STEM,
    diffusers_state,
    is_computed_table,
)
from ditzoo.weights.hub_errors import without_tokens
from ditzoo.weights.json_files import read_json_object
from ditzoo.weights.shards import save_weights
from ditzoo.weights.values import in_precision

SCHEDULER_CONFIG, _VAE_CONFIG = "scheduler/scheduler_config.json", "vae/config.json"
#: Of `PIPELINE_INDEX`: which class has which name, {"0": "tench, Tinca tinca"}.
_LABELS = "id2label"


def save_diffusers(
    model: DiT, folder: str | os.PathLike[str], recipe: Recipe, vae: Any = None, scheduler: Any = None
) -> None:
    """Write a folder for `DiTPipeline.from_pretrained(folder)`.

    Without `vae` it lacks an autoencoder, which the pipeline asks for: `DiTPipeline.from_pretrained(folder, vae=vae)`.
    `ditzoo.json` beside diffusers' files keeps the recipe and the model's other details for `load_diffusers`.

    Args:
        model: a DiT that `to_diffusers` takes.
        folder: a new or empty one. It appears when it is complete.
        recipe: of the weights, with a schedule in whole timesteps, which are what the network is told.
        vae: diffusers' `AutoencoderKL` of the latents, whose `scaling_factor` is the recipe's `latent_scale`.
        scheduler: of diffusers; `make_scheduler(recipe)` where None.

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        TypeError: for another network than DiT.
        ValueError: for a DiT or a recipe that diffusers' pipeline cannot express, or a `vae` of other latents.
        FileExistsError: for a folder that has something in it.

    Warns:
        UserWarning: that what diffusers loads deviates from `model`, and by how much.
    """
    write_folder(model, folder, recipe, vae, scheduler)
    warn_of_deviation(*folder_warning(folder))


def write_folder(
    model: DiT,
    folder: str | os.PathLike[str],
    recipe: Recipe,
    vae: Any = None,
    scheduler: Any = None,
    *,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """`save_diffusers` without its warning.

    Args:
        model: as there.
        folder: as there.
        recipe: as there.
        vae: as there.
        scheduler: as there.
        max_shard_size: of the transformer's files, in bytes or as `"5GB"`.
        dtype: of the transformer, as `save_weights` takes it.
    """
    import_diffusers("save_diffusers")
    check_expressible(model)
    _check_recipe(recipe)
    parts = {"scheduler": make_scheduler(recipe) if scheduler is None else scheduler}
    if vae is not None:
        _check_vae(vae, model, recipe)
        parts["vae"] = vae
    transformer, state = empty_transformer(model), diffusers_state(model)
    if not is_computed_table(in_precision("pos_embed", model.pos_embed, dtype), model):
        # diffusers computes another, which is as near to this one as half precision.
        state[POSITIONS] = model.pos_embed
    index = _pipeline_index({TRANSFORMER: transformer, **parts}, model.details.label_names)
    with writing_folder(Path(folder)) as temporary:
        transformer.save_config(temporary / TRANSFORMER)
        save_weights(state, temporary / TRANSFORMER, stem=WEIGHTS_STEM, max_shard_size=max_shard_size, dtype=dtype)
        for name, part in parts.items():
            part.save_pretrained(temporary / name)
        for name, entries in ((PIPELINE_INDEX, index), (EXTRA_FILE, extra_entries(model, recipe))):
            text = without_tokens(json.dumps(entries, indent=2)) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
        for path in temporary.rglob("*.*"):
            path.chmod(0o644)  # diffusers' 0600 would hide weights from everyone else


def _pipeline_index(parts: Mapping[str, Any], label_names: Iterable[str] | None) -> dict[str, Any]:
    """As `DiTPipeline.save_pretrained` writes it, and also without an autoencoder; with the names of classes."""
    from diffusers import __version__

    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": __version__,
        **{name: ["diffusers", type(part).__name__] for name, part in parts.items()},
    }
    if "vae" not in parts:
        index["vae"] = [None, None]
    if label_names is not None:
        index[_LABELS] = {str(label): name for label, name in enumerate(label_names)}
    return index


def folder_warning(folder: str | os.PathLike[str]) -> tuple[str, str]:
    """What to warn of after writing a folder, and the remedy."""
    return f"What diffusers loads from {folder}", "ditzoo.interop.patch_diffusers(pipe.transformer) after loading"


def load_diffusers(folder_or_id: str | os.PathLike[str]) -> tuple[DiT, Recipe]:
    """A DiT and its recipe from a folder, or a repository of the Hugging Face Hub, of diffusers' `DiTPipeline`.

    Weights are taken as `from_diffusers` does: the official ones, such as those of `facebook/DiT-XL-2-256`, then
    compute what the authors' code does, which they do not in diffusers.

    Args:
        folder_or_id: a folder, or the id of a repository, `"owner/name"`, which is fetched into diffusers' cache.

    Returns:
        The model in evaluation mode, with its details, and the recipe that `save_diffusers` kept. Folders by others
        have none; it is then how the pipeline samples: its scheduler's noise levels, prediction and, where ditzoo has
        it, algorithm (DDIM else), and guidance 4.0 over all channels in 50 steps.

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        FileNotFoundError: for a folder that is not there, or lacks the transformer.
        OSError: for a repository that cannot be fetched, or whose transformer or scheduler is missing from the cache. A
            recipe missing there is one that the repository never had, as far as can be told offline.
        ValueError: for weights that `from_diffusers` refuses, a scheduler whose noise levels no recipe has, or damaged
            JSON.

    Warns:
        UserWarning: naming what of a scheduler's algorithm no sampler of ditzoo does.
    """
    diffusers = import_diffusers("load_diffusers")
    place = PipelinePlace(folder_or_id)
    with quiet_download():
        transformer = diffusers.DiTTransformer2DModel.from_pretrained(place.name, subfolder="transformer")
    extra = place.read_extra(transformer.config.num_embeds_ada_norm)
    if extra is not None:
        model = from_diffusers(transformer, class_dropout_prob=extra.class_dropout_prob)
        model.details = extra.details
        assert extra.details.recipe is not None  # as `parse_extra` has made sure
        return model, extra.details.recipe
    model = from_diffusers(transformer)
    scheduler = place.read(SCHEDULER_CONFIG)
    if scheduler is None and not place.is_folder:
        raise OSError(
            f"the scheduler of {place.name} is neither there nor on this machine; fetch the repository again, with a "
            "network, or take the weights alone by from_diffusers(transformer)."
        )
    recipe = recipe_of_pipeline(scheduler or {}, learned_variance=model.learn_sigma, **place.facts())
    model.details = ModelDetails(recipe=recipe, label_names=place.label_names(model.num_classes))
    return model, recipe


def has_vae(folder_or_id: str | os.PathLike[str]) -> bool:
    """Whether a folder or a repository of the Hub holds an autoencoder, as far as is known offline.

    Raises:
        FileNotFoundError: for a name that is neither.
    """
    return PipelinePlace(folder_or_id).read(_VAE_CONFIG) is not None


class PipelinePlace:
    """A folder or a repository of diffusers' pipeline.

    Raises:
        FileNotFoundError: where it is neither, or the folder holds no transformer.
    """

    def __init__(self, folder_or_id: str | os.PathLike[str]) -> None:
        self.name = os.fspath(folder_or_id)
        self.is_folder = Path(self.name).is_dir()
        if self.is_folder and not (Path(self.name) / "transformer").is_dir():
            raise FileNotFoundError(
                f"{self.name} holds no folder `transformer`: give one that DiTPipeline.save_pretrained() or "
                "save_diffusers() wrote. Official files are read by ditzoo.weights.load_state_dict."
            )
        if not self.is_folder and (Path(self.name).is_absolute() or self.name.count("/") != 1):
            raise FileNotFoundError(f"there is no folder {self.name}, and no repository of the Hub has such a name.")

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file; None where there is none, or offline none in the cache."""
        if self.is_folder:
            path = Path(self.name) / name
            if not path.is_file():
                return None
        else:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError

            try:
                path = Path(hf_hub_download(self.name, name))
            except EntryNotFoundError:
                return None
        return read_json_object(path, constants=True)

    def read_extra(self, num_classes: int) -> Extra | None:
        """What `save_diffusers` has kept for ditzoo; None in folders by others."""
        entries = self.read(EXTRA_FILE)
        return None if entries is None else parse_extra(entries, f"{EXTRA_FILE} of {self.name}", num_classes)

    def label_names(self, num_classes: int) -> tuple[str, ...] | None:
        """Of the classes, as diffusers keeps them; None where it has not one for each."""
        labels = (self.read(PIPELINE_INDEX) or {}).get(_LABELS)
        if not isinstance(labels, dict) or set(labels) != {str(label) for label in range(num_classes)}:
            return None
        names = tuple(labels[str(label)] for label in range(num_classes))
        try:
            LabelNames(names)
        except (AttributeError, ValueError):  # no text, or none in it
            return None
        return names

    def facts(self) -> dict[str, Any]:
        """What `recipe_of_pipeline` asks about the place."""
        vae = self.read(_VAE_CONFIG)
        return {"vae": vae, "vae_name": self._name_of_vae(vae or {}), "source": self.name}

    def _name_of_vae(self, config: Mapping[str, Any]) -> str:
        """What `load_codec` opens from any folder of this machine, or from the Hub.

        A folder holds its own. Of a repository, diffusers keeps in the configuration where the autoencoder came from,
        which is worth having as an id of the Hub only: a path belongs to the machine that it was written on.
        """
        if self.is_folder:
            return os.path.join(os.path.abspath(self.name), "vae")
        origin = str(config.get("_name_or_path") or "")
        return origin if is_hub_id(origin) else f"{self.name}/vae"


def _check_recipe(recipe: Recipe) -> None:
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a ditzoo.Recipe, got {recipe!r:.60}.")
    if not recipe.is_discrete:
        raise ValueError(
            f"DiTPipeline counts whole timesteps, and the recipe's schedule {recipe.schedule!r} has none; it takes "
            "linear, scaled_linear and cosine."
        )
    wanted = {"time_scale": 1.0, "time_offset": 0.0, "latent_shift": 0.0}
    for name, value in wanted.items():
        if getattr(recipe, name) != value:
            raise ValueError(
                f"DiTPipeline has no place for {name}={getattr(recipe, name)} of the recipe; it works with {value}."
            )


def _check_vae(vae: Any, model: DiT, recipe: Recipe) -> None:
    for name, found, wanted in (
        ("scaling_factor", vae.config.scaling_factor, recipe.latent_scale),
        ("latent_channels", vae.config.latent_channels, model.in_channels),
    ):
        if found != wanted:
            raise ValueError(
                f"the vae's {name} is {found}, but the model's latents have {wanted} (latent_scale of the recipe, "
                "in_channels of the model): give the autoencoder that they are of."
            )
