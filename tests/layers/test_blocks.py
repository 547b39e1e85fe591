"""Patches, attention, MLP and modulation against their formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ditzoo.layers import (
    AdaLNFinalLayer,
    AdaLNZeroBlock,
    Attention,
    Mlp,
    PatchEmbed,
    RelativePositionBias,
    attend,
    modulate,
    plain_layer_norm,
    relative_position_index,
    unpatchify,
)


@given(p=st.integers(1, 4), rows=st.integers(1, 4), columns=st.integers(1, 4), channels=st.integers(1, 3))
def test_unpatchify_undoes_cutting_into_patches(p, rows, columns, channels):
    x = torch.randn(2, channels, rows * p, columns * p)
    patches = PatchEmbed(p, channels, p * p * channels)
    # The identity as a convolution: output (a, b, c), channel fastest, is pixel (a, b) of channel c.
    weight = torch.zeros(p, p, channels, channels, p, p)
    for a in range(p):
        for b in range(p):
            for c in range(channels):
                weight[a, b, c, c, a, b] = 1
    patches.proj.weight.data = weight.flatten(0, 2)
    patches.proj.bias.data.zero_()
    tokens = patches(x)
    assert tokens.shape == (2, rows * columns, p * p * channels)
    torch.testing.assert_close(unpatchify(tokens, p, (rows, columns)), x)


def test_tokens_are_numbered_row_by_row():
    patches = PatchEmbed(2, 1, 1)
    patches.proj.weight.data.fill_(0.25)
    patches.proj.bias.data.zero_()
    x = torch.tensor([[0.0, 1, 2], [3, 4, 5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    assert patches(x).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_inside_a_patch_the_channel_runs_fastest_then_the_column_then_the_row():
    image = unpatchify(torch.arange(8.0).view(1, 1, 8), 2, (1, 1))
    assert image.tolist() == [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]]


@pytest.mark.parametrize("bias", ["none", "shared", "per sample"])
@given(heads=st.integers(1, 4), tokens=st.integers(1, 6), head_width=st.integers(1, 5))
def test_attention_is_a_softmax_over_scaled_and_biased_scores(bias, heads, tokens, head_width):
    D = heads * head_width
    qkv = torch.randn(2, tokens, 3 * D, dtype=torch.float64)
    shape = {"none": None, "shared": (heads, tokens, tokens), "per sample": (2, heads, tokens, tokens)}[bias]
    scores_bias = torch.zeros(2, heads, tokens, tokens).double() if shape is None else torch.randn(shape).double()
    expected = torch.empty(2, tokens, D, dtype=torch.float64)
    for sample in range(2):
        for head in range(heads):
            part = slice(head * head_width, (head + 1) * head_width)
            q, k, v = (qkv[sample, :, i * D : (i + 1) * D][:, part] for i in range(3))
            scores = q @ k.T / math.sqrt(head_width)
            scores = scores + (scores_bias[sample] if scores_bias.ndim == 4 else scores_bias)[head]
            weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
            expected[sample, :, part] = weights @ v
    output = attend(qkv, heads, None if shape is None else scores_bias)
    torch.testing.assert_close(output, expected)


def test_attention_projects_in_and_out():
    attention = Attention(12, 3)
    x = torch.randn(2, 5, 12)
    qkv = x @ attention.qkv.weight.T + attention.qkv.bias
    expected = attend(qkv, 3) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x), expected)
    assert Attention(12, 3, qkv_bias=False).qkv.bias is None


def test_attention_adds_its_relative_position_bias():
    attention = Attention(12, 3, rel_pos_bias=RelativePositionBias((2, 2), 3))
    nn.init.normal_(attention.rel_pos_bias.relative_position_bias_table)
    x, index = torch.randn(2, 4, 12), relative_position_index(2, 2)
    bias = attention.rel_pos_bias(index, (2, 2))
    expected = attention.proj(attend(attention.qkv(x), 3, bias))
    assert torch.equal(attention(x, index, (2, 2)), expected)
    assert not torch.allclose(expected, attention.proj(attend(attention.qkv(x), 3)), atol=1e-2)


def test_the_bias_of_the_keys_has_no_effect():
    attention = Attention(12, 3).double()
    x = torch.randn(2, 5, 12).double()
    before = attention(x)
    attention.qkv.bias.data[12:24] += 3
    torch.testing.assert_close(attention(x), before)


def test_relative_bias_is_looked_up_by_query_and_key():
    bias = RelativePositionBias((2, 3), 4, spare_rows=3)
    table = bias.relative_position_bias_table
    assert table.shape == (3 * 5 + 3, 4)
    index = relative_position_index(2, 3)
    output = bias(index, (2, 3))
    assert output.shape == (4, 6, 6)
    assert output.is_contiguous()
    for head, query, key in [(0, 0, 0), (1, 0, 5), (2, 5, 0), (3, 4, 1)]:
        assert output[head, query, key] == table[index[query, key], head]
    some = torch.tensor([[1, 4], [0, 5]])
    pairs = index[some[:, :, None], some[:, None, :]]
    assert torch.equal(bias(pairs, (2, 3))[1], output[:, [[0], [5]], [0, 5]])


def test_relative_bias_depends_on_the_offset_only():
    bias = RelativePositionBias((4, 4), 2)(relative_position_index(4, 4), (4, 4)).view(2, 4, 4, 4, 4)
    assert torch.equal(bias[:, 0, 0, 1, 2], bias[:, 2, 1, 3, 3])
    assert not torch.equal(bias[:, 0, 0, 1, 2], bias[:, 1, 2, 0, 0])


def test_relative_bias_starts_as_a_truncated_normal():
    table = RelativePositionBias((32, 32), 4).relative_position_bias_table.detach()
    assert float(table.std()) == pytest.approx(0.02, rel=0.02)
    assert float(table.mean()) == pytest.approx(0, abs=1e-3)


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(("approximate", "gelu"), [("tanh", tanh_gelu), ("none", erf_gelu)])
def test_the_mlp_uses_the_gelu_asked_for(approximate, gelu):
    mlp = Mlp(8, 2.5, approximate).double()
    x = 3 * torch.randn(2, 5, 8, dtype=torch.float64)
    assert mlp.fc1.out_features == 20
    expected = gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected, rtol=1e-10, atol=1e-10)


def test_the_inner_width_is_rounded_down():
    assert Mlp(10, 2.19).fc1.out_features == 21


def test_modulate():
    x, shift, scale = torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 4)
    output = modulate(x, shift, scale)
    assert output[1, 2, 3] == x[1, 2, 3] * (1 + scale[1, 3]) + shift[1, 3]


def normed(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()


def test_the_plain_norm_has_no_parameters():
    norm = plain_layer_norm(8)
    assert list(norm.parameters()) == []
    x = 1e-3 * torch.randn(2, 8)  # small enough for eps to matter
    torch.testing.assert_close(norm(x), normed(x))


def silu(x):
    return x * x.sigmoid()


def test_the_six_modulations_of_a_block_in_their_order():
    block = AdaLNZeroBlock(8, 2, 4.0).double()
    x, c = torch.randn(2, 5, 8).double(), torch.randn(2, 8).double()
    linear = block.adaLN_modulation[1]
    assert isinstance(block.adaLN_modulation[0], nn.SiLU)
    six = (silu(c) @ linear.weight.T + linear.bias)[:, None].chunk(6, dim=-1)
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = six
    u = x + gate_attn * block.attn(normed(x) * (1 + scale_attn) + shift_attn)
    expected = u + gate_mlp * block.mlp(normed(u) * (1 + scale_mlp) + shift_mlp)
    torch.testing.assert_close(block(x, c), expected)


def test_a_block_with_zero_gates_is_the_identity():
    block = AdaLNZeroBlock(8, 2, 4.0)
    for parameter in block.adaLN_modulation.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 5, 8)
    assert torch.equal(block(x, torch.randn(2, 8)), x)


def test_the_final_layer_shifts_before_it_scales():
    layer = AdaLNFinalLayer(8, 2, 3).double()
    x, c = torch.randn(2, 5, 8).double(), torch.randn(2, 8).double()
    linear = layer.adaLN_modulation[1]
    shift, scale = (silu(c) @ linear.weight.T + linear.bias)[:, None].chunk(2, dim=-1)
    expected = (normed(x) * (1 + scale) + shift) @ layer.linear.weight.T + layer.linear.bias
    assert expected.shape == (2, 5, 12)
    torch.testing.assert_close(layer(x, c), expected)
