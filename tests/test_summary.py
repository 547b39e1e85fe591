"""What `describe` says, and whether the drawings show what the networks do."""
# ruff: noqa: RUF001 (the drawings multiply with ×)

import math
import re
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import ditzoo
from ditzoo.diffusion import guide
from ditzoo.layers import Attention, LabelEmbedder, Mlp, PatchEmbed, TimestepEmbedder, unpatchify
from ditzoo.metrics import count_macs
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Guidance, Recipe
from ditzoo.summary import describe, draw_blocks, drawable
from ditzoo.summary.trace import Trace
from tests.zoo import EVERY_NAME, TINY, on_meta

# Whole drawings.

DIT = """\
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

AdaLNFinalLayer: final_layer (8,580 parameters)
adaLN_modulation  Sequential: 0 SiLU, 1 Linear 64 -> 128

 x (16, 64), with c (64)
 norm_final  LayerNorm without weights
(×) 1 + adaLN_modulation(c)[1]
(+) adaLN_modulation(c)[0]
 linear      Linear 64 -> 4
 output (16, 4)
"""

UVIT = """\
label_emb  Embedding 11 x 96

 x (1, 8, 8), with t, y
 patch_embed   PatchEmbed: proj Conv2d 1 -> 96, 2x2, stride 2x2
 │ (16, 96)
(cat) label_emb(y), cat(cos(t), sin(t)), x
 │ (18, 96)
(+) pos_embed
 in_blocks.0   UViTBlock
 ├───────────────────────────────────────────────────────────────┐
 mid_block     UViTBlock                                         │
 out_blocks.0  UViTBlock ◄ in_blocks.0 ──────────────────────────┘
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

MDTV2 = """\
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

AdaLNFinalLayer: final_layer (8,580 parameters)
adaLN_modulation  Sequential: 0 SiLU, 1 Linear 64 -> 128

 x (16, 64), with c (64)
 norm_final  LayerNorm without weights
(×) 1 + adaLN_modulation(c)[1]
(+) adaLN_modulation(c)[0]
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
    signs = dict(zip("│─┘┐├┬┴◄×", "|-+++++<x", strict=True))
    assert draw_blocks(on_meta("mdtv2_ti_2"), ascii=True) == "".join(signs.get(sign, sign) for sign in drawing)
    assert "".join(signs.get(sign, sign) for sign in drawing).isascii()
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


def passes_in(drawing: str) -> list[str]:
    """The whole network, once for each kind of pass."""
    whole = re.split(r"^[A-Z]\w+: [a-z]", drawing, maxsplit=1, flags=re.MULTILINE)[0]
    return re.split(r"^In masked passes.*\n", whole, flags=re.MULTILINE)


def layers_in(drawing: str) -> list[str]:
    """Names of the layers that stand on the stream of one pass, ranges spelt out, in order."""
    names = []
    layers = r"^ ((?:[a-z_]+\.|\d+\.)*?[a-z_]*)(\d*)(?:-(\d+))?  +[\dA-Z]"
    for stem, first, last in re.findall(layers, drawing, re.MULTILINE):
        names += [f"{stem}{number}" for number in range(int(first), int(last or first) + 1)] if first else [stem]
    return names


def links_in(drawing: str) -> list[tuple[str, str, str]]:
    """Source, target and words of each link of one pass, in order of the targets, found by following the lines."""
    rows = [line.ljust(120) for line in drawing.splitlines()]

    def place_at(row: int) -> str:
        """The layer, the operation with what it takes, or the input that stands in a row or in the first above."""
        while re.match(r" [│├]|\s*$", rows[row]):
            row -= 1
        return re.match(r" ?(\([^a-z]+\)(?: \w+)*|\S+)", rows[row])[1]

    links = []
    for end, line in enumerate(rows):
        for corner in [place for place, sign in enumerate(line) if sign in "┘┴"]:
            words = re.search("◄ ?([^─]*?) ?─", line)[1]
            start = next(row for row in range(end - 1, -1, -1) if rows[row][corner] in "┐┬")
            assert all(rows[row][corner] == "│" for row in range(start + 1, end))
            assert rows[start].startswith(" ├─")
            links.append((place_at(start), place_at(end), words))
    return links


@pytest.mark.parametrize("name", EVERY_NAME)
def test_drawings_show_every_link(name):
    model = on_meta(name)
    drawing = draw_blocks(model)
    assert max(len(line) for line in drawing.splitlines()) <= 88
    expected = []
    for first, second in (("in_blocks", "out_blocks"), ("en_inblocks", "en_outblocks")):
        if hasattr(model, first):
            last = len(getattr(model, first)) - 1
            span = f".0-{last}" if last else ".0"
            expected.append((f"{first}{span}", f"{second}{span}", f"{first}.{last}-0" if last else f"{first}.0"))
    if hasattr(model, "de_blocks"):
        last = len(model.de_blocks) - 1
        tip = ("de_blocks.0" + f"-{last}" * bool(last), "into each" * bool(last))
        expected.append(("(+) pos_embed", *tip))
    if hasattr(model, "decoder"):  # one from the last block of each resolution to where the decoder reaches it
        stages = range(len(model.decoder))
        last = [len(stage.blocks) - 1 for stage in model.encoder]
        for number, i in enumerate(reversed(stages)):
            source = f"encoder.{i}.blocks.0" + f"-{last[i]}" * bool(last[i])
            expected.append((source, f"decoder.{number}.match", f"encoder.{i}.blocks.{last[i]}"))
    plain, *masked = passes_in(drawing)
    assert links_in(plain) == expected
    assert len(masked) == model.supports_masking
    for one in masked:
        interpolated = ("(+) decoder_pos_embed", "(+)", "× (1 - mask.mask)")
        assert links_in(one) == [*expected[:-1], interpolated, *expected[-1:]]


@pytest.mark.parametrize("name", ditzoo.list_models())
def test_drawings_show_every_block_in_order(name):
    model = shallow(name)
    drawing = draw_blocks(model)
    assert not any(line.endswith(" ") for line in drawing.splitlines())
    blocks, side = set(model.block_names()), model.input_size
    passes = passes_in(drawing)
    for number, one in enumerate(passes):
        drawn = layers_in(one)
        assert [layer for layer in drawn if layer in blocks] == model.block_names()
        assert ("sideblocks.0" in drawn) == bool(number)
        given = "t, y" if model.num_classes else "t"
        assert re.search(rf"^ x \({model.in_channels}, {side}, {side}\), with {given}", one, re.MULTILINE)
        assert one.rstrip().endswith(f"\n output ({model.out_channels}, {side}, {side})")
    assert len(passes) == 1 + model.supports_masking
    titles = re.sub(r"\n(?=[a-z]+(\.\d|\.\w+\.\d| each\)))", " ", drawing)  # long ones are broken
    kinds = re.findall(r"^(\w+): ([\w.]+).*\(([\d,]+) parameters", titles, re.MULTILINE)
    assert {type(model.get_submodule(block)).__name__ for block in blocks} <= {kind for kind, *_ in kinds}
    for kind, place, size in kinds:
        layer = model.get_submodule(place)
        assert type(layer).__name__ == kind
        assert sum(parameter.numel() for parameter in layer.parameters()) == int(size.replace(",", ""))


def test_options_change_the_drawing():
    assert "mask" not in draw_blocks(on_meta("mdt_ti_2", mask_ratio=None)).replace("mask_token", "")
    unconditional = draw_blocks(on_meta("dit_ti_2", num_classes=0))
    assert "y_embedder" not in unconditional
    assert unconditional.startswith("c (64) = t_embedder(t)\n")
    assert "\n x (1, 8, 8), with t\n" in unconditional
    assert "(18, 96)" in draw_blocks(on_meta("uvit_ti_2"))
    assert "(17, 96)" in draw_blocks(on_meta("uvit_ti_2", num_classes=0))
    without = draw_blocks(on_meta("uvit_ti_2", skip=False))
    assert "skip_linear" not in without
    assert "◄" not in passes_in(without)[0]  # the blocks get a skip and do not look at it
    conv = draw_blocks(on_meta("uvit_ti_2", conv=True, mlp_time_embed=True))
    assert " final_layer   Conv2d 1 -> 1, 3x3\n" in conv
    assert "time_embed(cat(cos(t), sin(t)))" in conv
    deep = draw_blocks(on_meta("uvit_ti_2", depth=11))
    assert "out_blocks.0-4  5 x UViTBlock ◄ in_blocks.4-0 ─" in deep


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
  autoencoder         stabilityai/sd-vae-ft-ema, latents times 0.18215
  samples from        the moving average of the weights
  variance            learned_range
  loss                hybrid

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
    text = DIT_XL + draw_blocks(on_meta("dit_xl_2"))
    assert describe("dit_xl_2.in256") == text
    # Bytes by hand: weights, then gradients and two moments of those that are trained.
    assert pytest.approx(10_798.5e6, abs=0.05e6) == 4 * 675_129_632 + 12 * 674_834_720
    assert describe("dit_ti_2", ascii=True).isascii()


def test_recipes_in_words():
    guided = section(describe("mdtv2_s_2"), "Recipe (of the family's published models)")
    assert (
        "u + s (c - u) on the first 3 channels, s = 1 + 2.8 (1 - cos(pi (1 - t / 1000)^4)) / 2, "
        "from 1 in noise to 3.8 at t = 0; c with the label, u with the null label"
    ) in guided
    assert "masking 0.3 to 0.5 of the tokens, drawn anew each step, in a second pass over each training" in guided
    tiny = section(describe("dit_ti_2"), "Recipe (of the family's published models)")
    assert "guidance u + 1.5 (c - u) on all channels; c with" in tiny  # three, of the one that it has
    assert "autoencoder none: the model sees pixels" in tiny
    continuous = section(describe("uvit_l_2.in256"), "Recipe")
    assert "guidance c + 0.4 (c - u) on all channels" in continuous
    assert "schedule continuous_vp: the variance-preserving SDE, in continuous time guidance" in continuous
    assert "sampler dpm_3s, 50 steps: 100 forward passes an image autoencoder" in continuous
    assert "guidance none sampler euler_maruyama, 1,000 steps: 1,000 forward passes" in section(
        describe("uvit_s_2.cifar10"), "Recipe"
    )
    flow = section(describe("sit_ti_2"), "Recipe (of the family's published models)")
    assert "velocity: data - noise schedule flow_linear: the straight line from noise at time 0 to data" in flow
    assert "sampler heun, 125 steps: 500 forward passes" in flow


@dataclass(frozen=True, kw_only=True)
class LaterGuidance(Guidance):
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class LaterRecipe(Recipe):
    """With fields that no release had words for."""

    time_offset: float = 0.0
    sampler_options: dict[str, float] = field(default_factory=dict)


@pytest.mark.usefixtures("registry_sandbox")
def test_what_has_no_words_is_told_where_it_differs_from_its_default():
    given = {"prediction": "epsilon", "schedule": "linear", "guidance": Guidance(scale=2.0)}
    ditzoo.register_model("foreign_ti_2", Foreign, family="foreign", recipe=Recipe(**given))
    ditzoo.register_model("foreign_ti_3", Foreign, family="foreign", recipe=LaterRecipe(**given))
    plain, usual = (section(describe(name), "Recipe") for name in ("foreign_ti_2", "foreign_ti_3"))
    assert usual == plain
    assert plain.endswith("samples from the moving average of the weights")
    given |= {"guidance": LaterGuidance(scale=2.0, interval=(0.3, 5.0)), "sampler_options": {"eta": 1.0}}
    later = LaterRecipe(**given, time_offset=1.0)
    ditzoo.register_model("foreign_ti_4", Foreign, family="foreign", recipe=later)
    text = section(describe("foreign_ti_4"), "Recipe")
    assert "guidance u + 2 (c - u) on all channels; interval (0.3, 5.0); c with the label" in text
    assert text.endswith(" time offset 1.0 sampler options {'eta': 1.0}")


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
    assert (
        "published mdtv2_ti_2.digits without effect 304 of 348,420 parameters" in text
    )  # 4 blocks: 64 biases, 3 rows for 4 heads
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
                case "last but one" if i > 1:
                    skip = skips[i - 2]
            x, c = block(c, tokens=x, skip=skip)
            if i < self.depth // 2 or self.wiring == "last but one":
                skips.append(x)
                if self.wiring == "apart":
                    x = x + c[:, None]
        return unpatchify((self.out if mask is None else self.masked_out)(x), self.patch_size, grid)


def foreign(wiring: str, **options: int) -> str:
    with torch.device("meta"):
        drawing = draw_blocks(Foreign(wiring=wiring, **options))
    assert max(len(line) for line in drawing.splitlines()) <= 88
    return drawing


def test_a_model_from_elsewhere():
    drawing = foreign("plain")
    assert drawing.startswith("cond (32) = silu(clock(t) + names(y))\n")
    assert "\n blocks.0-5  6 x ParallelBlock with cond\n" in drawing
    inside = drawing.partition("\n\nParallelBlock: ")[2]
    assert (
        inside
        == """\
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
 output (16, 32)"""
    )  # n2 starts from before n1: a gap in the stream, and a link of its own
    assert 2 * 64 + (32 * 64 + 64 + 64 * 32 + 32) + 2 * (32 * 32 + 32) + (32 * 32 + 32) == 7_488


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


class WindowedBlock(nn.Module):
    """A convolution, then attention inside windows of 4x4 that the condition shifts, around a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.attn, self.shift = Attention(width, 4), nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv(F.silu(self.norm(x)))
        rows = h.shape[2] // 4
        tokens = rearrange(h, "b d (r p) (s q) -> (b r s) (p q) d", p=4, q=4)
        tokens = self.attn(tokens + self.shift(c)[:, None])
        return x + rearrange(tokens, "(b r s) (p q) d -> b d (r p) (s q)", r=rows, s=rows, p=4, q=4)


class UShaped(DiffusionTransformer):
    """Stages at falling and rising resolutions; skips join by concatenation, or by a scaled sum, one a block."""

    def __init__(
        self,
        *,
        input_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 3,
        hidden_size: int = 32,
        depth: int = 8,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        concatenate: bool = True,
    ) -> None:
        super().__init__(locals())
        self.concatenate = concatenate
        self.tokenizer = nn.Conv2d(in_channels, hidden_size, 3, padding=1)
        self.clock, self.names = TimestepEmbedder(hidden_size), LabelEmbedder(self.num_label_rows, hidden_size)
        self.encoder, self.decoder = (
            nn.ModuleList(nn.ModuleList(WindowedBlock(hidden_size) for _ in range(2)) for _ in range(2)) for _ in "ab"
        )
        self.down = nn.Conv2d(hidden_size, hidden_size, 3, stride=2, padding=1)
        self.up = nn.Conv2d(hidden_size, hidden_size, 3, padding=1)
        self.merge = nn.ModuleList(nn.Conv2d(2 * hidden_size, hidden_size, 1) for _ in range(4))
        self.head = nn.Conv2d(hidden_size, in_channels, 3, padding=1)

    def initialize_weights(self) -> None:
        pass

    def block_names(self) -> list[str]:
        return [f"{side}.{i}.{j}" for side in ("encoder", "decoder") for i in range(2) for j in range(2)]

    def forward(self, x, t, y=None, *, mask=None):
        self.check_inputs(x, t, y, mask)
        c, x, skips = self.clock(t) + self.names(y), self.tokenizer(x), []
        for stage, blocks in enumerate(self.encoder):
            for block in blocks:
                x = self.run_block(block, x, c)
                skips.append(x)
            x = self.down(x) if stage == 0 else x
        for stage, blocks in enumerate(self.decoder):
            for place, block in enumerate(blocks):
                skip = skips.pop()
                x = self.merge[2 * stage + place](torch.cat([x, skip], 1)) if self.concatenate else (x + skip) / 2
                x = self.run_block(block, x, c)
            x = self.up(F.interpolate(x, scale_factor=2)) if stage == 0 else x
        return self.head(F.silu(x))


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


@pytest.mark.usefixtures("registry_sandbox")
def test_a_registered_model_is_described():
    ditzoo.register_model("foreign_ti_2", Foreign, family="foreign")
    text = describe("foreign_ti_2")
    assert section(text, "foreign_ti_2") == "family foreign class Foreign paper none given"
    assert section(text, "Recipe") == "none given"
    assert section(text, "Weights") == "published none"
    macs = count_macs("foreign_ti_2")
    assert macs.by_part["other"] == 6 * 32 * 32 + 16 * 32 * 4  # the blocks' shift and the last layer
    assert "\n blocks.0-5  6 x ParallelBlock with cond\n" in text


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


# Steps.


def steps_of(forward, **tensors: Tensor) -> list[tuple[str, str]]:
    """Names and operands of what becomes of the first tensor; the others join it."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(4))
            self.emb, self.time_emb, self.take = nn.Linear(4, 4), nn.Linear(4, 4), Taking()

    Module.forward = forward
    return [(step.name, step.operands) for step in Trace(Module(), list(tensors), **tensors).steps]


class Taking(nn.Module):
    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return h + c


def test_operations_are_told_with_their_operands_in_order():
    x, c, d = torch.zeros(1, 2, 4), torch.ones(1, 4), torch.ones(1, 4)

    def arithmetic(self, x, c):
        return 3 - (x * 2 - c) / 4

    assert steps_of(arithmetic, x=x, c=c)[1:] == [
        ("×", "2"),
        ("-", "x, c"),
        ("/", "x, 4"),
        ("-", "3, x"),
        ("output", ""),
    ]

    def concatenation(self, x, c, d):
        return torch.cat([c[:, None], x, d[:, None]], dim=1)

    assert steps_of(concatenation, x=x, c=c, d=d)[1] == ("cat", "c, x, d")

    def parts(self, x, c):
        first, second = (1 - torch.sin(self.emb(c))).chunk(2, dim=-1)
        x[..., :2] = x[..., :2] * second + first
        x += self.table
        return x

    assert steps_of(parts, x=x, c=c)[1:-1] == [
        ("×", "(1 - sin(emb(c)))[1]"),
        ("+", "(1 - sin(emb(c)))[0]"),
        ("setitem", "x, x"),
        ("+", "table"),
    ]


def test_an_expression_goes_by_the_name_that_a_layer_has_for_it():
    def forward(self, x, t):
        y = self.take(x, self.emb(t))
        return self.take(y * self.time_emb(t), self.emb(t) + 1)

    x, t = torch.zeros(1, 4), torch.zeros(1, 4)
    assert steps_of(forward, x=x, t=t)[1:-1] == [("take", "c"), ("×", "time_emb(t)"), ("take", "1 + c")]
