"""What is known of a model besides its network: what travels with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from ditzoo.recipe import Recipe, check_text, is_finite


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One measured number, for the model card.

    Raises:
        TypeError: for a value that is no number or a text that is none.
        ValueError: for a number that is not finite, a text with control characters, or a metric or data set without a
            name.
    """

    metric: str
    """with its feature extractor where it has one, such as `"Frechet distance, digits classifier"`"""
    value: float
    dataset: str
    """what the samples are compared with"""
    settings: str = ""
    """how samples were drawn and how many"""
    source: str = ""
    """who measured it, or where it was read"""

    def __post_init__(self) -> None:
        for name in ("metric", "dataset", "settings", "source"):
            text = getattr(self, name)
            check_text(f"{name} of a result", text)
            if not text and name in ("metric", "dataset"):
                raise ValueError(f"a result needs a {name}, got {text!r}.")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise TypeError(f"the value of {self.metric!r:.60} must be a number, got {self.value!r:.60}.")
        if not is_finite(self.value):
            raise ValueError(f"the value of {self.metric!r:.60} must be finite, got {self.value!r:.60}; leave it out.")


@dataclass(frozen=True, kw_only=True)
class ModelDetails:
    """What is known of a model besides its network. `ditzoo.create` fills it in, and saving and pushing keep it.

    Frozen: to change an entry, `model.details = dataclasses.replace(model.details, data="my photographs")`.

    Raises:
        TypeError: for an entry of another type; the message names it.
        ValueError: for a text with control characters, which could drive a terminal on which it is shown.
    """

    name: str | None = None
    """registry name that the model was made from, or whatever it is called"""
    recipe: Recipe | None = None
    """how the weights were trained and are sampled, with their licence and source"""
    label_names: tuple[str, ...] | None = None
    """of the classes, in order; commas separate synonyms"""
    data: str | None = None
    """what the weights were trained on; None for fresh ones"""
    results: tuple[EvaluationResult, ...] = ()
    """measured with these weights"""
    training_command: str | None = None
    """that made the weights"""

    def __post_init__(self) -> None:
        for name in ("name", "data", "training_command"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name), in_one_line=name == "name")
        _check("recipe", self.recipe, Recipe, "a ditzoo.Recipe")
        if self.label_names is not None:
            object.__setattr__(self, "label_names", _checked_tuple("label_names", self.label_names, str, "strings"))
            for name in self.label_names:
                check_text("a label name", name, in_one_line=True)
        results = _checked_tuple("results", self.results, EvaluationResult, "EvaluationResult objects")
        object.__setattr__(self, "results", results)

    @property
    def licence(self) -> str | None:
        """Of the weights."""
        return self.recipe.licence if self.recipe else None

    @property
    def source(self) -> str | None:
        """Where the weights are from."""
        return self.recipe.source if self.recipe else None

    def for_classes(self, num_classes: int) -> Self:
        """Of the same weights in a model of so many classes: names of others are left out."""
        return self if len(self.label_names or ()) == num_classes else replace(self, label_names=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` gives the same details back."""
        return {
            "name": self.name,
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
            "label_names": None if self.label_names is None else list(self.label_names),
            "data": self.data,
            "results": [{f.name: getattr(result, f.name) for f in fields(result)} for result in self.results],
            "training_command": self.training_command,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelDetails:
        """The details that `to_dict` wrote; entries that are missing have their defaults.

        Raises:
            ValueError: for an entry that no details have, or a value out of range; the message names the entry.
            TypeError: for a value of the wrong type, likewise.
        """
        if unknown := set(values) - {f.name for f in fields(cls)}:
            raise ValueError(f"unknown entries: {', '.join(map(repr, sorted(unknown)))}.")
        entries = dict(values)
        for name, read in (("recipe", _recipe), ("results", _results)):
            if entries.get(name) is not None:
                try:
                    entries[name] = read(entries[name])
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{name}: {error}") from error
        if entries.get("results") is None:
            entries.pop("results", None)
        return cls(**entries)


def _recipe(values: object) -> Recipe:
    _check("it", values, Mapping, "a mapping of entries to values")
    assert isinstance(values, Mapping)
    return Recipe.from_dict(values)


def _results(rows: object) -> tuple[EvaluationResult, ...]:
    known = {f.name for f in fields(EvaluationResult)}
    results = []
    for row in _checked_tuple("it", rows, Mapping, "mappings of entries to values"):
        if unknown := set(row) - known:
            raise ValueError(f"unknown entries: {', '.join(map(repr, sorted(unknown)))}.")
        if missing := {"metric", "value", "dataset"} - set(row):
            raise ValueError(f"a result lacks {', '.join(sorted(missing))}.")
        results.append(EvaluationResult(**row))
    return tuple(results)


def _check(name: str, value: object, kind: type, wanted: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {wanted}, or None, got {value!r:.60}.")


def _checked_tuple(name: str, values: object, kind: type, wanted: str) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"{name} must be a list of {wanted}, got {values!r:.60}.")
    return tuple(values)
