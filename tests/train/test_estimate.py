"""What a run will cost, against what is counted and measured elsewhere."""

import pytest
import torch

import ditzoo
from ditzoo.layers import random_token_mask
from ditzoo.metrics import count_macs
from ditzoo.metrics.memory import peak_memory
from ditzoo.train.config import make_config
from ditzoo.train.estimate import Estimate, Memory, estimate, kept_for_backward
from ditzoo.train.finetune import add_lora, freeze
from ditzoo.train.network import meta_network
from ditzoo.train.precision import keep_norms_in_float32


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 bytes an image, without counting them."""
    monkeypatch.setattr("ditzoo.train.estimate.kept_for_backward", lambda *args, **options: (0, 1_000))


def cost(settings: dict, **more: int) -> Estimate:
    config = make_config(settings)
    return estimate(config, meta_network(config), **more)


@pytest.mark.usefixtures("counted")
def test_length_and_multiply_adds() -> None:
    found = cost({"model": "dit_ti_2", "num_images": 1_000, "batch_size": 32}, num_samples=400)
    assert (found.num_params, found.num_steps, found.num_epochs) == (329_988, 32, 2.5)
    assert found.gmacs == count_macs("dit_ti_2").gmacs
    assert found.training_gmacs == 3 * found.gmacs
    again = cost({"model": "dit_ti_2", "grad_checkpointing": True})
    assert (again.training_gmacs, again.num_epochs) == (4 * found.gmacs, None)


@pytest.mark.usefixtures("counted")
def test_a_masked_pass_costs_less_than_a_plain_one() -> None:
    found = cost({"model": "mdtv2_ti_2"})
    assert 4.5 * found.gmacs < found.training_gmacs < 6 * found.gmacs + 1e-3
    mask = random_token_mask(1, 16, 0.3, noise=torch.empty(1, 16, device="meta"))
    assert found.training_gmacs == 3 * (found.gmacs + count_macs("mdtv2_ti_2", mask=mask).gmacs)


def test_memory_by_the_formula() -> None:
    memory = Memory(
        weights=1, gradients=20, optimizer=300, averages=4_000, casts=50_000, activations=600_000, adds_up=False
    )
    assert (memory.kept, memory.total) == (650_000, 654_301)
    assert Memory(**{**memory.__dict__, "adds_up": True}).total == 654_321
    assert Memory(**{**memory.__dict__, "gradients": 700_000}).total == 704_301


@pytest.mark.usefixtures("counted")
def test_memory_by_setting() -> None:
    plain = cost({"model": "dit_ti_2"}).memory
    params, trained = 329_988, 328_964
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * params, 4 * trained, 8 * trained)
    assert (plain.averages, plain.casts, plain.adds_up) == (4 * trained, 0, False)
    assert plain.activations == 16_000
    profiles = cost({"model": "dit_ti_2", "ema_profiles": "0.05,0.1", "optimizer": "adan"}).memory
    assert (profiles.averages, profiles.optimizer) == (12 * trained, 16 * trained)
    halves = cost({"model": "dit_ti_2", "accumulation": 2}).memory
    assert (2 * halves.activations, halves.adds_up) == (plain.activations, True)
    spread = cost({"model": "dit_ti_2"}, processes=4).memory
    assert (4 * spread.activations, spread.weights) == (plain.activations, plain.weights)
    assert spread.adds_up  # buffers in which gradients are exchanged
    sharded = cost({"model": "dit_ti_2", "fsdp": True}, processes=4).memory
    assert (sharded.weights, sharded.optimizer, sharded.activations) == (params, 2 * trained, spread.activations)
    assert not sharded.adds_up


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing"),
    [
        ("dit_ti_2", "float32", False),
        ("dit_ti_2", "bfloat16", True),
        ("uvit_ti_2", "bfloat16", False),
        ("mdtv2_ti_2", "float32", False),
        pytest.param("mdtv2_ti_2", "float32", True, marks=pytest.mark.slow),
        pytest.param("diffit_unet_ti", "bfloat16", False, marks=pytest.mark.slow),
        pytest.param("diffit_unet_ti", "float32", True, marks=pytest.mark.slow),
        pytest.param("dit_s_4", "bfloat16", True, marks=pytest.mark.slow),
    ],
)
def test_activations_are_those_that_are_measured(name: str, precision: str, checkpointing: bool) -> None:
    batch = 16
    model = ditzoo.create(name)
    mask_ratio = model.config.get("mask_ratio")
    casts, kept = kept_for_backward(model, precision, mask_ratio=mask_ratio, checkpointing=checkpointing)
    if precision == "bfloat16":
        keep_norms_in_float32(model)
    model.set_grad_checkpointing(checkpointing)
    x = torch.randn(batch, model.in_channels, model.input_size, model.input_size)
    t, y = torch.rand(batch), torch.zeros(batch, dtype=torch.int64)
    masks = [None]
    if mask_ratio is not None:
        masks.append(random_token_mask(batch, model.num_tokens(), mask_ratio))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            outputs = [model(x, t, y, mask=mask) for mask in masks]
        sum(output.float().square().mean() for output in outputs).backward()
        for parameter in model.parameters():
            parameter.grad = None

    step()
    gradients = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = casts + kept * batch
    expected = expected + gradients if checkpointing else max(expected, gradients)
    assert 0.6 * expected < peak_memory(step) < 1.2 * expected


@pytest.mark.parametrize(("precision", "bytes_a_value"), [("float32", 80), ("bfloat16", 48)])
def test_a_block_keeps_what_one_counts_by_hand(precision: str, bytes_a_value: int) -> None:
    """20 values for each of N x D: the inputs of both norms, what these return, that modulated, q, k, v, the output of
    attention, those of both branches, and 4 each before and after the MLP's activation."""
    one, two = (
        kept_for_backward(
            meta_network(make_config({"model": "dit_s_2", "model_options": {"depth": depth}})),
            precision,
            mask_ratio=None,
            checkpointing=False,
        )
        for depth in (1, 2)
    )
    assert two[1] - one[1] == pytest.approx(bytes_a_value * 256 * 384, rel=0.01)


def test_casts_are_copies_of_the_weights_of_products() -> None:
    casts, _ = kept_for_backward(meta_network(make_config()), "bfloat16", mask_ratio=None, checkpointing=False)
    assert casts == pytest.approx(2 * 329_988, rel=0.1)


def test_frozen_weights_keep_less() -> None:
    network = meta_network(make_config())
    whole = kept_for_backward(network, "float32", mask_ratio=None, checkpointing=False)
    freeze(network, ["*embedder.*", "blocks.0.*", "blocks.1.*", "blocks.2.*"])
    rest = kept_for_backward(network, "float32", mask_ratio=None, checkpointing=False)
    assert 0 < rest[1] < 0.5 * whole[1]


def test_low_rank_updates_are_counted_as_they_are() -> None:
    pytest.importorskip("peft")
    config = make_config({"from_weights": "dit_ti_2.digits", "lora_rank": 4})
    network = meta_network(config)
    whole = estimate(config, network).memory
    add_lora(network, rank=4)
    found = estimate(config, network)
    assert found.num_trained == 23_552
    assert found.memory.gradients == found.memory.averages == 4 * 23_552
    assert found.memory.optimizer == 8 * 23_552
    assert found.memory.weights == whole.weights + 4 * 23_552
    assert found.memory.total < whole.total


@pytest.mark.usefixtures("counted")
def test_the_recipes_mask_ratio_decides_what_the_masked_pass_costs() -> None:
    own, more = cost({"model": "mdtv2_ti_2"}), cost({"model": "mdtv2_ti_2", "recipe": {"mask_ratio": 0.75}})
    none = cost({"model": "mdtv2_ti_2", "recipe": {"mask_ratio": None}})
    assert 3 * own.gmacs == none.training_gmacs < more.training_gmacs < own.training_gmacs
