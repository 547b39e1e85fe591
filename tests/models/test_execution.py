"""The same numbers however a model is run: checkpointed, loaded, copied, in half precision, exported, compiled."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ditzoo
from ditzoo import TokenMask, random_token_mask
from tests.golden_cases import CASES, golden_case, relative_error
from tests.zoo import MASKED, PASSES, TINY, inputs, lively, of_depth, on_meta, shallow


#: (name, whether with a mask)
def masks(model, masked, batch=2):
    return {"mask": random_token_mask(batch, model.num_tokens(), 0.3)} if masked else {}


@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_gradient_checkpointing_gives_the_same_bits_and_runs_every_block_twice(name, masked):
    model = lively(name)
    given, mask = inputs(model), masks(model, masked)
    results = []
    for enable in (False, True):
        runs = Counter()
        handles = [
            model.get_submodule(f"{block}.attn").register_forward_hook(
                lambda module, args, output, block=block, runs=runs: runs.update([block])
            )
            for block in model.block_names()
        ]
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        output = model(*given, **mask)
        output.square().sum().backward()
        results.append((output, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        assert runs == dict.fromkeys(model.block_names(), 1 + enable)
        for handle in handles:
            handle.remove()
    (plain, gradients), (checkpointed, others) = results
    assert torch.equal(plain, checkpointed)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


@pytest.mark.parametrize("name", TINY)
def test_gradient_checkpointing_can_be_switched_off_again_and_costs_nothing_without_gradients(name):
    model = lively(name)
    given = inputs(model)
    model.set_grad_checkpointing()
    with torch.no_grad():
        without = model(*given)
    model.set_grad_checkpointing(False)
    assert not model.grad_checkpointing
    with torch.no_grad():
        assert torch.equal(model(*given), without)


@pytest.mark.parametrize("name", TINY)
def test_a_model_without_memory_takes_over_loaded_weights(name):
    model, empty = lively(name), on_meta(name)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    frozen = [{n for n, p in m.named_parameters() if not p.requires_grad} for m in (model, empty)]
    assert frozen[0] == frozen[1]
    assert torch.equal(empty(*inputs(model)), model(*inputs(model)))


@pytest.mark.parametrize("case", ["mdtv2", "diffit"])
def test_a_model_without_memory_takes_over_an_official_state_dict(case):
    case = golden_case(case)
    with torch.device("meta"):
        model = case.model_cls(**case.options)
    model.load_state_dict(case.state, strict=True, assign=True)
    output = model(case["in.x"], case["in.t"], case["in.y"])
    assert relative_error(output, case["out.forward"]) < case.tolerance()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(name, how):
    model = lively(name)
    model.set_grad_checkpointing()
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    given = inputs(model)
    assert (other.config, other.grad_checkpointing) == (model.config, True)
    assert torch.equal(other(*given), model(*given))
    before = model(*given)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.config["mlp_ratio"] = 99
    assert torch.equal(model(*given), before)
    assert model.config["mlp_ratio"] != 99


@pytest.mark.parametrize("case", [case for case in CASES if golden_case(case).model_cls.constant_buffers])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_load_official_state_dicts_after_the_original_is_gone(case, how):
    case = golden_case(case)
    model = case.model_cls(**case.options)
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    del model
    other.load_state_dict(case.state, strict=True)
    output = other(case["in.x"], case["in.t"], case["in.y"])
    assert relative_error(output, case["out.forward"]) < case.tolerance()


# bfloat16 has 8 bits of precision, 0.4 % at each rounding; over these few blocks less than 3 % of the largest value.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_half_precision_weights(name, masked, dtype, tolerance):
    model = lively(name)
    (x, t, y), mask = inputs(model), masks(model, masked)
    expected = model(x, t, y, **mask)
    output = model.to(dtype)(x.to(dtype), t, y, **mask)
    assert output.dtype == dtype
    assert relative_error(output, expected) < tolerance


@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_autocast_computes_in_half_precision_and_keeps_gradients_in_full(name, masked):
    model = lively(name)
    given, mask = inputs(model), masks(model, masked)
    expected = model(*given, **mask)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*given, **mask)
        loss = output.float().square().mean()
    loss.backward()
    assert output.dtype == torch.bfloat16
    assert relative_error(output, expected) < 0.03
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_float64_is_float64_throughout(name, masked):
    model = lively(name)
    (x, t, y), mask = inputs(model), masks(model, masked)
    expected = model(x, t, y, **mask)
    output = model.double()(x.double(), t, y, **mask)
    assert output.dtype == torch.float64
    assert relative_error(output, expected) < 1e-5


@pytest.mark.parametrize("name", TINY)
def test_channels_last_inputs_and_other_strides(name):
    model = lively(name, in_channels=3)
    x, t, y = inputs(model)
    expected = model(x, t, y)
    assert relative_error(model(x.contiguous(memory_format=torch.channels_last), t, y), expected) < 1e-5
    assert relative_error(model(x.mT.contiguous().mT, t, y), expected) < 1e-5


@pytest.mark.parametrize("name", TINY)
def test_an_empty_batch_gives_an_empty_output(name):
    model = lively(name)
    x, t, y = inputs(model)
    assert model(x[:0], t[:0], y[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_export_gives_the_same_numbers_for_any_batch(name, masked):
    model = lively(name, **shallow(name)).eval()
    given, mask = inputs(model, 3), masks(model, masked, 3)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {key: {0: batch} for key in "xty"}
    if masked:
        shapes["mask"] = TokenMask(*[{0: batch}] * 3)
    program = torch.export.export(model, given, mask, dynamic_shapes=shapes)
    given, mask = inputs(model, 5), masks(model, masked, 5)
    assert relative_error(program.module()(*given, **mask), model(*given, **mask)) < 1e-5


@pytest.mark.parametrize("name", TINY)
def test_shapes_can_be_asked_without_values(name):
    model = lively(name)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        output = model(*(mode.from_tensor(tensor) for tensor in inputs(model)))
    assert output.shape == (2, 1, 8, 8)
    meta = on_meta(name)
    assert meta(*inputs(meta)).is_meta


@pytest.mark.parametrize("name", TINY)
def test_labels_without_values_are_not_looked_at(name):
    model = on_meta(name)
    x, t, y = inputs(model)
    assert model(x, t, y + 1000).shape == x.shape


def small(name):
    """Three blocks are enough to compile, and as few as hold every kind."""
    return lively(name, **of_depth(name, 3), **({"decode_layer": 1} if name in MASKED else {}))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (12, 16)])
@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_the_whole_graph_is_captured_with_its_gradients(name, masked, size):
    torch._dynamo.reset()
    model = small(name)
    model.set_grad_checkpointing(size != (8, 8))
    given = inputs(model, 2, *size)
    mask = {"mask": random_token_mask(2, model.num_tokens(*size), 0.3)} if masked else {}
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    output, expected = compiled(*given, **mask), model(*given, **mask)
    assert relative_error(output, expected) < 1e-5
    output.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad.abs().max() > 0:
            assert relative_error(ours.grad, theirs.grad) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_compiled_code_gives_the_same_numbers(name):
    torch._dynamo.reset()
    model = small(name).eval()
    given = inputs(model)
    with torch.no_grad():
        output = torch.compile(copy.deepcopy(model), fullgraph=True)(*given)
        assert relative_error(output, model(*given)) < 1e-5


def test_models_are_created_on_the_default_device():
    with torch.device("meta"):
        assert ditzoo.create("dit_ti_2").device.type == "meta"
    assert ditzoo.create("dit_ti_2").device.type == "cpu"
