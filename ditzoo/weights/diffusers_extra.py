"""What diffusers has no place for, in a JSON file of ditzoo beside its own: a DiT's option of training and its details.

diffusers ignores it, and is not needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ditzoo import __version__
from ditzoo.media import LabelNames
from ditzoo.models import DiT, ModelDetails
from ditzoo.recipe import Recipe
from ditzoo.weights.index import check_inside
from ditzoo.weights.json_files import read_json_object

EXTRA_FILE = "ditzoo.json"


class Extra(NamedTuple):
    """What the file says. The details have a recipe."""

    class_dropout_prob: float
    details: ModelDetails


def extra_entries(model: DiT, recipe: Recipe) -> dict[str, Any]:
    """What the file keeps, JSON-safe: that the model has this recipe, and its other details."""
    details = replace(model.details, recipe=recipe)
    return {"ditzoo_version": __version__, "model": model.config, **details.to_dict()}


def extra_beside(transformer: Path, num_classes: int) -> Extra | None:
    """What the file in the folder of a pipeline says; None where there is none.

    Args:
        transformer: the folder of the transformer, in that of the pipeline.
        num_classes: of the transformer.

    Raises:
        ValueError: as `parse_extra`, and for a link out of the folder.
    """
    path = transformer.parent / EXTRA_FILE
    if not path.is_file():
        return None
    check_inside(path)
    return parse_extra(read_json_object(path), str(path), num_classes)


def parse_extra(entries: Mapping[str, Any], place: str, num_classes: int) -> Extra:
    """What the entries of the file say.

    Args:
        entries: `extra_entries`, or those of a file that has the model and the recipe alone.
        place: of the file, for messages.
        num_classes: of the transformer that it belongs to.

    Raises:
        ValueError: for entries that are not these, or of another transformer.
    """
    try:
        details = ModelDetails.from_dict({f.name: entries[f.name] for f in fields(ModelDetails) if f.name in entries})
        options = entries.get("model")
        probability = options.get("class_dropout_prob") if isinstance(options, Mapping) else None
        if details.recipe is None or isinstance(probability, bool) or not isinstance(probability, int | float):
            raise ValueError("it has no recipe, or no model with class_dropout_prob")
        if not 0 < probability < 1:
            raise ValueError(f"class_dropout_prob={probability!r} is not between 0 and 1")
        if details.label_names is not None and len(LabelNames(details.label_names)) != num_classes:
            raise ValueError(
                f"it has {len(details.label_names)} label_names, and the transformer {num_classes} classes"
            )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{place} is not what ditzoo writes: {str(error).rstrip('.')}. Remove it to load the rest."
        ) from error
    return Extra(float(probability), details)
