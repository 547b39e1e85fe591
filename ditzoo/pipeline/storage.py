"""Pipelines on disk: a folder with `config.json` and `model.safetensors`, or a tagged name of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from ditzoo import __version__, models, registry
from ditzoo.media import Codec, LabelNames
from ditzoo.media.files import writing
from ditzoo.models import DiffusionTransformer
from ditzoo.models.digits import DIGITS_DATA
from ditzoo.recipe import Recipe
from ditzoo.weights import load_state_dict

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import Pipeline

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_pipeline(pipeline: Pipeline, folder: str | Path) -> None:
    """See `Pipeline.save_pretrained`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = None if pipeline.label_names is None else list(pipeline.label_names)
    config = {
        "ditzoo_version": __version__,
        "name": pipeline.name,
        "model_cls": type(pipeline.model).__name__,
        "model": pipeline.model.config,
        "recipe": pipeline.recipe.to_dict(),
        "label_names": names,
    }
    state = {name: tensor.contiguous() for name, tensor in pipeline.model.state_dict().items()}
    with writing(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    with writing(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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
    if (Path(name_or_path) / CONFIG).is_file():
        pipeline = _from_folder(cls, Path(name_or_path), codec)
    else:
        pipeline = _from_registry(cls, str(name_or_path), checkpoint, codec)
    try:
        return pipeline.to(device, dtype)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); cpu always can.") from error


def _from_folder(cls: type[Pipeline], folder: Path, codec: Codec | None) -> Pipeline:
    config = _read_config(folder / CONFIG)
    model_cls = getattr(models, config["model_cls"], None)
    if not (isinstance(model_cls, type) and issubclass(model_cls, DiffusionTransformer)):
        raise ValueError(
            f"{folder / CONFIG} names the model class {config['model_cls']!r}, which this version of ditzoo does not "
            "have."
        )
    with torch.device("meta"):
        model = model_cls(**config["model"])
    model.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    names = config.get("label_names")
    return cls(
        model,
        Recipe.from_dict(config["recipe"]),
        codec,
        label_names=None if names is None else LabelNames(names),
        name=config["name"],
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); save the pipeline again.") from error
    if missing := {"model_cls", "model", "recipe", "name"} - set(config):
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}: it is not what Pipeline.save_pretrained() writes. Folders of "
            "diffusers are read by ditzoo.interop."
        )
    return config


def _from_registry(cls: type[Pipeline], name: str, checkpoint: str | Path | None, codec: Codec | None) -> Pipeline:
    looks_like_path = "/" in name or "\\" in name
    if looks_like_path:
        raise ValueError(
            f"there is no {CONFIG} in {name}: give a folder that Pipeline.save_pretrained() wrote, or a tagged name "
            "such as dit_ti_2.digits (ditzoo.list_models(pretrained=True))."
        )
    info = registry.model_info(name)
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
