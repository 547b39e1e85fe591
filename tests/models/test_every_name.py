"""The contract, name by name over the registry: on the meta device, where values do not matter, and with values on a
small network that has every other option of the name: patch, channels, classes, variance, conditioning,
convolution, mask."""

import copy
import json
import pickle
import re
from functools import cache

import pytest
import torch
from einops import rearrange

import ditzoo
from ditzoo import TokenMask, random_token_mask
from tests.golden_cases import relative_error
from tests.zoo import (
    EVERY_NAME,
    distinct,
    inputs,
    largest_gradient,
    lively,
    narrow,
    no_draws,
    on_meta,
    resize_to_nearest,
    shallow,
)

SMALL = {"hidden_size": 32, "num_heads": 4, "depth": 3, "decode_layer": 1}
#: of a U shape, as many stages as it has
SMALL_STAGES = {"channels": [16, 32, 32, 32], "blocks": [1, 1, 1, 1]}
SMALL |= {"head_size": 8, "window_size": 2, "condition_size": 32}


@cache
def shrunk_side(name):
    """Four patches a side; in a U shape a coarsest map of four."""
    return 4 * on_meta(name, **shallow(name)).downsampling


def shrunk_config(name):
    config = dict(ditzoo.model_info(name).config)
    config |= {option: value for option, value in SMALL.items() if option in config}
    config |= {option: value[: len(config[option])] for option, value in SMALL_STAGES.items() if option in config}
    return config | {"input_size": shrunk_side(name), "num_classes": min(config["num_classes"], 10)}


def shrunk(name, **options):
    """A small network with the options of `name`, every weight of which has an effect."""
    return lively(name, **{**shrunk_config(name), **options})


MASKED_NAMES = [name for name in EVERY_NAME if ditzoo.model_info(name).family == "mdt"]
every_name = pytest.mark.parametrize("name", EVERY_NAME)
#: One name for each of the small networks.
DISTINCT_NAMES = distinct(EVERY_NAME, shrunk_config)
distinct_name = pytest.mark.parametrize("name", DISTINCT_NAMES)
#: A U shape has no table that other sizes would stretch.
with_positions = pytest.mark.parametrize(
    "name", [name for name in DISTINCT_NAMES if "depth" in ditzoo.model_info(name).config]
)


def masks(model, batch=2):
    masked = model.config.get("mask_ratio") is not None
    return {"mask": random_token_mask(batch, model.num_tokens(), 0.3)} if masked else {}


def test_families_that_mask_are_known():
    assert [name for name in EVERY_NAME if on_meta(name).supports_masking] == MASKED_NAMES


@pytest.mark.parametrize("name", distinct(EVERY_NAME, narrow))
def test_other_sizes_and_shapes(name):
    model = on_meta(name, **narrow(name))
    S = model.input_size
    assert model.num_tokens() == (S // model.patch_size) ** 2
    for height, width in [(2 * S, 2 * S), (S, S // 2), (S // 2, 2 * S)]:
        x, t, y = inputs(model, 1, height, width)
        assert model(x, t, y).shape == (1, model.out_channels, height, width)
        assert model.num_tokens(height, width) == height * width // model.patch_size**2


def steps_between_neighbours(model, tokens_a_side):
    """How much tokens after the last block differ from their neighbours where the image is constant, from positions
    alone: averages over the first, third, ... and over the second, fourth, ... step along rows and columns."""
    side = tokens_a_side * model.patch_size
    x = torch.full((1, model.in_channels, side, side), 0.5)
    y = torch.tensor([1]) if model.num_classes else None
    with torch.no_grad():
        (tokens,) = model.forward_intermediates(x, torch.tensor([0.5]), y, indices=[-1]).tokens.values()
    tokens = rearrange(tokens[0, model.num_extra_tokens :], "(h w) d -> h w d", h=tokens_a_side)
    rows, columns = tokens.diff(dim=0).abs(), tokens.diff(dim=1).abs()
    return [float(rows[i::2].mean() + columns[:, i::2].mean()) for i in (0, 1)]


def steps_at_twice_the_size(name):
    """The same at twice the tokens a side, over the average step at the trained size."""
    model = shrunk(name, input_size=8 * ditzoo.model_info(name).config["patch_size"])
    trained = sum(steps_between_neighbours(model, 8)) / 2
    return [step / trained for step in steps_between_neighbours(model, 16)]


@with_positions
def test_larger_sizes_are_smooth(name):
    # Half the distance between neighbours: every step is about half as large, between tokens of one old patch too.
    assert all(0.25 < step < 0.75 for step in steps_at_twice_the_size(name))


@with_positions
def test_nearest_neighbours_are_not_smooth(name, monkeypatch):
    resize_to_nearest(monkeypatch, "frozen", "learned")
    within, between = steps_at_twice_the_size(name)
    assert within < 0.1
    assert between > 0.9


@every_name
@pytest.mark.parametrize("num_classes", [0, 1, 17])
def test_any_number_of_classes(name, num_classes):
    assert on_meta(name, **{**shallow(name), "num_classes": num_classes}).num_classes == num_classes
    model = shrunk(name, num_classes=num_classes)
    x, t, y = inputs(model)
    assert (y is None) == (num_classes == 0)
    assert model(x, t, y).isfinite().all()
    assert model.num_label_rows == (num_classes + (model.class_dropout_prob > 0) if num_classes else 0)
    if num_classes > 1:
        assert relative_error(model(x, t, (y + 1) % 17), model(x, t, y)) > 1e-4


@every_name
def test_without_label_dropout_there_is_no_null_row(name):
    model = shrunk(name, class_dropout_prob=0.0, num_classes=10)
    assert model.null_label is None
    assert model(*inputs(model)).isfinite().all()
    with pytest.raises(ValueError, match=r"label 10 is out of range.*from 0 to 9\."):
        model(*inputs(model)[:2], torch.tensor([0, 10]))
    full = on_meta(name, **shallow(name), class_dropout_prob=0.0, num_classes=10)
    with_null = on_meta(name, **shallow(name), class_dropout_prob=0.1, num_classes=10)
    difference = sum(p.numel() for p in with_null.parameters()) - sum(p.numel() for p in full.parameters())
    assert difference == full.config.get("condition_size", full.hidden_size)


@every_name
def test_learned_variance_on_and_off(name):
    C = ditzoo.model_info(name).config["in_channels"]
    for learn_sigma in (False, True):
        if learn_sigma and ditzoo.model_info(name).family == "uvit":
            with pytest.raises(ValueError, match="learn_sigma must be False, got True"):
                shrunk(name, learn_sigma=True)
            continue
        model = shrunk(name, learn_sigma=learn_sigma)
        channels = 2 * C if learn_sigma and model.returns_variance else C
        output = model(*inputs(model))
        assert model.out_channels == channels == output.shape[1]
        assert output.isfinite().all()


@every_name
def test_checkpointed_gradients_are_the_same_bit_for_bit(name):
    model = shrunk(name)
    given, mask = inputs(model), masks(model)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        (model(*given).square().sum() + (model(*given, **mask).square().sum() if mask else 0)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


@every_name
def test_autocast(name):
    model = shrunk(name)
    given = inputs(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*given)
    assert output.dtype == torch.bfloat16
    assert relative_error(output, model(*given)) < 0.03


# bfloat16 rounds to 8 bits, float16 to 11.
@every_name
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision(name, dtype, tolerance):
    model = shrunk(name)
    x, t, y = inputs(model)
    expected = model(x, t, y)
    output = model.to(dtype)(x.to(dtype), t, y)
    assert (output.dtype, model.dtype) == (dtype, dtype)
    assert relative_error(output, expected) < tolerance


@every_name
def test_a_model_without_memory_takes_over_weights(name):
    full = on_meta(name)
    state = {key: torch.empty_like(value) for key, value in full.state_dict().items()}
    assert all(value.is_meta for value in state.values())
    full.load_state_dict(state, strict=True, assign=True)
    model = shrunk(name)
    with torch.device("meta"):
        empty = ditzoo.create(name, **shrunk_config(name))
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert torch.equal(empty(*inputs(model)), model(*inputs(model)))


@every_name
def test_copies_compute_the_same(name):
    model = shrunk(name)
    expected = model(*inputs(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config
        assert torch.equal(other(*inputs(model)), expected)


@every_name
def test_the_configuration_survives_json(name):
    model = shrunk(name)
    again = ditzoo.create(name, **json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(*inputs(model)), model(*inputs(model)))


@every_name
def test_intermediates_are_the_tokens_of_every_block(name):
    model = shrunk(name)
    given = inputs(model)
    output, tokens = model.forward_intermediates(*given)
    assert torch.equal(output, model(*given))
    assert list(tokens) == model.block_names()
    if "depth" in model.config:
        assert {tuple(value.shape) for value in tokens.values()} == {(2, model.num_extra_tokens + 16, 32)}
    else:  # four tokens a side at the coarsest resolution
        stages = reversed(range(len(model.encoder)))
        assert {value.shape[1] for value in tokens.values()} == {16 * 4**stage for stage in stages}
        assert {value.shape[2] for value in tokens.values()} == set(model.config["channels"])
    assert list(model.forward_intermediates(*given, indices=[-1]).tokens) == model.block_names()[-1:]


@every_name
def test_no_forward_draws_random_numbers(name):
    model = shrunk(name)
    given, mask = inputs(model), masks(model)
    assert bool(mask) == (name in MASKED_NAMES)
    for keywords in [{}, mask]:
        with no_draws():
            first, second = (model.train()(*given, **keywords) for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(model.eval()(*given, **keywords), first)


@every_name
def test_a_row_alone_equals_the_row_in_a_batch(name):
    model = shrunk(name).double()
    x, t, y = inputs(model, 3)
    together = model(x, t, y)
    for i in range(3):
        alone = model(x[i : i + 1], t[i : i + 1], None if y is None else y[i : i + 1])
        assert relative_error(alone, together[i : i + 1]) < 1e-12


@every_name
def test_masks(name):
    model = shrunk(name).double()
    given = inputs(model)
    mask = random_token_mask(2, 16, 0.3)
    if not model.supports_masking:
        with pytest.raises(ValueError, match=f"{type(model).__name__} does not take a mask"):
            model(*given, mask=mask)
        return
    plain, masked = model(*given), model(*given, mask=mask)
    assert relative_error(model(*given, mask=random_token_mask(2, 16, 0.0)), plain) < 1e-12
    assert relative_error(masked, plain) > 1e-4
    # The kept tokens in another order.
    kept = mask.ids_keep.shape[1]
    shuffle = mask.ids_restore.argsort(dim=1)
    shuffle = torch.cat([shuffle[:, :kept].flip(1), shuffle[:, kept:]], dim=1)
    other = TokenMask(shuffle[:, :kept], shuffle.argsort(dim=1), mask.mask)
    assert not torch.equal(other.ids_keep, mask.ids_keep)
    assert relative_error(model(*given, mask=other), masked) < 1e-12


@pytest.mark.slow
@distinct_name
def test_export(name):
    model = shrunk(name).eval()
    program = torch.export.export(model, inputs(model))
    assert relative_error(program.module()(*inputs(model)), model(*inputs(model))) < 1e-5


@pytest.mark.slow
@distinct_name
def test_compiled_as_one_graph(name):
    torch._dynamo.reset()
    model = shrunk(name)
    given, mask = inputs(model), masks(model)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for arguments in [{}, mask]:
        output, expected = compiled(*given, **arguments), model(*given, **arguments)
        assert relative_error(output, expected) < 1e-5
    output.square().sum().backward()
    expected.square().sum().backward()
    for (key, ours), theirs in zip(compiled.named_parameters(), model.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), key
        if ours.grad is not None and theirs.grad.abs().max() > 1e-6 * expected.abs().max():
            assert relative_error(ours.grad, theirs.grad) < 1e-3, key


#: Small networks, and options that leave other weights without effect.
WITH_UNUSED_WEIGHTS = pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in DISTINCT_NAMES]
    + [
        ("dit_ti_2_crossattn", {"num_classes": 0}),
        ("sit_ti_2", {"num_classes": 0, "conditioning": "cross_attention", "learn_sigma": True}),
        ("dit_ti_2_incontext", {"num_classes": 0}),
        ("sit_ti_2", {"learn_sigma": True, "in_channels": 3}),
        ("mdt_ti_2", {"mask_ratio": None}),
        ("mdtv2_ti_2", {"mask_ratio": None}),
        ("uvit_ti_2", {"qkv_bias": True, "mlp_time_embed": True, "conv": True}),
        ("uvit_ti_2", {"skip": False, "num_classes": 0}),
        ("diffit_unet_ti", {"skip_join": "add", "num_classes": 0}),
        ("diffit_unet_32", {"window_size": 3, "num_classes": 10, "learn_sigma": True}),
    ],
)


def used_rows(model, name):
    """Which rows of a parameter `unused_weights()` does not list: (rows,) bool."""
    used = torch.ones(model.get_parameter(name).shape[0], dtype=torch.bool)
    for unused in model.unused_weights():
        if unused.name == name:
            used[list(unused.rows) if unused.rows is not None else slice(None)] = False
    return used


def with_gradients(name, **options):
    """A small network after the backward pass of a loss over every label, of a masked pass too where it has one."""
    model = shrunk(name, **options).double()
    batch = max(model.num_label_rows, 1)
    x, t, y = inputs(model, batch)
    y = torch.arange(batch) if model.num_classes else None
    model(x, t, y).square().sum().backward()
    if mask := masks(model, batch):
        model(x, t, y, **mask).square().sum().backward()
    return model


def check_gradients(model):
    """Every row of a trainable parameter has a gradient unless `unused_weights()` lists it.

    Both are measured by the largest gradient of the network, since a parameter without effect may have rounding errors
    in all of its rows. In float64 these are near 1e-17 of it; the smallest true gradients of the networks here, 1e-8.
    """
    largest = largest_gradient(model)
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, key
            continue
        used = used_rows(model, key)
        if parameter.grad is None:
            assert not used.any(), key
            continue
        sizes = parameter.grad.flatten(1).abs().amax(1) if parameter.ndim > 1 else parameter.grad.abs()
        if key in ("pos_embed", "decoder_pos_embed"):  # (1, N, D)
            sizes, used = parameter.grad[0].abs().amax(1), torch.ones(parameter.shape[1], dtype=torch.bool)
        assert (sizes[used] > 1e-10 * largest).all(), key
        assert (sizes[~used] < 1e-13 * largest).all(), key


@WITH_UNUSED_WEIGHTS
def test_gradients_reach_every_trainable_row_but_those_listed_as_unused(name, options):
    check_gradients(with_gradients(name, **options))


@WITH_UNUSED_WEIGHTS
def test_unused_rows_that_are_not_listed_are_noticed(name, options, monkeypatch):
    model = with_gradients(name, **options)
    listed = model.unused_weights()
    for i, unused in enumerate(listed):
        monkeypatch.setattr(model, "unused_weights", lambda i=i: listed[:i] + listed[i + 1 :])
        if model.get_parameter(unused.name).requires_grad:
            with pytest.raises(AssertionError, match=re.escape(unused.name)):
                check_gradients(model)


@pytest.mark.parametrize("noise", [0.0, 1e-13])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dit_ti_2", "t_embedder.mlp.2.weight"),
        ("mdt_ti_2", "mask_token"),
        ("mdtv2_ti_2", "decoder_pos_embed"),
        ("uvit_ti_2", "label_emb.weight"),
    ],
)
def test_rounding_errors_are_no_gradient(name, key, noise):
    """In all rows of a parameter, none of which then stands out against the others."""
    model = with_gradients(name)
    check_gradients(model)
    parameter = model.get_parameter(key)
    parameter.grad = noise * largest_gradient(model) * torch.randn_like(parameter)
    with pytest.raises(AssertionError, match=re.escape(key)):
        check_gradients(model)


@WITH_UNUSED_WEIGHTS
def test_unused_weights_change_nothing(name, options):
    model = shrunk(name, **options).double()
    given, mask = inputs(model), masks(model)
    with torch.no_grad():
        expected = [model(*given), model(*given, **mask)]
        for unused in model.unused_weights():
            rows = slice(None) if unused.rows is None else list(unused.rows)
            parameter = model.get_parameter(unused.name)
            parameter[rows] += torch.randn_like(parameter[rows])
        for before, after in zip(expected, [model(*given), model(*given, **mask)], strict=True):
            assert relative_error(after, before) < 1e-9


@every_name
def test_unused_weights_are_told_by_name_row_and_reason(name):
    model = on_meta(name)
    shapes = {key: parameter.shape for key, parameter in model.named_parameters()}
    assert tuple(model.unused_weights()) == ditzoo.model_info(name).unused
    for unused in model.unused_weights():
        assert unused.reason
        assert unused.rows is None or set(unused.rows) <= set(range(shapes[unused.name][0]))
    told = {unused.name for unused in model.unused_weights()}
    for block in model.block_names():
        bias = f"{block}.attn.qkv.bias"
        assert (bias in told) == (bias in shapes), bias
    tables = {key for key in shapes if key.endswith("relative_position_bias_table")}
    assert (tables <= told) == (model.supports_masking or not tables)
    heads = {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert (told & heads == heads) == (ditzoo.model_info(name).family == "sit" and model.learn_sigma)
