"""Whether the values that a recipe gives fit the keywords of its sampler."""

from __future__ import annotations

import math
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin


def check_option(sampler: str, option: str, value: object, annotation: Any, default: object) -> None:
    """Refuse a value that an option's annotation rules out.

    Args:
        sampler: its name, for the message.
        option: likewise.
        value: what a recipe gives.
        annotation: `float`, `int`, `bool` or a `Literal` of strings, alone or with None.
        default: of the option. Numbers must be finite, unless they are the default.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a string that is no choice, or a number that is not finite.
    """
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    (kind,) = (part for part in parts if part is not NoneType)
    if value is None and NoneType in parts:
        return
    choices = get_args(kind)
    words = {bool: "True or False", int: "a whole number", float: "a finite number"}
    wanted = f"one of {', '.join(choices)}" if choices else words[kind]
    besides = " or None" if NoneType in parts else " or inf" if default == math.inf else ""
    message = f"option {option!r} of sampler {sampler!r} must be {wanted}{besides}, got {value!r}."
    if not _has_type(value, str if choices else kind):
        raise TypeError(message)
    if choices and value not in choices:
        raise ValueError(message)
    if kind is float and value != default and not -math.inf < value < math.inf:  # type: ignore[operator]
        raise ValueError(message)


def _has_type(value: object, kind: type) -> bool:
    """Whole numbers are floats, and True and False are no numbers."""
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
