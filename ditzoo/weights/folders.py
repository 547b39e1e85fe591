"""Models on disk: a folder with `config.json`, which says what the model is, and its weights in safetensors.

The same folder is what travels through the Hub, and what `Pipeline.save_pretrained` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ditzoo import __version__, registry
from ditzoo.diffusion import get_sampler
from ditzoo.media import LabelNames
from ditzoo.media.files import writing, writing_into
from ditzoo.models import DiffusionTransformer, ModelDetails
from ditzoo.weights.catalogue import note_licence_of
from ditzoo.weights.checks import message, shown, some
from ditzoo.weights.files import WeightsFile, read_checkpoint
from ditzoo.weights.hub_errors import without_tokens
from ditzoo.weights.index import INDEX_SUFFIX, check_inside
from ditzoo.weights.json_files import read_json_object
from ditzoo.weights.loading import load_weights
from ditzoo.weights.shards import save_weights
from ditzoo.weights.values import warn_of_non_finite

#: Of `CONFIG`. A folder of an earlier version is read for ever; tests/weights/folders keeps one of each.
SCHEMA_VERSION = 1
CONFIG, STEM, WEAK_STEM = "config.json", "model", "weak_model"
#: In the folder of a training run: that of its checkpoints; and in each of these, beside the model's own files, what
#: training goes on from: tensors, and what is written last.
CHECKPOINTS, TRAINING_STATE, PROGRESS = "checkpoints", "training.safetensors", "training.json"
#: Beside the checkpoints: the settings of the run.
RUN_CONFIG = "run.yaml"
#: Of the names of files of weights, as patterns.
_ENDINGS = (".safetensors", INDEX_SUFFIX, "-?????-of-?????.safetensors")
#: What `CONFIG` says of a network, by type.
_NETWORK = {"model_cls": str, "model": dict}
#: Entries of `CONFIG` that are the model's details.
DETAILS = tuple(f.name for f in fields(ModelDetails))
#: Options that count blocks.
_BLOCK_COUNTS = ("depth", "blocks", "decode_layer")
_ENTRIES = {"schema_version", "ditzoo_version", *_NETWORK, WEAK_STEM, *DETAILS}


@dataclass(frozen=True)
class Network:
    """A network as `CONFIG` describes it.

    Attributes:
        model_cls: its class, by `registry.class_path`.
        options: constructor arguments.
    """

    model_cls: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class FolderConfig:
    """What `CONFIG` says, checked as far as it can be without building anything.

    Attributes:
        path: of the file.
        network: of the model.
        weak_network: of the weaker model of autoguidance, if there is one.
        details: of the model.
    """

    path: Path
    network: Network
    weak_network: Network | None
    details: ModelDetails


def save_model(
    model: DiffusionTransformer,
    folder: Path | str,
    *,
    details: ModelDetails | None = None,
    weak_model: DiffusionTransformer | None = None,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Write `config.json` and the weights, in one file or, above `max_shard_size`, in shards with an index.

    All is written under temporary names first: a full disk leaves the folder as it was.

    Args:
        model: of whatever device and precision.
        folder: a new one, or one whose model is to be replaced; other files in it stay.
        details: written in place of `model.details`.
        weak_model: of autoguidance; written beside the model.
        max_shard_size: in bytes, or as `"5GB"`.
        dtype: float16, bfloat16 or float32, for a copy of another precision than the model's.

    Raises:
        ValueError: for a size or precision that is none, a class that nothing could find again, or a network without
            values (on the meta device).
        OSError: where the folder cannot be written.
    """
    folder = Path(folder)
    models = {STEM: model} if weak_model is None else {STEM: model, WEAK_STEM: weak_model}
    config = {
        "schema_version": SCHEMA_VERSION,
        "ditzoo_version": __version__,
        **_describe(model),
        WEAK_STEM: None if weak_model is None else _describe(weak_model),
        **(details or model.details).to_dict(),
    }
    text = _text(config)  # before anything is written: it may fail
    for each in models.values():
        if each.device.type == "meta":
            raise ValueError("the model is on the meta device, where weights have no values; load weights first.")
    old = [f"{stem}{end}" for stem in (STEM, WEAK_STEM) for end in _ENDINGS]
    with writing_into(folder, replaces=old, last=CONFIG) as temporary:
        for stem, each in models.items():
            save_weights(each.state_dict(), temporary, stem=stem, max_shard_size=max_shard_size, dtype=dtype)
        (temporary / CONFIG).write_text(text, encoding="utf-8")


def rewrite_details(folder: Path, details: ModelDetails) -> None:
    """Replace the details in the `config.json` of a folder; all else in it stays."""
    entries = {**read_json_object(folder / CONFIG), **details.to_dict()}
    with writing(folder / CONFIG) as temporary:
        temporary.write_text(_text(entries), encoding="utf-8")


def _text(entries: Mapping[str, Any]) -> str:
    return without_tokens(json.dumps(entries, indent=2, allow_nan=False)) + "\n"


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    **overrides: Any,
) -> DiffusionTransformer:
    """The model in a folder, with its `details`.

    Args:
        folder: that `save_model` wrote, or a copy from the Hub; or of a training run, whose newest checkpoint is meant.
        dtype: of the weights; None keeps the precision of the file.
        strict: whether names and shapes must be the model's; see `ditzoo.weights.load_weights`.
        **overrides: constructor arguments to change; weights are adapted to another `num_classes`, `in_channels` or
            `input_size`.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: for files that are damaged, contradict each other, name a class that no registered model has, or
            are of a later version of ditzoo.
        TypeError: for an override that the class does not have.
    """
    config = read_config(model_folder(folder))
    return load_network(config, config.network, STEM, dtype=dtype, strict=strict, overrides=overrides)


def load_network(
    config: FolderConfig,
    network: Network,
    stem: str,
    *,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> DiffusionTransformer:
    """One of the networks that a folder describes, with its weights; `load_model` without reading the config."""
    weights, overrides = find_weights(config.path.parent, stem), dict(overrides or {})
    file = read_checkpoint(weights)
    model_cls = _find_class(config.path, network.model_cls)
    registry.check_option_names(network.model_cls, model_cls, overrides)
    model = _build(config.path, network, model_cls, file)
    if stem == STEM:
        _check_labels(config, model.num_classes)
    with _named_misfit(weights, model_cls):
        result = load_weights(model, file.tensors, strict=strict)
    if overrides or not is_own(network.model_cls):
        # The constructor of another package may compute tensors that no state dict has.
        saved = model.config
        model = construct(model_cls, {**saved, **overrides}, meta=is_own(network.model_cls))
        result = load_weights(model, file.tensors, source=saved if overrides else None, strict=strict)
    warn_of_non_finite(file.tensors, source=weights)
    model.load_result = result
    if stem == STEM:
        model.details = config.details.for_classes(model.num_classes)
        note_licence_of(model.details.name or str(config.path.parent), model.details.licence)
    return model if dtype is None else model.to(dtype)


@contextmanager
def _named_misfit(weights: Path, model_cls: type[DiffusionTransformer]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{weights} does not fit the {model_cls.__name__} that {CONFIG} beside it describes: "
            f"{str(error).rstrip('.')}. The two are written together: fetch the whole folder, or save the model again."
        ) from error


def read_config(folder: Path) -> FolderConfig:
    """What `CONFIG` in a folder says.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for what `save_model` does not write; the message names file, entry and remedy.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give a folder that save_pretrained() wrote.")
    check_inside(path)
    entries = read_json_object(path)
    version = entries.get("schema_version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{path} has schema_version={version!r:.60}, which must be a whole number from 1.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version!r:.60}, and this ditzoo ({__version__}) reads up to {SCHEMA_VERSION}: "
            "update ditzoo."
        )
    network = _network(str(path), entries)
    if unknown := [shown(repr(key)) for key in entries if key not in _ENTRIES]:
        raise ValueError(
            f"{path} has {some(unknown)}, which no model's config has: remove it, or update ditzoo if a later version "
            "wrote it."
        )
    weak = entries.get(WEAK_STEM)
    weak_network = None if weak is None else _network(f"{WEAK_STEM} in {path}", weak)
    try:
        details = ModelDetails.from_dict({name: entries[name] for name in DETAILS if name in entries})
        if details.label_names is not None:
            _check_names(details.label_names)
        if details.recipe is not None:
            get_sampler(details.recipe)  # checks its options
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {message(error).rstrip('.')}. Mend the entry, or save the model again.") from error
    return FolderConfig(path, network, weak_network, details)


def _check_names(label_names: Sequence[str]) -> None:
    try:
        LabelNames(label_names)
    except ValueError as error:
        raise ValueError(f"label_names: {error}") from error


def _check_labels(config: FolderConfig, num_classes: int) -> None:
    names = config.details.label_names
    if names is not None and len(names) != num_classes:
        raise ValueError(
            f"{config.path}: label_names has {len(names)} names, and the model {num_classes} classes. Mend the entry, "
            "or save the model again."
        )


def _describe(model: DiffusionTransformer) -> dict[str, Any]:
    return {"model_cls": registry.class_path(type(model)), "model": model.config}


def _network(what: str, entries: object) -> Network:
    found = entries if isinstance(entries, dict) else {}
    if missing := sorted(set(_NETWORK) - set(found)):
        raise ValueError(
            f"{what} lacks {', '.join(missing)}: it is not what save_pretrained() writes. A folder of diffusers is "
            "read by Pipeline.from_diffusers()."
        )
    for entry, kind in _NETWORK.items():
        if not isinstance(found[entry], kind):
            raise ValueError(
                f"{what} has {entry}={found[entry]!r:.60}, which must be a {kind.__name__}; save the model again."
            )
    return Network(found["model_cls"], found["model"])


def _build(
    path: Path, network: Network, model_cls: type[DiffusionTransformer], file: WeightsFile
) -> DiffusionTransformer:
    """The network without memory: nothing is allocated before the file has shown that it is as large."""
    package = network.model_cls.partition(".")[0]
    try:
        registry.check_option_names(network.model_cls, model_cls, network.options)
        _check_depth(network.options, len(file.tensors))
        return construct(model_cls, network.options, meta=True)
    except Exception as error:  # of whatever kind a constructor raises
        raise ValueError(
            f"{path}: its entry 'model' does not build {network.model_cls}: {message(error).rstrip('.')}. Mend the "
            f"entry, or install the version of {package} that wrote it."
        ) from error


def _check_depth(options: Mapping[str, Any], num_tensors: int) -> None:
    """A block has at least one tensor; more blocks than tensors would be built one after another, for days."""
    for option, value in options.items():
        counts = value if isinstance(value, list) else [value]
        total = sum(count for count in counts if isinstance(count, int))
        if len(counts) > num_tensors or (option in _BLOCK_COUNTS and total > num_tensors):
            raise ValueError(f"{option}={value!r:.60} is more than the weights, of {num_tensors:,} tensors, have")


def construct(model_cls: type[DiffusionTransformer], options: Mapping[str, Any], meta: bool) -> DiffusionTransformer:
    if not meta:
        return model_cls(**options)
    with torch.device("meta"):
        return model_cls(**options)


def model_folder(path: Path | str) -> Path:
    """The folder of a model that a path means: itself, or of a training run the newest checkpoint.

    Whatever is neither comes back as it is, for others to tell what is wrong with it.

    Raises:
        FileNotFoundError: for a run without a whole checkpoint.
    """
    folder = Path(path)
    checkpoints = folder / CHECKPOINTS
    if (folder / CONFIG).is_file() or not (checkpoints.is_dir() or (folder / RUN_CONFIG).is_file()):
        return folder
    named = [each for each in checkpoints.glob("*") if each.name.isdecimal() and each.is_dir()]
    for each in sorted(named, key=lambda each: int(each.name), reverse=True):
        if _is_whole(each):
            return each
    raise FileNotFoundError(f"{folder} is a training run without a whole checkpoint; let it train on.")


def _is_whole(checkpoint: Path) -> bool:
    try:
        return CONFIG in read_progress(checkpoint)["files"]
    except (OSError, ValueError):
        return False


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What `PROGRESS` says of a checkpoint whose files are there, in the sizes that were written.

    Raises:
        OSError, ValueError: for a file that is missing or of another size.
    """
    progress = read_json_object(checkpoint / PROGRESS)
    files = progress.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{PROGRESS} names no files")
    for name, size in files.items():
        if (found := (checkpoint / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found:,} bytes where {size!s:.20} were written")
    return progress


def is_own(path: str) -> bool:
    return path.partition(".")[0] == "ditzoo"


def find_weights(folder: Path, stem: str = STEM) -> Path:
    """The file of weights, or the index of its shards."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}{INDEX_SUFFIX}"
    found = next((path for path in (single, index) if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{single} is missing; fetch the whole folder, or save the model again.")
    check_inside(found)
    return found


def _find_class(path: Path, name: str) -> type[DiffusionTransformer]:
    """The class of this name among those of registered models."""
    classes = registry.model_classes()
    if name in classes:
        return classes[name]
    package, word = name.partition(".")[0], name.rpartition(".")[2]
    if package == "ditzoo":
        remedy = "This version of ditzoo does not have it: update ditzoo."
    elif package == "__main__":
        remedy = "It is of a script: run its definition and ditzoo.register_model(...) before you load the folder."
    else:
        remedy = (
            "Install that package, which registers its models, or register the class with ditzoo.register_model(...) "
            "before you load the folder."
        )
    if namesakes := [other for other in classes if other.rpartition(".")[2] == word]:
        remedy += f" Registered is {some(namesakes)}; if the class has moved there, write that into {CONFIG}."
    raise ValueError(
        f"{path} names the model class {shown(word)!r} of the package {shown(package)!r} ({shown(name)}), "
        f"which no registered model has. {remedy}"
    )
