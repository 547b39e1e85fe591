"""Weights from one layout to another: ditzoo's folders, the authors' files, diffusers' folders."""

from __future__ import annotations

import os
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.interop.dit import check_expressible, warn_of_deviation
from ditzoo.interop.folders import SCHEDULER_CONFIG, PipelinePlace, folder_warning, write_folder
from ditzoo.interop.package import import_diffusers
from ditzoo.interop.schedulers import recipe_of_pipeline
from ditzoo.media.files import writing
from ditzoo.models import DiffusionTransformer, DiT, ModelDetails
from ditzoo.models.state_dicts import is_constant_buffer, official_state
from ditzoo.weights.checks import short, shown, some
from ditzoo.weights.diffusers_extra import extra_beside
from ditzoo.weights.diffusers_names import (
    PIPELINE_INDEX,
    is_diffusers_state,
    read_diffusers_transformer,
    transformer_folder,
)
from ditzoo.weights.file_checks import wrong_buffers
from ditzoo.weights.files import FLOATS, Nest, WeightsFile, kind_of, read_checkpoint
from ditzoo.weights.folders import CONFIG, WEAK_STEM, load_model, load_network, read_config, save_model
from ditzoo.weights.hub import is_hub_name
from ditzoo.weights.lookalikes import fitting
from ditzoo.weights.match import FileForNetwork, shapes_of
from ditzoo.weights.shards import SAVED_DTYPES, write_safetensors
from ditzoo.weights.sources import published_details
from ditzoo.weights.values import in_precision

Layout = Literal["ditzoo", "official", "diffusers"]
_PYTORCH, _SAFETENSORS = (".pt", ".pth"), ".safetensors"
_PathLike = str | os.PathLike[str]


def convert(
    src: _PathLike,
    dst: _PathLike,
    *,
    to: Layout,
    name: str | None = None,
    weights: Nest = "ema",
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write weights in another layout, another precision, or another kind of file.

    Weights are copied bit for bit unless `dtype` asks for another precision. `dst` appears when it is complete, and
    nothing that exists is replaced.

    Args:
        src: the authors' file (`.pt`, `.pth`, `.safetensors`), in one file or in shards; a folder of ditzoo; a pipeline
            or a transformer of diffusers.
        dst: for `"official"` a file that ends with `.pt`, `.pth` or `.safetensors`, else a new folder.
        to: `"ditzoo"` for `config.json` and safetensors, which `ditzoo.Pipeline.from_pretrained` loads; `"official"`
            for the state dict that the authors' code loads strictly, their constant buffers included; `"diffusers"`,
            for DiT alone, for a folder that `DiTPipeline.from_pretrained(folder, vae=vae)` loads.
        name: registry name, such as `"dit_xl_2.in256"`. The authors' files do not say what they are for, and need one;
            elsewhere it is checked, and gives what is known of the weights where `src` says nothing.
        weights: of a training checkpoint that holds both, the moving average (`"ema"`) or the last step (`"raw"`).
        dtype: `torch.float32`, `float16` or `bfloat16`; None keeps that of each tensor.
        max_shard_size: of the files in a folder, in bytes or as `"5GB"`; larger weights are written in several, with an
            index. An official file is always one.

    Returns:
        `dst`.

    Raises:
        FileExistsError: for a `dst` that exists.
        OSError: where `src` cannot be found, or `dst` not be written.
        ImportError: for `to="diffusers"` where that is missing, naming the extra to install.
        TypeError: for another network than DiT to diffusers.
        ValueError: for weights that are damaged, unsafe to read, not those asked for, or not of `name`; for a missing
            name, with those whose layout fits; for what the target cannot express; for arguments that are none.

    Warns:
        UserWarning: that diffusers computes something else with the weights of a folder for it, and by how much; and
            that the weaker model of autoguidance, which only ditzoo's folders have, is left out.
    """
    _check_arguments(to, weights, dtype)
    src, dst = _source(src), Path(dst)
    _check_target(dst, to)
    if to == "diffusers":
        import_diffusers("converting to diffusers")
    model = _read(src, name, weights)
    weak_model = _weak_model(src)
    if to == "ditzoo":
        save_model(model, dst, weak_model=weak_model, max_shard_size=max_shard_size, dtype=dtype)
        return dst
    if to == "official":
        _write_official_file(model, dst, dtype)
    else:
        _write_diffusers_folder(model, src, dst, max_shard_size, dtype)
        warn_of_deviation(*folder_warning(dst))
    if weak_model is not None:
        warnings.warn(f"the weaker model of autoguidance in {src} has no place in {dst}.", stacklevel=2)
    return dst


def _check_arguments(to: str, weights: str, dtype: torch.dtype | None) -> None:
    for argument, value, kinds in (("to", to, get_args(Layout)), ("weights", weights, get_args(Nest))):
        if value not in kinds:
            raise ValueError(f"{argument} must be one of {', '.join(map(repr, kinds))}, got {value!r}.")
    if dtype is not None and dtype not in SAVED_DTYPES:
        raise ValueError(f"dtype must be None or one of {', '.join(map(short, SAVED_DTYPES))}, got {dtype!r}.")


def _source(src: _PathLike) -> Path:
    text = os.fspath(src)
    if not text:
        raise ValueError("SRC is empty; name a file or a folder of weights.")
    if is_hub_name(text) or text.startswith(("https://", "http://")):
        raise ValueError(
            f"{text} is not on this machine: fetch it first, by `ditzoo pull` from the Hub, and convert what arrives."
        )
    return Path(text)


def _check_target(dst: Path, to: Layout) -> None:
    suffixes = (*_PYTORCH, _SAFETENSORS)
    if to == "official" and dst.suffix not in suffixes:
        raise ValueError(f"{dst} should be a file for the authors' code, which ends with {' or '.join(suffixes)}.")
    if to != "official" and dst.suffix in suffixes:
        raise ValueError(f"{dst} looks like a file, and {to} is written as a folder; name one, such as {dst.stem}.")
    if dst.is_symlink() or dst.is_file() or (dst.is_dir() and (to == "official" or any(dst.iterdir()))):
        raise FileExistsError(f"{dst} exists, and nothing is overwritten; name another target, or remove it first.")


# Sources.


def _read(src: Path, name: str | None, weights: Nest) -> DiffusionTransformer:
    """The network with its weights, mapped from the file where nothing had to be changed, and with its details."""
    if name is not None:
        registry.model_info(name)  # a wrong name is found before a large file is read
    if (folder := transformer_folder(src)) is not None:
        model = _read_diffusers(src, folder, name)
    elif (src / CONFIG).is_file():
        model = load_model(src)
    else:
        return _read_official(src, name, weights)
    if name is not None:
        _check_network(src, model, name)
        if model.details.recipe is None:
            model.details = _completed(model.details, published_details(name, model.num_classes))
    return model


def _completed(details: ModelDetails, known: ModelDetails) -> ModelDetails:
    """With what is known where they say nothing."""
    return ModelDetails(**{f.name: getattr(details, f.name) or getattr(known, f.name) for f in fields(ModelDetails)})


def _weak_model(src: Path) -> DiffusionTransformer | None:
    """That of autoguidance, in a folder of ditzoo which has one."""
    if transformer_folder(src) is not None or not (src / CONFIG).is_file():
        return None
    config = read_config(src)
    return None if config.weak_network is None else load_network(config, config.weak_network, WEAK_STEM)


def _read_official(src: Path, name: str | None, weights: Nest) -> DiffusionTransformer:
    """The authors' weights, which do not say what network they are for."""
    file = read_checkpoint(src, weights=weights)
    if is_diffusers_state(file.tensors):
        raise ValueError(
            f"{src} has the names of diffusers, and no {CONFIG} beside it says what it is: give the folder that "
            "diffusers saved."
        )
    if name is None and (src.parent / CONFIG).is_file():
        raise ValueError(f"{src} does not say what network it is for, but {CONFIG} beside it does: give {src.parent}.")
    if name is None:
        raise ValueError(f"{src} does not say what network it is for. {_advice(file)}")
    with torch.device("meta"):
        model = registry.create(name)
    found = FileForNetwork.match(name, model, file)
    if found.misfit:
        raise ValueError(f"{src} does not fit {name}: {_differences(found)}. {_advice(file)}")
    if wrong := wrong_buffers(found):
        raise ValueError(
            f"{src} has other values in {some(wrong)} than the authors' code: the rows of its tables may stand in "
            "another order. Take the authors' own file."
        )
    model.load_state_dict(dict(found.weights), assign=True)
    model.details = published_details(name, model.num_classes, kind_of(file.nest))
    return model


def _differences(found: FileForNetwork) -> str:
    wanted, shapes = found.wanted, found.shapes
    wrong = {
        "it lacks": [key for key in wanted if key not in shapes],
        "it has, besides those of the network,": [
            shown(key) for key in (*shapes, *found.file.others) if key not in wanted
        ],
        "of another shape is": [key for key in wanted if key in shapes and shapes[key] != wanted[key]],
        "not in floats is": [shown(key) for key, tensor in found.weights.items() if tensor.dtype not in FLOATS],
    }
    return "; ".join(f"{what} {some(keys)}" for what, keys in wrong.items() if keys)


def _advice(file: WeightsFile) -> str:
    """Which names fit a file."""
    classes = registry.model_classes().values()
    weights = {key: t for key, t in file.tensors.items() if not any(is_constant_buffer(cls, key) for cls in classes)}
    if names := fitting(shapes_of(weights)):
        return f"Its names and shapes are those of {some(names)}: give --name {names[0]} (name={names[0]!r})" + (
            " or whichever it was made for." if names[1:] else "."
        )
    return (
        "No network of the zoo at its named size and options has its names and shapes: build the one that it is for "
        "with ditzoo.create() and its options, load it there, and save that."
    )


def _read_diffusers(src: Path, folder: Path, name: str | None) -> DiffusionTransformer:
    options, state = read_diffusers_transformer(src)
    extra = extra_beside(folder, options["num_classes"])
    if extra is not None:
        options["class_dropout_prob"] = extra.class_dropout_prob
    elif name is not None:
        options["class_dropout_prob"] = registry.model_info(name).config.get("class_dropout_prob", 0.1)
    with torch.device("meta"):
        model = DiT(**options)
    model.load_state_dict(state, assign=True)
    if extra is not None:
        model.details = extra.details
    elif (folder.parent / PIPELINE_INDEX).is_file():
        model.details = _details_of_pipeline(PipelinePlace(folder.parent), model, name)
    return model


def _details_of_pipeline(place: PipelinePlace, model: DiT, name: str | None) -> ModelDetails:
    """What a pipeline by others says: names of classes, and how it samples, where no name says it better."""
    recipe = None
    has_better = name is not None and registry.model_info(name).recipe is not None
    if not has_better and (scheduler := place.read(SCHEDULER_CONFIG)):
        recipe = recipe_of_pipeline(scheduler, learned_variance=model.learn_sigma, **place.facts())
    return ModelDetails(recipe=recipe, label_names=place.label_names(model.num_classes))


def _check_network(src: Path, model: DiffusionTransformer, name: str) -> None:
    """Refuse a name of another network than that which a folder describes."""
    info = registry.model_info(name)
    if info.model_cls != type(model).__name__:
        raise ValueError(f"{src} holds a {type(model).__name__}, and {name} is a {info.model_cls}; leave --name out.")
    wanted, found = (
        {**config, "class_dropout_prob": config["class_dropout_prob"] > 0} for config in (info.config, model.config)
    )
    wrong = [key for key in wanted if wanted[key] != found[key]]
    if wrong:
        entries = some([f"{key}={model.config[key]!r}, not {info.config[key]!r}" for key in wrong])
        raise ValueError(f"{src} is not of {name}: it has {entries}; leave --name out, or give the right one.")


# Targets.


def _write_official_file(model: DiffusionTransformer, path: Path, dtype: torch.dtype | None) -> None:
    state = official_state(model)
    with writing(path) as temporary:
        if path.suffix == _SAFETENSORS:
            write_safetensors(temporary, state, dtype)
        else:
            _save_pickle({key: in_precision(key, tensor, dtype) for key, tensor in state.items()}, temporary)


def _save_pickle(state: dict[str, Tensor], path: Path) -> None:
    """As `torch.save`, which writes all the memory that a tensor is a part of, and of a full disk says nothing."""
    parts = {key: tensor for key, tensor in state.items() if tensor.untyped_storage().nbytes() > tensor.nbytes}
    try:
        with path.open("wb") as file:
            torch.save({**state, **{key: tensor.clone() for key, tensor in parts.items()}}, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _write_diffusers_folder(
    model: DiffusionTransformer, src: Path, folder: Path, max_shard_size: int | str, dtype: torch.dtype | None
) -> None:
    check_expressible(model)
    recipe = model.details.recipe
    if recipe is None:
        raise ValueError(
            f"nothing in {src} says how the network is sampled, which diffusers' scheduler has to know; give --name "
            "dit_xl_2.in256 (name='dit_xl_2.in256'), or whatever network of the zoo was trained in the same way."
        )
    assert isinstance(model, DiT)  # as `check_expressible` has made sure
    write_folder(model, folder, recipe, max_shard_size=max_shard_size, dtype=dtype)
