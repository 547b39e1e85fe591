"""The linear layer of every model is PyTorch's own, and costs nothing on the meta device."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ditzoo.layers import linear
from tests.zoo import TINY, inputs, lively, on_meta

QUANTIZED = "torch.ao.nn.quantized.dynamic"


def linear_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_layer_with_torchs_weights(bias):
    torch.manual_seed(3)
    layer = linear(5, 7, bias=bias)
    torch.manual_seed(3)
    expected = nn.Linear(5, 7, bias=bias)
    assert type(layer) is nn.Linear
    assert layer.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in layer.state_dict().items())
    assert repr(layer) == repr(expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_torchs_layer_too(copied):
    layer = linear(5, 7)
    other = copied(layer)
    assert type(other) is nn.Linear
    assert torch.equal(other.weight, layer.weight)
    assert pickle.dumps(layer).find(b"ditzoo") == -1  # whoever reads it needs no ditzoo


def test_a_layer_without_memory_can_be_given_some_and_drawn():
    with torch.device("meta"):
        layer = linear(5, 7)
    assert layer.weight.is_meta
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    assert torch.equal(layer.weight, nn.Linear(5, 7).weight)


class Draws(TorchDispatchMode):
    """Shapes of the tensors that random numbers are drawn for."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_nothing_is_drawn_on_the_meta_device():
    with torch.device("meta"), Draws() as draws:
        linear(5, 7)
    assert draws.shapes == []
    with Draws() as draws:
        linear(5, 7)
    assert draws.shapes == [(7, 5), (7,)]


@pytest.mark.parametrize("name", TINY)
def test_on_the_meta_device_a_model_draws_for_its_convolutions_only(name):
    """PyTorch draws for these; a transformer has one or two."""
    with Draws() as draws:
        model = on_meta(name)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(linear_layers(model)) > 10
    drawn = [tuple(value.shape) for layer in convolutions for value in layer.parameters()]
    assert sorted(draws.shapes, key=str) == sorted(drawn, key=str)


@pytest.mark.parametrize("name", TINY)
def test_every_linear_layer_of_a_model_is_torchs(name):
    layers = linear_layers(lively(name))
    assert {"final_layer.linear", "decoder_pred", "t_embedder.mlp.2"} & set(layers)
    assert {type(layer) for layer in layers.values()} == {nn.Linear}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantized tensor creation:UserWarning")
@pytest.mark.parametrize("name", TINY)
def test_dynamic_quantisation_replaces_every_linear_layer(name):
    quantization = pytest.importorskip("torch.ao.quantization", reason="PyTorch has announced that it goes")
    model = lively(name).eval()
    quantized = quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    replaced = [name for name, layer in quantized.named_modules() if type(layer).__module__.startswith(QUANTIZED)]
    assert replaced == list(linear_layers(model))
    given = inputs(model)
    with torch.no_grad():
        output, expected = quantized(*given), model(*given)
    # Rounding to steps of s errs by s / sqrt(12). Weights have 8 bits and inputs 7 over a range of 6 to 8 standard
    # deviations: 1 % and 2 % in each product. Like independent errors, those of some 20 layers make 2 % x sqrt(20).
    assert 0 < float((output - expected).norm() / expected.norm()) < 0.1
