"""What the zoo asks of a class before it takes it in: that `config` builds the same network again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ditzoo.models.base import DiffusionTransformer
from ditzoo.models.options import SHARED_OPTIONS

#: Arguments of `ditzoo.create` that are no options of a model.
RESERVED_OPTIONS = ("name", "pretrained", "checkpoint", "weights", "strict", "dtype")


def check_rebuilds(name: str, model_cls: type[DiffusionTransformer], config: Mapping[str, Any]) -> None:
    """Refuse a class whose `config` is not what the zoo takes it for: read by option, stored as JSON, built from.

    The network is built twice on the meta device, the second time from the `config` of the first.

    Args:
        name: under which it is registered, for the message.
        model_cls: the class.
        config: constructor arguments of this name.

    Raises:
        TypeError: if it does not build, or its `config` is wrong; the message says how.
    """
    call = f"{model_cls.__name__}(**{dict(config)})"
    with _on_meta(name, call):
        model = model_cls(**config)
        dict(model.config)
    fault = _fault(model)
    if not fault:
        with _on_meta(name, f"{call} builds, but {model_cls.__name__}(**model.config)"):
            again = model_cls(**model.config)
        with _on_meta(name, f"unused_weights() of {call}"):
            model.unused_weights()
        fault = next(_differences(model, again), None)
    if fault:
        raise TypeError(
            f"{name!r} cannot be registered: the config of {call} {fault}. A constructor that takes the shared options "
            "and its own as keywords, and begins with super().__init__(locals()) of DiffusionTransformer, has the "
            "right one."
        )


@contextmanager
def _on_meta(name: str, call: str) -> Iterator[None]:
    """Run on the meta device; say here what fails, where the culprit is known, rather than in `ditzoo list`."""
    try:
        with torch.device("meta"):
            yield
    except Exception as error:
        raise TypeError(
            f"{name!r} cannot be registered: {call} on the meta device raised {type(error).__name__}: {error}"
        ) from error


def _fault(model: DiffusionTransformer) -> str | None:
    """What is wrong with a `config` as it stands."""
    parameters = inspect.signature(type(model)).parameters.values()
    if catch_all := [str(parameter) for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]:
        return f"cannot hold what {catch_all[0]} takes: name every option in the constructor"
    takes = [parameter.name for parameter in parameters]
    if reserved := [option for option in takes if option in RESERVED_OPTIONS]:
        return f"has {', '.join(reserved)}, which ditzoo.create takes itself: give the option another name"
    if missing := [option for option in dict.fromkeys([*SHARED_OPTIONS, *takes]) if option not in model.config]:
        return f"lacks {', '.join(missing)}"
    if strange := [str(option) for option in model.config if option not in takes]:
        return f"has {', '.join(strange)}, which the constructor does not take"
    for option, value in model.config.items():
        if not _json_keeps(value):
            return (
                f"has {option}={value!r}, which JSON does not keep: options are numbers, strings, True, False, None "
                "and lists of them"
            )
    return None


def _json_keeps(value: object) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):  # ValueError: no finite number, or a list that holds itself
        return False


def _differences(model: DiffusionTransformer, again: DiffusionTransformer) -> Iterator[str]:
    """What sets a network apart from the one that its `config` builds."""
    sides = ("{}", model.config, again.config), ("the shape of {}", _shapes(model), _shapes(again))
    for words, one, other in sides:
        for key in {**one, **other}:
            if (before := one.get(key, "absent")) != (after := other.get(key, "absent")):
                yield f"builds another network: {words.format(key)} is {before} in the first and {after} in the second"


def _shapes(model: DiffusionTransformer) -> dict[str, Any]:
    return {key: tuple(getattr(value, "shape", ())) for key, value in model.state_dict().items()}
