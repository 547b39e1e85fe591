"""Layers in words."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

#: Lines do not break here.
BLANK = "\N{NO-BREAK SPACE}"


def kind_of(layer: nn.Module) -> object:
    """Equal for layers that differ in nothing but their weights."""
    parameters = tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters())
    return repr(layer), parameters, tuple(getattr(part, "num_heads", None) for part in layer.modules())


def in_words(layer: nn.Module) -> str:
    """Class of a layer, and the layers and parameters that it comes down to."""
    if words := _primitive(layer):
        return words
    parts = []
    for name, part in layer.named_modules():
        if words := _primitive(part):
            parts.append(f"{name} {words}")
            continue
        if isinstance(heads := getattr(part, "num_heads", None), int):
            parts.append(f"{name} {heads} heads".lstrip())
        parts += [f"{key} {_by(parameter.shape)}" for key, parameter in part.named_parameters(name, recurse=False)]
    told = ", ".join(part.replace(" ", BLANK) for part in parts)
    return f"{type(layer).__name__}: {told}" if told else type(layer).__name__


def window_of(layer: nn.Module) -> str:
    """`4x4` of a layer whose attention runs inside windows of `layer.window` rows and columns; empty for others."""
    window = getattr(layer, "window", None)
    return _by(window) if isinstance(window, tuple) else ""


def _primitive(layer: nn.Module) -> str:
    """One of PyTorch's own layers; empty for what is made of others, and for what does nothing."""
    match layer:
        case nn.Linear():
            return f"Linear {layer.in_features} -> {layer.out_features}" + ", no bias" * (layer.bias is None)
        case nn.Conv2d():
            stride = "" if set(layer.stride) == {1} else f", stride {_by(layer.stride)}"
            return f"Conv2d {layer.in_channels} -> {layer.out_channels}, {_by(layer.kernel_size)}{stride}"
        case nn.Embedding():
            return f"Embedding {layer.num_embeddings} x {layer.embedding_dim}"
        case nn.LayerNorm():
            return "LayerNorm" + " without weights" * (not layer.elementwise_affine)
        case nn.GELU():
            return "GELU" + " (tanh)" * (layer.approximate == "tanh")
    plain = type(layer).__module__.startswith("torch.nn.") and not any(True for _ in layer.children())
    return type(layer).__name__ if plain and not isinstance(layer, nn.Identity) else ""


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
