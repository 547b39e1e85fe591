"""Fresh weights, where several families draw them alike."""

from __future__ import annotations

from torch import nn


def initialize_like_dit(model: nn.Module) -> None:
    """DiT's initialisation, with which other families begin too: Xavier uniform for every linear layer and every
    convolution, zero biases, and 0.02 for the embedders. What a family zeroes it zeroes afterwards, in its own file."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name in ("t_embedder", "y_embedder"):
        if (embedder := getattr(model, name, None)) is not None:
            embedder.reset_parameters()


def zero_parameters(*modules: nn.Module) -> None:
    """Set weights and biases to zero."""
    for layer in modules:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
