"""What `describe` says, and whether the drawings show what the networks do."""
# ruff: noqa: RUF001 (the drawings multiply with ×)

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ditzoo
from ditzoo.diffusion import SAMPLERS, guide
from ditzoo.layers import LabelEmbedder, Mlp, PatchEmbed, TimestepEmbedder, unpatchify
from ditzoo.metrics import count_macs
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe
from ditzoo.summary import describe, draw_blocks, drawable
from ditzoo.summary.flow import Flow
from ditzoo.summary.picture import Picture
from ditzoo.summary.trace import trace
from tests.zoo import EVERY_NAME, TINY, on_meta

# Whole drawings.

DIT = """\
        t                  y              x (1, 8, 8)
        │                  │              │
   t_embedder         y_embedder       ┌──┴────────────────────────┐
Linear 256 -> 64   Embedding 11 x 64   │ x_embedder                │
      SiLU                 │           │ PatchEmbed:               │
 Linear 64 -> 64           │           │ proj Conv2d 1 -> 64, 2x2, │
        └───────(+)────────┘           │ stride 2                  │
                 │ c (64)              └──┬────────────────────────┘
                 │                        │ (16, 64)
                 │                       (+) pos_embed, not trained
                 │                     ┌──┴────────────────────────┐
                 ├────────────────────►│ blocks.0-3                │
                 │                     │ 4 x AdaLNZeroBlock        │
                 │                     └──┬────────────────────────┘
                 │                        │ (16, 64)
                 │                     ┌──┴────────────────────────┐
                 └────────────────────►│ final_layer               │
                                       │ AdaLNFinalLayer           │
                                       └──┬────────────────────────┘
                                          │ (16, 4) rearranged to (1, 8, 8)
                                          output (1, 8, 8)

AdaLNZeroBlock: blocks.0-3 (74,688 parameters each)
     c (64)             x (16, 64)
        │               ├──────────────────────────────────────────────────┐
adaLN_modulation        norm1  LayerNorm without weights                   │
      SiLU              │                                                  │
Linear 64 -> 384        │                                                  │
        │ 6 of (64)     │                                                  │
        ├─────── 1 + ─►(×)                                                 │
        ├─────────────►(+)                                                 │
        │               attn   Attention: 4 heads of 16,                   │
        │               │      qkv Linear 64 -> 192, proj Linear 64 -> 64  │
        ├─────────────►(×)                                                 │
        │              (+)◄────────────────────────────────────────────────┘
        │               ├──────────────────────────────────────────────────┐
        │               norm2  LayerNorm without weights                   │
        ├─────── 1 + ─►(×)                                                 │
        ├─────────────►(+)                                                 │
        │               mlp    Mlp: fc1 Linear 64 -> 256, act GELU (tanh), │
        │               │      fc2 Linear 256 -> 64                        │
        └─────────────►(×)                                                 │
                       (+)◄────────────────────────────────────────────────┘
                        output (16, 64)

AdaLNFinalLayer: final_layer (8,580 parameters)
     c (64)             x (16, 64)
        │               norm_final  LayerNorm without weights
adaLN_modulation        │
      SiLU              │
Linear 64 -> 128        │
        │ 2 of (64)     │
        ├─────── 1 + ─►(×)
        └─────────────►(+)
                        linear      Linear 64 -> 4
                        output (16, 4)
"""

UVIT = """\
        y          t                          x (1, 8, 8)
        │          │ cos, sin -> (1, 96)      │
    label_emb      │                       ┌──┴────────────────────────┐
Embedding 11 x 96  │                       │ patch_embed               │
        │          │                       │ PatchEmbed:               │
        │          │                       │ proj Conv2d 1 -> 96, 2x2, │
        │          │                       │ stride 2                  │
        │          │                       └──┬────────────────────────┘
        │          │                          │ (16, 96)
        └──────────┴────────────────────────►(cat) in front
                                              │ (18, 96)
                                             (+) pos_embed
                                           ┌──┴────────────────────────┐
                                           │ in_blocks.0               ├─┐
                                           │ UViTBlock                 │ │
                                           └──┬────────────────────────┘ │
                                              │ (18, 96)                 │
                                           ┌──┴────────────────────────┐ │
                                           │ mid_block                 │ │
                                           │ UViTBlock                 │ │
                                           └──┬────────────────────────┘ │
                                              │ (18, 96)                 │
                                           ┌──┴────────────────────────┐ │
                                           │ out_blocks.0              │◄┘
                                           │ UViTBlock                 │
                                           └──┬────────────────────────┘
                                              │ (18, 96)
                                           ┌──┴────────────────────────┐
                                           │ norm                      │
                                           │ LayerNorm                 │
                                           └──┬────────────────────────┘
                                              │ (18, 96)
                                           ┌──┴────────────────────────┐
                                           │ decoder_pred              │
                                           │ Linear 96 -> 4            │
                                           └──┬────────────────────────┘
                                              │ (18, 4) cut to (1, 8, 8)
                                              output (1, 8, 8)

UViTBlock: in_blocks.0, mid_block (111,552 parameters each)
 x (18, 96)
 ├───────────────────────────────────────────┐
 norm1  LayerNorm                            │
 attn   Attention: 8 heads of 12,            │
 │      qkv Linear 96 -> 288, no bias,       │
 │      proj Linear 96 -> 96                 │
(+)◄─────────────────────────────────────────┘
 ├───────────────────────────────────────────┐
 norm2  LayerNorm                            │
 mlp    Mlp: fc1 Linear 96 -> 384, act GELU, │
 │      fc2 Linear 384 -> 96                 │
(+)◄─────────────────────────────────────────┘
 output (18, 96)

UViTBlock: out_blocks.0 (130,080 parameters)
skip (18, 96)     x (18, 96)
      └─────────►(cat) behind
                  │ (18, 192)
                  skip_linear  Linear 192 -> 96
                  │ (18, 96)
                  ├─────────────────────────────────────────────────┐
                  norm1        LayerNorm                            │
                  attn         Attention: 8 heads of 12,            │
                  │            qkv Linear 96 -> 288, no bias,       │
                  │            proj Linear 96 -> 96                 │
                 (+)◄───────────────────────────────────────────────┘
                  ├─────────────────────────────────────────────────┐
                  norm2        LayerNorm                            │
                  mlp          Mlp: fc1 Linear 96 -> 384, act GELU, │
                  │            fc2 Linear 384 -> 96                 │
                 (+)◄───────────────────────────────────────────────┘
                  output (18, 96)
"""

MDTV2 = """\
        t                  y              x (1, 8, 8)
        │                  │              │
   t_embedder         y_embedder       ┌──┴────────────────────────┐
Linear 256 -> 64   Embedding 11 x 64   │ x_embedder                │
      SiLU                 │           │ PatchEmbed:               │
 Linear 64 -> 64           │           │ proj Conv2d 1 -> 64, 2x2, │
        └───────(+)────────┘           │ stride 2                  │
                 │ c (64)              └──┬────────────────────────┘
                 │                        │ (16, 64)
                 │                       (+) pos_embed
                 │                        ├────────────────────────────────────┐
                 │                       (gather) mask *                       │
                 │                        │ (11, 64) *                         │
                 │                     ┌──┴────────────────────────┐           │
                 ├────────────────────►│ en_inblocks.0             ├────────┐  │
                 │                     │ MDTBlock                  │        │  │
                 │                     └──┬────────────────────────┘        │  │
                 │                        │ (16, 64), masked (11, 64)       │  │
                 │                     ┌──┴────────────────────────┐        │  │
                 ├────────────────────►│ en_outblocks.0            │◄───────┘  │
                 │                     │ MDTBlock                  │           │
                 │                     └──┬────────────────────────┘           │
                 │                        │ (16, 64), masked (11, 64)          │
                 │                       (cat) mask_token *                    │
                 │                       (gather) mask *                       │
                 │                       (+) decoder_pos_embed                 │
                 │                        ├─────────────────────────────────┐  │
                 │                     ┌╌╌┴╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┐        │  │
                 ├────────────────────►┆ sideblocks.0 *            ┆        │  │
                 │                     ┆ MDTBlock                  ┆        │  │
                 │                     └╌╌┬╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘        │  │
                 │                        │ (16, 64) *                      │  │
                 │                       (×) mask *                         │  │
                 │                       (+) * ◄ × (1 - mask) ──────────────┘  │
                 │                     ┌──┴────────────────────────┐           │
                 ├────────────────────►│ de_blocks.0               │◄──────────┘
                 │                     │ MDTBlock                  │
                 │                     └──┬────────────────────────┘
                 │                        │ (16, 64)
                 │                     ┌──┴────────────────────────┐
                 └────────────────────►│ final_layer               │
                                       │ AdaLNFinalLayer           │
                                       └──┬────────────────────────┘
                                          │ (16, 4) rearranged to (1, 8, 8)
                                          output (1, 8, 8)
* only in masked passes, here one that sees 11 of 16 tokens

MDTBlock: en_inblocks.0, sideblocks.0 (74,896 parameters each)
     c (64)             x (16, 64)
        │               ├──────────────────────────────────────────────────┐
adaLN_modulation        norm1  LayerNorm without weights                   │
      SiLU              │                                                  │
Linear 64 -> 384        │                                                  │
        │ 6 of (64)     │                                                  │
        ├─────── 1 + ─►(×)                                                 │
        ├─────────────►(+)                                                 │
        │               attn   Attention: 4 heads of 16,                   │
        │               │      qkv Linear 64 -> 192, proj Linear 64 -> 64, │
        │               │      rel_pos_bias 52 x 4                         │
        ├─────────────►(×)                                                 │
        │              (+)◄────────────────────────────────────────────────┘
        │               ├──────────────────────────────────────────────────┐
        │               norm2  LayerNorm without weights                   │
        ├─────── 1 + ─►(×)                                                 │
        ├─────────────►(+)                                                 │
        │               mlp    Mlp: fc1 Linear 64 -> 256, act GELU (tanh), │
        │               │      fc2 Linear 256 -> 64                        │
        └─────────────►(×)                                                 │
                       (+)◄────────────────────────────────────────────────┘
                        output (16, 64)

MDTBlock: en_outblocks.0, de_blocks.0 (83,152 parameters each)
     c (64)           skip (16, 64)     x (16, 64)
        │                   └─────────►(cat) behind
adaLN_modulation                        │ (16, 128)
      SiLU                              skip_linear  Linear 128 -> 64
Linear 64 -> 384                        │ (16, 64)
        │ 6 of (64)                     ├───────────────────────────────────────┐
        │                               norm1        LayerNorm without weights  │
        ├─────────────────────── 1 + ─►(×)                                      │
        ├─────────────────────────────►(+)                                      │
        │                               attn         Attention: 4 heads of 16,  │
        │                               │            qkv Linear 64 -> 192,      │
        │                               │            proj Linear 64 -> 64,      │
        │                               │            rel_pos_bias 52 x 4        │
        ├─────────────────────────────►(×)                                      │
        │                              (+)◄─────────────────────────────────────┘
        │                               ├───────────────────────────────────────┐
        │                               norm2        LayerNorm without weights  │
        ├─────────────────────── 1 + ─►(×)                                      │
        ├─────────────────────────────►(+)                                      │
        │                               mlp          Mlp: fc1 Linear 64 -> 256, │
        │                               │            act GELU (tanh),           │
        │                               │            fc2 Linear 256 -> 64       │
        └─────────────────────────────►(×)                                      │
                                       (+)◄─────────────────────────────────────┘
                                        output (16, 64)

AdaLNFinalLayer: final_layer (8,580 parameters)
     c (64)             x (16, 64)
        │               norm_final  LayerNorm without weights
adaLN_modulation        │
      SiLU              │
Linear 64 -> 128        │
        │ 2 of (64)     │
        ├─────── 1 + ─►(×)
        └─────────────►(+)
                        linear      Linear 64 -> 4
                        output (16, 4)
"""


@pytest.mark.parametrize(("name", "drawing"), [("dit_ti_2", DIT), ("uvit_ti_2", UVIT), ("mdtv2_ti_2", MDTV2)])
def test_whole_drawings(name, drawing):
    assert draw_blocks(on_meta(name)) == drawing.removesuffix("\n")


def test_a_built_model_is_drawn_as_its_shapes_are_and_left_as_it_was():
    model = ditzoo.create("mdt_ti_2").train()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    assert draw_blocks(model) == draw_blocks(on_meta("mdt_ti_2"))
    assert model.training
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_ascii_says_the_same():
    drawing = draw_blocks(on_meta("mdtv2_ti_2"))
    signs = dict(zip("│─┘┐┤└┌├┴┬┼┆╌►◄×", "|-+++++++++:.><x", strict=True))
    assert draw_blocks(on_meta("mdtv2_ti_2"), ascii=True) == "".join(signs.get(sign, sign) for sign in drawing)
    assert "".join(signs.get(sign, "") for sign in drawing).isascii()
    assert drawable("utf-8")
    assert not drawable("latin-1")
    assert not drawable(None)
    assert not drawable("no-such-encoding")


# Every model.


def shallow(name: str) -> DiffusionTransformer:
    """The same network with fewer blocks, for speed."""
    config = ditzoo.model_info(name).config
    if "depth" not in config:
        return on_meta(name)
    return on_meta(name, depth=min(config["depth"], config.get("decode_layer", 0) + 6))


def blocks_in(drawing: str) -> list[str]:
    """Names in the boxes of a drawing, ranges spelt out, in order."""
    names = []
    for stem, first, last in re.findall(r"[│┆] ([a-z_.\d]+\.)(\d+)(?:-(\d+))?(?: \*)? +[│┆├◄]", drawing):
        names += [f"{stem}{number}" for number in range(int(first), int(last or first) + 1)]
    return names


def links_in(drawing: str) -> list[tuple[str, str, str]]:
    """Source, target, and words at the tip of each link of the whole network, found by following the lines."""
    rows = [line.ljust(120) for line in drawing.partition("\n\n")[0].splitlines()]

    def place_of(row: int, edge: int) -> str:
        """The heading of the box whose right edge that is, or else the operation at or above it."""
        top = row
        while rows[top][edge] in "│├┆":
            top -= 1
        if rows[top][edge] in "┐":
            heading = rows[top + 1][:edge].rstrip()
            return heading[max(heading.rindex(side) for side in "│┆" if side in heading) + 2 :]
        operations = (re.search(r"\([^a-z() ]\)(?: [a-z_]+)*", rows[above]) for above in range(row, 0, -1))
        return next(found[0] for found in operations if found)

    links = []
    for end, line in enumerate(rows):
        for tip in re.finditer("◄", line):
            corner = line.index("┘", tip.start())
            inside = re.search(r"[│┆] ([^│┆]*?) +[│┆]◄", line)
            words = inside[1] if inside and " " in inside[1] else line[tip.end() : corner].strip(" ─│")
            start = next(row for row in range(end - 1, -1, -1) if rows[row][corner] == "┐")
            assert all(rows[row][corner] in "│┤" for row in range(start + 1, end))
            source = rows[start].rindex("├", 0, corner)
            links.append((place_of(start, source), place_of(end, tip.start() - 1), words))
    return links


@pytest.mark.parametrize("name", EVERY_NAME)
def test_drawings_show_every_link(name):
    model = on_meta(name)
    drawing = draw_blocks(model)
    assert max(len(line) for line in drawing.splitlines()) <= 92
    expected = []
    for first, second in (("in_blocks", "out_blocks"), ("en_inblocks", "en_outblocks")):
        if hasattr(model, first):
            last = len(getattr(model, first)) - 1
            words = f"{last + 1} links, last in first out" if last else ""
            span = f"0-{last}" if last else "0"
            expected.append((f"{first}.{span}", f"{second}.{span}", words))
    if hasattr(model, "sideblocks"):
        expected.append(("(+) decoder_pos_embed", "(+)", "× (1 - mask)"))
    if hasattr(model, "de_blocks"):
        last = len(model.de_blocks) - 1
        tip = ("de_blocks.0" + f"-{last}" * bool(last), "this link into each" if last else "")
        expected.append(("(+) pos_embed", *tip))
    if hasattr(model, "decoder"):  # one from the last block of each resolution to where the decoder reaches it
        stages = range(len(model.decoder))
        last = [len(stage.blocks) - 1 for stage in model.encoder]
        ranges = [f"encoder.{i}.blocks.0" + f"-{last[i]}" * bool(last[i]) for i in stages]
        expected += [(source, f"decoder.{i}.match", "") for i, source in enumerate(reversed(ranges))]
    assert links_in(drawing) == expected
    assert "without room" not in drawing


@pytest.mark.parametrize("name", ditzoo.list_models())
def test_drawings_show_every_block_in_order(name):
    model = shallow(name)
    drawing = draw_blocks(model)
    assert max(len(line) for line in drawing.splitlines()) <= 100
    assert not any(line.endswith(" ") for line in drawing.splitlines())
    numbered = [block for block in model.block_names() if block[-1].isdigit()]
    drawn = [block for block in blocks_in(drawing) if block in numbered or "*" not in drawing]
    assert drawn == numbered
    for block in set(model.block_names()) - set(numbered):
        assert f"│ {block} " in drawing
    side = model.input_size
    assert f" x ({model.in_channels}, {side}, {side})\n" in drawing
    assert f" output ({model.out_channels}, {side}, {side})\n" in drawing
    assert ("masked passes" in drawing) == model.supports_masking
    titles = drawing.replace(",\n", ", ")  # long ones are broken
    kinds = re.findall(r"^(\w+): ([\w.]+).*\(([\d,]+) parameters", titles, re.MULTILINE)
    assert {type(model.get_submodule(block)).__name__ for block in model.block_names()} <= {kind for kind, *_ in kinds}
    for kind, place, size in kinds:
        layer = model.get_submodule(place)
        assert type(layer).__name__ == kind
        assert sum(parameter.numel() for parameter in layer.parameters()) == int(size.replace(",", ""))


def test_options_change_the_drawing():
    assert "mask" not in draw_blocks(on_meta("mdt_ti_2", mask_ratio=None))
    unconditional = draw_blocks(on_meta("dit_ti_2", num_classes=0))
    assert "y_embedder" not in unconditional
    assert "t_embedder" in unconditional
    assert "(18, 96)" in draw_blocks(on_meta("uvit_ti_2"))
    assert "(17, 96)" in draw_blocks(on_meta("uvit_ti_2", num_classes=0))
    without = draw_blocks(on_meta("uvit_ti_2", skip=False))
    assert "skip_linear" not in without
    assert "◄" not in without.partition("\n\n")[0]  # the blocks get a skip and do not look at it
    conv = draw_blocks(on_meta("uvit_ti_2", conv=True, mlp_time_embed=True))
    assert "│ Conv2d 1 -> 1, 3x3" in conv
    assert "time_embed" in conv
    deep = draw_blocks(on_meta("uvit_ti_2", depth=11))
    assert "5 links: in_blocks.4 -> out_blocks.0 to in_blocks.0 -> out_blocks.4" in deep
    assert "5 links" not in draw_blocks(on_meta("uvit_ti_2", depth=4))


def check_description(name: str) -> None:
    text = describe(name)
    assert max(len(line) for line in text.splitlines()) <= 100
    info = ditzoo.model_info(name)
    for fact in (f"{info.num_params:,}", f"{info.num_tokens:,} patches", info.model_cls, *info.config):
        assert fact in text
    for fact in (info.paper, info.source, info.licence, info.data):
        assert fact is None or fact in " ".join(text.split())
    table = re.search(r"^  part .*%\n(.*?)\n  total +([\d.,]+) +100\.00$", text, re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = [line.split()[-2:] for line in table[1].splitlines()]
    counts, shares = ([float(cell.replace(",", "")) for cell in column] for column in zip(*rows, strict=True))
    assert sum(counts) == pytest.approx(float(table[2].replace(",", "")), abs=0.0005 * (len(rows) + 1))
    assert sum(shares) == pytest.approx(100, abs=0.005 * (len(rows) + 1))
    assert sum(count_macs(name).by_part.values()) == count_macs(name).total


@pytest.mark.parametrize("name", [*TINY, "uvit_s_2.cifar10", "mdt_s_2"])
def test_descriptions(name):
    check_description(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_NAME)
def test_descriptions_of_every_name(name):
    check_description(name)


# Words.


def section(text: str, title: str) -> str:
    """A section's lines, joined to one."""
    found = re.search(rf"^{re.escape(title)}\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return " ".join(found[1].split())


DIT_XL = """\
dit_xl_2.in256
  family              DiT (dit): A plain vision transformer over patches, conditioned in one of four
                      ways.
  class               DiT
  paper               Scalable Diffusion Models with Transformers, arXiv:2212.09748

Sizes
  parameters          675,129,632: 674,834,720 trained, 294,912 frozen
  blocks              28
  width               1152; 16 attention heads of 72, MLP of 4608
  input               4x32x32, cut into patches of 2x2
  output              8x32x32: first the prediction, then a variance
  tokens              256 patches (16x16)
  classes             1,000, null label 1000

Multiply-adds of one forward pass of one input
  total               118.6 GMACs (papers print this as Gflops), 237.2 GFLOPs (2 x GMACs)
                      114.4 GMACs without attention products

  part                           GMACs        %
  attention products             4.228     3.56
  attention projections         38.051    32.08
  mlp                           76.101    64.15
  modulation                     0.226     0.19
  embeddings                     0.006     0.01
  head                           0.009     0.01
  total                        118.621   100.00

Memory (1 MB is 1,000,000 bytes)
  weights             2,700.5 MB in float32, 1,350.3 MB in bfloat16 or float16
  training            10,798.5 MB in float32 with AdamW: weights, gradients and two moments
                      13,499.1 MB with an averaged copy of the weights
                      Activations come on top and grow with the batch.

Recipe
  prediction          epsilon: the noise
  schedule            linear: DDPM's; 1,000 timesteps
  guidance            u + 1.5 (c - u) on the first 3 channels; c with the label, u with the null
                      label
  sampler             ddpm, 250 steps: 500 forward passes an image
                      This release does not have this sampler; it has {samplers}.
  autoencoder         stabilityai/sd-vae-ft-ema, latents times 0.18215
  samples from        the moving average of the weights

Weights
  source              https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt
  licence             CC-BY-NC-4.0
  trained on          ImageNet-1k at 256x256
  without effect      32,256 of 675,129,632 parameters; the state dict carries them
                      28 x blocks.*.attn.qkv.bias rows 1152 to 2303: the softmax cancels a bias of
                      the keys

Options
  input_size          32
  patch_size          2
  in_channels         4
  hidden_size         1152
  depth               28
  num_heads           16
  mlp_ratio           4.0
  num_classes         1000
  class_dropout_prob  0.1
  learn_sigma         True
  conditioning        'adaln_zero'

Blocks, from the input down; shapes without the batch: (tokens, width) or (channels, height, width)

"""


def test_whole_description():
    text = DIT_XL.format(samplers=", ".join(SAMPLERS)) + draw_blocks(on_meta("dit_xl_2"))
    assert describe("dit_xl_2.in256") == text
    # Bytes by hand: weights, then gradients and two moments of those that are trained.
    assert pytest.approx(10_798.5e6, abs=0.05e6) == 4 * 675_129_632 + 12 * 674_834_720
    assert describe("dit_ti_2", ascii=True).isascii()


def test_recipes_in_words():
    guided = section(describe("mdtv2_s_2"), "Recipe (of the family's published models)")
    assert (
        "u + s (c - u) on the first 3 channels; c with the label, u with the null label; "
        "s = 1 + 2.8 (1 - cos(pi (1 - t / 1000)^4)) / 2, from 1 in noise to 3.8 at t = 0"
    ) in guided
    assert "masking 0.3 to 0.5 of the tokens, drawn anew each step, in a second pass over each training" in guided
    tiny = section(describe("dit_ti_2"), "Recipe (of the family's published models)")
    assert "guidance u + 1.5 (c - u) on all channels; c with" in tiny  # three, of the one that it has
    assert "autoencoder none: the model sees pixels" in tiny
    continuous = section(describe("uvit_l_2.in256"), "Recipe")
    assert "guidance c + 0.4 (c - u) on all channels" in continuous
    assert "continuous time This release does not compute this schedule." in continuous
    assert "guidance none sampler euler_maruyama, 1,000 steps: 1,000 forward passes" in section(
        describe("uvit_s_2.cifar10"), "Recipe"
    )
    flow = section(describe("sit_ti_2"), "Recipe (of the family's published models)")
    assert "velocity: data - noise schedule flow_linear: the straight line from noise at time 0 to data" in flow
    assert "sampler heun, 125 steps: 500 forward passes" in flow


def test_guidance_in_words_is_what_is_computed():
    """The printed power-cosine scale, evaluated, is that of `guide`."""
    recipe = ditzoo.model_info("mdt_xl_2").recipe
    assert recipe is not None
    text = section(describe("mdt_s_2"), "Recipe (of the family's published models)")
    formula = re.search(r"s = (.*?), from", text)
    assert formula is not None
    conditional, unconditional = torch.full((1, 4, 1, 1), 2.0), torch.full((1, 4, 1, 1), 1.0)
    guided = guide(lambda x, t, y: torch.cat([conditional, unconditional]), recipe.guidance, null_label=7)
    for t in (0, 250, 700, 999):
        out = guided(conditional, torch.tensor([t]), torch.tensor([1]))
        code = formula[1].replace("cos(pi ", "cos(pi * ").replace("^", "**").replace(" (1", " * (1", 1)
        scale = eval(code, {"cos": math.cos, "pi": math.pi, "t": t})
        assert out[0, 0, 0, 0].item() == pytest.approx(1 + scale * (2 - 1), rel=1e-5)
        assert out[0, 3, 0, 0].item() == 2


def test_operands_of_a_concatenation_are_drawn_in_its_order():
    """Class, time, patches in U-ViT; the long skip behind the stream."""
    drawing = draw_blocks(on_meta("uvit_ti_2"))
    heads = drawing.splitlines()[0]
    assert heads.index("y") < heads.index("t") < heads.index("x (1, 8, 8)")
    assert drawing.count("(cat) in front") == drawing.count("(cat) behind") == 1
    t, y, x = torch.zeros(1, 2, 4), torch.ones(1, 1, 4), torch.full((1, 3, 4), 2.0)

    class Around(nn.Module):
        def forward(self, x, t, y):
            return torch.cat([y, x, t], dim=1)

    flow = Flow(trace(Around(), x, t, y), "x", frozenset())
    drawing = str(Picture(Around(), flow, flow.stops, boxed=False).canvas)
    assert "(cat) around" in drawing
    assert drawing.index("y (1, 4)") < drawing.index("t (2, 4)") < drawing.index("x (3, 4)")


def test_sizes_in_words():
    assert "blocks 3, which the option depth counts as 2" in section(describe("uvit_ti_2"), "Sizes")
    assert "tokens 16 patches (4x4), and 2 in front of them: 18" in section(describe("uvit_ti_2"), "Sizes")
    assert "classes none: the model is unconditional" in section(describe("uvit_s_2.cifar10"), "Sizes")
    assert "classes 1,000, no null label" in section(describe("uvit_m_4.in64"), "Sizes")
    assert "output 4x32x32; the last layer computes 8 channels, of which the others are dropped" in section(
        describe("sit_s_2"), "Sizes"
    )


def test_weights_without_effect_in_words():
    text = section(describe("mdtv2_ti_2"), "Weights")
    assert "published none without effect 304 of 348,420 parameters" in text  # 4 blocks: 64 biases, 3 rows for 4 heads
    assert 4 * (64 + 3 * 4) == 304
    assert "4 x *.attn.qkv.bias rows 64 to 127: the softmax cancels a bias of the keys" in text
    text = section(describe("sit_xl_2"), "Weights")
    assert "published sit_xl_2.in256" in text
    assert "final_layer.linear.bias rows 4 to 7, 12 to 15, 20 to 23, 28 to 31: outputs of a variance" in text


# Models from elsewhere.


class ParallelBlock(nn.Module):
    """Attention and MLP side by side, the condition first, and handed on: nothing like the zoo's blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n1, self.n2, self.up, self.down = nn.LayerNorm(width), nn.LayerNorm(width), Mlp(width, 2.0), Mlp(width, 1)
        self.shift = nn.Linear(width, width)

    def forward(self, cond: Tensor, *, tokens: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if skip is not None:
            tokens = tokens + skip
        tokens = tokens + self.shift(cond)[:, None]
        return tokens + self.up(self.n1(tokens)) + self.down(self.n2(tokens)), cond


class Foreign(DiffusionTransformer):
    supports_masking = True

    def __init__(
        self,
        *,
        input_size: int = 8,
        patch_size: int = 2,
        in_channels: int = 1,
        hidden_size: int = 32,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        wiring: str = "plain",
    ) -> None:
        super().__init__(locals())
        self.wiring = wiring
        self.mask_ratio = 0.5 if wiring == "masked" else None
        self.cut, self.clock = PatchEmbed(patch_size, in_channels, hidden_size), TimestepEmbedder(hidden_size)
        self.names = LabelEmbedder(self.num_label_rows, hidden_size)
        self.blocks = nn.ModuleList(ParallelBlock(hidden_size) for _ in range(depth))
        self.out = nn.Linear(hidden_size, patch_size**2 * in_channels)
        self.masked_out = nn.Linear(hidden_size, patch_size**2 * in_channels)

    def initialize_weights(self) -> None:
        pass

    def forward(self, x, t, y=None, *, mask=None):
        grid = self.check_inputs(x, t, y, mask)
        x, c = self.cut(x), F.silu(self.clock(t) + self.names(y))
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            skip = None
            match self.wiring:
                case "in order" if i >= self.depth // 2:
                    skip = skips.pop(0)
                case "apart" if i >= self.depth // 2:
                    skip = skips.pop()
                case "each" if i:
                    skip = skips[0]
                case "one" if i == self.depth // 2:
                    skip = skips[2]
            x, c = block(c, tokens=x, skip=skip)
            if i < self.depth // 2:
                skips.append(x)
                if self.wiring == "apart":
                    x = x + c[:, None]
        return unpatchify((self.out if mask is None else self.masked_out)(x), self.patch_size, grid)


def foreign(wiring: str, **options: int) -> str:
    with torch.device("meta"):
        drawing = draw_blocks(Foreign(wiring=wiring, **options))
    assert max(len(line) for line in drawing.splitlines()) <= 100
    return drawing


def test_a_model_from_elsewhere():
    drawing = foreign("plain")
    assert re.search(r"►│ blocks\.0-5 +│\n.*│ 6 x ParallelBlock +│", drawing)
    assert "│ silu -> cond (32)" in drawing
    assert "ParallelBlock: blocks.0-5 (7,488 parameters each)\n   cond (32) " in drawing
    inside = drawing.partition("ParallelBlock: ")[2]
    assert "tokens (16, 32)" in inside
    assert re.search(r"n2 +LayerNorm ◄─", inside)  # from before n1: a line of its own
    assert inside.splitlines()[-1].strip() == "output (16, 32)"
    assert 2 * 64 + (32 * 64 + 64 + 64 * 32 + 32) + 2 * (32 * 32 + 32) + (32 * 32 + 32) == 7_488


def test_links_of_a_model_from_elsewhere():
    drawing = foreign("in order")
    assert "3 links: blocks.0 -> blocks.3 to blocks.2 -> blocks.5" in drawing
    assert links_in(drawing) == [("blocks.0-2", "blocks.3-5", "3 links, in order")]
    assert "ParallelBlock: blocks.0-2 (" in drawing
    assert re.search(r"ParallelBlock: blocks\.3-5 \(.*\n.*skip \(16, 32\) +tokens \(16, 32\)\n.*└─+►\(\+\)", drawing)
    drawing = foreign("each")
    assert links_in(drawing) == [("blocks.0", "blocks.1-5", "this link into each")]
    drawing = foreign("one", depth=8)
    assert re.search(r"│ blocks\.0-3 +├─ 2 ─", drawing)
    assert links_in(drawing) == [("blocks.0-3", "blocks.4", "")]
    drawing = foreign("apart")
    assert links_in(drawing) == [(f"blocks.{5 - i}", "blocks.3-5", f"link into blocks.{i}") for i in (3, 4, 5)]


def test_a_model_whose_masked_pass_is_another_one():
    drawing = foreign("masked")
    plain, masked = drawing.split("\n\nIn masked passes, here one that sees 8 of 16 tokens\n")
    assert "│ out " in plain
    assert "masked_out" not in plain
    assert "│ masked_out " in masked
    assert "│ out " not in masked


@pytest.mark.usefixtures("registry_sandbox")
def test_a_registered_model_is_described():
    ditzoo.register_model("foreign_ti_2", Foreign, family="foreign")
    text = describe("foreign_ti_2")
    assert section(text, "foreign_ti_2") == "family foreign class Foreign paper none given"
    assert section(text, "Recipe") == "none given"
    assert section(text, "Weights") == "published none"
    macs = count_macs("foreign_ti_2")
    assert macs.by_part["other"] == 6 * 32 * 32 + 16 * 32 * 4  # the blocks' shift and the last layer
    assert "│ 6 x ParallelBlock" in text


@pytest.mark.usefixtures("registry_sandbox")
def test_a_registered_model_keeps_its_own_paper_and_recipe():
    recipe = Recipe(prediction="velocity", schedule="flow_linear", sampler="heun", num_inference_steps=10)
    ditzoo.register_model("foreign_ti_2", Foreign, family="dit", paper="Foreign Blocks, arXiv:1", recipe=recipe)
    text = describe("foreign_ti_2")
    assert section(text, "foreign_ti_2") == "family dit class Foreign paper Foreign Blocks, arXiv:1"
    assert section(text, "Recipe").startswith("prediction velocity: data - noise")


@pytest.mark.parametrize(
    ("name", "size", "title"),
    [
        ("dit_xl_2_incontext", "", "Recipe (of the family's published models)"),
        ("uvit_s_deep_2", "size ours: no paper has it", "Recipe (of the family's published models)"),
        ("dit_xl_2", "", "Recipe"),
        ("uvit_m_4.in64", "", "Recipe"),
    ],
)
def test_what_is_said_of_sizes_and_recipes_is_true(name, size, title):
    text = describe(name)
    assert section(text, name).endswith(size)
    assert ("no paper has it" in text) == bool(size)
    assert section(text, title).startswith("prediction epsilon")
    assert "the original's" not in text


def test_an_unknown_name_is_suggested():
    with pytest.raises(ValueError, match=r"Unknown model 'dit_xl2'\. Did you mean dit_xl_2"):
        describe("dit_xl2")
