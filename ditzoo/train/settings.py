"""Values of settings, whether Python's, YAML's or texts of the command line, made what the field says they are."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


def field_types(cls: type) -> dict[str, Any]:
    """Type of each field of a dataclass."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def field_docs(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass, in one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is not object:
            docs |= _texts(ast.parse(inspect.getsource(base)).body[0].body)  # type: ignore[attr-defined]
    return docs


def _texts(body: list[ast.stmt]) -> Iterable[tuple[str, str]]:
    for line, below in pairwise(body):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield line.target.id, " ".join(text.split())


#: What people who know other programs call a setting.
OTHER_NAMES = {
    "lr": "learning_rate",
    "scheduler": "lr_schedule",
    "warmup_steps": "warmup_images",
    "steps": "num_images",
    "max_steps": "num_images",
    "epochs": "num_images",
    "num_epochs": "num_images",
    "from": "from_weights",
    "pretrained": "from_weights",
    "amp": "precision",
    "mixed_precision": "precision",
    "gradient_accumulation_steps": "accumulation",
    "ema": "ema_decay",
    "optim": "optimizer",
    "grad_clip": "max_grad_norm",
    "dataset": "data",
    "data_dir": "data",
    "output_dir": "out",
    "image_size": "size",
    "workers": "num_workers",
    "lora": "lora_rank",
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words, as a sentence; empty where none is near."""
    known, word = list(known), word.lower()
    begun = [each for each in known if each.startswith(f"{word}.")]
    other = [each for each in known if each == OTHER_NAMES.get(word.replace("-", "_"))]
    near = begun or other or get_close_matches(word, known, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def coerced(name: str, value: Any, kind: Any) -> Any:
    """The value as the type of its field.

    A text stands for what it says: numbers (`1e-4`, which YAML reads as a text, and `1e6` for a whole number), `true`,
    `none`, lists with commas. A mapping may be a list of texts `entry=value`, whose dots lead into nested ones.

    Raises:
        TypeError: for a value of another type; the message names the field.
        ValueError: for a word that is not among the choices, or no number.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return coerced(name, value, next(each for each in inner if each is not NoneType))
    if origin is Literal:
        if value not in inner:
            near = did_you_mean(str(value), inner)
            raise ValueError(f"unknown {name} {value!r:.60}.{near} Choose one of {', '.join(inner)}.")
        return value
    if origin is tuple:
        return _tuple(name, value, inner[0])
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(name, value)
    return {bool: _bool, int: _int, float: _float, str: _str}[kind](name, value)


def checked_mapping(name: str, values: Mapping[str, Any], cls: type, nested: Mapping[str, type]) -> None:
    """Raise a ValueError for an entry that the dataclass does not have; the nearest are named."""
    known = [f.name for f in fields(cls)]
    for entry, value in values.items():
        if entry not in known:
            raise ValueError(f"{name} has no entry {entry!r:.60}.{did_you_mean(entry, known)}")
        if entry in nested:
            if not isinstance(value, Mapping):
                raise TypeError(f"{name}.{entry} must be a mapping of entries to values, got {value!r:.60}.")
            checked_mapping(f"{name}.{entry}", value, nested[entry], {})


def _tuple(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("[]()").split(",") if part.strip()]
    parts = value if isinstance(value, list | tuple) else [value]
    return tuple(coerced(name, part, kind) for part in parts)


def load_yaml(text: str) -> Any:
    """What YAML stands for, without its surprises: `010` is ten, `1:30` and dates are texts, `1e-4` is a number, and a
    name that is there twice is an error.

    Raises:
        yaml.YAMLError: for what is no YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads numbers as Python does."""

        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] in ("bool", "null", "merge")]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found: set[Any] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in found:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                found.add(key.value)
            values: dict[Any, Any] = super().construct_mapping(node, deep)
            return values

        def construct_scalar(self, node: Any) -> Any:
            text = super().construct_scalar(node)
            return _number_or_text(text) if node.style is None and node.tag.endswith(":str") else text

    return yaml.load(text, Loader)


def _number_or_text(text: str) -> int | float | str:
    if text.lower() in (".inf", "+.inf", "-.inf"):
        return float(text.replace(".", ""))
    if text[:1] in "-+.0123456789":
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        entries: dict[str, Any] = {}
        for text in value:
            path, equals, written = str(text).partition("=")
            if not equals or not all(path.split(".")):
                raise ValueError(f"{name} takes entries such as depth=4, got {text!r:.60}.")
            _enter(entries, name, path, _read(name, written))
        return entries
    if not isinstance(value, Mapping) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"{name} must be a mapping of entries to values, got {value!r:.60}.")
    return dict(value)


def _enter(entries: dict[str, Any], name: str, path: str, value: Any) -> None:
    """Put a value where the dots lead."""
    *outer, last = path.split(".")
    for step in outer:
        entries = entries.setdefault(step, {})
        if not isinstance(entries, dict):
            raise ValueError(
                f"{name} has {step!r} twice, with a value and with entries, in {path!r}; give one of them."
            )
    entries[last] = value


def _read(name: str, text: str) -> Any:
    """What a text of the command line stands for."""
    import yaml

    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} cannot read {text!r:.60}: {' '.join(str(error).split())}.") from error


def _bool(name: str, value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r:.60}.")
    return value


def _int(name: str, value: Any) -> int:
    if isinstance(value, str):
        value = _number(name, value, "a whole number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a whole number, got {value!r:.60}.")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    return int(value)


def _float(name: str, value: Any) -> float:
    if isinstance(value, str):
        value = _number(name, value, "a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r:.60}.")
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    return float(value)


def _number(name: str, text: str, what: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError as error:
            raise ValueError(f"{name} must be {what}, got {text!r:.60}.") from error


def _str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r:.60}; in YAML, put it between quotes.")
    return value
