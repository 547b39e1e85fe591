"""Pipelines from disk and from the Hub, and to disk: a model's folder, or a tagged name of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ditzoo import registry
from ditzoo.media import Codec
from ditzoo.models import ModelDetails
from ditzoo.weights.files import FLOATS
from ditzoo.weights.folders import CONFIG, STEM, WEAK_STEM, load_network, model_folder, read_config, save_model
from ditzoo.weights.hub import is_hub_name
from ditzoo.weights.sources import fetch_model_folder

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import Pipeline


def save_pipeline(pipeline: Pipeline, folder: str | Path) -> None:
    """See `Pipeline.save_pretrained`."""
    save_model(pipeline.model, folder, details=details_of(pipeline), weak_model=pipeline.weak_model)


def details_of(pipeline: Pipeline) -> ModelDetails:
    """Those of its model, with what the pipeline knows better."""
    names = pipeline.label_names
    return replace(
        pipeline.model.details,
        name=pipeline.name,
        recipe=pipeline.recipe,
        label_names=None if names is None else tuple(names),
    )


def load_pipeline(
    cls: type[Pipeline],
    name_or_path: str | Path,
    *,
    checkpoint: str | Path | None,
    codec: Codec | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Pipeline:
    """See `Pipeline.from_pretrained`."""
    check_place(device, dtype)
    if checkpoint is None and is_hub_name(str(name_or_path)):
        name_or_path = fetch_model_folder(str(name_or_path))
    folder = model_folder(name_or_path)
    if not (folder / CONFIG).is_file():
        pipeline = _from_registry(cls, str(name_or_path), checkpoint, codec)
    elif checkpoint is None:
        pipeline = _from_folder(cls, folder, codec)
    else:
        raise ValueError(
            f"{name_or_path} is a folder with weights of its own, so that checkpoint {checkpoint} has no place; leave "
            "it out, or give a tagged name instead of the folder."
        )
    return placed(pipeline, device, dtype)


def check_place(device: torch.device | str, dtype: torch.dtype) -> None:
    """Refuse a device or a precision that cannot be had, before weights are read or fetched."""
    if dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOATS))}, got {dtype!r}.")
    with _named_device(device):
        torch.empty(0, device=device)


def placed(pipeline: Pipeline, device: torch.device | str, dtype: torch.dtype) -> Pipeline:
    """The pipeline, moved there."""
    with _named_device(device):
        return pipeline.to(device, dtype)


@contextmanager
def _named_device(device: torch.device | str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); cpu always can.") from error


# Where pipelines are loaded from.


def _from_folder(cls: type[Pipeline], folder: Path, codec: Codec | None) -> Pipeline:
    config = read_config(folder)
    details, weak = config.details, config.weak_network
    if details.recipe is None:
        raise ValueError(
            f"{config.path} has no recipe, which says how to sample: load the model by "
            "ditzoo.models.DiffusionTransformer.from_pretrained(folder), and give Pipeline(model, recipe) one."
        )
    return cls(
        load_network(config, config.network, STEM),
        details.recipe,
        codec,
        label_names=details.label_names,
        weak_model=None if weak is None else load_network(config, weak, WEAK_STEM),
        name=details.name,
    )


def _from_registry(cls: type[Pipeline], name: str, checkpoint: str | Path | None, codec: Codec | None) -> Pipeline:
    looks_like_path = "/" in name or "\\" in name
    no_config = ValueError(
        f"there is no {CONFIG} in {name}: give a folder that save_pretrained() wrote, a repository of the Hub as "
        "hf-hub:user/repo, or a tagged name such as dit_ti_2.digits (ditzoo.list_models(pretrained=True))."
    )
    if looks_like_path:
        raise no_config
    try:
        info = registry.model_info(name)
    except ValueError as error:
        if Path(name).is_dir():
            raise no_config from error
        raise
    if info.recipe is None:
        raise ValueError(f"{name} was registered without a recipe; use Pipeline(model, recipe).")
    model = registry.create(name, pretrained=True, checkpoint=checkpoint)
    recipe = model.details.recipe or info.recipe
    return cls(model, recipe, codec, label_names=model.details.label_names, name=model.details.name)
