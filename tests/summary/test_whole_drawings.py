"""Whole drawings, as they should be."""
# ruff: noqa: RUF001 (the drawings multiply with ×)

import pytest

from ditzoo.summary import draw_blocks
from tests.zoo import on_meta

#: of DiT and MDT alike
FINAL_LAYER = """\
AdaLNFinalLayer: final_layer (8,580 parameters)
adaLN_modulation  Sequential: 0 SiLU, 1 Linear 64 -> 128

 x (16, 64), with c (64)
 norm_final  LayerNorm without weights
(×) 1 + adaLN_modulation(c)[1]
(+) adaLN_modulation(c)[0]
 linear      Linear 64 -> 4
 output (16, 4)
"""

DIT = (
    """\
c (64) = t_embedder(t) + y_embedder(y)
t_embedder  TimestepEmbedder: mlp.0 Linear 256 -> 64, mlp.1 SiLU,
            mlp.2 Linear 64 -> 64
y_embedder  LabelEmbedder: embedding_table Embedding 11 x 64

 x (1, 8, 8), with t, y
 x_embedder   PatchEmbed: proj Conv2d 1 -> 64, 2x2, stride 2x2
 │ (16, 64)
(+) pos_embed (not trained)
 blocks.0-3   4 x AdaLNZeroBlock with c
 final_layer  AdaLNFinalLayer with c
 │ (16, 4) -> (1, 8, 8)
 output (1, 8, 8)

AdaLNZeroBlock: blocks.0-3 (74,688 parameters each)
adaLN_modulation  Sequential: 0 SiLU, 1 Linear 64 -> 384

 x (16, 64), with c (64)
 ├────────────────────────────────────────────────────────────────────────┐
 norm1  LayerNorm without weights                                         │
(×) 1 + adaLN_modulation(c)[1]                                            │
(+) adaLN_modulation(c)[0]                                                │
 attn   Attention: 4 heads, qkv Linear 64 -> 192, proj Linear 64 -> 64    │
(×) adaLN_modulation(c)[2]                                                │
(+) ◄─────────────────────────────────────────────────────────────────────┘
 ├────────────────────────────────────────────────────────────────────────┐
 norm2  LayerNorm without weights                                         │
(×) 1 + adaLN_modulation(c)[4]                                            │
(+) adaLN_modulation(c)[3]                                                │
 mlp    Mlp: fc1 Linear 64 -> 256, act GELU (tanh), fc2 Linear 256 -> 64  │
(×) adaLN_modulation(c)[5]                                                │
(+) ◄─────────────────────────────────────────────────────────────────────┘
 output (16, 64)

"""
    + FINAL_LAYER
)

UVIT = """\
label_emb  Embedding 11 x 96

 x (1, 8, 8), with t, y
 patch_embed   PatchEmbed: proj Conv2d 1 -> 96, 2x2, stride 2x2
 │ (16, 96)
(cat) label_emb(y), cat(cos(t × const(48)), sin(t × const(48))), x
 │ (18, 96)
(+) pos_embed
 in_blocks.0   UViTBlock
 ├──────────────────────────────────────────────────────────────────┐
 mid_block     UViTBlock                                            │
 out_blocks.0  UViTBlock ◄ in_blocks.0 ─────────────────────────────┘
 norm          LayerNorm
 decoder_pred  Linear 96 -> 4
 │ (18, 4) -> (1, 8, 8)
 output (1, 8, 8)

UViTBlock: in_blocks.0, mid_block (111,552 parameters each)
 x (18, 96)
 ├─────────────────────────────────────────────────────────────────┐
 norm1  LayerNorm                                                  │
 attn   Attention: 8 heads, qkv Linear 96 -> 288, no bias,         │
 │      proj Linear 96 -> 96                                       │
(+) ◄──────────────────────────────────────────────────────────────┘
 ├─────────────────────────────────────────────────────────────────┐
 norm2  LayerNorm                                                  │
 mlp    Mlp: fc1 Linear 96 -> 384, act GELU, fc2 Linear 384 -> 96  │
(+) ◄──────────────────────────────────────────────────────────────┘
 output (18, 96)

UViTBlock: out_blocks.0 (130,080 parameters)
 x (18, 96), with skip (18, 96)
(cat) x, skip
 │ (18, 192)
 skip_linear  Linear 192 -> 96
 ├───────────────────────────────────────────────────────────────────────┐
 │ (18, 96)                                                              │
 norm1        LayerNorm                                                  │
 attn         Attention: 8 heads, qkv Linear 96 -> 288, no bias,         │
 │            proj Linear 96 -> 96                                       │
(+) ◄ skip_linear ───────────────────────────────────────────────────────┘
 ├───────────────────────────────────────────────────────────────────────┐
 norm2        LayerNorm                                                  │
 mlp          Mlp: fc1 Linear 96 -> 384, act GELU, fc2 Linear 384 -> 96  │
(+) ◄────────────────────────────────────────────────────────────────────┘
 output (18, 96)
"""

MDTV2 = (
    """\
c (64) = t_embedder(t) + y_embedder(y)
t_embedder  TimestepEmbedder: mlp.0 Linear 256 -> 64, mlp.1 SiLU,
            mlp.2 Linear 64 -> 64
y_embedder  LabelEmbedder: embedding_table Embedding 11 x 64

 x (1, 8, 8), with t, y
 x_embedder      PatchEmbed: proj Conv2d 1 -> 64, 2x2, stride 2x2
 │ (16, 64)
(+) pos_embed
 ├───────────────────────────────────────────────────────────────────┐
 en_inblocks.0   MDTBlock with c                                     │
 ├─────────────────────────────────────────────────────────────────┐ │
 en_outblocks.0  MDTBlock with c ◄ en_inblocks.0 ──────────────────┘ │
(+) decoder_pos_embed                                                │
 de_blocks.0     MDTBlock with c ◄───────────────────────────────────┘
 final_layer     AdaLNFinalLayer with c
 │ (16, 4) -> (1, 8, 8)
 output (1, 8, 8)

In masked passes, here one that sees 11 of 16 tokens:
 x (1, 8, 8), with t, y, mask
 x_embedder      PatchEmbed: proj Conv2d 1 -> 64, 2x2, stride 2x2
 │ (16, 64)
(+) pos_embed
 ├────────────────────────────────────────────────────────────────────┐
(gather) x, mask.ids_keep                                             │
 │ (11, 64)                                                           │
 en_inblocks.0   MDTBlock with c and mask.ids_keep                    │
 ├──────────────────────────────────────────────────────────────────┐ │
 en_outblocks.0  MDTBlock with c and mask.ids_keep ◄ en_inblocks.0 ─┘ │
(cat) x, mask_token                                                   │
 │ (16, 64)                                                           │
(gather) x, mask.ids_restore                                          │
(+) decoder_pos_embed                                                 │
 ├──────────────────────────────────────────────────────────────────┐ │
 sideblocks.0    MDTBlock with c                                    │ │
(×) mask.mask                                                       │ │
(+) ◄ × (1 - mask.mask) ────────────────────────────────────────────┘ │
 de_blocks.0     MDTBlock with c ◄────────────────────────────────────┘
 final_layer     AdaLNFinalLayer with c
 │ (16, 4) -> (1, 8, 8)
 output (1, 8, 8)

MDTBlock: en_inblocks.0, sideblocks.0 (74,896 parameters each)
adaLN_modulation  Sequential: 0 SiLU, 1 Linear 64 -> 384

 x (16, 64), with c (64)
 ├────────────────────────────────────────────────────────────────────────┐
 norm1  LayerNorm without weights                                         │
(×) 1 + adaLN_modulation(c)[1]                                            │
(+) adaLN_modulation(c)[0]                                                │
 attn   Attention: 4 heads, qkv Linear 64 -> 192, proj Linear 64 -> 64,   │
 │      rel_pos_bias.relative_position_bias_table 52x4                    │
(×) adaLN_modulation(c)[2]                                                │
(+) ◄─────────────────────────────────────────────────────────────────────┘
 ├────────────────────────────────────────────────────────────────────────┐
 norm2  LayerNorm without weights                                         │
(×) 1 + adaLN_modulation(c)[4]                                            │
(+) adaLN_modulation(c)[3]                                                │
 mlp    Mlp: fc1 Linear 64 -> 256, act GELU (tanh), fc2 Linear 256 -> 64  │
(×) adaLN_modulation(c)[5]                                                │
(+) ◄─────────────────────────────────────────────────────────────────────┘
 output (16, 64)

MDTBlock: en_outblocks.0, de_blocks.0 (83,152 parameters each)
adaLN_modulation  Sequential: 0 SiLU, 1 Linear 64 -> 384

 x (16, 64), with skip (16, 64), c (64)
(cat) x, skip
 │ (16, 128)
 skip_linear  Linear 128 -> 64
 ├────────────────────────────────────────────────────────────┐
 │ (16, 64)                                                   │
 norm1        LayerNorm without weights                       │
(×) 1 + adaLN_modulation(c)[1]                                │
(+) adaLN_modulation(c)[0]                                    │
 attn         Attention: 4 heads, qkv Linear 64 -> 192,       │
 │            proj Linear 64 -> 64,                           │
 │            rel_pos_bias.relative_position_bias_table 52x4  │
(×) adaLN_modulation(c)[2]                                    │
(+) ◄ skip_linear ────────────────────────────────────────────┘
 ├────────────────────────────────────────────────────────────┐
 norm2        LayerNorm without weights                       │
(×) 1 + adaLN_modulation(c)[4]                                │
(+) adaLN_modulation(c)[3]                                    │
 mlp          Mlp: fc1 Linear 64 -> 256, act GELU (tanh),     │
 │            fc2 Linear 256 -> 64                            │
(×) adaLN_modulation(c)[5]                                    │
(+) ◄─────────────────────────────────────────────────────────┘
 output (16, 64)

"""
    + FINAL_LAYER
)


@pytest.mark.parametrize(("name", "drawing"), [("dit_ti_2", DIT), ("uvit_ti_2", UVIT), ("mdtv2_ti_2", MDTV2)])
def test_whole_drawings(name, drawing):
    assert draw_blocks(on_meta(name)) == drawing.removesuffix("\n")
