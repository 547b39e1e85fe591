"""Embeddings of time and label."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ditzoo.layers import LabelEmbedder, TimestepEmbedder, timestep_embedding


@given(t=st.floats(0, 1000, width=32), half=st.integers(1, 64))
def test_cosines_come_first(t, half):
    embedding = timestep_embedding(torch.tensor([t]), 2 * half)[0].double()
    frequencies = [10000 ** (-k / half) for k in range(half)]
    expected = [f(t * frequency) for f in (math.cos, math.sin) for frequency in frequencies]
    # Phases near 1000 are rounded to float32.
    assert embedding.tolist() == pytest.approx(expected, abs=2e-4)


def test_small_embeddings_by_value():
    embedding = timestep_embedding(torch.tensor([0.0, 1.0]), 4)
    expected = [[1, 1, 0, 0], [math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01)]]
    torch.testing.assert_close(embedding, torch.tensor(expected))


@pytest.mark.parametrize("dim", [3, 7, 255])
def test_an_odd_width_ends_with_a_zero(dim):
    t = torch.tensor([3.0, 500.5])
    embedding = timestep_embedding(t, dim)
    assert embedding.shape == (2, dim)
    assert torch.equal(embedding[:, -1], torch.zeros(2))
    assert torch.equal(embedding[:, :-1], timestep_embedding(t, dim - 1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64, torch.float16])
def test_the_embedding_is_float32_whatever_the_time_is(dtype):
    t = torch.tensor([0, 417, 999])
    embedding = timestep_embedding(t.to(dtype), 256)
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, timestep_embedding(t, 256))


def test_the_time_embedder_is_two_layers_with_a_silu_between():
    embedder = TimestepEmbedder(8)
    t = torch.tensor([1.0, 20.5])
    first, second = embedder.mlp[0], embedder.mlp[2]
    assert first.in_features == 256
    hidden = timestep_embedding(t, 256) @ first.weight.T + first.bias
    expected = (hidden * hidden.sigmoid()) @ second.weight.T + second.bias
    torch.testing.assert_close(embedder(t), expected)
    assert embedder.bfloat16()(t).dtype == torch.bfloat16


class InEighths(nn.Module):
    """A linear layer whose weights are kept as integers."""

    def __init__(self, layer):
        super().__init__()
        self.weight = nn.Parameter((8 * layer.weight).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight / 8).T


def test_quantised_layers_of_the_time_embedder_get_float32():
    embedder, t = TimestepEmbedder(8), torch.tensor([1.0, 20.5])
    for place in (0, 2):
        nn.init.normal_(embedder.mlp[place].weight)
        embedder.mlp[place] = InEighths(embedder.mlp[place])
    hidden = timestep_embedding(t, 256) @ (embedder.mlp[0].weight / 8).T
    expected = (hidden * hidden.sigmoid()) @ (embedder.mlp[2].weight / 8).T
    torch.testing.assert_close(embedder(t), expected)


def test_the_label_embedder_looks_rows_up():
    embedder = LabelEmbedder(4, 8)
    embedder.reset_parameters()
    table = embedder.embedding_table.weight
    assert table.shape == (4, 8)
    assert torch.equal(embedder(torch.tensor([3, 0, 3])), table[[3, 0, 3]])


def test_fresh_embedders_have_the_standard_deviation_of_the_originals():
    label, time = LabelEmbedder(1001, 64), TimestepEmbedder(128)
    label.reset_parameters()
    time.reset_parameters()
    for weight in (label.embedding_table.weight, time.mlp[0].weight, time.mlp[2].weight):
        weight = weight.detach()
        assert float(weight.mean()) == pytest.approx(0, abs=1e-3)
        assert float(weight.std()) == pytest.approx(0.02, rel=0.03)
