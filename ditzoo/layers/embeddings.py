"""Embeddings of the timestep and of the class label."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditzoo.layers.linear import linear


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of the time, cosines first (section 3.5 of arXiv:1706.03762, as used by ADM).

    Frequencies and phases are float32 whatever the model's precision: at t near 1000 their rounding is
    what limits agreement with the original weights.

    Args:
        t: (B,) in the network's own units, integer or fractional.
        dim: width of the embedding; an odd one is completed by a zero.

    Returns:
        (B, dim) float32.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10000) * k / half)
    phase = t.float()[:, None] * frequencies  # (B, dim // 2)
    embedding = torch.cat([phase.cos(), phase.sin()], dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


class TimestepEmbedder(nn.Module):
    """256 sinusoids, then Linear, SiLU, Linear: (B,) -> (B, D)."""

    num_frequencies = 256

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(linear(self.num_frequencies, hidden_size), nn.SiLU(), linear(hidden_size, hidden_size))

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation 0.02, as DiT; biases are left as they are."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        embedding = timestep_embedding(t, self.num_frequencies)  # (B, 256)
        # Quantised layers have no parameters, or integers, and take float32.
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), embedding.dtype)
        return self.mlp(embedding.to(dtype))  # (B, D)


def uninitialized_embedding(num_rows: int, hidden_size: int) -> nn.Embedding:
    """An embedding without PyTorch's own draw, which takes seconds on the meta device: it loads the compiler."""
    return nn.Embedding(num_rows, hidden_size, _weight=torch.empty(num_rows, hidden_size))


class LabelEmbedder(nn.Module):
    """One learned vector a class, and a last one for the null label: (B,) int64 -> (B, D)."""

    def __init__(self, num_rows: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = uninitialized_embedding(num_rows, hidden_size)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)
