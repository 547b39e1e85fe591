"""`load_weights`: exact, lenient, refused, and what it says."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

import ditzoo
from ditzoo.models import DiffusionTransformer
from ditzoo.weights import LoadResult, load_weights
from ditzoo.weights.lookalikes import FOREIGN, foreign
from ditzoo.weights.match import shapes_of
from tests.own_models import WithOption
from tests.weights.verifying import State, weights_of
from tests.zoo import EVERY_NAME, TINY, inputs, lively, no_draws, on_meta

# Exact.


@pytest.mark.parametrize("name", TINY)
def test_a_meta_model_takes_the_tensors_themselves(name, caplog):
    original, model = lively(name), on_meta(name)
    state = original.state_dict()
    frozen = {key for key, value in model.named_parameters() if not value.requires_grad}
    with no_draws():
        result = load_weights(model, state)
    assert result == LoadResult(kept=tuple(state))
    assert result.is_exact
    assert all(value.data_ptr() == state[key].data_ptr() for key, value in model.state_dict().items())
    assert {key for key, value in model.named_parameters() if not value.requires_grad} == frozen
    x, t, y = inputs(original)
    assert torch.equal(model(x, t, y), original(x, t, y))
    assert caplog.records == []


def test_a_real_model_gets_a_copy_in_its_own_precision():
    state = weights_of("dit_ti_2")
    model = ditzoo.create("dit_ti_2").to(torch.float64)
    assert load_weights(model, {key: value.bfloat16() for key, value in state.items()}).is_exact
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].bfloat16().double())
        assert value.data_ptr() != state[key].data_ptr()


def test_a_frozen_parameter_of_the_caller_stays_as_it_is():
    state = {key: torch.nn.Parameter(value) for key, value in weights_of("dit_ti_2").items()}
    load_weights(on_meta("dit_ti_2"), state)
    assert all(value.requires_grad for value in state.values())


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((torch.bfloat16,), torch.bfloat16),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float64, torch.float16), torch.float64),
    ],
)
def test_a_meta_model_gets_the_widest_precision_of_the_file(stored, expected):
    state = weights_of("uvit_ti_2")
    for i, key in enumerate(state):
        state[key] = state[key].to(stored[i % len(stored)])
    model = on_meta("uvit_ti_2")
    assert load_weights(model, state).is_exact
    assert {value.dtype for value in model.state_dict().values()} == {expected}
    assert all(torch.equal(value, state[key].to(expected)) for key, value in model.state_dict().items())


def test_fresh_and_computed_tensors_get_the_precision_of_the_file():
    state = {key: value.bfloat16() for key, value in weights_of("diffit_ti_2").items()}
    model = on_meta("diffit_ti_2", in_channels=2, num_classes=12, input_size=16)
    load_weights(model, state, source=ditzoo.model_info("diffit_ti_2").config)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}


def test_expanded_tensors_can_be_trained_in_place():
    state = {key: torch.ones(()).expand(value.shape) for key, value in weights_of("dit_ti_2").items()}
    model = on_meta("dit_ti_2")
    load_weights(model, state)
    with torch.no_grad():
        model.t_embedder.mlp[0].bias[0] = 2
    assert model.t_embedder.mlp[0].bias.sum() == 65


def test_tensors_in_one_memory_become_parameters_of_their_own():
    state = weights_of("dit_ti_2")
    memory = torch.randn(max(value.numel() for value in state.values()))
    state = {key: memory[: value.numel()].view(value.shape) for key, value in state.items()}
    model = on_meta("dit_ti_2")
    load_weights(model, state)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert all(torch.equal(before[key], value) for key, value in state.items())
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias.fill_(3)
    assert [key for key, value in model.state_dict().items() if not torch.equal(before[key], value)] == [
        "blocks.0.mlp.fc1.bias"
    ]


def test_prefixes_and_constant_buffers_are_no_difference(caplog):
    state = {f"module.{key}": value for key, value in weights_of("mdt_ti_2").items()}
    state["module.blocks.0.attn.rel_pos_bias.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    result = load_weights(on_meta("mdt_ti_2"), state)
    assert result.is_exact
    assert caplog.records == []


# What is told.


def test_changes_are_logged_as_one_warning(caplog):
    original, model = lively("dit_ti_2"), on_meta("dit_ti_2", num_classes=4, in_channels=3)
    with caplog.at_level(logging.INFO, "ditzoo"):
        result = load_weights(model, original.state_dict(), source=original.config)
    assert [(record.name, record.levelname) for record in caplog.records] == [("ditzoo", "WARNING")]
    assert caplog.messages == [f"DiT: {result.summary()}"]
    assert result.summary() == (
        "48 of 52 tensors kept; resized y_embedder.embedding_table.weight (11x64 -> 5x64: rows of 4 classes and the "
        "null label kept); freshly drawn x_embedder.proj.weight, final_layer.linear.weight, final_layer.linear.bias; "
        "not used x_embedder.proj.weight, final_layer.linear.weight, final_layer.linear.bias."
    )


def test_a_summary_is_one_short_line():
    names = tuple(f"blocks.{i}" for i in range(9))
    result = LoadResult(("a",), dict.fromkeys(names, "cut"), names, ("bad\nname", *names))
    assert result.summary() == (
        "1 of 19 tensors kept; resized blocks.0 (cut), blocks.1 (cut), blocks.2 (cut) and 6 more; freshly drawn "
        "blocks.0, blocks.1, blocks.2 and 6 more; not used 'bad\\nname', blocks.0, blocks.1 and 7 more."
    )


# Lenient.


@pytest.mark.parametrize("on", ["meta", "cpu"])
def test_lenient_keeps_names_and_shapes_and_lists_the_rest(on, caplog):
    state = weights_of("dit_ti_2", depth=5, num_classes=3)
    del state["t_embedder.mlp.0.bias"]
    model = on_meta("dit_ti_2") if on == "meta" else lively("dit_ti_2")
    own = None if on == "meta" else copy.deepcopy(model.state_dict())
    result = load_weights(model, state, strict=False)
    assert result.reinitialized == ("t_embedder.mlp.0.bias", "y_embedder.embedding_table.weight")
    fifth = [key for key in state if key.startswith("blocks.4.")]
    assert set(result.dropped) == {"y_embedder.embedding_table.weight", *fifth}
    assert len(result.kept) == 50
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in result.kept)
    if own is not None:
        assert all(torch.equal(model.state_dict()[key], own[key]) for key in result.reinitialized)
    assert len(caplog.records) == 1


def test_lenient_adapts_where_it_can():
    original, model = lively("dit_ti_2"), on_meta("dit_ti_2", num_classes=4)
    result = load_weights(model, original.state_dict(), source=original.config, strict=False)
    assert list(result.resized) == ["y_embedder.embedding_table.weight"]


def test_lenient_refuses_what_has_nothing_in_common():
    with pytest.raises(ValueError, match=r"the weights do not fit this DiT: missing "):
        load_weights(on_meta("dit_ti_2"), weights_of("uvit_ti_2"), strict=False)


# Refused.


def refused(model: DiffusionTransformer, state: State, **options: object) -> str:
    """The message; the model is as it was."""
    before = {key: (value.clone(), value.device, value.dtype) for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is returned
        load_weights(model, state, **options)
    for key, value in model.state_dict().items():
        was, device, dtype = before[key]
        assert (value.device, value.dtype) == (device, dtype)
        assert value.is_meta or torch.equal(value, was)
    return str(caught.value)


def test_differences_are_named_three_at_most():
    state = weights_of("dit_ti_2")
    keys = list(state)
    for key in keys[5:10]:
        del state[key]
    state["odd\x1bname"] = torch.ones(3)
    state["final_layer.linear.bias"] = torch.ones(7)
    text = refused(ditzoo.create("dit_ti_2"), state)
    assert text.startswith(
        f"the weights do not fit this DiT: missing {', '.join(keys[5:8])} and 2 more; unexpected 'odd\\x1bname'; "
        "final_layer.linear.bias is 7 and should be 4. "
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_classes": 7}, "num_classes=7 (its label table has 8 rows, the last for the null label)"),
        ({"num_classes": 0}, "num_classes=0 (it has no label table)"),
        (
            {"class_dropout_prob": 0.0},
            "class_dropout_prob=0.0 (its label table has 10 rows, none for the null label)",
        ),
        ({"in_channels": 3}, "in_channels=3 (x_embedder.proj.weight takes 3 channels)"),
        ({"input_size": 12}, "input_size=12 (pos_embed has 36 rows)"),
        (
            {"num_classes": 2, "input_size": 4},
            "num_classes=2 (its label table has 3 rows, the last for the null label), input_size=4 (pos_embed has 4 "
            "rows)",
        ),
    ],
)
def test_without_a_source_the_options_of_the_file_are_told(options, told):
    model = ditzoo.create("mdt_ti_2")
    text = refused(model, weights_of("mdt_ti_2", **options))
    own = ", ".join(f"{option}={model.config[option]}" for option in options)
    assert text.endswith(
        f"They are for {told}: build the model like that. To adapt them, give ditzoo.create the options you want "
        f"({own}), or load_weights those of their network as source."
    )


def test_uvits_size_is_told_whether_it_has_classes_or_not():
    for num_classes in (0, 3):
        state = weights_of("uvit_ti_2", num_classes=num_classes, input_size=16)
        text = refused(on_meta("uvit_ti_2"), state)
        assert f"num_classes={num_classes} (" in text
        assert f"input_size=16 (pos_embed has {64 + 1 + (num_classes > 0)} rows)" in text


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("dit_ti_2", {"patch_size": 4}),
        ("dit_ti_2", {"depth": 3}),
        ("dit_ti_2", {"hidden_size": 32}),
        ("sit_ti_2", {"learn_sigma": True}),
        ("dit_ti_2", {"conditioning": "cross_attention"}),
        ("uvit_ti_2", {"qkv_bias": True}),
        ("mdtv2_ti_2", {"decode_layer": 3}),
        ("diffit_unet_ti", {"window_size": 2}),
    ],
)
def test_options_that_do_not_adapt_are_named(name, other):
    ((option, value),) = other.items()
    source = {**ditzoo.model_info(name).config, **other, "num_classes": 5}
    model = ditzoo.create(name, num_classes=4)
    text = refused(model, weights_of(name, **other, num_classes=5), source=source)
    assert f"They are for {option}={value!r}, the model has {option}={model.config[option]!r}: " in text
    assert text.endswith("weights adapt to another num_classes, class_dropout_prob, in_channels, input_size alone.")


def test_only_options_that_change_shapes_are_named():
    source = {**ditzoo.model_info("mdt_ti_2").config, "mask_ratio": None, "depth": 6, "decode_layer": 5}
    model = ditzoo.create("mdt_ti_2", num_classes=4)
    text = refused(model, lively("mdt_ti_2", **source).state_dict(), source=source)
    # With the model's depth of 3 there can be no 5 blocks in the decoder.
    assert "They are for depth=6, decode_layer=5, the model has depth=3, decode_layer=1: " in text


def test_options_of_training_do_not_matter():
    original = lively("mdt_ti_2", mask_ratio=None, class_dropout_prob=0.2)
    model = on_meta("mdt_ti_2", num_classes=4, mask_ratio=0.5)
    result = load_weights(model, original.state_dict(), source=original.config)
    assert list(result.resized) == ["y_embedder.embedding_table.weight"]
    assert model.mask_token.requires_grad
    assert load_weights(on_meta("mdt_ti_2"), original.state_dict(), source=original.config).is_exact


@pytest.mark.parametrize(
    ("name", "option", "theirs", "ours"),
    [("dit_ti_2", "num_heads", 2, 4), ("uvit_ti_2", "num_heads", 2, 8), ("mdt_ti_2", "decode_layer", 2, 1)],
)
@pytest.mark.parametrize("num_classes", [10, 4])
def test_the_same_shapes_do_not_make_the_same_network(name, option, theirs, ours, num_classes, caplog):
    original = lively(name, **{option: theirs})
    model, state = on_meta(name, num_classes=num_classes), original.state_dict()
    text = refused(model, state, source=original.config)
    assert f"They are for {option}={theirs}, the model has {option}={ours}: weights adapt to another num_cl" in text
    assert ("names and shapes are alike, but not what they stand for" in text) == (num_classes == 10)
    load_weights(model, state, source=original.config, strict=False)
    assert f"the weights are for {option}={theirs}, the model has {option}={ours}." in caplog.text
    assert torch.equal(model.state_dict()["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_what_is_no_float_is_refused(dtype):
    state = weights_of("dit_ti_2")
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].to(dtype)
    kind = str(dtype).removeprefix("torch.")
    for strict in (True, False):
        text = refused(ditzoo.create("dit_ti_2"), state, strict=strict)
        assert text == f"blocks.0.mlp.fc1.weight is in {kind}; give weights in floats of 16, 32 or 64 bits."


def test_what_is_no_state_dict_is_refused():
    model = on_meta("dit_ti_2")
    for wrong, kind in (([], "list"), ({"model": {}}, "dict")):
        with pytest.raises(TypeError, match=f"tensors must map names to tensors, got {kind}; "):
            load_weights(model, wrong)


def test_a_source_of_unknown_options_is_refused():
    with pytest.raises(TypeError, match=r"DiT has no option 'num_class'\. Did you mean num_classes"):
        load_weights(on_meta("dit_ti_2"), weights_of("dit_ti_2"), source={"num_class": 10})
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        load_weights(on_meta("dit_ti_2"), weights_of("dit_ti_2"), source={"depth": 0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"pos_embed": torch.ones(())},
        {"pos_embed": torch.ones(1, 0, 64)},
        {"pos_embed": torch.ones(1, 17, 64)},
        {"y_embedder.embedding_table.weight": torch.ones(())},
        {"y_embedder.embedding_table.weight": torch.ones(0, 64)},
        {"x_embedder.proj.weight": torch.ones(64, 0, 2, 2)},
        {"x_embedder.proj.weight": torch.zeros(1).expand(64, 3 * 10**16, 2, 2)},
    ],
)
def test_shapes_of_no_network_are_refused(wrong):
    ((key, value),) = wrong.items()
    text = refused(ditzoo.create("dit_ti_2"), {**weights_of("dit_ti_2"), **wrong}, source={**DIT_TI})
    assert f"{key} is {'x'.join(map(str, value.shape)) or 'scalar'} and should be " in text


DIT_TI = ditzoo.model_info("dit_ti_2").config


# Whose weights are these?


@pytest.mark.parametrize("name", TINY)
def test_another_familys_weights_are_recognised(name):
    wanted = weights_of(name)
    for other in TINY:
        state = weights_of(other)
        if shapes_of(state) != shapes_of(wanted):
            names = refused(on_meta(name), state).rpartition("They fit ")[2].rstrip(".")
            assert other in names.split(", ")


@pytest.mark.parametrize("num_classes", [0, 77])
@pytest.mark.parametrize("name", TINY)
def test_other_sizes_of_another_family_are_recognised(name, num_classes):
    """By their names, whatever their depth, with and without classes."""
    blocks = {"depth": 5} if "depth" in ditzoo.model_info(name).config else {"blocks": [1, 3]}
    other = on_meta(name, num_classes=num_classes, **blocks)
    text = refused(on_meta("uvit_ti_2" if name != "uvit_ti_2" else "dit_ti_2"), other.state_dict())
    assert type(other).__name__ in text.rpartition("They look like those of ")[2].rstrip(".").split(" or ")


def test_other_options_of_the_same_class_are_recognised():
    text = refused(on_meta("uvit_ti_2"), weights_of("uvit_ti_2", depth=6))
    assert text.endswith("The names are mostly those of UViT: build the model with the options of their network.")


def test_a_prefix_is_named():
    state = {f"net.{key}": value for key, value in weights_of("dit_ti_2").items()}
    text = refused(on_meta("dit_ti_2"), state)
    assert text.endswith("Every name carries 'net.' in front; save the state dict without it.")


def test_weights_of_nothing_in_the_zoo():
    attention = {key: value for key, value in weights_of("dit_ti_2").items() if "attn" in key}
    for state in ({"layer.weight": torch.ones(3)}, attention):
        assert refused(on_meta("dit_ti_2"), state).endswith("They look like those of no network of the zoo.")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["transformer_blocks.0.attn1.to_q.weight", "pos_embed.proj.weight"], "the diffusers library"),
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"], "U-Net"),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"], "U-Net"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight", "quant_conv.weight"], "an autoencoder"),
        (["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"], "classifies images"),
    ],
)
def test_weights_of_others_are_recognised(names, what):
    assert what in refused(on_meta("uvit_ti_2"), dict.fromkeys(names, torch.ones(2)))


@pytest.mark.parametrize("name", EVERY_NAME)
def test_no_network_of_the_zoo_is_taken_for_a_foreign_one(name):
    assert FOREIGN
    assert foreign(shapes_of(on_meta(name).state_dict())) == ""


# Models of other packages.


class Plain(WithOption):
    """A plugin that tells nothing of its tables."""

    label_table = None
    patch_weight = None

    def position_tables(self):
        return {}


def test_a_plugin_inherits_what_its_family_tells(registry_sandbox):
    original = WithOption(extra=3)
    model = WithOption(num_classes=7, extra=3)
    load_weights(model, original.state_dict(), source=original.config)
    before, after = (each.y_embedder.embedding_table.weight for each in (original, model))
    assert torch.equal(after[[0, 4, 7]], before[[0, 4, 5]])


def test_of_a_plugin_that_tells_nothing_tables_are_drawn_and_listed():
    original, model = Plain(), Plain(num_classes=7, input_size=12)
    own = copy.deepcopy(model.state_dict())
    result = load_weights(model, original.state_dict(), source=original.config)
    assert set(result.reinitialized) == {"pos_embed", "y_embedder.embedding_table.weight"}
    assert all(torch.equal(model.state_dict()[key], own[key]) for key in result.reinitialized)
    assert refused(Plain(num_classes=7), original.state_dict()).startswith("the weights do not fit this Plain: ")
