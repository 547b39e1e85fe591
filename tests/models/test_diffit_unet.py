"""The image-space DiffiT. It has no official code: it is compared with the paper's equations, written down once more
here, one image and one window after the other, and with the paper's table of resolutions and channels."""

import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ditzoo
from ditzoo.layers import relative_position_index
from ditzoo.metrics import count_macs
from ditzoo.models import DiffiTUNet
from ditzoo.models.diffit.latent import DiffiTBlock, TimeDependentAttention
from ditzoo.models.diffit.unet import DiffiTResBlock, group_norm
from tests.golden_cases import relative_error
from tests.zoo import enliven, inputs, lively, on_meta

SMALL = {"input_size": 16, "in_channels": 2, "channels": [16, 24, 32], "blocks": [1, 2, 1], "head_size": 8}
SMALL |= {"window_size": 4, "condition_size": 20, "num_classes": 3}


def small(**options):
    """A network of three widths, in which every parameter has an effect."""
    torch.manual_seed(5)
    return enliven(DiffiTUNet(**{**SMALL, **options})).double()


# The equations, once more.


def convolution(x, weight, bias, stride=1):
    """(C, h, w) -> (D, h / stride, w / stride): one product of a matrix with the pixels below the kernel."""
    side = weight.shape[-1]
    pixels = F.unfold(x[None], side, padding=side // 2, stride=stride)[0]  # (C side side, places)
    out = weight.flatten(1) @ pixels + bias[:, None]
    return out.unflatten(1, ((x.shape[1] + stride - 1) // stride, -1))


def swish_of_group_norm(x, weight, bias):
    """32 groups, or the largest number below that divides the channels and leaves four to each."""
    channels = len(x)
    groups = max(n for n in range(1, 33) if channels % n == 0 and channels // n >= 4)
    parts = x.reshape(groups, -1)
    parts = (parts - parts.mean(1, keepdim=True)) / (parts.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    x = parts.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    return x * torch.sigmoid(x)


def layer_norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def transformer(tokens, places, c, w, heads, side):
    """TMSA and MLP over the tokens (n, D) of one window, at `places` (row, column) of it; a window's whole side gives
    the layout of the bias table."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    q, k, v = (linear(layer_norm(tokens), "attn.qkv") + linear(c, "attn.qkv_temb")).chunk(3, dim=-1)
    d = tokens.shape[1] // heads
    rows = [[(i - k + side - 1) * (2 * side - 1) + j - m + side - 1 for k, m in places] for i, j in places]
    bias = w["attn.relative_position_bias_table"][torch.tensor(rows)]  # (n, n, heads)
    parts = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        scores = q[:, part] @ k[:, part].T / d**0.5 + bias[:, :, head]
        parts.append(scores.softmax(-1) @ v[:, part])
    tokens = tokens + linear(torch.cat(parts, dim=-1), "attn.proj")
    hidden = F.gelu(linear(layer_norm(tokens), "mlp.fc1"), approximate="tanh")
    return tokens + linear(hidden, "mlp.fc2")


def cell(x, c, w, heads, side):
    """x + Transformer(Conv(Swish(GroupNorm(x)))), window after window from the upper left corner."""
    h = convolution(swish_of_group_norm(x, w["norm.weight"], w["norm.bias"]), w["conv.weight"], w["conv.bias"])
    out = torch.empty_like(h)
    for top in range(0, h.shape[1], side):
        for left in range(0, h.shape[2], side):
            window = h[:, top : top + side, left : left + side]
            places = [(i, j) for i in range(window.shape[1]) for j in range(window.shape[2])]
            tokens = torch.stack([window[:, i, j] for i, j in places])
            for (i, j), token in zip(places, transformer(tokens, places, c, w, heads, side), strict=True):
                out[:, top + i, left + j] = token
    return x + out


def reference(model, x, t, y):
    """The network from its state dict and options."""
    state, options = model.state_dict(), model.config
    channels, last = options["channels"], len(options["channels"]) - 1

    def below(prefix):
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def layer(x, name, stride=1):
        return convolution(x, state[f"{name}.weight"], state[f"{name}.bias"], stride)

    def cells(x, c, half, place, stage):
        side = min(options["window_size"], options["input_size"] // 2**stage)
        heads = channels[stage] // options["head_size"]
        for number in range(options["blocks"][stage]):
            x = cell(x, c, below(f"{half}.{place}.blocks.{number}."), heads, side)
        return x

    def one(image, time, label):
        w = below("t_embedder.mlp.")
        phase = time * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128).double()
        c = F.silu(w["0.weight"] @ torch.cat([phase.cos(), phase.sin()]) + w["0.bias"])
        c = w["2.weight"] @ c + w["2.bias"]
        if label is not None:
            c = c + state["y_embedder.embedding_table.weight"][label]
        x, maps = layer(image, "x_embedder"), []
        for stage in range(last + 1):
            if stage:
                x = layer(x, f"encoder.{stage}.resample", stride=2)
                if channels[stage] != channels[stage - 1]:
                    x = layer(x, f"encoder.{stage}.match")
            x = cells(x, c, "encoder", stage, stage)
            maps.append(x)
        for place, stage in enumerate(range(last - 1, -1, -1)):
            x = layer(x.repeat_interleave(2, 1).repeat_interleave(2, 2), f"decoder.{place}.resample.1")
            join = f"decoder.{place}.match.conv"
            if options["skip_join"] == "concat":
                x = layer(torch.cat([x, maps[stage]]), join)
            else:
                x = layer(x, join) + maps[stage]
            x = cells(x, c, "decoder", place, stage)
        w = below("final_layer.")
        return convolution(swish_of_group_norm(x, w["norm.weight"], w["norm.bias"]), w["conv.weight"], w["conv.bias"])

    labels = [None] * len(x) if y is None else y
    return torch.stack([one(*each) for each in zip(x, t.double(), labels, strict=True)])


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (16, 16)),
        ({}, (8, 24)),
        ({}, (20, 12)),  # maps of 5x3, 10x6 and 20x12: windows of 4 are cut off
        ({}, (4, 4)),  # smaller than a window
        ({"skip_join": "add"}, (16, 16)),
        ({"window_size": 3, "learn_sigma": True}, (16, 16)),
        ({"window_size": 99, "num_classes": 0}, (16, 16)),  # the whole map of every stage
        ({"window_size": 99}, (32, 8)),
        ({"class_dropout_prob": 0.0, "mlp_ratio": 1.5, "head_size": 4}, (12, 12)),
        ({"channels": [16], "blocks": [2]}, (9, 7)),
        ({"channels": [16, 16, 16, 16], "blocks": [1, 1, 1, 1], "window_size": 2}, (16, 16)),
    ],
)
def test_outputs_follow_the_equations(options, size):
    model = small(**options)
    x, t, y = inputs(model, 2, *size)
    with torch.no_grad():
        assert relative_error(model(x, t, y), reference(model, x, t, y)) < 1e-5  # frequencies and phases are float32


def test_the_tiny_model_follows_the_equations_in_single_precision():
    model = lively("diffit_unet_ti")
    x, t, y = inputs(model, 3)
    t = torch.tensor([-1.55, 0.3, 1.095])  # EDM's ln(sigma) / 4, from 0.002 to 80
    with torch.no_grad():
        assert relative_error(model(x, t, y), reference(model.double(), x.double(), t, y)) < 1e-5


@pytest.mark.parametrize("skip_join", ["concat", "add"])
def test_the_comparison_notices_a_change_of_any_parameter(skip_join):
    model = small(skip_join=skip_join)
    x, t, _ = inputs(model, 4)
    y = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        expected = model(x, t, y)
        for name, parameter in model.named_parameters():
            before = parameter.clone()
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            assert relative_error(model(x, t, y), expected) > 1e-5, name
            parameter.copy_(before)


# Windows.


def test_attention_stays_inside_windows():
    torch.manual_seed(0)
    attention = enliven(TimeDependentAttention(8, 2, (2, 2), condition_size=6)).double()
    index = relative_position_index(2, 2)
    x, c = torch.randn(1, 12, 8).double(), torch.randn(1, 6).double()
    before = attention(x, c, index, (2, 2))
    x[0, 5] += 1  # the second of three windows
    changed = (attention(x, c, index, (2, 2)) != before)[0].any(-1)
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    # The condition reaches all of them.
    assert (attention(x, c + 1, index, (2, 2)) != before).any(-1).all()


@pytest.mark.parametrize(
    ("size", "pixel", "window"),
    [
        ((6, 6), (4, 1), (slice(3, 6), slice(0, 3))),
        ((8, 7), (7, 2), (slice(6, 8), slice(0, 3))),  # cut off below
        ((8, 7), (1, 6), (slice(0, 3), slice(6, 7))),  # cut off on the right
        ((8, 7), (6, 6), (slice(6, 8), slice(6, 7))),  # both
        ((2, 2), (0, 0), (slice(0, 2), slice(0, 2))),
    ],
)
def test_a_pixel_changes_its_window_alone(size, pixel, window):
    block = enliven(DiffiTResBlock(8, 2, 2.0, (3, 3), 6)).double()
    block.norm, block.conv = nn.Identity(), nn.Identity()  # these look beyond a window
    index = relative_position_index(3, 3)
    x, c = torch.randn(1, 8, *size).double(), torch.randn(1, 6).double()
    before = block(x, c, index)
    x[0, :, pixel[0], pixel[1]] += 1
    changed = (block(x, c, index) != before)[0].any(0)
    expected = torch.zeros(size, dtype=torch.bool)
    expected[window] = True
    assert torch.equal(changed, expected)


def test_the_windows_of_a_map_are_treated_alike():
    model = small(channels=[16], blocks=[1], window_size=4)
    block = model.encoder[0].blocks[0]
    block.norm, block.conv = nn.Identity(), nn.Identity()
    tile, c = torch.randn(1, 16, 4, 4).double(), torch.randn(1, 20).double()
    index = relative_position_index(4, 4)
    torch.testing.assert_close(block(tile.repeat(1, 1, 2, 3), c, index), block(tile, c, index).repeat(1, 1, 2, 3))
    # A window that is cut off sees what is left of it, with the biases of the whole one.
    part = block(tile[..., :3, :], c, index)
    tokens = F.silu(tile[..., :3, :]).flatten(2).mT
    torch.testing.assert_close(
        part - tile[..., :3, :],
        DiffiTBlock.forward(block, tokens, c, index[:12, :12], (4, 4)).mT.reshape(1, 16, 3, 4),
    )


def test_a_window_is_no_larger_than_the_map_it_is_made_for():
    model = DiffiTUNet(**{**SMALL, "window_size": 8})
    sides = [stage.blocks[0].window for stage in [*model.encoder, *model.decoder]]
    assert sides == [(8, 8), (8, 8), (4, 4), (8, 8), (8, 8)]
    rows = [len(stage.blocks[0].attn.relative_position_bias_table) for stage in model.encoder]
    assert rows == [15**2, 15**2, 7**2]
    # Every row of every table is used.
    told = {unused.name.rpartition(".")[2] for unused in model.unused_weights()}
    assert told == {"bias", "weight"}


# Sizes.


def parameters(channels, blocks, window_size, condition_size, mlp_ratio, head_size, **config):
    """By arithmetic from the options."""
    T, C, S = condition_size, config["in_channels"], len(channels)

    def conv(before, after, side):
        return side * side * before * after + after

    def cell(stage):
        D, inner = channels[stage], int(channels[stage] * mlp_ratio)
        window = min(window_size, config["input_size"] // 2**stage)
        attention = 3 * D * (D + 1) + 3 * D * (T + 1) + D * (D + 1) + (2 * window - 1) ** 2 * D // head_size
        return 2 * D + conv(D, D, 3) + attention + inner * (D + 1) + D * (inner + 1)

    labels = config["num_classes"] + (config["class_dropout_prob"] > 0) if config["num_classes"] else 0
    total = conv(C, channels[0], 3) + (256 + 1) * T + (T + 1) * T + labels * T
    total += sum(blocks[i] * cell(i) * (1 if i == S - 1 else 2) for i in range(S))
    for fine, coarse in pairwise(channels):
        total += conv(fine, fine, 3) + (conv(fine, coarse, 1) if fine != coarse else 0)
        total += conv(coarse, coarse, 3)
        total += conv(coarse + (fine if config["skip_join"] == "concat" else 0), fine, 1)
    return total + 2 * channels[0] + conv(channels[0], C * (1 + config["learn_sigma"]), 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("diffit_unet_ti", {}),
        ("diffit_unet_32", {}),
        ("diffit_unet_64", {}),
        ("diffit_unet_64", {"blocks": [1, 2, 2, 2], "skip_join": "add"}),
        ("diffit_unet_32", {"num_classes": 10, "class_dropout_prob": 0.0, "learn_sigma": True, "mlp_ratio": 2.5}),
        ("diffit_unet_ti", {"window_size": 8, "channels": [48, 32], "condition_size": 100}),
    ],
)
def test_parameters_in_closed_form(name, options):
    model = on_meta(name, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(**model.config)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_parameters_of_the_two_published_configurations():
    counts = {name: ditzoo.model_info(name).num_params for name in ("diffit_unet_32", "diffit_unet_64")}
    assert counts == {"diffit_unet_32": 28_156_611, "diffit_unet_64": 43_673_059}
    with_i1 = on_meta("diffit_unet_32", blocks=[2, 2, 2]), on_meta("diffit_unet_64", blocks=[1, 2, 2, 2])
    assert [model.depth for model in with_i1] == [10, 12]


#: Component and output (height, width, channels), of appendix H.1's table for 64x64.
TABLE = [
    ("x_embedder", (64, 64, 128)),
    ("encoder.0.blocks.3", (64, 64, 128)),
    ("encoder.1.resample", (32, 32, 128)),
    ("encoder.1.blocks.3", (32, 32, 256)),
    ("encoder.2.resample", (16, 16, 256)),  # its channels are not printed
    ("encoder.2.blocks.3", (16, 16, 256)),
    ("encoder.3.resample", (8, 8, 256)),
    ("encoder.3.blocks.3", (8, 8, 256)),
    ("decoder.0.resample", (16, 16, 256)),
    ("decoder.0.blocks.3", (16, 16, 256)),
    ("decoder.1.resample", (32, 32, 256)),
    ("decoder.1.blocks.3", (32, 32, 256)),
    ("decoder.2.resample", (64, 64, 256)),
    ("decoder.2.blocks.3", (64, 64, 128)),
    ("final_layer", (64, 64, 3)),
]
#: The same with three stages (H.1, in words).
TABLE_32 = [
    ("x_embedder", (32, 32, 128)),
    ("encoder.0.blocks.3", (32, 32, 128)),
    ("encoder.1.resample", (16, 16, 128)),
    ("encoder.1.blocks.3", (16, 16, 256)),
    ("encoder.2.resample", (8, 8, 256)),
    ("encoder.2.blocks.3", (8, 8, 256)),
    ("decoder.0.resample", (16, 16, 256)),
    ("decoder.0.blocks.3", (16, 16, 256)),
    ("decoder.1.resample", (32, 32, 256)),
    ("decoder.1.blocks.3", (32, 32, 128)),
    ("final_layer", (32, 32, 3)),
]


@pytest.mark.parametrize(("name", "table"), [("diffit_unet_64", TABLE), ("diffit_unet_32", TABLE_32)])
def test_resolutions_and_channels_are_those_of_the_table(name, table):
    model, seen = on_meta(name), {}
    for layer, _ in table:
        model.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: seen.update({layer: (*output.shape[2:], output.shape[1])})
        )
    model(*inputs(model, 1))
    assert list(seen.items()) == table


def test_facts_of_the_two_published_configurations():
    for name, side, window, blocks in [("diffit_unet_32", 32, 4, [4] * 3), ("diffit_unet_64", 64, 8, [4] * 4)]:
        model, info = on_meta(name), ditzoo.model_info(name)
        assert (model.input_size, model.in_channels, model.num_classes) == (side, 3, 0)
        assert (info.config["blocks"], info.config["condition_size"]) == (blocks, 512)
        assert {stage.blocks[0].window for stage in model.encoder} == {(window, window)}
        assert (info.hidden_size, info.num_heads, info.patch_size) == (256, 4, 1)
        assert info.depth == len(model.block_names()) == 2 * sum(blocks) - blocks[-1]
        assert info.num_tokens == side**2
        assert (info.ours, info.family, model.has_original) == (False, "diffit", False)
        assert info.recipe.guidance.is_off


def test_groups_of_the_norms():
    groups = {channels: group_norm(channels).num_groups for channels in (256, 128, 96, 64, 48, 36, 7, 2)}
    assert groups == {256: 32, 128: 32, 96: 24, 64: 16, 48: 12, 36: 9, 7: 1, 2: 1}


def test_attention_costs_what_its_windows_cost():
    """Windows of 8x8 at 20x20: two whole ones a side and one of 4."""
    model = DiffiTUNet(channels=[16], blocks=[1], head_size=8, condition_size=8)
    windows = [p * q for p in (8, 8, 4) for q in (8, 8, 4)]
    assert sum(windows) == 400
    assert count_macs(model, input_size=20).attention == sum(2 * n**2 * 16 for n in windows)
    assert count_macs(model, input_size=(8, 16)).attention == 2 * 2 * 64**2 * 16


# The contract, where it is not that of a plain transformer.


def test_intermediates_are_the_tokens_of_every_stage():
    model = small()
    given = inputs(model, 2, 16, 24)
    maps = {}
    for name in model.block_names():
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: maps.update({name: output})
        )
    tokens = model.forward_intermediates(*given).tokens
    assert list(tokens) == model.block_names() == list(maps)
    sizes = {name: tuple(value.shape) for name, value in tokens.items()}
    assert sizes == {
        "encoder.0.blocks.0": (2, 384, 16),
        "encoder.1.blocks.0": (2, 96, 24),
        "encoder.1.blocks.1": (2, 96, 24),
        "encoder.2.blocks.0": (2, 24, 32),
        "decoder.0.blocks.0": (2, 96, 24),
        "decoder.0.blocks.1": (2, 96, 24),
        "decoder.1.blocks.0": (2, 384, 16),
    }
    for name, value in maps.items():  # row by row
        assert torch.equal(tokens[name][1, 5], value[1, :, 0, 5])
        assert torch.equal(tokens[name][1, -1], value[1, :, -1, -1])


def test_lists_in_a_configuration_are_the_models_own():
    given = [16, 24, 32]
    model = DiffiTUNet(**{**SMALL, "channels": given})
    given[0] = 999
    assert model.config["channels"] == [16, 24, 32]
    ditzoo.model_info("diffit_unet_32").config["channels"][0] = 999
    assert ditzoo.model_info("diffit_unet_32").config["channels"] == [128, 256, 256]
    assert on_meta("diffit_unet_32").config["channels"] == [128, 256, 256]


def test_tuples_are_taken_and_stored_as_lists():
    model = DiffiTUNet(**{**SMALL, "channels": (16, 24, 32), "blocks": (1, 2, 1)})
    assert (model.config["channels"], model.config["blocks"]) == ([16, 24, 32], [1, 2, 1])


WRONG = [
    ({"channels": 64}, TypeError, r"channels must be a list of integers, one for each stage, got 64\."),
    ({"channels": []}, TypeError, r"channels must be a list of integers, one for each stage, got \[\]\."),
    ({"channels": [16, 24.0, 32]}, TypeError, r"channels must be an integer, got 24\.0\."),
    ({"channels": [16, 0, 32]}, ValueError, r"channels must be at least 1, got 0\."),
    ({"blocks": "111"}, TypeError, r"blocks must be a list of integers, one for each stage, got '111'\."),
    ({"blocks": [1, True, 1]}, TypeError, r"blocks must be an integer, got True\."),
    ({"blocks": [1, 0, 1]}, ValueError, r"blocks must be at least 1, got 0\."),
    (
        {"blocks": [1, 1]},
        ValueError,
        r"channels \[16, 24, 32\] and blocks \[1, 1\] are for 3 and 2 stages; give both one number a stage\.",
    ),
    ({"head_size": 5}, ValueError, r"channels 16 is not divisible by head_size 5; the next that is: 20\."),
    ({"head_size": 0}, ValueError, r"head_size must be at least 1, got 0\."),
    ({"head_size": 8.0}, TypeError, r"head_size must be an integer, got 8\.0\."),
    ({"window_size": 1}, ValueError, r"window_size must be at least 2, got 1\."),
    ({"window_size": None}, TypeError, r"window_size must be an integer, got None\."),
    ({"condition_size": 0}, ValueError, r"condition_size must be at least 1, got 0\."),
    ({"condition_size": "512"}, TypeError, r"condition_size must be an integer, got '512'\."),
    ({"skip_join": "sum"}, ValueError, r"unknown skip_join 'sum'; choose one of concat, add\."),
    ({"skip_join": None}, ValueError, r"unknown skip_join None; choose one of concat, add\."),
    ({"mlp_ratio": 0.05}, ValueError, r"mlp_ratio 0\.05 leaves the narrowest MLP no width; use 4\."),
    ({"input_size": 18}, ValueError, r"input_size 18 is not divisible by the total downsampling 4; the next .* 20\."),
    ({"input_size": 4}, ValueError, r"input_size 4 leaves the last of 3 stages a single token, .*; use 8 or fewer"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_a_wrong_option_is_named_with_its_value(options, error, message):
    with pytest.raises(error, match=f"^DiffiTUNet: {message}"):
        DiffiTUNet(**{**SMALL, **options})


@pytest.mark.parametrize("option", ["patch_size", "hidden_size", "depth", "num_heads"])
def test_options_that_follow_from_others_are_not_taken(option):
    with pytest.raises(TypeError, match=f"diffit_unet_ti has no option '{option}'"):
        ditzoo.create("diffit_unet_ti", **{option: 4})


@pytest.mark.parametrize(("size", "nearest"), [((18, 16), "16x16"), ((16, 3), "16x4"), ((1, 23), "4x24")])
def test_a_size_that_does_not_halve_evenly_is_named_with_the_nearest(size, nearest):
    message = f"input of {size[0]}x{size[1]} is not divisible by the total downsampling 4; the nearest size that is: "
    with pytest.raises(ValueError, match=re.escape(message + nearest)):
        small()(torch.randn(2, 2, *size).double(), torch.zeros(2), torch.tensor([0, 3]))
