"""From whatever a user names, a file, a folder, an address or a repository of the Hub, to a model with its weights."""

from __future__ import annotations

import logging
import re
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
from ditzoo.weights.adapt import ADAPTABLE, differences, network_of, options_text
from ditzoo.weights.catalogue import fetch_published, note_licence, note_licence_of
from ditzoo.weights.diffusers_extra import extra_beside
from ditzoo.weights.diffusers_names import (
    PIPELINE_INDEX,
    dit_state,
    is_diffusers_state,
    read_diffusers_transformer,
    transformer_folder,
)
from ditzoo.weights.download import fetch_url
from ditzoo.weights.files import Nest, check_nest, kind_of, read_checkpoint
from ditzoo.weights.folders import CONFIG, STEM, construct, find_weights, is_own, load_model, model_folder, read_config
from ditzoo.weights.hub import HubName, fetch_file, fetch_folder, fetch_transformer, is_hub_name
from ditzoo.weights.index import INDEX_SUFFIX
from ditzoo.weights.json_files import read_json_object
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
        model_cls: by `registry.class_path`; None where nothing tells it.
        options: constructor arguments of the network that they are for; None where nothing tells them.
        details: of the model; None where nothing tells them.
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
    with _opened(name, checkpoint, weights) as source:
        if checkpoint is None and source.options is None:
            source = replace(source, options=config)
        _load(model, source, name, config, overrides, strict)
        # While the file is there: it may be a temporary one.
        model.to(device=torch.get_default_device(), dtype=dtype)
    if source.details is not None:
        model.details = source.details.for_classes(model.num_classes)
        note_licence_of(model.details.name or str(source.place), model.details.licence)
    else:
        kind = kind_of(source.nest) or (weights if checkpoint is not None else None)
        model.details = published_details(name, model.num_classes, kind)
    return model


def load_pretrained(
    folder_or_id: Path | str,
    *,
    weights: Nest | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    **overrides: Any,
) -> DiffusionTransformer:
    """See `DiffusionTransformer.from_pretrained`; `weights` as `ditzoo.create` has them."""
    registry.check_dtype(dtype)
    check_nest(weights)
    is_hub = is_hub_name(str(folder_or_id))
    folder = fetch_model_folder(str(folder_or_id)) if is_hub else model_folder(folder_or_id)
    if weights is not None:
        _check_kind(folder_or_id, weights, read_config(folder).details)
    return load_model(folder, dtype=dtype, strict=strict, **overrides).to(torch.get_default_device())


def fetch_model_folder(name: str) -> Path:
    """The folder of a repository of the Hub, in the cache of its client.

    Args:
        name: `"hf-hub:user/repo"` or `"hf-hub:user/repo@revision"`.

    Raises:
        ValueError: for a name of another form, and for a repository that holds no model of ditzoo.
        DownloadError: an OSError that says why the repository cannot be had and what to do.
    """
    # A repository of something else is found out before its weights are fetched.
    folder = fetch_config_folder(name)
    # By the commit, so that both are of the same one; the cache names the folder by it.
    return fetch_folder(HubName.parse(name).repo_id, revision=folder.name)


def fetch_config_folder(name: str) -> Path:
    """As `fetch_model_folder`, with the description of the model and without its weights."""
    hub = HubName.parse(name)
    if hub.path is not None:
        raise ValueError(
            f"{name} names a file of a repository; a model is a whole one, hf-hub:{hub.repo_id}. A file of weights is "
            f"loaded by ditzoo.create(NAME, checkpoint={name!r})."
        )
    folder = fetch_folder(hub.repo_id, revision=hub.revision, patterns=[CONFIG, PIPELINE_INDEX])
    if (folder / PIPELINE_INDEX).is_file() and not (folder / CONFIG).is_file():
        raise ValueError(
            f"{name} holds a pipeline of diffusers: ditzoo.Pipeline.from_diffusers({hub.repo_id!r}) reads it, and "
            f"ditzoo.create(NAME, checkpoint={name!r}) takes the weights of its transformer."
        )
    read_config(folder)
    return folder


@contextmanager
def _opened(name: str, checkpoint: Path | str | None, weights: Nest | None) -> Iterator[_Source]:
    """The weights of a name, or of a file or folder of this machine, behind an address, or on the Hub."""
    if checkpoint is not None:
        yield _open(_fetched(checkpoint), weights)
        return
    info = registry.model_info(name)
    if weights == "raw" and info.ema:
        raise ValueError(f"the weights of {name} are averaged ones alone; ask for those (weights='ema').")
    if info.packaged:
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
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):  # other schemes than the web's are refused there
        return fetch_url(text)
    if not text:
        raise ValueError("checkpoint is empty; give a file, a folder or an address.")
    return Path(checkpoint)


def _open(path: Path, weights: Nest | None) -> _Source:
    if (folder := transformer_folder(path)) is not None:
        options, tensors = read_diffusers_transformer(path)
        extra = extra_beside(folder, options["num_classes"])
        details = None if extra is None else extra.details
        if details is not None:
            _check_kind(path, weights, details)
        return _Source(path, tensors, model_cls=registry.class_path(DiT), options=options, details=details)
    if (folder := _model_folder(path)) is not None:
        config = read_config(folder)
        _check_kind(path, weights, config.details)
        file = read_checkpoint(find_weights(folder))
        network = config.network
        return _Source(path, file.tensors, None, network.model_cls, network.options, config.details)
    file = read_checkpoint(path, weights=weights)
    if weights is None and kind_of(file.nest) == "raw":
        _logger.warning("%s has no averaged weights; those of the last step, under %r, are taken.", path, file.nest)
    return _Source(path, file.tensors, file.nest)


def _model_folder(path: Path) -> Path | None:
    """The folder of a model that a path means, itself, as a training run or by its weights; None where it means
    none."""
    if ((folder := model_folder(path)) / CONFIG).is_file():
        return folder
    if path.name not in (f"{STEM}.safetensors", f"{STEM}{INDEX_SUFFIX}") or not (path.parent / CONFIG).is_file():
        return None
    try:
        return path.parent if "model_cls" in read_json_object(path.parent / CONFIG) else None
    except ValueError:  # whatever it is, the file was asked for
        return None


def _check_kind(place: Path | str, weights: Nest | None, details: ModelDetails) -> None:
    """Refuse a folder that says that its weights are others than those that are asked for."""
    if weights is None or details.recipe is None or weights == details.recipe.weights:
        return
    words = {"ema": "averaged weights", "raw": "the weights of the last step"}
    held = details.recipe.weights
    raise ValueError(f"{place} holds {words[held]} alone, by its recipe; ask for those (weights={held!r}).")


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
    options, tensors = source.options, source.tensors
    if options is None:  # of a bare file, what is overridden and does not adapt describes its own network
        options = {**config, **{option: value for option, value in overrides.items() if option not in ADAPTABLE}}
    elif strict and not overrides:
        _check_same_network(model, source, name)
    # Nobody asked to adapt where nothing is overridden: then the shapes must be the model's.
    may_adapt = bool(overrides) or (source.options is not None and not strict)
    try:
        if is_diffusers_state(tensors) and type(model) is DiT:  # diffusers has no SiT
            with torch.device("meta"):
                tensors = dit_state(tensors, DiT(**{**config, **options}))
        result = load_weights(model, tensors, source=options if may_adapt else None, strict=strict)
    except ValueError as error:
        raise ValueError(f"{source.place}: {error}") from error
    model.load_result = replace(result, nest=source.nest)
    warn_of_non_finite(model.state_dict(), source=source.place)


def _check_same_network(model: DiffusionTransformer, source: _Source, name: str) -> None:
    """Refuse to adapt what nobody asked to adapt."""
    assert source.options is not None
    theirs = network_of(model, source.options)
    if differing := differences(theirs, model):
        there, here = (options_text(network, differing) for network in (theirs, model))
        can_adapt = all(option in ADAPTABLE for option in differing)
        raise ValueError(
            f"{source.place} holds the weights of a network with {there}, and {name} has {here}. "
            f"ditzoo.create({name!r}, checkpoint=..., {there}) takes them as they are"
            + (f", and with {here} in place of that they are adapted." if can_adapt else ".")
        )


def published_details(name: str, num_classes: int, kind: Nest | None = None) -> ModelDetails:
    """What is known of the weights of a registry name, in a model of so many classes.

    Args:
        name: registry name.
        num_classes: of the model.
        kind: which weights of a training checkpoint they are; None takes what the recipe says.
    """
    info = registry.model_info(name)
    recipe = info.recipe
    if recipe is not None and kind is not None:
        recipe = replace(recipe, weights=kind)
    names = LabelNames.of_data(info.data)
    label_names = None if names is None else tuple(names)
    return ModelDetails(name=name, recipe=recipe, label_names=label_names, data=info.data).for_classes(num_classes)
