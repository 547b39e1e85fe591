"""A drawing of a network in text, made from a forward pass that was watched."""

from __future__ import annotations

import textwrap
from typing import Any

import torch

from ditzoo.layers import random_token_mask
from ditzoo.metrics.flops import meta_twin
from ditzoo.models import DiffusionTransformer
from ditzoo.summary.canvas import to_ascii
from ditzoo.summary.flow import Flow, Stop, grouped, kind_of, range_of
from ditzoo.summary.picture import WIDTH, Picture
from ditzoo.summary.trace import Node, named_arguments, trace

#: arguments that the drawing names where they are used
_QUIET = frozenset(["mask"])


def draw_blocks(model: DiffusionTransformer, *, ascii: bool = False) -> str:
    """Draw the way from the input to the output: the whole network, then the inside of each kind of block.

    The picture is made from a forward pass on the meta device: it shows what the network does, and asks nothing about
    its family. The stream runs from the top down; time and class join it from the left; links past other layers
    stand on the right. Shapes leave the batch out.

    Args:
        model: any model of the zoo, yours included; left as it was.
        ascii: draw with ASCII characters only.
    """
    twin: Any = meta_twin(model)
    arguments = _arguments(twin)
    plain = Flow(trace(twin, **arguments), "x", _QUIET)
    mask = _mask(twin)
    if mask is None:
        parts = _whole(twin, plain, plain, None)
    else:
        masked = Flow(trace(twin, **arguments, mask=mask), "x", _QUIET)
        kept = f"masked passes, here one that sees {mask.ids_keep.shape[1]} of {twin.num_tokens()} tokens"
        shapes = _plain_shapes(plain, masked)
        if shapes is not None:
            parts = _whole(twin, plain, masked, shapes)
            parts.insert(1, f"* only in {kept}")
        else:  # a masked pass leaves something out: a drawing of its own
            parts = [*_whole(twin, plain, plain, None), "", f"In {kept}", _whole(twin, plain, masked, None)[0]]
    text = "\n".join(parts)
    return to_ascii(text) if ascii else text


def _arguments(model: Any) -> dict[str, Any]:
    x = torch.empty(1, model.in_channels, model.input_size, model.input_size, device="meta")
    y = torch.zeros(1, device="meta", dtype=torch.int64) if model.num_classes else None
    return {"x": x, "t": torch.zeros(1, device="meta"), "y": y}


def _mask(model: Any) -> Any:
    """A mask for a model that takes one in training; None for others."""
    ratio = getattr(model, "mask_ratio", 0.3)
    if not model.supports_masking or ratio is None:
        return None
    return random_token_mask(1, model.num_tokens(), ratio, device="meta")


def _whole(model: Any, plain: Flow, flow: Flow, shapes: dict[Node, tuple[int, ...]] | None) -> list[str]:
    """The whole network as `flow` runs it, notes, and the inside of what is worth it as `plain` runs it."""
    layers = [node for stop in flow.stops for node in stop.nodes if node.layer is not None]
    kinds = {node: (kind_of(node.layer), shapes is None or node in shapes) for node in layers}  # type: ignore[arg-type]
    names = set(model.block_names())
    block_kinds = {kinds[node][0] for node in layers if node.name in names}
    stops = grouped(flow.stops, kinds)
    opened: dict[object, list[Stop]] = {}
    for stop in stops:
        layer = stop.first.layer
        if layer is not None and (kinds[stop.first][0] in block_kinds or (stop.sides and any(layer.children()))):
            # A layer that is called with a skip does something else than its like without one.
            opened.setdefault((kinds[stop.first][0], flow.arguments(stop.first)), []).append(stop)
    nodes = frozenset(node for some in opened.values() for stop in some for node in stop.nodes)
    picture = Picture(model, flow, stops, boxed=True, opened=nodes, plain_shapes=shapes)
    parts = [str(picture.canvas), *picture.notes]
    for some in opened.values():
        name = some[0].first.name
        inside = next((stop for stop in plain.stops if stop.first.name == name), some[0])
        parts += ["", *textwrap.wrap(_title(some), WIDTH), str(_inside(inside).canvas)]
    return parts


def _plain_shapes(plain: Flow, masked: Flow) -> dict[Node, tuple[int, ...]] | None:
    """Shapes of the plain pass for the nodes of the masked one; None where that one leaves something out."""
    shapes: dict[Node, tuple[int, ...]] = {}
    rest = list(plain.stops)
    for stop in masked.stops:
        if rest and _label(stop) == _label(rest[0]):
            shapes[stop.first] = rest.pop(0).first.shape
    return None if rest else shapes


def _label(stop: Stop) -> tuple[object, ...]:
    return stop.first.kind, stop.first.name, stop.operands


def _title(stops: list[Stop]) -> str:
    layer = stops[0].first.layer
    assert layer is not None
    places = ", ".join(range_of([node.name for node in stop.nodes]) for stop in stops)
    size = sum(parameter.numel() for parameter in layer.parameters())
    each = " each" if sum(len(stop.nodes) for stop in stops) > 1 else ""
    return f"{type(layer).__name__}: {places} ({size:,} parameters{each})"


def _inside(stop: Stop) -> Picture:
    """The inside of a layer, from the arguments that it was called with."""
    node = stop.first
    assert node.layer is not None
    args, kwargs = node.call
    flowing = {value.argument for value in node.inputs}
    constant = frozenset(named_arguments(node.layer, args, kwargs)) - flowing
    main = stop.chain.argument if stop.chain else node.inputs[0].argument
    # The same tensor may be two arguments, such as the input and a skip; the drawing tells them apart.
    args = tuple(argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in args)
    flow = Flow(trace(node.layer, *args, **kwargs), main, constant)
    return Picture(node.layer, flow, flow.stops, boxed=False)
