"""Checks of constructor options: each error names the network, the option, its value and what would do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Constructor options that every model has; see `DiffusionTransformer`.
SHARED_OPTIONS = ("input_size", "in_channels", "mlp_ratio", "num_classes", "class_dropout_prob", "learn_sigma")
#: Those that a network of several resolutions derives from options of its own.
DERIVABLE_OPTIONS = ("patch_size", "hidden_size", "depth", "num_heads")
#: Of images and latents. A convolutional network has no weights that would tell the size that a file claims from a
#: sane one, and an image of it would be asked for when it samples.
LARGEST_SIDE = 2**16


def check_integer(name: str, option: str, value: object) -> None:
    """Refuse what is no whole number, True and 2.0 included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: {option} must be an integer, got {value!r}.")


def check_number(name: str, option: str, value: object) -> None:
    """Refuse what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name}: {option} must be a finite number, got {value!r}.")


def check_boolean(name: str, option: str, value: object) -> None:
    """Refuse what is neither True nor False, 0 and 1 included."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {option} must be True or False, got {value!r}.")


def check_at_least(name: str, option: str, value: int, least: int) -> None:
    """Refuse what is no whole number or too small a one."""
    check_integer(name, option, value)
    if value < least:
        raise ValueError(f"{name}: {option} must be at least {least}, got {value}.")


def check_divisible(name: str, option: str, value: int, by: str, divisor: int) -> None:
    """Refuse what leaves a remainder, and name the next that does not."""
    if value % divisor:
        raise ValueError(
            f"{name}: {option} {value} is not divisible by {by} {divisor}; the next that is: "
            f"{(value // divisor + 1) * divisor}."
        )


def check_all_given(name: str, config: Mapping[str, Any], derived: Mapping[str, Any]) -> None:
    """Refuse a constructor that does not take what all take, or neither takes nor derives what the others derive."""
    missing = [option for option in SHARED_OPTIONS if option not in config]
    missing += [option for option in DERIVABLE_OPTIONS if option not in {**config, **derived}]
    if missing:
        raise TypeError(
            f"the constructor of {name} lacks {', '.join(missing)}: take the options that all families share as "
            f"keywords, and begin with super().__init__(locals()); {', '.join(DERIVABLE_OPTIONS)} may be derived and "
            "given after locals()."
        )


def check_options(name: str, config: Mapping[str, Any]) -> None:
    """Refuse sizes no network can have, before any memory is asked for. A family checks the options of its own."""
    # A network that derives the last four from options of its own checks these.
    for option in ("input_size", "in_channels", *DERIVABLE_OPTIONS):
        if option in config or option in SHARED_OPTIONS:
            check_at_least(name, option, config[option], 1)
    if config["input_size"] > LARGEST_SIDE:
        raise ValueError(f"{name}: input_size must be at most {LARGEST_SIDE:,}, got {config['input_size']!r:.60}.")
    check_at_least(name, "num_classes", config["num_classes"], 0)
    for option in ("mlp_ratio", "class_dropout_prob"):
        check_number(name, option, config[option])
    check_boolean(name, "learn_sigma", config["learn_sigma"])
    if config["mlp_ratio"] <= 0:
        raise ValueError(f"{name}: mlp_ratio must be above 0, got {config['mlp_ratio']}.")
    if not 0 <= config["class_dropout_prob"] < 1:
        raise ValueError(f"{name}: class_dropout_prob must be in [0, 1), got {config['class_dropout_prob']}.")
    if "patch_size" in config:
        check_divisible(name, "input_size", config["input_size"], "patch_size", config["patch_size"])
    if "hidden_size" in config:
        width = config["hidden_size"]
        if int(width * config["mlp_ratio"]) < 1:
            raise ValueError(f"{name}: mlp_ratio {config['mlp_ratio']} leaves the MLP no width; the families use 4.")
        check_divisible(name, "hidden_size", width, "num_heads", config["num_heads"])
        if width % 4:
            raise ValueError(f"{name}: hidden_size {width} is not divisible by 4, as position tables need.")
