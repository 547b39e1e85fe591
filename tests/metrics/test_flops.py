"""Multiply-adds against closed forms, exactly, and against the published figures."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ditzoo
from ditzoo.layers import Attention, Mlp, PatchEmbed, TimestepEmbedder
from ditzoo.metrics import MacCount, count_macs, parameter_bytes, peak_memory
from tests.zoo import TINY

# Letters: N tokens, K kept tokens, D width, r = mlp_ratio, p patch side, C input and C' output channels.


def block(tokens: int, width: int, mlp_ratio: float = 4.0) -> int:
    """qkv, proj and the two of the MLP: (4 + 2r) N D^2; q k^T and the weights times v: 2 N^2 D."""
    return int((4 + 2 * mlp_ratio) * tokens * width**2) + 2 * tokens**2 * width


class PlainViT(nn.Module):
    """The least model that keeps the contract, with whatever could trip a counter."""

    def __init__(self, width: int = 24, heads: int = 3, depth: int = 2, biased: bool = False) -> None:
        super().__init__()
        self.in_channels, self.input_size, self.patch_size, self.num_classes = 3, 8, 2, 5
        self.heads, self.biased = heads, biased
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.labels = nn.Embedding(5, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(width, 3 * width),
                    "proj": nn.Linear(width, width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.register_buffer("scale", torch.ones(width))
        self.table = torch.zeros(1, 1, width)  # neither a parameter nor a buffer
        self.cache: dict[int, torch.Tensor] = {}

    def forward(self, x, t, y=None, *, mask=None):
        x = self.patches(x).flatten(2).mT + self.labels(y)[:, None] * t[:, None, None]
        ramp = self.cache.setdefault(x.shape[1], torch.arange(x.shape[1], device=x.device)[None, :, None])
        x = x * self.scale + self.table + ramp
        self.calls = getattr(self, "calls", 0) + 1
        for part in self.blocks:
            q, k, v = part["qkv"](x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            bias = torch.zeros(self.heads, x.shape[1], x.shape[1], device=x.device) if self.biased else None
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + part["proj"](heads.transpose(1, 2).flatten(2))
            x = x + part["down"](F.gelu(part["up"](x)))
        return x @ x.mT  # N^2 D by the model itself, outside attention


PLAIN_TOTAL = 16 * 12 * 24 + 2 * block(16, 24) + 16**2 * 24


@pytest.mark.parametrize("biased", [False, True])
def test_plain_transformer_exactly(biased):
    count = count_macs(PlainViT(biased=biased))
    assert count.total == PLAIN_TOTAL
    assert count.attention == 2 * (2 * 16**2 * 24)
    assert sum(count.by_module.values()) == count.total
    assert count.by_module["patches"] == 16 * 12 * 24
    assert count.by_module["blocks"] == 2 * 12 * 16 * 24**2
    assert count.by_module[""] == count.attention + 16**2 * 24  # made in the model's own forward
    assert count.by_part == {"attention products": count.attention, "other": count.total - count.attention}
    assert count.input_shape == (1, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_model_is_left_untouched_and_never_copied(dtype):
    model = PlainViT(width=768, depth=1).to(dtype).train()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    table, attributes = model.table, set(vars(model))
    assert peak_memory(lambda: count_macs(model)) < parameter_bytes(model) / 100
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert model.training
    assert all(part.training for part in model.modules())
    assert model.table is table
    assert model.cache == {}
    assert set(vars(model)) == attributes
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_wrapped_frozen_and_shared_models():
    model = PlainViT()
    model.blocks[1] = model.blocks[0]
    model.requires_grad_(False)
    assert count_macs(model).total == PLAIN_TOTAL
    assert count_macs(torch.compile(model)).total == PLAIN_TOTAL


def test_input_sizes():
    assert count_macs(PlainViT(), input_size=16).input_shape == (1, 3, 16, 16)
    count = count_macs(PlainViT(), input_size=(8, 16))
    assert count.input_shape == (1, 3, 8, 16)
    assert count.total == 32 * 12 * 24 + 2 * block(32, 24) + 32**2 * 24


def test_presentation():
    count = MacCount(118_640_000_000, 4_240_000_000, {}, {}, (1, 4, 32, 32))
    assert str(count) == f"{count}" == "118.64 GMACs (237.28 GFLOPs), attention 4.24"
    assert f"{count:.3e}" == "1.186e+11"
    assert float(count) == 118.64e9
    assert (count.gmacs, count.gflops) == pytest.approx((118.64, 237.28))
    assert count.gmacs_without_attention == pytest.approx(114.40)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, r"not 3 of type int; pass for example 'dit_xl_2'"),
        ({"model": nn.Linear(2, 2)}, TypeError, "Linear lacks in_channels and input_size"),
        ({"model": PlainViT(), "depth": 3}, TypeError, r"options \['depth'\].*already built"),
        ({"model": "dit_ti_2", "depht": 3}, TypeError, "'depht'.*depth"),
        ({"model": "dit_it_2"}, ValueError, "'dit_it_2'.*dit_ti_2"),
        ({"model": "dit_ti_2", "input_size": 0}, ValueError, "positive, not 0"),
        ({"model": "dit_ti_2", "input_size": 8.0}, TypeError, r"not 8\.0"),
        ({"model": "dit_ti_2", "input_size": (8,)}, TypeError, r"not \(8,\)"),
        ({"model": "mdt_ti_2", "mask": 0.3}, TypeError, r"TokenMask, not 0\.3"),
        ({"model": "dit_ti_2", "mask": ditzoo.random_token_mask(1, 16, 0.3)}, ValueError, "mask"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        count_macs(**arguments)


# The published figures, in GMACs. DiT: arXiv:2212.09748, table 4. DiffiT: arXiv:2312.02139, table 9, prints
# 114 without attention products. U-ViT: arXiv:2209.12152 prints 77 and 133, and the MDT tables 119 for both
# versions, which is version 1's; the decimals of these and of DiffiT are arithmetic from the layer sizes.
PUBLISHED = [
    *[("dit_s_8", 0.36), ("dit_s_4", 1.41), ("dit_s_2", 6.06)],
    *[("dit_b_8", 1.42), ("dit_b_4", 5.56), ("dit_b_2", 23.01)],
    *[("dit_l_8", 5.01), ("dit_l_4", 19.70), ("dit_l_2", 80.71)],
    *[("dit_xl_8", 7.39), ("dit_xl_4", 29.05), ("dit_xl_2", 118.64), ("dit_xl_2.in512", 524.60)],
    *[("uvit_l_2", 76.5), ("uvit_h_2", 133.2), ("mdt_xl_2", 118.6), ("mdtv2_xl_2", 129.5)],
    ("diffit_xl_2", 118.5),
]


@pytest.mark.parametrize(("name", "gmacs"), PUBLISHED)
def test_published_figures(name, gmacs):
    assert count_macs(name).gmacs == pytest.approx(gmacs, rel=0.005, abs=0.006)


def test_published_figures_of_other_settings():
    assert count_macs("dit_xl_2", input_size=64).gmacs == pytest.approx(524.60, rel=0.005)
    assert count_macs("diffit_xl_2").gmacs_without_attention == pytest.approx(114.3, rel=0.005)


def closed_form_of_a_u_shape(config: dict) -> dict[str, int]:
    """The same for the image-space DiffiT, whose windows divide every map."""
    channels, blocks, r, T = (config[key] for key in ("channels", "blocks", "mlp_ratio", "condition_size"))
    tokens = [(config["input_size"] >> stage) ** 2 for stage in range(len(channels))]
    windows = [min(config["window_size"], config["input_size"] >> stage) ** 2 for stage in range(len(channels))]
    cells = [*blocks[:-1], *blocks]  # the decoder has all stages but the last
    stages = [*range(len(channels) - 1), *range(len(channels))]
    parts = dict.fromkeys(["attention products", "attention projections", "mlp", "modulation", "convolutions"], 0)
    for stage, count in zip(stages, cells, strict=True):
        N, D = tokens[stage], channels[stage]
        parts["attention products"] += count * 2 * N * windows[stage] * D
        parts["attention projections"] += count * 4 * N * D * D
        parts["mlp"] += count * int(2 * r * N * D * D)
        parts["modulation"] += count * 3 * T * D
        parts["convolutions"] += count * 9 * N * D * D
    parts["long skips"] = 0
    for stage, (fine, coarse) in enumerate(itertools.pairwise(channels)):
        down = 9 * tokens[stage + 1] * fine**2 + tokens[stage + 1] * fine * coarse * (fine != coarse)
        parts["convolutions"] += down + 9 * tokens[stage] * coarse**2
        parts["long skips"] += tokens[stage] * (coarse + fine * (config["skip_join"] == "concat")) * fine
    C, image = config["in_channels"], 9 * tokens[0] * channels[0]
    parts |= {"embeddings": C * image + 256 * T + T * T, "head": C * (1 + config["learn_sigma"]) * image}
    return {part: macs for part, macs in parts.items() if macs}


def closed_form(name: str, config: dict, kept: int | None = None) -> dict[str, int]:
    """Multiply-adds by part, by arithmetic from the architecture."""
    if "channels" in config:
        return closed_form_of_a_u_shape(config)
    D, depth, r = config["hidden_size"], config["depth"], config["mlp_ratio"]
    C, pp, side = config["in_channels"], config["patch_size"] ** 2, config["input_size"]
    N, S = side**2 // pp, 2 if config["num_classes"] else 1  # S: time and class
    outputs = pp * C * (2 if config["learn_sigma"] else 1)
    conditioning = config.get("conditioning")
    parts = {"embeddings": N * C * pp * D + 256 * D + D * D, "head": N * D * outputs}
    tokens, skips, vectors = [N] * depth, 0, 0
    if name.startswith("uvit"):
        half, n = depth // 2, N + S
        tokens, skips = [n] * (2 * half + 1), config["skip"] * half * n
        parts["embeddings"] = N * C * pp * D + config["mlp_time_embed"] * 8 * D * D
        parts["head"] = n * D * outputs + config["conv"] * 9 * C * C * side**2
    elif name.startswith("mdt"):
        decoder = config["decode_layer"]
        half = (depth - decoder) // 2
        encoder = 2 * half if name.startswith("mdtv2") else depth - decoder
        tokens = [kept or N] * encoder + [N] * (decoder + (kept is not None))  # the side block
        skips = half * (kept or N) + decoder * N if name.startswith("mdtv2") else 0
        vectors = 6 * len(tokens) + 2
    elif name.startswith("diffit"):
        vectors = 3 * depth  # queries, keys and values of the condition
    elif conditioning == "in_context":
        tokens = [N + S] * depth
    elif conditioning in ("adaln_zero", "adaln"):
        vectors = {"adaln_zero": 6, "adaln": 4}[conditioning] * depth + 2
    crossing = depth * (conditioning == "cross_attention")
    parts |= {
        "attention products": sum(2 * n * n * D for n in tokens) + crossing * 2 * N * S * D,
        "attention projections": sum(4 * n * D * D for n in tokens) + crossing * (2 * N + 2 * S) * D * D,
        "mlp": sum(int(2 * r * n * D * D) for n in tokens),
        "modulation": vectors * D * D,
        "long skips": skips * 2 * D * D,
    }
    return {part: macs for part, macs in parts.items() if macs}


VARIANTS = [
    *((name, {}) for name in TINY),
    ("dit_ti_2", {"learn_sigma": True, "num_classes": 0, "mlp_ratio": 2.0, "patch_size": 4}),
    ("dit_ti_2_crossattn", {"num_classes": 0}),
    ("dit_ti_2_incontext", {"num_classes": 0}),
    ("uvit_ti_2", {"num_classes": 0, "mlp_time_embed": True, "conv": False, "depth": 5}),
    ("uvit_ti_2", {"skip": False, "in_channels": 3, "mlp_ratio": 2.0}),
    ("mdtv2_ti_2", {"depth": 7, "decode_layer": 2, "learn_sigma": True}),
    ("diffit_ti_2", {"learn_sigma": True, "input_size": 16}),
    ("diffit_unet_ti", {"learn_sigma": True, "input_size": 16, "in_channels": 3, "skip_join": "add"}),
    ("diffit_unet_ti", {"window_size": 8, "channels": [48, 16], "blocks": [1, 3], "condition_size": 40}),
    ("diffit_unet_ti", {"channels": [16], "blocks": [2], "num_classes": 0, "mlp_ratio": 2.0}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_families_exactly(name, options):
    model = ditzoo.create(name, **options)
    masks = [None, ditzoo.random_token_mask(2, model.num_tokens(), 0.3)]
    for mask in masks if model.supports_masking else masks[:1]:
        count = count_macs(model, mask=mask)
        kept = None if mask is None else mask.ids_keep.shape[1]
        assert count.by_part == closed_form(name, model.config, kept)
        assert sum(count.by_part.values()) == count.total == sum(count.by_module.values())
        assert count.by_part["attention products"] == count.attention
        assert "" not in count.by_module
        model.set_grad_checkpointing()
        assert count_macs(model, mask=mask) == count
        others = {key: value for key, value in options.items() if key != "input_size"}
        assert count_macs(name, mask=mask, input_size=model.input_size, **others) == count


@pytest.mark.parametrize(
    "name",
    [
        *("dit_xl_2", "dit_xl_2_crossattn", "uvit_h_2", "uvit_l_2", "mdt_xl_2", "mdtv2_xl_2"),
        *("diffit_xl_2", "diffit_unet_32", "diffit_unet_64"),
    ],
)
def test_parts_of_large_models_exactly(name):
    info = ditzoo.model_info(name)
    assert count_macs(name).by_part == closed_form(name, info.config)
    if "mask_ratio" in info.config:
        mask = ditzoo.random_token_mask(1, 256, 0.3)
        assert count_macs(name, mask=mask).by_part == closed_form(name, info.config, kept=179)


def test_parts_of_the_image_space_diffit():
    """Worked out by hand once: CIFAR-10's, 4 + 4 cells of 128 channels at 32x32, 4 + 4 of 256 at 16x16, 4 at 8x8."""
    tokens = 8 * 1024 * 128**2 + (8 * 256 + 4 * 64) * 256**2
    assert count_macs("diffit_unet_32").by_part == {
        "attention products": 2 * 16 * (8 * 1024 * 128 + (8 * 256 + 4 * 64) * 256),
        "attention projections": 4 * tokens,
        "mlp": 8 * tokens,
        "modulation": 3 * 512 * (8 * 128 + 12 * 256),
        "convolutions": 9 * tokens + (9 * 256 * 128**2 + 256 * 128 * 256 + 9 * 64 * 256**2) + 9 * (256 + 1024) * 256**2,
        "long skips": 256 * 512 * 256 + 1024 * 384 * 128,
        "embeddings": 9 * 1024 * 3 * 128 + 256 * 512 + 512**2,
        "head": 9 * 1024 * 128 * 3,
    }


def test_parts_of_dit_xl_2():
    """The figures of the closed form, worked out by hand once: D = 1152, N = 256, 28 blocks."""
    assert count_macs("dit_xl_2").by_part == {
        "attention products": 28 * 2 * 256**2 * 1152,
        "attention projections": 28 * 4 * 256 * 1152**2,
        "mlp": 28 * 8 * 256 * 1152**2,
        "modulation": (28 * 6 + 2) * 1152**2,
        "embeddings": 256 * 16 * 1152 + 256 * 1152 + 1152**2,
        "head": 256 * 1152 * 32,
    }


class Foreign(nn.Module):
    """Somebody else's model: layers of ditzoo under names of its own, and layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.input_size, self.num_classes = 1, 8, 0
        self.cut, self.clock = PatchEmbed(2, 1, 24), TimestepEmbedder(24)
        self.mix, self.feed, self.mystery = Attention(24, 3), Mlp(24, 2.0), nn.Linear(24, 24)
        self.again = self.mix  # one layer under two names

    def forward(self, x, t, y=None):
        x = self.cut(x) + self.clock(t)[:, None]
        return self.mystery(self.feed(self.again(self.mix(x))))


def test_parts_of_a_model_from_elsewhere():
    count = count_macs(Foreign())
    assert count.by_part == {
        "attention products": 2 * (2 * 16**2 * 24),
        "attention projections": 2 * (4 * 16 * 24**2),
        "mlp": 4 * 16 * 24**2,
        "embeddings": 16 * 4 * 24 + 256 * 24 + 24**2,
        "other": 16 * 24**2,
    }
    assert sum(count.by_part.values()) == count.total


class Film(nn.Linear):
    """Somebody else's modulation: neither its class nor the name it gets below say so."""

    mac_part = "modulation"


def test_a_layer_can_name_its_part():
    model = Foreign()
    model.mystery, model.feed.fc1 = Film(24, 24), Film(24, 48)  # the second inside a layer that is known as an MLP
    model.mix.mac_part = "long skips"
    parts = count_macs(model).by_part
    assert parts["modulation"] == 16 * 24**2 + 2 * 16 * 24**2
    assert parts["mlp"] == 2 * 16 * 24**2
    assert parts["long skips"] == 2 * (4 * 16 * 24**2)
    assert not {"other", "attention projections"} & set(parts)


def test_a_layer_cannot_name_another_part():
    model = Foreign()
    model.mystery.mac_part = "modulatoin"
    with pytest.raises(ValueError, match=r"Linear\.mac_part is 'modulatoin'; choose one of .*'modulation'"):
        count_macs(model)
