"""Under autocast: which operations compute in float32 all the same."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import ditzoo
from ditzoo.bench import QUICK
from ditzoo.data import load_digits_split
from ditzoo.train import TrainOptions, train
from ditzoo.train.precision import keep_norms_in_float32

DIGITS = load_digits_split("train")
NAMES = [name for pattern in QUICK.patterns for name in ditzoo.list_models(pattern)]


class Norms(TorchFunctionMode):
    """Notes the precision of what norms take and return."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function in (F.layer_norm, F.group_norm):
            self.seen |= {args[0].dtype, output.dtype}
        return output


@pytest.mark.parametrize("name", NAMES)
def test_norms_compute_in_float32(name):
    model = ditzoo.create(name)
    keep_norms_in_float32(model)
    with torch.autocast("cpu", torch.bfloat16), Norms() as norms:
        model(torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.5]), torch.tensor([1, 2]))
    assert norms.seen == {torch.float32}
    # Afterwards the model is as any other, which its users may convert.
    output = model.bfloat16()(torch.randn(2, 1, 8, 8).bfloat16(), torch.tensor([0.3, 0.5]), torch.tensor([1, 2]))
    assert output.dtype == torch.bfloat16


def test_attention_weighs_in_float32():
    """Softmax in bfloat16 would be off by its 2^-9; rounding the result alone is off by half of its last bit."""
    q, k, v = (torch.randn(2, 3, 200, 32, dtype=torch.bfloat16) for _ in range(3))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = F.scaled_dot_product_attention(q, k, v).double()
    scores = (q @ k.transpose(-1, -2)).float() * 32**-0.5
    rough = (scores.bfloat16().softmax(-1) @ v).double()
    assert (found - exact).abs().max() < 0.5 * (rough - exact).abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_learns_as_float32_does(name):
    curves = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = ditzoo.create(name)
        options = TrainOptions(num_images=96, batch_size=16, learning_rate=2e-3, warmup_images=0, precision=precision)
        result = train(model, DIGITS.images, DIGITS.labels, QUICK.recipe_for(name, model), options)
        assert all(
            weight.dtype == torch.float32 for weight in result.ema.state_dict().values() if weight.is_floating_point()
        )
        curves[precision] = result.losses
    assert curves["bfloat16"] != curves["float32"]
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.02)
