"""Fresh weights, where several families draw them alike."""

from __future__ import annotations

from torch import nn


def initialize_like_dit(model: nn.Module) -> None:
    """DiT's initialisation, shared by MDT and DiffiT: Xavier uniform for every linear layer and for the patch
    projection, zero biases, and 0.02 for the embedders. Zeroed layers come after it, in the family's file."""
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
