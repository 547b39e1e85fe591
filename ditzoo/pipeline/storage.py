"""Pipelines on disk: a folder with `config.json` and `model.safetensors`, or a tagged name of the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ditzoo import __version__, registry
from ditzoo.media import Codec, LabelNames
from ditzoo.media.files import writing
from ditzoo.models import DiffusionTransformer
from ditzoo.models.digits import DIGITS_DATA
from ditzoo.recipe import Recipe
from ditzoo.weights import load_state_dict
from ditzoo.weights.checks import message, shown, some
from ditzoo.weights.files import FLOATS
from ditzoo.weights.match import shapes_of

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import Pipeline

CONFIG, WEIGHTS, WEAK_WEIGHTS = "config.json", "model.safetensors", "weak_model.safetensors"
#: What `CONFIG` says of a model, and what else it must have, by type.
_MODEL_ENTRIES = {"model_cls": str, "model": dict}
_ENTRIES = {"name": str, **_MODEL_ENTRIES, "recipe": dict}


def save_pipeline(pipeline: Pipeline, folder: str | Path) -> None:
    """See `Pipeline.save_pretrained`. The weak model of autoguidance is written too, in `weak_model.safetensors`."""
    folder, weak = Path(folder), pipeline.weak_model
    config = {
        "ditzoo_version": __version__,
        "name": pipeline.name,
        **_description(pipeline.model),
        "weak_model": None if weak is None else _description(weak),
        "recipe": pipeline.recipe.to_dict(),
        "label_names": None if pipeline.label_names is None else list(pipeline.label_names),
    }
    text = json.dumps(config, indent=2) + "\n"  # before anything is written: it may fail
    _save_weights(pipeline.model, folder / WEIGHTS)
    if weak is not None:
        _save_weights(weak, folder / WEAK_WEIGHTS)
    with writing(folder / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if weak is None:
        (folder / WEAK_WEIGHTS).unlink(missing_ok=True)  # of the pipeline that was here


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
    if not (Path(name_or_path) / CONFIG).is_file():
        pipeline = _from_registry(cls, str(name_or_path), checkpoint, codec)
    elif checkpoint is None:
        pipeline = _from_folder(cls, Path(name_or_path), codec)
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


# A folder.


def _description(model: DiffusionTransformer) -> dict[str, Any]:
    return {"model_cls": registry.class_path(type(model)), "model": model.config}


def _save_weights(model: DiffusionTransformer, path: Path) -> None:
    state: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in model.state_dict().items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        state[name] = tensor.clone() if place in memory else tensor  # safetensors refuses tied weights
        memory.add(place)
    with writing(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def _from_folder(cls: type[Pipeline], folder: Path, codec: Codec | None) -> Pipeline:
    config = _read_config(folder / CONFIG)
    names, weak = config.get("label_names"), config.get("weak_model")
    with _named_entry(folder, "recipe"):
        recipe = Recipe.from_dict(config["recipe"])
    with _named_entry(folder, "label_names"):
        label_names = None if names is None else LabelNames(names)
    return cls(
        _load_model(folder, config, WEIGHTS),
        recipe,
        codec,
        label_names=label_names,
        weak_model=None if weak is None else _load_model(folder, weak, WEAK_WEIGHTS),
        name=config["name"],
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); save the pipeline again.") from error
    _check_entries(str(path), config, _ENTRIES)
    if config.get("weak_model") is not None:
        _check_entries(f"weak_model in {path}", config["weak_model"], _MODEL_ENTRIES)
    return dict(config)


def _check_entries(what: str, entries: object, kinds: Mapping[str, type]) -> None:
    found = entries if isinstance(entries, dict) else {}
    if missing := sorted(set(kinds) - set(found)):
        raise ValueError(
            f"{what} lacks {', '.join(missing)}: it is not what Pipeline.save_pretrained() writes. A folder of "
            "diffusers is read by Pipeline.from_diffusers()."
        )
    for entry, kind in kinds.items():
        if not isinstance(found[entry], kind):
            raise ValueError(
                f"{what} has {entry}={found[entry]!r:.60}, which must be a {kind.__name__}; save the pipeline again."
            )


@contextmanager
def _named_entry(folder: Path, entry: str) -> Iterator[None]:
    """Say in which file and entry the value is that is refused."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{folder / CONFIG}: {entry}: {reason}. Mend the entry, or save the pipeline again."
        ) from error


def _load_model(folder: Path, entries: Mapping[str, Any], file: str) -> DiffusionTransformer:
    """The network that the entries of `CONFIG` describe, with the weights of a file beside it."""
    model = _build(folder, entries["model_cls"], entries["model"])
    path = folder / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the whole folder, or save the pipeline again.")
    state = load_state_dict(path)
    try:
        model.load_state_dict(state, assign=model.device.type == "meta")
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the {type(model).__name__} that {CONFIG} beside it describes: "
            f"{_misfit(model, state) or message(error)}. The two are written together: fetch the whole folder, or save "
            "the pipeline again."
        ) from error
    return model


def _build(folder: Path, path: str, options: Mapping[str, Any]) -> DiffusionTransformer:
    """A network of the class of this path; without memory if it is ditzoo's own, so that no weights are drawn."""
    model_cls, package = _find_class(folder, path), path.partition(".")[0]
    try:
        registry.check_option_names(path, model_cls, options)
        # The constructor of another package may compute tensors that no state dict has.
        with torch.device("meta" if package == "ditzoo" else "cpu"):
            return model_cls(**options)
    except Exception as error:  # of whatever kind a constructor raises
        raise ValueError(
            f"{folder / CONFIG}: its entry 'model' does not build {path}: {str(error).rstrip('.')}. Mend the entry, or "
            f"install the version of {package} that wrote it."
        ) from error


def _find_class(folder: Path, path: str) -> type[DiffusionTransformer]:
    """The class of this path among those of registered models."""
    classes = registry.model_classes()
    if path in classes:
        return classes[path]
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    if package == "ditzoo":
        remedy = "This version of ditzoo does not have it: update ditzoo."
    elif package == "__main__":
        remedy = "It is of a script: run its definition and ditzoo.register_model(...) before you load the folder."
    else:
        remedy = (
            "Install that package, which registers its models, or register the class with ditzoo.register_model(...) "
            "before you load the folder."
        )
    if namesakes := [other for other in classes if other.rpartition(".")[2] == name]:
        remedy += f" Registered is {some(namesakes)}; if the class has moved there, write that into {CONFIG}."
    raise ValueError(
        f"{folder / CONFIG} names the model class {shown(name)!r} of the package {shown(package)!r} ({shown(path)}), "
        f"which no registered model has. {remedy}"
    )


def _misfit(model: DiffusionTransformer, state: Mapping[str, Tensor]) -> str:
    """What sets names, shapes and kinds of a file's tensors apart from a model's; empty if nothing does."""
    tensors = model.state_dict()
    wanted, found = shapes_of(tensors), shapes_of(state)
    both = [name for name in wanted if name in found]
    differences = {
        "it lacks": [name for name in wanted if name not in found],
        "it has, besides those of the model,": [shown(name) for name in found if name not in wanted],
        "of another shape is": [name for name in both if found[name] != wanted[name]],
        "not in floats is": [
            name for name in both if tensors[name].dtype in FLOATS and state[name].dtype not in FLOATS
        ],
    }
    return "; ".join(f"{what} {some(names)}" for what, names in differences.items() if names)


# A name.


def _from_registry(cls: type[Pipeline], name: str, checkpoint: str | Path | None, codec: Codec | None) -> Pipeline:
    looks_like_path = "/" in name or "\\" in name
    no_config = ValueError(
        f"there is no {CONFIG} in {name}: give a folder that Pipeline.save_pretrained() wrote, or a tagged name "
        "such as dit_ti_2.digits (ditzoo.list_models(pretrained=True))."
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
    if checkpoint is None:
        model = registry.create(name, pretrained=True)
    else:
        model = registry.create(name)
        state = load_state_dict(checkpoint, weights=info.recipe.weights)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{checkpoint} does not fit {name}; `ditzoo verify {name} --checkpoint {checkpoint}` tells what "
                "differs."
            ) from error
    names = LabelNames.digits() if info.data == DIGITS_DATA else None
    return cls(model, info.recipe, codec, label_names=names, name=name)
