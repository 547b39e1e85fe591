"""Random token masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditzoo import TokenMask, random_token_mask
from ditzoo.layers import relative_position_index

batches = st.integers(1, 4)
tokens = st.integers(2, 40)
ratios = st.floats(0, 0.5)


@given(batch=batches, num_tokens=tokens, ratio=ratios)
def test_every_token_is_either_kept_or_masked(batch, num_tokens, ratio):
    mask = random_token_mask(batch, num_tokens, ratio)
    kept = int(num_tokens * (1 - ratio))
    assert mask.ids_keep.shape == (batch, kept)
    assert mask.ids_restore.shape == mask.mask.shape == (batch, num_tokens)
    assert (mask.ids_keep.dtype, mask.mask.dtype) == (torch.int64, torch.float32)
    for ids_keep, ids_restore, masked in zip(*mask, strict=True):
        assert sorted(ids_restore.tolist()) == list(range(num_tokens))
        assert set(ids_keep.tolist()) == set((masked == 0).nonzero().flatten().tolist())
        assert masked.sum() == num_tokens - kept
        # Token n stands at place ids_restore[n] of the shuffle, whose first entries are the kept ones.
        assert torch.equal(ids_restore[ids_keep], torch.arange(kept))


@given(batch=batches, num_tokens=tokens, ratio=ratios, width=st.integers(1, 5))
def test_restoring_undoes_keeping(batch, num_tokens, ratio, width):
    mask = random_token_mask(batch, num_tokens, ratio)
    x = torch.randn(batch, num_tokens, width)
    fill = torch.full((1, 1, width), 7.0)
    kept = mask.keep(x)
    assert torch.equal(kept, torch.stack([sample[ids] for sample, ids in zip(x, mask.ids_keep, strict=True)]))
    restored = mask.restore(kept, fill)
    assert torch.equal(restored, torch.where(mask.mask[..., None] == 1, fill, x))


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "kept"),
    [(16, 0.3, 11), (256, 0.3, 179), (256, 0.5, 128), (16, 0.0, 16), (16, 0.9, 1), (1024, 0.3, 716), (10, 0.99, 0)],
)
def test_how_many_tokens_are_kept(num_tokens, ratio, kept):
    if kept:
        assert random_token_mask(1, num_tokens, ratio).ids_keep.shape[1] == kept
    else:
        with pytest.raises(ValueError, match=r"mask_ratio 0\.99 keeps 0 of 10 tokens; .* leave one token or more"):
            random_token_mask(1, num_tokens, ratio)


def test_a_float32_ratio_is_computed_with_in_float32():
    # As MDTv2 draws it: 20 * (1 - ratio) rounds to 14 in float32; in float64 the same ratio leaves 13.9999998.
    ratio = torch.tensor([0.3])
    assert random_token_mask(1, 20, ratio).ids_keep.shape[1] == 14
    assert random_token_mask(1, 20, float(ratio)).ids_keep.shape[1] == 13


@pytest.mark.parametrize("ratio", [-0.01, -1.0, 1.0, 1.5])
def test_a_ratio_out_of_range_is_named(ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio {ratio} keeps .* must be at least 0"):
        random_token_mask(1, 16, ratio)


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), torch.tensor([torch.nan])], ids=repr)
def test_a_ratio_that_is_no_finite_number_is_named(ratio):
    with pytest.raises(ValueError, match=rf"^mask_ratio must be a number from 0 to below 1, got {float(ratio)}\."):
        random_token_mask(1, 16, ratio)


def test_the_lowest_noise_is_kept_in_ascending_order():
    noise = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])
    mask = random_token_mask(2, 4, 0.5, noise=noise)
    assert mask.ids_keep.tolist() == [[1, 3], [0, 1]]
    assert mask.ids_restore.tolist() == [[3, 0, 2, 1], [0, 1, 2, 3]]
    assert mask.mask.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise has shape \(2, 5\), expected \(2, 4\)"):
        random_token_mask(2, 4, 0.5, noise=torch.rand(2, 5))


def test_the_same_generator_gives_the_same_mask_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first, second, third = (
        random_token_mask(3, 16, 0.3, generator=torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.mask, third.mask)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_token_is_masked_equally_often():
    share = random_token_mask(20_000, 10, 0.3).mask.mean(dim=0)
    assert share.tolist() == pytest.approx([0.3] * 10, abs=0.02)


def test_pairs_of_kept_tokens():
    mask = TokenMask(torch.tensor([[2, 0], [1, 3]]), torch.empty(0), torch.empty(0))
    index = relative_position_index(2, 2)
    pairs = mask.keep_pairs(index)
    assert pairs.tolist() == [
        [[index[2, 2], index[2, 0]], [index[0, 2], index[0, 0]]],
        [[index[1, 1], index[1, 3]], [index[3, 1], index[3, 3]]],
    ]


def test_the_mask_lies_where_its_noise_lies():
    mask = random_token_mask(2, 4, 0.5, noise=torch.empty(2, 4, device="meta"))
    assert {part.device.type for part in mask} == {"meta"}
    assert random_token_mask(2, 4, 0.5, device="meta").mask.is_meta
