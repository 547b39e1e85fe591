"""Layers in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from torch import nn


def shape_of(sizes: Sequence[int], batched: bool = True) -> str:
    """`(256, 1152)`: a shape without the batch of one."""
    sizes = sizes[1:] if batched and sizes[:1] == (1,) else sizes
    return f"({', '.join(str(size) for size in sizes)})"


def in_words(layer: nn.Module, width: int, columns: int) -> list[str]:
    """Class and parts of a layer, in lines of at most `columns`.

    Args:
        layer: any module.
        width: D, which the heads share where the layer has some.
        columns: of text.
    """
    parts = list(_parts(layer))
    if primitive := _primitive(layer):
        return textwrap.wrap(primitive, columns)
    heads = getattr(layer, "num_heads", None)
    if isinstance(heads, int) and heads > 0:
        parts.insert(0, f"{heads} heads of {width // heads}")
    if isinstance(layer, nn.Sequential):
        return _filled(parts, columns)
    name = type(layer).__name__
    return _filled([f"{name}:", *parts] if parts else [name], columns)


def primitives(layer: nn.Module) -> list[str]:
    """The layers that a layer comes down to, one a line, without names."""
    found = [_primitive(part) for part in layer.modules()]
    own = [f"{name} {_by(parameter.shape)}" for part in layer.modules() for name, parameter in _own(part)]
    return [text for text in found if text] + own


def _parts(layer: nn.Module) -> Iterator[str]:
    for name, child in layer.named_children():
        words = _primitive(child)
        if words:
            yield words if isinstance(layer, nn.Sequential) else f"{name} {words}"
        elif not any(True for _ in child.children()) and len(own := _own(child)) == 1:
            yield f"{name} {_by(own[0][1].shape)}"
        elif parts := list(_parts(child)):
            yield f"{name} ({', '.join(parts)})"
    for name, parameter in _own(layer):
        yield f"{name} {_by(parameter.shape)}"


def _own(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that belong to no layer below."""
    return [] if _primitive(layer) else list(layer.named_parameters(recurse=False))


def _primitive(layer: nn.Module) -> str:
    """One of PyTorch's own layers; empty for what is made of others."""
    match layer:
        case nn.Linear():
            return f"Linear {layer.in_features} -> {layer.out_features}" + (", no bias" if layer.bias is None else "")
        case nn.Conv2d():
            steps = layer.stride if len(set(layer.stride)) > 1 else layer.stride[:1]
            stride = "" if steps == (1,) else f", stride {_by(steps)}"
            return f"Conv2d {layer.in_channels} -> {layer.out_channels}, {_by(layer.kernel_size)}{stride}"
        case nn.Embedding():
            return f"Embedding {layer.num_embeddings} x {layer.embedding_dim}"
        case nn.LayerNorm():
            return "LayerNorm" if layer.elementwise_affine else "LayerNorm without weights"
        case nn.GELU():
            return "GELU (tanh)" if layer.approximate == "tanh" else "GELU"
        case nn.Identity():
            return ""
    own = type(layer).__module__.startswith("torch.nn.")
    return type(layer).__name__ if own and not any(True for _ in layer.children()) else ""


def _by(sizes: Sequence[int]) -> str:
    square = len(sizes) == 2 and sizes[0] == sizes[1]
    return ("x" if square else " x ").join(str(size) for size in sizes)


def _filled(parts: list[str], columns: int) -> list[str]:
    """Parts with commas between them; lines break between parts where they can."""
    lines = [""]
    for place, part in enumerate(parts):
        text = part + ("," if place + 1 < len(parts) and not part.endswith(":") else "")
        together = f"{lines[-1]} {text}".strip()
        if len(together) <= columns:
            lines[-1] = together
        else:
            lines += textwrap.wrap(text, columns)
    return [line for line in lines if line]
