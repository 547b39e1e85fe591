"""From whatever a user names, a file, a folder, an address or a repository of the Hub, to a model with its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.media import LabelNames
from ditzoo.models import DiffusionTransformer, DiT, ModelDetails
from ditzoo.weights.catalogue import fetch_published, note_licence
from ditzoo.weights.diffusers_names import (
    PIPELINE_INDEX,
    is_diffusers_state,
    official_state,
    read_diffusers_transformer,
    transformer_folder,
)
from ditzoo.weights.download import fetch_url
from ditzoo.weights.files import RAW_NESTS, Nest, check_nest, read_checkpoint
from ditzoo.weights.folders import CONFIG, construct, find_weights, is_own, load_model, read_config
from ditzoo.weights.hub import HubName, fetch_file, fetch_folder, fetch_transformer, is_hub_name
from ditzoo.weights.loading import load_weights
from ditzoo.weights.packaged import packaged_file
from ditzoo.weights.values import warn_of_non_finite

_logger = logging.getLogger("ditzoo")


@dataclass(frozen=True)
class _Source:
    """Weights, and what their place tells of the network that they are for.

    Attributes:
        place: for messages.
        tensors: under the official names, or those of diffusers.
        nest: the entry of the file in which they stood.
        model_cls: by `registry.class_path`.
        options: constructor arguments.
        details: of the model.
    """

    place: Path
    tensors: Mapping[str, Tensor]
    nest: str | None = None
    model_cls: str | None = None
    options: Mapping[str, Any] | None = None
    details: ModelDetails | None = None


def create_pretrained(
    name: str,
    model_cls: type[DiffusionTransformer],
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    checkpoint: Path | str | None,
    weights: Nest | None,
    strict: bool,
    dtype: torch.dtype | None,
) -> DiffusionTransformer:
    """What `ditzoo.create` does for a registry name and its weights, or those of `checkpoint`.

    Args:
        name: with its tag, if it has one.
        model_cls: class of this name.
        config: constructor arguments of this name.
        overrides: the user's, which replace them.
        checkpoint: None takes the name's own weights.
        weights, strict, dtype: as `ditzoo.create` has them.
    """
    info = registry.model_info(name)
    options = {**config, **overrides}
    # Before anything is fetched: a wrong option should be told at once.
    check_nest(weights)
    model = construct(model_cls, options, meta=is_own(registry.class_path(model_cls)))
    if info.source is not None:
        note_licence(name)
    if checkpoint is None and info.packaged:
        dtype = dtype or torch.float32  # they are kept in half of it, to be small
    with _opened(name, checkpoint, weights, packaged=info.packaged) as source:
        _load(model, source, name, config, overrides, strict)
        # While the file is there: it may be a temporary one.
        model.to(device=torch.get_default_device(), dtype=dtype)
    model.details = source.details or published_details(name, model.num_classes, source.nest)
    return model


def load_pretrained(
    folder_or_id: Path | str, *, dtype: torch.dtype | None = None, strict: bool = True, **overrides: Any
) -> DiffusionTransformer:
    """See `DiffusionTransformer.from_pretrained`."""
    is_hub = is_hub_name(str(folder_or_id))
    folder = fetch_model_folder(str(folder_or_id)) if is_hub else Path(folder_or_id)
    return load_model(folder, dtype=dtype, strict=strict, **overrides).to(torch.get_default_device())


def fetch_model_folder(name: str) -> Path:
    """The folder of a repository of the Hub, in the cache of its client.

    Args:
        name: `"hf-hub:user/repo"` or `"hf-hub:user/repo@revision"`.

    Raises:
        ValueError: for a name of another form, and for a repository that holds no model of ditzoo.
        DownloadError: an OSError that says why the repository cannot be had and what to do.
    """
    hub = HubName.parse(name)
    if hub.path is not None:
        raise ValueError(
            f"{name} names a file of a repository; a model is a whole one, hf-hub:{hub.repo_id}. A file of weights is "
            f"loaded by ditzoo.create(NAME, checkpoint={name!r})."
        )
    # A repository of something else is found out before its weights are fetched.
    folder = fetch_folder(hub.repo_id, revision=hub.revision, patterns=[CONFIG, PIPELINE_INDEX])
    if (folder / PIPELINE_INDEX).is_file() and not (folder / CONFIG).is_file():
        raise ValueError(
            f"{name} holds a pipeline of diffusers: ditzoo.Pipeline.from_diffusers({hub.repo_id!r}) reads it, and "
            f"ditzoo.create(NAME, checkpoint={name!r}) takes the weights of its transformer."
        )
    read_config(folder)
    # By the commit, so that both are of the same one; the cache names the folder by it.
    return fetch_folder(hub.repo_id, revision=folder.name)


@contextmanager
def _opened(name: str, checkpoint: Path | str | None, weights: Nest | None, packaged: bool) -> Iterator[_Source]:
    """The weights of a name, or of a file or folder of this machine, behind an address, or on the Hub."""
    if checkpoint is not None:
        yield _open(_fetched(checkpoint), weights)
    elif packaged:
        with packaged_file(name) as path:
            yield _open(path, weights)
    else:
        yield _open(fetch_published(name), weights)


def _fetched(checkpoint: Path | str) -> Path:
    text = str(checkpoint)
    if is_hub_name(text):
        hub = HubName.parse(text)
        if hub.path is not None:
            return fetch_file(hub.repo_id, hub.path, revision=hub.revision)
        folder = fetch_folder(hub.repo_id, revision=hub.revision, patterns=["*.json"])
        if (folder / PIPELINE_INDEX).is_file():
            return fetch_transformer(hub.repo_id, revision=hub.revision)
        return fetch_folder(hub.repo_id, revision=hub.revision)
    if text.startswith(("https://", "http://")):
        return fetch_url(text)
    return Path(checkpoint)


def _open(path: Path, weights: Nest | None) -> _Source:
    if transformer_folder(path) is not None:
        options, tensors = read_diffusers_transformer(path)
        return _Source(path, tensors, model_cls=registry.class_path(DiT), options=options)
    if (path / CONFIG).is_file():
        config = read_config(path)
        file = read_checkpoint(find_weights(path))
        network = config.network
        return _Source(path, file.tensors, None, network.model_cls, network.options, config.details)
    file = read_checkpoint(path, weights=weights)
    if weights is None and file.nest in RAW_NESTS:
        _logger.warning("%s has no averaged weights; those of the last step, under %r, are taken.", path, file.nest)
    return _Source(path, file.tensors, file.nest)


def _load(
    model: DiffusionTransformer,
    source: _Source,
    name: str,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    strict: bool,
) -> None:
    path = registry.class_path(type(model))
    if source.model_cls not in (None, path):
        raise ValueError(
            f"{source.place} holds a {str(source.model_cls).rpartition('.')[2]}, and {name} is a "
            f"{type(model).__name__}: ditzoo.models.DiffusionTransformer.from_pretrained(folder) takes it as it is."
        )
    options, tensors = source.options or config, source.tensors
    try:
        if is_diffusers_state(tensors) and isinstance(model, DiT):
            with torch.device("meta"):
                tensors = official_state(tensors, DiT(**{**config, **options}))
        result = load_weights(model, tensors, source=options if overrides else None, strict=strict)
    except ValueError as error:
        raise ValueError(f"{source.place}: {error}") from error
    model.load_result = replace(result, nest=source.nest)
    warn_of_non_finite(model.state_dict(), source=source.place)


def published_details(name: str, num_classes: int, nest: str | None = None) -> ModelDetails:
    """What is known of the weights of a registry name, in a model of so many classes.

    Args:
        name: registry name.
        num_classes: of the model.
        nest: the entry of a training checkpoint in which they stood; a bare state dict is what the recipe says.
    """
    info = registry.model_info(name)
    recipe = info.recipe
    if recipe is not None and nest is not None:
        recipe = replace(recipe, weights="raw" if nest in RAW_NESTS else "ema")
    names = LabelNames.of_data(info.data)
    label_names = tuple(names) if names is not None and len(names) == num_classes else None
    return ModelDetails(name=name, recipe=recipe, label_names=label_names, data=info.data)
