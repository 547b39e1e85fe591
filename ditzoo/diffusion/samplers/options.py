"""Which values the keywords of samplers take, from a recipe or from a direct call."""

from __future__ import annotations

import math
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

#: lowest and highest value of the options that are numbers, both allowed
_BETWEEN: dict[str, tuple[float, float]] = {
    "eta": (0, 1),
    "s_churn": (0, math.inf),
    "s_tmin": (0, math.inf),
    "s_tmax": (0, math.inf),
    "s_noise": (0, math.inf),
}
#: those that must be above 0
_POSITIVE = ("diffusion_norm", "rtol", "atol")


def check_ranges(**options: float) -> None:
    """Refuse options outside their ranges.

    Raises:
        ValueError: naming the option, its value and its range.
    """
    for option, value in options.items():
        if option in _POSITIVE:
            inside, wanted = value > 0, "above 0"
        else:
            low, high = _BETWEEN.get(option, (-math.inf, math.inf))
            inside, wanted = low <= value <= high, f"{low} or more" if math.isinf(high) else f"from {low} to {high}"
        if not inside:
            raise ValueError(f"option {option!r} must be {wanted}, got {value!r}.")


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
        ValueError: for a string that is no choice, or a number that is not finite or out of range.
    """
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    (kind,) = (part for part in parts if part is not NoneType)
    if value is None and NoneType in parts:
        return
    choices = get_args(kind)
    words = {bool: "True or False", int: "a whole number", float: "a finite number"}
    wanted = f"one of {', '.join(choices)}" if choices else words[kind]
    besides = " or None" if NoneType in parts else " or inf" if default == math.inf else ""
    message = f"option {option!r} of sampler {sampler!r} must be {wanted}{besides}, got {value!r:.60}."
    if not _has_type(value, str if choices else kind):
        raise TypeError(message)
    if choices and value not in choices:
        raise ValueError(message)
    if kind is float and value != default and not -math.inf < value < math.inf:  # type: ignore[operator]
        raise ValueError(message)
    if kind is float:
        check_ranges(**{option: value})  # type: ignore[arg-type]


def _has_type(value: object, kind: type) -> bool:
    """Whole numbers are floats, and True and False are no numbers."""
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
