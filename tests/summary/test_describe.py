"""What `describe` says of sizes, cost, memory, weights and options."""

import re
from dataclasses import replace

import pytest

import ditzoo
from ditzoo.metrics import count_macs
from ditzoo.models import PublishedFile
from ditzoo.recipe import Recipe
from ditzoo.summary import describe, draw_blocks
from ditzoo.summary.words import file_facts, score
from tests.summary.foreign import Foreign
from tests.summary.reading import section
from tests.zoo import EVERY_NAME, TINY, on_meta

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
                      the authors' layout; size and sha256 not verified
  source              https://huggingface.co/facebook/DiT-XL-2-256 (transformer)
                      diffusers' layout; size, sha256 and revision not verified
  licence             CC-BY-NC-4.0: no commercial use
  trained on          ImageNet-1k at 256x256
  moving average      yes
  published           FID 9.62, IS 121.50 (no guidance; 250 DDPM): arXiv:2212.09748, table 2 (ft-EMA
                      decoder)
                      FID 2.27, IS 278.24 (guidance 1.50, first 3 channels; 250 DDPM):
                      arXiv:2212.09748, tables 2 and 5 (ft-EMA decoder);
                      github.com/facebookresearch/DiT@ed81ce222909 README
                      6 more: ditzoo.weights.published_results('dit_xl_2.in256')
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
    # Bytes by hand: 10,798.5e6 are 4 x 675,129,632 of weights and 12 x 674,834,720 of gradients and two moments.
    assert describe("dit_xl_2.in256") == DIT_XL + draw_blocks(on_meta("dit_xl_2"))
    assert describe("dit_ti_2", ascii=True).isascii()


#: the others are slow
QUICK = {*TINY, "uvit_s_2.cifar10", "mdt_s_2"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY_NAME]
)
def test_descriptions(name):
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


def test_sizes_in_words():
    assert "blocks 3, which the option depth counts as 2" in section(describe("uvit_ti_2"), "Sizes")
    assert "tokens 16 patches (4x4), and 2 in front of them: 18" in section(describe("uvit_ti_2"), "Sizes")
    assert "classes none: the model is unconditional" in section(describe("uvit_s_2.cifar10"), "Sizes")
    assert "classes 1,000, no null label" in section(describe("uvit_m_4.in64"), "Sizes")
    assert "output 4x32x32; the last layer computes 8 channels, of which the others are dropped" in section(
        describe("sit_s_2"), "Sizes"
    )


def test_published_weights_in_words():
    text = section(describe("mdtv2_xl_2.in256"), "Weights")
    assert text.startswith(
        "source https://huggingface.co/shgao/MDT-XL2 (mdt_xl2_v2_ckpt.pt) the authors' layout; revision "
        "84bf27292f9b001c82f2863b55861752ab177507; size and sha256 not verified licence none stated for the weights; "
        "the code is Apache-2.0 trained on ImageNet-1k at 256x256 moving average not stated published FID 1.58, IS "
        "314.73 (guidance power-cosine; 250 DDPM): FID and IS: github.com/sail-sg/MDT@7d26c2162c46 README; "
    )
    assert ", second-hand without effect" in text
    text = section(describe("uvit_s_2.cifar10"), "Weights")
    assert "(cifar10_uvit_small.pth) the authors' layout, fetched by hand; size and sha256 not verified" in text
    assert "published FID 3.11 (no guidance; 1000 Euler-Maruyama): github.com/baofff/U-ViT" in text
    packaged = section(describe("dit_ti_2.digits"), "Weights")
    assert "licence Apache-2.0 trained on" in packaged
    assert "moving average yes without effect" in packaged


def test_what_is_known_of_a_file():
    file = PublishedFile(name="a.pt", repo_id="me/it")
    assert file_facts(file) == "size, sha256 and revision not verified"
    assert file_facts(replace(file, revision="abc")) == "revision abc; size and sha256 not verified"
    known = replace(file, num_bytes=12_345, sha256="f0")
    assert file_facts(known) == "12,345 bytes; sha256 f0; revision not verified"
    assert file_facts(replace(known, revision="abc")) == "12,345 bytes; sha256 f0; revision abc"


def test_scores_have_two_digits_or_more():
    assert [score(value) for value in (2.2, 2.27, 2.149, 105.25, 3)] == ["2.20", "2.27", "2.149", "105.25", "3.00"]


def test_weights_without_effect_in_words():
    text = section(describe("mdtv2_ti_2"), "Weights")
    # 304: in each of 4 blocks 64 biases, and 3 rows for 4 heads.
    assert text.startswith(
        "published none packaged mdtv2_ti_2.digits: ours, which create(name, pretrained=True) loads "
    )
    assert "loads without effect 304 of 348,420 parameters" in text
    assert "4 x *.attn.qkv.bias rows 64 to 127: the softmax cancels a bias of the keys" in text
    text = section(describe("sit_xl_2"), "Weights")
    assert "published sit_xl_2.in256" in text
    assert "final_layer.linear.bias rows 4 to 7, 12 to 15, 20 to 23, 28 to 31: outputs of a variance" in text


@pytest.mark.usefixtures("registry_sandbox")
def test_a_registered_model_is_described():
    ditzoo.register_model("foreign_ti_2", Foreign, family="foreign")
    text = describe("foreign_ti_2")
    assert section(text, "foreign_ti_2") == "family foreign class Foreign paper none given"
    assert section(text, "Recipe") == "none given"
    assert section(text, "Weights") == "published none"
    macs = count_macs("foreign_ti_2")
    assert macs.by_part["other"] == 6 * 32 * 32 + 16 * 32 * 4  # the blocks' shift and the last layer


@pytest.mark.usefixtures("registry_sandbox")
def test_a_registered_model_keeps_its_own_paper_and_recipe():
    recipe = Recipe(prediction="velocity", schedule="flow_linear")
    ditzoo.register_model("foreign_ti_2", Foreign, family="dit", paper="Foreign Blocks, arXiv:1", recipe=recipe)
    text = describe("foreign_ti_2")
    assert section(text, "foreign_ti_2") == "family dit class Foreign paper Foreign Blocks, arXiv:1"
    assert section(text, "Recipe").startswith("prediction velocity: data - noise")


@pytest.mark.parametrize(
    ("name", "size", "title"),
    [
        ("dit_xl_2_incontext", "", "Recipe (of the family's published dit_xl_2.in256 and dit_xl_2.in512)"),
        ("uvit_s_deep_2", "size ours: no paper has it", "Recipe (of the family's published uvit_h_2.in256)"),
        ("dit_xl_2", "", "Recipe (of the published dit_xl_2.in256 and dit_xl_2.in512)"),
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
