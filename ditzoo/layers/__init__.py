"""Building blocks that three or more families share."""

from ditzoo.layers.attention import Attention, RelativePositionBias, attend
from ditzoo.layers.embeddings import LabelEmbedder, TimestepEmbedder, timestep_embedding, uninitialized_embedding
from ditzoo.layers.linear import linear
from ditzoo.layers.masking import TokenMask, random_token_mask
from ditzoo.layers.mlp import Mlp
from ditzoo.layers.modulation import AdaLNFinalLayer, AdaLNZeroBlock, modulate, plain_layer_norm
from ditzoo.layers.patches import PatchEmbed, unpatchify
from ditzoo.layers.positions import (
    frozen_positions,
    relative_position_index,
    resize_position_table,
    resize_relative_position_table,
    sincos_position_table,
)
from ditzoo.layers.unused import UnusedWeights

__all__ = [
    "AdaLNFinalLayer",
    "AdaLNZeroBlock",
    "Attention",
    "LabelEmbedder",
    "Mlp",
    "PatchEmbed",
    "RelativePositionBias",
    "TimestepEmbedder",
    "TokenMask",
    "UnusedWeights",
    "attend",
    "frozen_positions",
    "linear",
    "modulate",
    "plain_layer_norm",
    "random_token_mask",
    "relative_position_index",
    "resize_position_table",
    "resize_relative_position_table",
    "sincos_position_table",
    "timestep_embedding",
    "uninitialized_embedding",
    "unpatchify",
]
