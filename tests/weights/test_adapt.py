"""Weights that are adapted to other classes, channels and sizes compute what those of the original do."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ditzoo
from ditzoo.layers import sincos_position_table
from ditzoo.models import DiffusionTransformer, dit
from ditzoo.models.diffit import latent
from ditzoo.weights import LoadResult, load_weights
from tests.zoo import TINY, inputs, lively, no_draws, on_meta

pytestmark = pytest.mark.filterwarnings("error")

WITH_LABELS = [name for name in TINY if ditzoo.model_info(name).config["num_classes"]]


def adapted(
    original: DiffusionTransformer, name: str, on: str = "meta", **options: object
) -> tuple[DiffusionTransformer, LoadResult]:
    """A model with other options that has the original's weights."""
    model = on_meta(name, **options) if on == "meta" else lively(name, **options)
    result = load_weights(model, original.state_dict(), source=original.config)
    return model, result


def run(model: DiffusionTransformer, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    with torch.no_grad():
        return model(x, t, y)


def label_table(model: DiffusionTransformer) -> Tensor:
    return model.state_dict()[model.label_table]


# Classes.


@pytest.mark.parametrize("on", ["meta", "cpu"])
@pytest.mark.parametrize("num_classes", [4, 25])
@pytest.mark.parametrize("name", WITH_LABELS)
def test_classes_and_null_label_keep_their_outputs(name, num_classes, on):
    original = lively(name)
    model, result = adapted(original, name, on, num_classes=num_classes)
    x, t, _ = inputs(original, batch=3)
    before, after = torch.tensor([0, 3, original.null_label]), torch.tensor([0, 3, model.null_label])
    assert (before[-1].item(), after[-1].item()) == (10, num_classes)
    assert torch.equal(run(model, x, t, after), run(original, x, t, before))
    assert list(result.resized) == [model.label_table]
    assert (result.reinitialized, result.dropped) == ((), ())


def test_what_was_done_with_the_labels_is_told():
    table = "y_embedder.embedding_table.weight"
    original = lively("dit_ti_2")
    for options, text in [
        ({"num_classes": 4}, "11x64 -> 5x64: rows of 4 classes and the null label kept"),
        ({"num_classes": 12}, "11x64 -> 13x64: rows of 10 classes and the null label kept, 2 more drawn"),
        ({"class_dropout_prob": 0.0}, "11x64 -> 10x64: rows of 10 classes kept, the null label's dropped"),
    ]:
        assert adapted(original, "dit_ti_2", **options)[1].resized == {table: text}
    without_null = lively("dit_ti_2", class_dropout_prob=0.0)
    what = adapted(without_null, "dit_ti_2")[1].resized[table]
    assert what == "10x64 -> 11x64: rows of 10 classes kept, the null label's drawn"


@pytest.mark.parametrize("name", WITH_LABELS)
def test_tables_of_equal_shape_may_mean_other_labels(name):
    """The last of ten rows is the null label's of nine classes, or the tenth class's."""
    original = lively(name, num_classes=9)
    model, result = adapted(original, name, num_classes=10, class_dropout_prob=0.0)
    before, after = label_table(original), label_table(model)
    assert before.shape == after.shape
    assert torch.equal(after[:9], before[:9])
    assert not torch.equal(after[9], before[9])
    assert "1 more drawn, the null label's dropped" in result.resized[model.label_table]
    again, _ = adapted(model, name, num_classes=9)
    assert not torch.equal(label_table(again)[9], after[9])


@pytest.mark.parametrize("name", WITH_LABELS)
def test_to_and_from_no_classes(name):
    original = lively(name)
    model, result = adapted(original, name, num_classes=0)
    assert result.dropped == (original.label_table,)
    assert result.reinitialized == ()
    x, t, _ = inputs(original)
    assert torch.isfinite(run(model, x, t, None)).all()
    again, back = adapted(model, name)
    assert back.reinitialized == (original.label_table,)
    assert label_table(again).shape == label_table(original).shape
    assert label_table(again).std() > 0.01
    changed = {original.label_table, *result.resized}
    for key, value in original.state_dict().items():
        assert torch.equal(again.state_dict()[key], value) == (key not in changed)


def test_uvit_gives_up_its_class_token_row_alone():
    original = lively("uvit_ti_2")
    before = original.pos_embed.detach()
    model, result = adapted(original, "uvit_ti_2", num_classes=0, input_size=16)
    time, places = model.pos_embed[:, :1], model.pos_embed[:, 1:]
    assert torch.equal(time, before[:, 1:2])
    assert result.resized == {
        "pos_embed": "1x18x96 -> 1x65x96: resized from 4x4 to 8x8 tokens, the class token's row dropped"
    }
    again, result = adapted(model, "uvit_ti_2", input_size=16)
    assert torch.equal(again.pos_embed[:, 1:2], time)
    assert torch.equal(again.pos_embed[:, 2:], places)
    assert 0 < again.pos_embed[:, 0].std() < 0.04
    assert result.resized == {"pos_embed": "1x65x96 -> 1x66x96: the class token's row drawn"}


# Size.


@pytest.fixture
def built_positions(monkeypatch):
    """Frozen tables at other sizes are those of the constructor, whose coordinates are not scaled."""

    def positions(table: Tensor, trained_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        return table if grid == trained_grid else sincos_position_table(table.shape[-1], grid)

    for module in (dit, latent):
        monkeypatch.setattr(module, "frozen_positions", positions)


@pytest.mark.usefixtures("built_positions")
@pytest.mark.parametrize("size", [4, 12, 16])
@pytest.mark.parametrize("name", TINY)
def test_at_its_size_an_adapted_model_is_the_original(name, size):
    original = lively(name)
    with no_draws():
        model, result = adapted(original, name, input_size=size)
    x, t, y = inputs(original, height=size, width=size)
    assert torch.equal(run(model, x, t, y), run(original, x, t, y))
    assert (result.reinitialized, result.dropped) == ((), ())
    differing = {key for key, value in model.state_dict().items() if value.shape != original.state_dict()[key].shape}
    assert set(result.resized) == differing


@pytest.mark.parametrize("name", TINY)
def test_frozen_tables_are_the_constructors(name):
    model, _ = adapted(lively(name), name, input_size=12)
    fresh = ditzoo.create(name, input_size=12)
    for key in fresh.position_tables():
        assert model.get_parameter(key).requires_grad == fresh.get_parameter(key).requires_grad
        if not fresh.get_parameter(key).requires_grad:
            assert torch.equal(model.state_dict()[key], fresh.state_dict()[key])


@pytest.mark.parametrize("name", TINY)
def test_there_and_back(name):
    """Offset zero and extra tokens come back as they were, learned places nearly, and nothing else ever changes."""
    original = lively(name)
    smooth_positions(original)
    larger, _ = adapted(original, name, input_size=16)
    back, _ = adapted(larger, name)
    tables = original.position_tables()
    for key, value in original.state_dict().items():
        after, table = back.state_dict()[key], tables.get(key)
        if table is None or table.kind in ("sincos", "window"):
            assert torch.equal(after, value)
        elif table.kind == "learned":
            extra = len(table.extra_tokens)
            assert torch.equal(after[:, :extra], value[:, :extra])
            assert (after - value)[:, extra:].abs().max() < 0.1 * value[:, extra:].abs().max()
        else:
            spare = value.shape[0] - (2 * table.grid[0] - 1) ** 2
            zero = ((2 * table.grid[0] - 1) ** 2) // 2
            assert spare in (0, 3)
            assert torch.equal(after[value.shape[0] - spare :], value[value.shape[0] - spare :])
            middle = larger.state_dict()[key][((4 * table.grid[0] - 1) ** 2) // 2]
            assert torch.allclose(middle, value[zero])


def smooth_positions(model: DiffusionTransformer) -> None:
    for key, table in model.position_tables().items():
        if table.kind == "learned":
            places = model.get_parameter(key).data[:, len(table.extra_tokens) :]
            places.copy_(sincos_position_table(places.shape[-1], table.grid, (1, 1)))


def test_windows_keep_the_offsets_that_both_have():
    """In the coarser stage windows shrink with the input, from 4x4 to 2x2, and grow back."""
    original = lively("diffit_unet_ti")
    smaller, result = adapted(original, "diffit_unet_ti", input_size=4)
    name = "encoder.1.blocks.0.attn.relative_position_bias_table"
    assert result.resized[name] == "49x4 -> 9x4: offsets inside both windows kept, from 4x4 to 2x2 tokens"
    assert all(key.startswith("encoder.1.") for key in result.resized)
    before = original.state_dict()[name].view(7, 7, -1)
    assert torch.equal(smaller.state_dict()[name].view(3, 3, -1), before[2:5, 2:5])
    larger, _ = adapted(smaller, "diffit_unet_ti")
    after = larger.state_dict()[name].view(7, 7, -1)
    assert torch.equal(after[2:5, 2:5], before[2:5, 2:5])
    outer = torch.ones(7, 7, dtype=torch.bool)
    outer[2:5, 2:5] = False
    assert 0 < after[outer].abs().max() < 0.15
    assert not torch.equal(after[outer], before[outer])


# Channels.


@pytest.mark.parametrize("name", TINY)
def test_other_channels_are_drawn_as_in_construction(name):
    original = lively(name)
    torch.manual_seed(3)
    model, result = adapted(original, name, in_channels=3)
    torch.manual_seed(3)
    fresh = ditzoo.create(name, in_channels=3).state_dict()
    before = original.state_dict()
    assert set(result.reinitialized) == {key for key in fresh if fresh[key].shape != before[key].shape}
    assert model.patch_weight in result.reinitialized
    assert result.resized == {}
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if key in result.reinitialized else before[key])
    assert set(result.dropped) == set(result.reinitialized)
    x, t, y = inputs(model)
    assert run(model, x, t, y).shape == (2, model.out_channels, 8, 8)


def test_a_real_model_keeps_its_own_where_weights_have_none():
    original, model = lively("uvit_ti_2"), ditzoo.create("uvit_ti_2", in_channels=2, num_classes=12)
    own = copy.deepcopy(model.state_dict())
    with no_draws():
        result = load_weights(model, original.state_dict(), source=original.config)
    assert set(result.reinitialized) == {"patch_embed.proj.weight", "decoder_pred.weight", "decoder_pred.bias"}
    for key in result.reinitialized:
        assert torch.equal(model.state_dict()[key], own[key])
    assert torch.equal(label_table(model)[10:12], own["label_emb.weight"][10:12])


# All together.

OPTIONS = st.fixed_dictionaries(
    {
        "num_classes": st.sampled_from([0, 1, 2, 3, 7]),
        "class_dropout_prob": st.sampled_from([0.0, 0.2]),
        "in_channels": st.sampled_from([1, 3]),
        "input_size": st.sampled_from([4, 8, 12]),
    }
)


@settings(max_examples=40)
@given(st.sampled_from(TINY), OPTIONS, OPTIONS)
def test_every_tensor_is_accounted_for(name, before, after):
    original = lively(name, **before)
    model, result = adapted(original, name, **after)
    state, file = model.state_dict(), original.state_dict()
    assert sorted([*result.kept, *result.resized, *result.reinitialized]) == sorted(state)
    assert sorted([*result.kept, *result.resized, *result.dropped]) == sorted(file)
    for key in result.kept:
        assert torch.equal(state[key], file[key])
    assert all(value.dtype == torch.float32 and not value.is_meta for value in state.values())
    if original.num_classes and model.num_classes:
        kept = min(original.num_classes, model.num_classes)
        assert torch.equal(label_table(model)[:kept], label_table(original)[:kept])
        if original.null_label is not None and model.null_label is not None:
            assert torch.equal(label_table(model)[-1], label_table(original)[-1])
    x, t, y = inputs(model)
    assert torch.isfinite(run(model, x, t, y)).all()


# The network of the file, when its options are not quite those given.


@pytest.mark.parametrize("name", WITH_LABELS)
def test_shapes_tell_what_source_does_not(name):
    """A file of five classes in two channels, taken for one of ten in one."""
    original = lively(name, num_classes=5, in_channels=2, input_size=12 if "unet" not in name else 8)
    model = on_meta(name, num_classes=7, in_channels=2)
    result = load_weights(model, original.state_dict(), source=ditzoo.model_info(name).config)
    assert torch.equal(label_table(model)[[0, 4, 7]], label_table(original)[[0, 4, 5]])
    assert (result.reinitialized, result.dropped) == ((), ())
    assert "rows of 5 classes and the null label kept, 2 more drawn" in result.resized[model.label_table]


def test_a_missing_null_label_is_likelier_than_one_class_less():
    original = lively("dit_ti_2", class_dropout_prob=0.0)
    model = on_meta("dit_ti_2", num_classes=12)
    load_weights(model, original.state_dict(), source=ditzoo.model_info("dit_ti_2").config)
    assert torch.equal(label_table(model)[:10], label_table(original))


def test_shapes_of_the_model_itself_need_no_source():
    """Eleven classes without a null label have as many rows as ten with one."""
    original = lively("dit_ti_2", num_classes=11, class_dropout_prob=0.0, input_size=12)
    model = on_meta("dit_ti_2", num_classes=11, class_dropout_prob=0.0, input_size=12)
    result = load_weights(model, original.state_dict(), source=ditzoo.model_info("dit_ti_2").config)
    assert result.is_exact
    assert torch.equal(label_table(model), label_table(original))


def test_a_claim_beyond_the_file_is_refused_before_memory_is_asked_for():
    original = lively("uvit_ti_2")
    state = original.state_dict()
    state["pos_embed"] = torch.zeros(1).expand(1, 2 + 10**8, 96)
    with pytest.raises(ValueError, match=r"pos_embed claims 1x100000002x96 values, which the file does not hold"):
        load_weights(on_meta("uvit_ti_2"), state, source=original.config)


def test_a_table_refused_late_changes_nothing():
    original, model = lively("mdt_ti_2"), ditzoo.create("mdt_ti_2", num_classes=12, input_size=16)
    own, state = copy.deepcopy(model.state_dict()), original.state_dict()
    name = [key for key, table in model.position_tables().items() if table.kind == "relative"][-1]
    state[name] = torch.zeros(1).expand(state[name].shape)
    with pytest.raises(ValueError, match=f"{name} claims 52x4 values"):
        load_weights(model, state, source=original.config)
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
