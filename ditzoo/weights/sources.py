"""From whatever a user names, a file, a folder, an address or a repository of the Hub, to a model with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.models import DiffusionTransformer, ModelDetails
from ditzoo.weights.diffusers_names import ditzoo_state, is_diffusers_state, read_diffusers_transformer
from ditzoo.weights.download import fetch_published, fetch_url
from ditzoo.weights.files import Nest, read_checkpoint, warn_of_non_finite
from ditzoo.weights.folders import CONFIG, construct, find_weights, is_own, load_model, read_config
from ditzoo.weights.hub import HubName, fetch_file, fetch_folder, is_hub_name
from ditzoo.weights.licences import note_licence
from ditzoo.weights.loading import load_weights
from ditzoo.weights.packaged import packaged_file

#: A folder of `DiTPipeline`, and its part that has the network.
_PIPELINE, _TRANSFORMER = "model_index.json", "transformer"


@dataclass(frozen=True)
class _Source:
    """Weights and, where their place tells, the options of the network that they are for."""

    tensors: Mapping[str, Tensor]
    nest: str | None
    options: Mapping[str, Any] | None = None
    model_cls: str | None = None
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
    if checkpoint is None:
        if registry.model_info(name).packaged:
            with packaged_file(name) as path:
                return _finish(_read(path, weights), name, model_cls, config, overrides, strict, dtype or torch.float32)
        note_licence(name)
        checkpoint = fetch_published(name)
    return _finish(_open(checkpoint, weights), name, model_cls, config, overrides, strict, dtype)


def load_pretrained(
    folder_or_id: Path | str, *, dtype: torch.dtype | None = None, strict: bool = True, **overrides: Any
) -> DiffusionTransformer:
    """See `DiffusionTransformer.from_pretrained`."""
    folder = fetch_model_folder(str(folder_or_id)) if is_hub_name(str(folder_or_id)) else Path(folder_or_id)
    return load_model(folder, dtype=dtype, strict=strict, **overrides).to(torch.get_default_device())


def fetch_model_folder(name: str) -> Path:
    """The folder of a repository of the Hub, in the cache of its client.

    Args:
        name: `"hf-hub:user/repo"` or `"hf-hub:user/repo@revision"`.

    Raises:
        ValueError: for a name of another form.
        DownloadError: an OSError that says why the repository cannot be had and what to do.
    """
    hub = HubName.parse(name)
    if hub.path is not None:
        raise ValueError(
            f"{name} names a file of a repository; a model is a whole one, hf-hub:{hub.repo_id}. A file of weights is "
            f"loaded by ditzoo.create(NAME, checkpoint={name!r})."
        )
    return fetch_folder(hub.repo_id, revision=hub.revision)


def _open(source: Path | str, weights: Nest | None) -> _Source:
    """The weights in a file or folder of this machine, behind an address, or on the Hub."""
    text = str(source)
    if is_hub_name(text):
        hub = HubName.parse(text)
        if hub.path is not None:
            return _read(fetch_file(hub.repo_id, hub.path, revision=hub.revision), weights)
        return _open_folder(fetch_folder(hub.repo_id, revision=hub.revision), weights)
    if text.startswith(("https://", "http://")):
        return _read(fetch_url(text), weights)
    path = Path(source)
    return _open_folder(path, weights) if path.is_dir() else _read(path, weights)


def _open_folder(folder: Path, weights: Nest | None) -> _Source:
    if (folder / _PIPELINE).is_file() or (folder / _TRANSFORMER / CONFIG).is_file():
        return _open_folder(folder / _TRANSFORMER, weights)
    if (folder / CONFIG).is_file():
        if is_transformer(folder):
            options, tensors = read_diffusers_transformer(folder)
            return _Source(tensors, None, options, "ditzoo.models.DiT")
        config = read_config(folder)
        file = read_checkpoint(find_weights(folder))
        return _Source(file.tensors, None, config.network.options, config.network.model_cls, config.details)
    return _read(folder, weights)


def _read(path: Path, weights: Nest | None) -> _Source:
    file = read_checkpoint(path, weights=weights)
    return _Source(file.tensors, file.nest)


def _finish(
    source: _Source,
    name: str,
    model_cls: type[DiffusionTransformer],
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    strict: bool,
    dtype: torch.dtype | None,
) -> DiffusionTransformer:
    path = registry.class_path(model_cls)
    if source.model_cls not in (None, path):
        raise ValueError(
            f"the folder holds a {str(source.model_cls).rpartition('.')[2]}, and {name} is a {model_cls.__name__}: "
            "ditzoo.models.DiffusionTransformer.from_pretrained(folder) loads it as what it is."
        )
    options = {**config, **overrides}
    model = construct(model_cls, options, meta=is_own(path))
    tensors = source.tensors
    if is_diffusers_state(tensors):
        tensors = ditzoo_state(tensors, construct(model_cls, source.options or config, meta=True))
    known = source.options or config
    model.load_result = load_weights(model, tensors, source=known if overrides else None, strict=strict)
    warn_of_non_finite(model.state_dict())
    model.to(device=torch.get_default_device(), dtype=dtype)
    return model
