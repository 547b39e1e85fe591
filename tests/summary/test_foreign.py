"""Drawings of networks that are built unlike any of the zoo."""

import re

import pytest
import torch

import ditzoo
from ditzoo.summary import describe, draw_blocks
from tests.summary.foreign import Foreign, UShaped
from tests.summary.reading import links_in, passes_in
from tests.zoo import on_meta


def foreign(wiring: str, **options: int) -> str:
    with torch.device("meta"):
        drawing = draw_blocks(Foreign(wiring=wiring, **options))
    assert max(len(line) for line in drawing.splitlines()) <= 88
    return drawing


# n2 starts from before n1: a gap in the stream, and a link of its own.
# Parameters: norms 2 x 64, up 2 x 32 x 64 + 64 + 32, down 2 x (32 x 32 + 32), shift 32 x 32 + 32.
PARALLEL_BLOCK = """\
blocks.0-5 (7,488 parameters each)
shift  Linear 32 -> 32

 tokens (16, 32), with cond (32)
(+) shift(cond)
 ├─────────────────────────────────────────────────────────────────────┬─┐
 n1    LayerNorm                                                       │ │
 up    Mlp: fc1 Linear 32 -> 64, act GELU (tanh), fc2 Linear 64 -> 32  │ │
(+) ◄──────────────────────────────────────────────────────────────────┘ │
 ├─────────────────────────────────────────────────────────────────────┐ │
                                                                       │ │
 n2    LayerNorm ◄─────────────────────────────────────────────────────│─┘
 down  Mlp: fc1 Linear 32 -> 32, act GELU (tanh), fc2 Linear 32 -> 32  │
(+) ◄──────────────────────────────────────────────────────────────────┘
 output (16, 32)
"""


def test_a_model_from_elsewhere():
    drawing = foreign("plain")
    assert drawing.startswith("cond (32) = silu(clock(t) + names(y))\n")
    assert "\n blocks.0-5  6 x ParallelBlock with cond\n" in drawing
    assert drawing.partition("\n\nParallelBlock: ")[2] == PARALLEL_BLOCK.removesuffix("\n")


@pytest.mark.parametrize(
    ("wiring", "depth", "links"),
    [
        ("in order", 6, [("blocks.0-2", "blocks.3-5", "blocks.0-2")]),
        ("each", 6, [("blocks.0", "blocks.1-5", "blocks.0 into each")]),
        ("one", 8, [("blocks.0-3", "blocks.4", "blocks.2")]),
        ("last but one", 6, [("blocks.0-1", "blocks.2-5", "blocks.0-3")]),
        ("apart", 6, [(f"blocks.{i}", "blocks.3-5", "blocks.2-0") for i in (2, 1, 0)]),
    ],
)
def test_links_of_a_model_from_elsewhere(wiring, depth, links):
    drawing = foreign(wiring, depth=depth)
    assert links_in(passes_in(drawing)[0]) == links
    taking = links[0][1].replace(".", r"\.")
    inside = rf"ParallelBlock: {taking} \(.*\nshift.*\n\n tokens \(16, 32\), with skip \(16, 32\), cond \(32\)\n(.*)\n"
    assert re.search(inside, drawing)[1] == "(+) skip"
    assert re.search(r"ParallelBlock: blocks\.0\b.*\nshift.*\n\n tokens \(16, 32\), with cond \(32\)\n", drawing)


def test_a_model_whose_masked_pass_is_another_one():
    plain, masked = passes_in(foreign("masked"))
    assert "\n out  " in plain
    assert "masked_out" not in plain
    assert "\n masked_out  " in masked
    assert "\n out  " not in masked


U_SHAPED = """\
c (32) = clock(t) + names(y)
clock  TimestepEmbedder: mlp.0 Linear 256 -> 32, mlp.1 SiLU,
       mlp.2 Linear 32 -> 32
names  LabelEmbedder: embedding_table Embedding 11 x 32

 x (3, 16, 16), with t, y
 tokenizer      Conv2d 3 -> 32, 3x3
 │ (32, 16, 16)
 encoder.0.0-1  2 x WindowedBlock with c
 ├────────────────────────────────────────────────────┬─┐
 down           Conv2d 32 -> 32, 3x3, stride 2x2      │ │
 │ (32, 8, 8)                                         │ │
 encoder.1.0-1  2 x WindowedBlock with c              │ │
 ├────────────────────────────────────────────────┬─┐ │ │
(cat) x, x ◄ encoder.1.1 ─────────────────────────┘ │ │ │
 │ (64, 8, 8)                                       │ │ │
 merge.0        Conv2d 64 -> 32, 1x1                │ │ │
 │ (32, 8, 8)                                       │ │ │
 decoder.0.0    WindowedBlock with c                │ │ │
(cat) x, encoder.1.0 ◄──────────────────────────────┘ │ │
 │ (64, 8, 8)                                         │ │
 merge.1        Conv2d 64 -> 32, 1x1                  │ │
 │ (32, 8, 8)                                         │ │
 decoder.0.1    WindowedBlock with c                  │ │
(interpolate)                                         │ │
 │ (32, 16, 16)                                       │ │
 up             Conv2d 32 -> 32, 3x3                  │ │
(cat) x, encoder.0.1 ◄────────────────────────────────┘ │
 │ (64, 16, 16)                                         │
 merge.2        Conv2d 64 -> 32, 1x1                    │
 │ (32, 16, 16)                                         │
 decoder.1.0    WindowedBlock with c                    │
(cat) x, encoder.0.0 ◄──────────────────────────────────┘
 │ (64, 16, 16)
 merge.3        Conv2d 64 -> 32, 1x1
 │ (32, 16, 16)
 decoder.1.1    WindowedBlock with c
(silu)
 head           Conv2d 32 -> 3, 3x3
 output (3, 16, 16)

WindowedBlock: encoder.0.0-1, encoder.1.0-1, decoder.0.0, decoder.0.1,
decoder.1.0, decoder.1.1 (14,592 parameters each)
shift  Linear 32 -> 32

 x (32, 16, 16), with c (32)
 ├────────────────────────────────────────────────────────────────────┐
 norm  GroupNorm                                                      │
(silu)                                                                │
 conv  Conv2d 32 -> 32, 3x3                                           │
 │ (32, 16, 16) -> (16, 16, 32)                                       │
(+) shift(c)                                                          │
 attn  Attention: 4 heads, qkv Linear 32 -> 96, proj Linear 32 -> 32  │
 │ (16, 16, 32) -> (32, 16, 16)                                       │
(+) ◄─────────────────────────────────────────────────────────────────┘
 output (32, 16, 16)
"""


@pytest.mark.usefixtures("registry_sandbox")
def test_a_u_shaped_network_is_drawn_stage_by_stage():
    ditzoo.register_model("u_ti_1", UShaped, family="u")
    drawing = describe("u_ti_1").partition("(channels, height, width)\n\n")[2]
    assert drawing == U_SHAPED.removesuffix("\n")
    assert describe("u_ti_1", ascii=True).isascii()
    summed = draw_blocks(on_meta("u_ti_1", concatenate=False))
    assert links_in(passes_in(summed)[0]) == [
        ("encoder.1.0-1", "(+)", "encoder.1.1"),  # what comes down meets itself
        ("encoder.1.0-1", "(+)", "encoder.1.0"),
        ("encoder.0.0-1", "(+)", "encoder.0.1"),
        ("encoder.0.0-1", "(+)", "encoder.0.0"),
    ]
    assert summed.count("\n(/) x, 2") == 4
