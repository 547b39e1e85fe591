"""Weights of one network for another of its class that differs in classes, channels or size of its input.

`before` is the network that the weights are for, on the meta device, and `after` the one that takes them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ditzoo.layers import resize_position_table, resize_relative_position_table, sincos_position_table
from ditzoo.models import DiffusionTransformer
from ditzoo.models.tables import PositionTable
from ditzoo.weights.checks import shown
from ditzoo.weights.match import Shapes, shape_text, shapes_of

#: Options in which the two networks may differ.
ADAPTABLE = ("num_classes", "class_dropout_prob", "in_channels", "input_size")
#: Gives a model's own value of a parameter, by name.
Own = Callable[[str], Tensor]


class Told(NamedTuple):
    """An option of the network that a file is for, as the shape of one of its tensors tells it."""

    value: Any
    evidence: str


@dataclass
class Adapted:
    """Tensors for the other network; what it lacks of them is to be drawn.

    Attributes:
        tensors: name -> tensor, taken over or resized.
        resized: of those, the ones that are not the file's own: name -> what was done.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)


# Which network is a file for?


def network_of(model: DiffusionTransformer, config: Mapping[str, Any]) -> DiffusionTransformer:
    """The network of the model's class that `config` builds, on the meta device."""
    with torch.device("meta"):
        return type(model)(**copy.deepcopy(dict(config)))


def told_options(network: DiffusionTransformer, shapes: Shapes) -> dict[str, Told] | None:
    """The adaptable options in which the network that `shapes` are of differs from this one; None where a difference in
    these options alone does not explain the shapes."""
    told = _told_labels(network, shapes) | _told_channels(network, shapes)
    try:
        with_labels = network_of(network, with_options(network, told))  # which may have one token less in front
        told |= _told_size(with_labels, shapes)
        explained = network_of(network, with_options(network, told))
    except (ValueError, TypeError, RuntimeError):  # shapes that no network has
        return None
    return told if shapes_of(explained.state_dict()) == shapes else None


def with_options(network: DiffusionTransformer, told: Mapping[str, Told]) -> dict[str, Any]:
    """The network's config with what was told in place of its own."""
    return {**network.config, **{option: each.value for option, each in told.items()}}


def _told_labels(network: DiffusionTransformer, shapes: Shapes) -> dict[str, Told]:
    if network.label_table is None:
        return {}
    shape = shapes.get(network.label_table)
    if not shape:
        return {"num_classes": Told(0, "it has no label table")} if network.num_classes else {}
    rows = shape[0]
    has_null = network.class_dropout_prob > 0
    if rows == network.num_label_rows:
        return {}
    table = f"its label table has {rows} rows"
    if network.num_classes and rows == network.num_classes + (not has_null):
        prob, which = (0.0, "none") if has_null else (0.1, "the last")
        return {"class_dropout_prob": Told(prob, f"{table}, {which} for the null label")}
    last = ", the last for the null label" if has_null else ""
    return {"num_classes": Told(rows - has_null, table + last)}


def _told_channels(network: DiffusionTransformer, shapes: Shapes) -> dict[str, Told]:
    shape = shapes.get(network.patch_weight or "", ())
    if len(shape) != 4 or shape[1] == network.in_channels:
        return {}
    return {"in_channels": Told(shape[1], f"{network.patch_weight} takes {shape[1]} channels")}


def _told_size(network: DiffusionTransformer, shapes: Shapes) -> dict[str, Told]:
    for name, table in network.position_tables().items():
        shape = shapes.get(name, ())
        if table.kind not in ("sincos", "learned") or len(shape) != 3:
            continue
        tokens = shape[1] - len(table.extra_tokens)
        size = math.isqrt(max(tokens, 0)) * network.patch_size
        return {} if size == network.input_size else {"input_size": Told(size, f"{name} has {shape[1]} rows")}
    return {}


def same_labels(before: DiffusionTransformer, after: DiffusionTransformer) -> bool:
    """Whether both label tables have the same rows. Equal shapes do not tell: the last one may be the null label's."""
    return before.num_classes == after.num_classes and before.num_label_rows == after.num_label_rows


def differences(before: DiffusionTransformer, after: DiffusionTransformer) -> list[str]:
    """Options in which the networks differ, but for those of training alone."""
    ours, theirs = after.config, before.config
    differing = [option for option in ours if option not in after.training_options and ours[option] != theirs[option]]
    if (before.class_dropout_prob > 0) != (after.class_dropout_prob > 0):
        differing.append("class_dropout_prob")  # above 0 there is a null label
    return differing


def fixed_differences(before: DiffusionTransformer, after: DiffusionTransformer) -> list[str]:
    """Those that are not `ADAPTABLE`: of them the ones that change names or shapes, if any does by itself."""
    differing = [option for option in differences(before, after) if option not in ADAPTABLE]
    wanted = _shapes_with(after, {})
    telling = [option for option in differing if _shapes_with(after, {option: before.config[option]}) != wanted]
    return telling or differing


def options_text(network: DiffusionTransformer, options: Iterable[str]) -> str:
    """`num_classes=3, depth=4`."""
    return ", ".join(f"{option}={network.config[option]!r}" for option in options)


def _shapes_with(network: DiffusionTransformer, options: Mapping[str, Any]) -> Shapes | None:
    try:
        return shapes_of(network_of(network, {**network.config, **options}).state_dict())
    except (ValueError, TypeError):  # options that do not go together
        return None


# The weights.


def adapt(
    tensors: Mapping[str, Tensor], before: DiffusionTransformer, after: DiffusionTransformer, own: Own
) -> Adapted:
    """Take over what fits, and what can be made to fit.

    Args:
        tensors: the state dict of `before`.
        before: the network that they are for.
        after: one that differs from it in `ADAPTABLE` options alone.
        own: for rows that no tensor has.

    Raises:
        ValueError: a table has not the values that its shape promises.
    """
    wanted, adapted = shapes_of(after.state_dict()), Adapted()
    tables = {
        name: (old, new)
        for name, old in before.position_tables().items()
        if (new := after.position_tables().get(name, old)) != old
    }
    for name in wanted:
        if (tensor := tensors.get(name)) is None:
            continue
        if name == after.label_table and not same_labels(before, after):
            result, what = _adapt_labels(tensor, before, after, lambda: own(after.label_table or ""))
        elif name in tables:
            _check_stored(name, tensor)
            result, what = _adapt_positions(tensor, *tables[name], lambda name=name: own(name))  # type: ignore[misc]
        elif tuple(tensor.shape) == wanted[name]:
            adapted.tensors[name] = tensor
            continue
        else:
            continue
        adapted.tensors[name] = result
        adapted.resized[name] = f"{shape_text(tensor.shape)} -> {shape_text(result.shape)}: {what}"
    return adapted


def _check_stored(name: str, tensor: Tensor) -> None:
    """To resize a table that claims more than the file holds would ask for memory without bound."""
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(
            f"{shown(name)} claims {shape_text(tensor.shape)} values, which the file does not hold; save the state "
            "dict again, with contiguous tensors."
        )


def _adapt_labels(
    table: Tensor, before: DiffusionTransformer, after: DiffusionTransformer, own: Callable[[], Tensor]
) -> tuple[Tensor, str]:
    """Row i stays that of class i, and the null label's row the null label's."""
    kept = min(before.num_classes, after.num_classes)
    had_null, has_null = before.null_label is not None, after.null_label is not None
    drawn = after.num_label_rows - kept - (had_null and has_null)
    result = own().clone() if drawn else table.new_empty(after.num_label_rows, table.shape[1])
    result[:kept] = table[:kept]
    what = f"rows of {kept} classes"
    if had_null and has_null:
        result[-1] = table[-1]
        what += " and the null label"
    what += " kept"
    if after.num_classes > kept:
        what += f", {after.num_classes - kept} more drawn"
    if had_null != has_null:
        what += ", the null label's drawn" if has_null else ", the null label's dropped"
    return result, what


def _adapt_positions(
    table: Tensor, old: PositionTable, new: PositionTable, own: Callable[[], Tensor]
) -> tuple[Tensor, str]:
    sizes = f"from {shape_text(old.grid)} to {shape_text(new.grid)}"
    if old.kind == "sincos":
        return sincos_position_table(table.shape[-1], new.grid), f"computed for {shape_text(new.grid)} tokens"
    if old.kind == "relative":
        return resize_relative_position_table(table, old.grid, new.grid), f"resized {sizes} tokens"
    if old.kind == "window":
        return _adapt_window(table, old.grid, new.grid, own), f"offsets inside both windows kept, {sizes} tokens"
    return _adapt_learned(table, old, new, own)


def _adapt_learned(
    table: Tensor, old: PositionTable, new: PositionTable, own: Callable[[], Tensor]
) -> tuple[Tensor, str]:
    extra, places = table.split([len(old.extra_tokens), math.prod(old.grid)], dim=1)
    rows, notes = [], []
    for i, token in enumerate(new.extra_tokens):
        if token in old.extra_tokens:
            rows.append(extra[:, [old.extra_tokens.index(token)]])
        else:
            rows.append(own()[:, [i]].to(table))
            notes.append(f"the {token} token's row drawn")
    notes += [f"the {token} token's row dropped" for token in old.extra_tokens if token not in new.extra_tokens]
    if old.grid != new.grid:
        notes.insert(0, f"resized from {shape_text(old.grid)} to {shape_text(new.grid)} tokens")
    return torch.cat([*rows, resize_position_table(places, old.grid, new.grid)], dim=1), ", ".join(notes)


def _adapt_window(table: Tensor, old: tuple[int, int], new: tuple[int, int], own: Callable[[], Tensor]) -> Tensor:
    """An offset of so many places is the same in a window of any size: nothing is resized."""
    larger = any(n > o for n, o in zip(new, old, strict=True))
    rows = (2 * new[0] - 1) * (2 * new[1] - 1)
    result = own().clone() if larger else table.new_empty(rows, table.shape[1])
    source = rearrange(table, "(h w) n -> h w n", h=2 * old[0] - 1)
    target = result.view(2 * new[0] - 1, 2 * new[1] - 1, -1)
    height, width = (2 * min(n, o) - 1 for n, o in zip(new, old, strict=True))
    _centre(target, height, width).copy_(_centre(source, height, width))
    return result


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    """The middle `height` rows and `width` columns, around the offset zero."""
    return image.narrow(0, (image.shape[0] - height) // 2, height).narrow(1, (image.shape[1] - width) // 2, width)
