"""Fresh models start as the authors' do."""

import math

import pytest
import torch

import ditzoo
from ditzoo.layers import sincos_position_table
from ditzoo.models import MDT, DiffiTUNet, DiT, MDTv2, UViT
from tests.golden_cases import CASES, golden_case
from tests.zoo import MASKED, PASSES, TINY, enliven, inputs, lively, on_meta, reached


@pytest.mark.parametrize("case", CASES)
def test_fresh_parameters_are_distributed_as_the_official_ones(case):
    case = golden_case(case)
    fresh = dict(case.model_cls(**case.options).named_parameters())
    official = case.facts["official_init_stats"]
    assert set(fresh) == set(official)
    for name, expected in official.items():
        value = fresh[name].detach()
        assert list(value.shape) == expected["shape"], name
        assert fresh[name].requires_grad == expected["trainable"], name
        std, largest, n = float(value.std(correction=0)), float(value.abs().max()), value.numel()
        if expected["std"] == 0:  # zeros, or the ones of a layer norm
            assert (std, largest) == (0, expected["absmax"]), name
            continue
        # Two samples of n numbers: their standard deviations differ by about 1 / sqrt(n), relatively.
        assert std == pytest.approx(expected["std"], rel=5 / math.sqrt(n)), name
        if n > 500 and expected["absmax"] < 1.8 * expected["std"]:  # uniform draws all but reach their bound
            assert largest == pytest.approx(expected["absmax"], rel=20 / n), name


@pytest.mark.parametrize(
    ("case", "table"), [(case, key) for case in CASES for key in golden_case(case).tensors if key.startswith("init.")]
)
def test_position_tables_start_at_the_official_one(case, table):
    case, name = golden_case(case), table.removeprefix("init.")
    fresh = getattr(case.model_cls(**case.options), name)
    assert fresh.requires_grad == case.facts["official_init_stats"][name]["trainable"]
    torch.testing.assert_close(fresh.data, case[table], rtol=0, atol=1e-6)


def test_every_sincos_table_is_compared():
    tables = {(case, key) for case in CASES for key in golden_case(case).tensors if key.startswith("init.")}
    both = ("init.pos_embed", "init.decoder_pos_embed")
    learned = {(case, key) for case in ("mdtv1", "mdtv1_probe", "mdtv2", "mdtv2_probe") for key in both}
    frozen = {(case, both[0]) for case in ("dit", "dit_nosigma_p4", "sit", "diffit", "diffit_in64_p8")}
    assert tables == learned | frozen


@pytest.mark.parametrize("name", TINY)
def test_a_fresh_model_returns_zero_if_its_last_layer_starts_at_zero(name):
    model = ditzoo.create(name)
    output = model(*inputs(model))
    # U-ViT's authors leave no layer at zero.
    assert torch.equal(output, torch.zeros_like(output)) != isinstance(model, UViT)


@pytest.mark.parametrize("name", TINY)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(ditzoo.create(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", TINY)
def test_initialize_weights_leaves_nothing_of_what_was_there(name):
    model, empty = lively(name), on_meta(name).to_empty(device="cpu")
    for parameter in empty.parameters():
        parameter.data.fill_(torch.nan)
    for each in (model, empty):
        torch.manual_seed(3)
        each.initialize_weights()
    for key, value in empty.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("version", [MDT, MDTv2])
def test_without_a_mask_ratio_the_mask_token_is_zero_and_frozen(version):
    model = version(input_size=8, hidden_size=32, depth=4, num_heads=4, decode_layer=2, mask_ratio=None)
    assert not model.mask_token.requires_grad
    assert torch.equal(model.mask_token, torch.zeros(1, 1, 32))


def test_position_tables_follow_the_input_size_and_the_patch_size():
    model = DiT(input_size=24, patch_size=4, hidden_size=32, depth=1, num_heads=4)
    assert torch.equal(model.pos_embed.data, sincos_position_table(32, (6, 6)))


def backward(model, masked=False):
    """Gradients of a regression loss over all labels, of the plain pass and, where asked for, of a masked one."""
    batch = model.num_classes + 1
    x, t, _ = inputs(model, batch)
    y = torch.arange(batch)
    target = torch.randn(batch, model.out_channels, *x.shape[2:], dtype=model.dtype)
    model.zero_grad()
    loss = (model(x, t, y) - target).square().mean()
    if masked:
        mask = ditzoo.random_token_mask(batch, model.num_tokens(), 0.3)
        loss = loss + (model(x, t, y, mask=mask) - target).square().mean()
    loss.backward()


@pytest.mark.parametrize(("name", "masked"), PASSES)
def test_gradients_reach_every_parameter_once_gates_and_output_have_left_zero(name, masked):
    model = ditzoo.create(name).double()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    # adaLN-Zero needs two steps: the first moves only the last layer, the second the gates.
    for _ in range(2):
        backward(model, masked)
        optimizer.step()
    backward(model, masked)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    # Only a masked pass runs MDT's side-interpolater.
    unused = {n for n in trainable if n.startswith(("sideblocks.", "mask_token")) and not masked}
    assert reached(model) == trainable - unused
    assert bool(unused) == (name in MASKED and not masked)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("name", TINY)
def test_which_gradients_a_fresh_model_gets(name):
    model = ditzoo.create(name).double()
    backward(model)
    if isinstance(model, UViT):
        assert reached(model) == {n for n, _ in model.named_parameters()}
    else:  # the rest gets zeros, from gates and a last layer at zero
        last = "conv" if isinstance(model, DiffiTUNet) else "linear"
        assert reached(model) == {f"final_layer.{last}.weight", f"final_layer.{last}.bias"}
        assert reached(model) == {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("name", MASKED)
def test_spare_rows_of_the_relative_position_tables_get_no_gradient(name):
    model = enliven(ditzoo.create(name))
    backward(model, masked=True)
    tables = [p for n, p in model.named_parameters() if n.endswith("relative_position_bias_table")]
    assert len(tables) == len(model.block_names()) + 1
    for table in tables:
        assert table.shape[0] == (2 * 4 - 1) ** 2 + 3
        assert torch.equal(table.grad[-3:], torch.zeros(3, model.num_heads))
        assert table.grad[:-3].abs().amax(dim=1).min() > 0
