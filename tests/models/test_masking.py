"""Masked passes of the families that take a token mask."""

import pytest
import torch
from einops import repeat

from ditzoo import TokenMask, random_token_mask
from ditzoo.models import MDT, MDTv2
from tests.golden_cases import relative_error
from tests.zoo import MASKED, TINY, inputs, lively


def pixels(mask, grid=(4, 4), patch=2):
    """The mask as an image: (B, 1, H, W), 1 where masked."""
    return repeat(mask.mask, "b (h w) -> b 1 (h p) (w q)", h=grid[0], p=patch, q=patch)


def shuffled(mask, first, second):
    """The same mask with its kept and its masked tokens in another order."""
    kept = mask.ids_keep.shape[1]
    shuffle = mask.ids_restore.argsort(dim=1)
    shuffle = torch.cat([shuffle[:, :kept][:, first], shuffle[:, kept:][:, second]], dim=1)
    return TokenMask(shuffle[:, :kept], shuffle.argsort(dim=1), mask.mask)


def test_only_some_families_take_masks():
    assert {"mdt_ti_2", "mdtv2_ti_2"} <= set(MASKED) < set(TINY)
    for name in set(TINY) - set(MASKED):
        model = lively(name)
        with pytest.raises(ValueError, match=f"{type(model).__name__} does not take a mask"):
            model(*inputs(model), mask=random_token_mask(2, 16, 0.3))


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_hides_nothing_changes_nothing(name):
    # The tokens run shuffled, and the side-interpolater gives way to every kept token.
    model = lively(name).double()
    given = inputs(model)
    mask = random_token_mask(2, 16, 0.0)
    assert mask.ids_keep.shape == (2, 16)
    assert relative_error(model(*given, mask=mask), model(*given)) < 1e-12


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_hides_something_changes_the_whole_image(name):
    model = lively(name)
    given = inputs(model)
    difference = model(*given, mask=random_token_mask(2, 16, 0.3)) - model(*given)
    assert difference.abs().min() > 0


@pytest.mark.parametrize("name", MASKED)
def test_the_order_of_kept_and_of_masked_tokens_does_not_matter(name):
    model = lively(name).double()
    given = inputs(model)
    mask = random_token_mask(2, 16, 0.3)
    other = shuffled(mask, torch.randperm(11), torch.randperm(5))
    assert not torch.equal(mask.ids_keep, other.ids_keep)
    assert relative_error(model(*given, mask=other), model(*given, mask=mask)) < 1e-12


@pytest.mark.parametrize("name", MASKED)
def test_what_the_network_sees_of_masked_tokens(name):
    model = lively(name, depth=4, decode_layer=2)
    x, t, y = inputs(model)
    mask = random_token_mask(2, 16, 0.5)
    output, tokens = model.forward_intermediates(x.requires_grad_(), t, y, mask=mask)
    encoder = [kept for kept in tokens.values() if kept.shape[1] == 8]
    assert len(encoder) == 2
    (seen,) = torch.autograd.grad(encoder[-1].square().sum(), x, retain_graph=True)
    assert torch.equal(seen != 0, (pixels(mask) == 0).expand_as(seen))
    (seen,) = torch.autograd.grad(output.square().sum(), x)
    if isinstance(model, MDT):  # nothing: the decoder gets mask tokens in their place
        assert torch.equal(seen != 0, (pixels(mask) == 0).expand_as(seen))
    else:  # MDTv2's decoder sees the embedded input
        assert isinstance(model, MDTv2)
        assert seen.abs().min() > 0


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 16), (0.3, 11), (0.5, 8), (0.9, 1)])
def test_encoder_blocks_run_on_the_kept_tokens_only(name, ratio, kept):
    model = lively(name, depth=4, decode_layer=2)
    mask = random_token_mask(2, 16, ratio)
    tokens = model.forward_intermediates(*inputs(model), mask=mask).tokens
    lengths = [value.shape[1] for value in tokens.values()]
    assert lengths == [kept, kept, 16, 16]  # two encoder and two decoder blocks


@pytest.mark.parametrize("name", MASKED)
def test_every_sample_has_its_own_mask(name):
    model = lively(name).double()
    x, t, y = inputs(model, batch=3)
    mask = random_token_mask(3, 16, 0.3)
    assert len({tuple(row) for row in mask.mask.tolist()}) == 3
    together = model(x, t, y, mask=mask)
    alone = [
        model(x[i : i + 1], t[i : i + 1], y[i : i + 1], mask=TokenMask(*(part[i : i + 1] for part in mask)))
        for i in range(3)
    ]
    assert relative_error(torch.cat(alone), together) < 1e-12


@pytest.mark.parametrize("name", MASKED)
def test_masked_passes_work_in_half_precision(name):
    model, given, mask = lively(name), None, random_token_mask(2, 16, 0.3)
    given = x, t, y = inputs(model)
    expected = model(*given, mask=mask)
    output = model.bfloat16()(x.bfloat16(), t, y, mask=mask)
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), expected) < 0.03


@pytest.mark.parametrize("version", [MDT, MDTv2])
@pytest.mark.parametrize(("depth", "decode_layer"), [(4, 4), (4, 1), (5, 2), (1, 1)])
def test_any_split_into_encoder_and_decoder(version, depth, decode_layer):
    options = {"input_size": 8, "in_channels": 1, "hidden_size": 32, "num_heads": 4}
    model = version(**options, depth=depth, decode_layer=decode_layer)
    blocks = depth if version is MDT else (depth - decode_layer) // 2 * 2 + decode_layer
    assert len(model.block_names()) == blocks
    mask = random_token_mask(2, 16, 0.3)
    tokens = model.forward_intermediates(*inputs(model), mask=mask).tokens
    lengths = [value.shape[1] for value in tokens.values()]
    assert lengths == [11] * (blocks - decode_layer) + [16] * decode_layer


@pytest.mark.parametrize("version", [MDT, MDTv2])
def test_a_model_without_mask_ratio_runs_as_one_with_but_takes_no_mask(version):
    options = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 4, "decode_layer": 2}
    model, other = version(**options), version(**options, mask_ratio=None)
    other.load_state_dict(model.state_dict())
    given = inputs(model)
    assert torch.equal(other(*given), model(*given))
    with pytest.raises(ValueError, match=r"mask_ratio=None, which freezes its mask token; build it with a mask_ratio"):
        other(*given, mask=random_token_mask(2, 16, 0.3))


def test_only_version_2_draws_its_ratio_from_a_range():
    assert (MDT.mask_ratio_spread, MDTv2.mask_ratio_spread) == (0.0, 0.2)
    assert {lively(name).mask_ratio_spread for name in set(TINY) - set(MASKED)} == {0.0}
