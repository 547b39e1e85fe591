"""What every model of the zoo promises, whichever family it is of."""

import json
import random
import re

import numpy as np
import pytest
import torch

import ditzoo
from ditzoo.models import UViT
from ditzoo.models.options import SHARED_OPTIONS
from tests.golden_cases import relative_error
from tests.zoo import EVERY_NAME, MASKED, PASSES, PLAIN, TINY, distinct, inputs, lively, no_draws, on_meta


@pytest.mark.parametrize("name", distinct(EVERY_NAME))
def test_output_has_the_shape_of_the_input(name):
    model = on_meta(name)
    x, t, y = inputs(model)
    S, C = model.input_size, model.config["in_channels"]
    assert model.out_channels == (2 * C if model.config["learn_sigma"] and model.returns_variance else C)
    assert model(x, t, y).shape == (2, model.out_channels, S, S)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(16, 16), (2, 6), (12, 8), (6, 30)])
def test_other_sizes_give_finite_values_that_depend_on_the_whole_input(name, size):
    model = lively(name)
    x, t, y = inputs(model, 2, *size)
    output = model(x.requires_grad_(), t, y)
    assert output.shape == x.shape
    assert output.isfinite().all()
    output[:, :, 0, 0].sum().backward()
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize("name", EVERY_NAME)
def test_configuration_survives_json_and_rebuilds_the_model(name):
    model = on_meta(name)
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    again = on_meta(name, **config)
    assert type(again) is type(model)
    assert again.config == config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", TINY)
def test_the_class_alone_rebuilds_the_model_from_its_configuration(name):
    options = {"input_size": 12, "patch_size": 3, "in_channels": 3, "num_classes": 4, "mlp_ratio": 2.5}
    options = {key: value for key, value in options.items() if key in ditzoo.model_info(name).config}
    model = ditzoo.create(name, **options)
    assert {key: model.config[key] for key in options} == options
    again = type(model)(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert torch.equal(again(*inputs(model)), model(*inputs(model)))


@pytest.mark.parametrize("name", TINY)
def test_options_have_the_same_names_in_every_family(name):
    shared = {"input_size", "in_channels", "mlp_ratio", "num_classes", "class_dropout_prob", "learn_sigma"}
    assert shared == set(SHARED_OPTIONS)
    plain = {"patch_size", "hidden_size", "depth", "num_heads"}
    model = ditzoo.create(name)
    assert shared <= set(model.config)
    assert plain & set(model.config) == (plain if name in PLAIN else set())
    info = ditzoo.model_info(name)
    for option in plain:  # a U shape derives them
        assert getattr(model, option) == getattr(info, option) == model.config.get(option, getattr(model, option)) > 0


@pytest.mark.parametrize("name", sorted(set(ditzoo.list_models()) - set(TINY)))
def test_bare_names_of_transformers_build_the_latent_model_with_a_thousand_classes(name):
    config = ditzoo.model_info(name).config
    if "patch_size" not in config:  # a U shape, made for pixels; its name tells how many
        assert (config["input_size"], config["in_channels"]) == (int(name.rpartition("_")[2]), 3)
        return
    assert (config["input_size"], config["in_channels"], config["num_classes"]) == (32, 4, 1000)
    patch_size = int(re.search(r"_(\d+)(_|$)", name)[1])
    assert config["patch_size"] == patch_size
    assert config["class_dropout_prob"] == 0.1


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("num_classes", [0, 1, 3, 1000])
def test_any_number_of_classes(name, num_classes):
    model = lively(name, num_classes=num_classes)
    x, t, y = inputs(model)
    tables = ("y_embedder.embedding_table.weight", "label_emb.weight")
    rows = [p.shape[0] for n, p in model.named_parameters() if n in tables]
    if num_classes:
        assert model.null_label == num_classes
        assert rows == [num_classes + 1]
        classes = [model(x, t, torch.tensor([label, label])) for label in (0, num_classes)]
        assert relative_error(*classes) > 1e-3
    else:
        assert (model.null_label, rows, y) == (None, [], None)
        assert torch.equal(model(x, t), model(x, t, None))
        if isinstance(model, UViT):
            assert model.pos_embed.shape[1] == 1 + model.num_tokens()


@pytest.mark.parametrize("name", TINY)
def test_without_label_dropout_there_is_no_null_label(name):
    model = lively(name, class_dropout_prob=0.0)
    x, t, _ = inputs(model)
    assert model.null_label is None
    assert model.num_label_rows == 10
    assert model(x, t, torch.tensor([0, 9])).shape == x.shape
    with pytest.raises(ValueError, match=r"label 10 is out of range.*from 0 to 9\."):
        model(x, t, torch.tensor([0, 10]))


@pytest.mark.parametrize("name", TINY)
def test_learned_variance_doubles_the_channels_where_the_family_has_it(name):
    if isinstance(ditzoo.create(name), UViT):
        with pytest.raises(ValueError, match="learn_sigma must be False, got True"):
            ditzoo.create(name, learn_sigma=True)
    else:
        model = lively(name, learn_sigma=True, in_channels=3)
        assert model.head_channels == 6
        assert model(*inputs(model)).shape == (2, 6 if model.returns_variance else 3, 8, 8)


@pytest.mark.parametrize("name", TINY)
def test_times_may_be_fractional_and_every_input_matters(name):
    model = lively(name)
    x, t, y = inputs(model)
    output = model(x, t, y)
    assert torch.equal(model(x, t.float(), y), output)
    for changed in [(x + 0.1, t, y), (x, t + 0.5, y), (x, t, y.flip(0))]:
        assert relative_error(model(*changed), output) > 1e-4


@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_no_forward_draws_random_numbers_in_train_mode_either(name, masked):
    model = lively(name).train()
    x, t, y = inputs(model)
    model.set_grad_checkpointing()
    mask = ditzoo.random_token_mask(2, 16, 0.3) if masked else None
    with no_draws():
        outputs = [model(x, t, y, mask=mask) for _ in range(2)]
        outputs[0].sum().backward()
    assert torch.equal(*outputs)
    assert torch.equal(model.eval()(x, t, y, mask=mask), outputs[0])
    assert torch.equal(model(x, t, y), outputs[0]) != masked


@pytest.mark.parametrize(
    ("library", "draw"),
    [
        ("torch", lambda: torch.rand(1)),
        ("torch", lambda: torch.nn.functional.dropout(torch.ones(4), 0.5)),
        ("NumPy", np.random.standard_normal),
        ("Python", random.random),
    ],
)
@pytest.mark.parametrize(("name", "masked"), [("mdt_ti_2", False), ("mdt_ti_2", True), ("mdtv2_ti_2", True)])
def test_a_draw_in_a_forward_is_noticed(name, masked, library, draw):
    model = lively(name).train()
    block = model.sideblocks[0] if masked else model.get_submodule(model.block_names()[-1])

    def hook(module, args):
        draw()

    block.register_forward_pre_hook(hook)
    mask = ditzoo.random_token_mask(2, 16, 0.3) if masked else None
    with pytest.raises(AssertionError, match=f"a random number of {library}'s was drawn"), no_draws():
        model(*inputs(model), mask=mask)


@pytest.mark.parametrize("name", TINY)
def test_a_sample_does_not_depend_on_its_batch(name):
    model = lively(name).double()
    x, t, y = inputs(model, batch=4)
    together = model(x, t, y)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert relative_error(alone, together) < 1e-12
    order = torch.tensor([2, 0, 3, 1])
    assert relative_error(model(x[order], t[order], y[order]), together[order]) < 1e-12


@pytest.mark.parametrize("name", TINY)
def test_inputs_are_left_as_they_were(name):
    model = lively(name)
    given = inputs(model)
    before = [tensor.clone() for tensor in given]
    model(*given)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("name", TINY)
def test_device_and_dtype_are_those_of_the_weights(name):
    assert on_meta(name).device == torch.device("meta")
    model = ditzoo.create(name)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.bfloat16().dtype == torch.bfloat16


@pytest.mark.parametrize("name", TINY)
def test_positions_relative_tables_and_mask_tokens_are_not_to_be_decayed(name):
    model = ditzoo.create(name)
    names = model.no_weight_decay()
    tables = {n for n in names if n.endswith("relative_position_bias_table")}
    parameters = dict(model.named_parameters())
    assert names <= set(parameters)
    assert names - tables == {"pos_embed", "decoder_pos_embed", "mask_token"} & set(parameters)
    blocks = len(model.block_names()) + (name in MASKED)  # and the side block
    assert len(tables) == (blocks if any(name.endswith("bias_table") for name in parameters) else 0)


@pytest.mark.parametrize("name", TINY)
def test_token_counts_and_grids(name):
    model = ditzoo.create(name)
    p = model.patch_size
    assert p == (2 if name in PLAIN else 1)
    assert model.num_tokens() == 64 // p**2
    assert model.num_tokens(16) == 128 // p**2
    assert model.num_tokens(4, 12) == 48 // p**2
    assert model.token_grid(4, 12) == (4 // p, 12 // p)
    assert model.downsampling == 2
    with pytest.raises(ValueError, match=r"9x8 is not divisible by (patch_size|the total downsampling) 2; .*: 8x8"):
        model.num_tokens(9, 8)


def blocks_in_order(model, *arguments, **keywords):
    """Names and outputs of the blocks as they run."""
    names = {module: name for name, module in model.named_modules()}
    seen = []
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output: seen.append((names[module], output))
        )
        for name in {n for n in names.values() if n.rpartition(".")[2].isdigit() or n == "mid_block"}
        if "mlp" in dict(model.get_submodule(name).named_children())
    ]
    model(*arguments, **keywords)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", TINY)
def test_intermediates_are_the_tokens_after_each_block_in_order(name):
    model = lively(name)
    given = inputs(model)
    output, tokens = model.forward_intermediates(*given)
    expected = blocks_in_order(model, *given)
    assert list(tokens) == model.block_names() == [name for name, _ in expected]
    for (block, value), kept in zip(expected, tokens.values(), strict=True):
        if name in PLAIN:
            assert kept.shape == (2, model.num_extra_tokens + 16, model.hidden_size), block
        assert torch.equal(kept, model.block_tokens(value)), block
    assert torch.equal(output, model(*given))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", TINY)
def test_intermediates_are_chosen_by_number_from_either_end_or_by_name(name):
    model = lively(name)
    names = model.block_names()
    for indices, expected in [
        ([0], [names[0]]),
        ([-1], [names[-1]]),
        ([-len(names), 1], names[:2]),
        ([names[1], 0, 1], names[:2]),  # in order of execution, each once
        ([], []),
        (None, names),
    ]:
        assert list(model.forward_intermediates(*inputs(model), indices=indices).tokens) == expected


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("index", [99, -99, "blocks.99", 1.0])
def test_a_block_that_does_not_exist_is_named_with_those_that_do(name, index):
    model = ditzoo.create(name)
    last = len(model.block_names()) - 1
    message = rf"no block {index!r}: give a number from {-last - 1} to {last} or one of .*{model.block_names()[-1]}"
    with pytest.raises(ValueError, match=message):
        model.forward_intermediates(*inputs(model), indices=[0, index])


@pytest.mark.parametrize("index", [0, -1, "blocks.0"])
def test_a_single_block_in_place_of_a_list(index):
    model = ditzoo.create("dit_ti_2")
    message = rf"indices must be a list of .* got {index!r}: use \[{index!r}\]\."
    with pytest.raises(TypeError, match=message):
        model.forward_intermediates(*inputs(model), indices=index)


@pytest.mark.parametrize("name", TINY)
def test_losses_on_intermediates_have_gradients_checkpointed_or_not(name):
    gradients = []
    for checkpointing in (False, True):
        model = lively(name)
        model.set_grad_checkpointing(checkpointing)
        tokens = model.forward_intermediates(*inputs(model), indices=[1]).tokens
        (kept,) = tokens.values()
        kept.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])
    assert any(model.block_names()[1] in key for key in gradients[0])


@pytest.mark.parametrize("name", TINY)
def test_hooks_are_gone_after_an_error_inside(name):
    model = ditzoo.create(name)
    x, t, y = inputs(model)
    with pytest.raises(ValueError, match="out of range"):
        model.forward_intermediates(x, t, y + 90)
    assert not any(module._forward_hooks for module in model.modules())
