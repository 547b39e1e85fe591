"""Arguments of a forward that do not fit: every family names what it got and what it takes."""

import re

import pytest
import torch

from ditzoo import random_token_mask
from tests.zoo import MASKED, TINY, inputs, lively

#: of a plain transformer and of a U shape
DIVISOR = "(patch_size|the total downsampling)"


def wrong_inputs(x, t, y):
    """What may be wrong with the inputs of a tiny model: 8x8x1, ten classes and the null label."""
    return {
        "height": ((x[:, :, :7], t, y), ValueError, rf"7x8 is not divisible by {DIVISOR} 2; .*8x8"),
        "width": ((x[..., :5], t, y), ValueError, rf"8x5 is not divisible by {DIVISOR} 2; .*8x4"),
        "channels": ((x.repeat(1, 3, 1, 1), t, y), ValueError, r"\(B, 1, H, W\), got \(2, 3, 8, 8\).*in_channels="),
        "no batch": ((x[0], t, y), ValueError, r"\(B, 1, H, W\), got \(1, 8, 8\)"),
        "list x": (([[0.0]], t, y), TypeError, "x must be a floating-point tensor, got list"),
        "integer x": ((x.long(), t, y), TypeError, r"x must be a floating-point tensor, got torch\.int64"),
        "number t": ((x, 5, y), TypeError, "t must be a tensor of one time a sample, got 5"),
        "scalar t": ((x, t[0], y), ValueError, r"t has shape \(\); give one time a sample: \(2,\)"),
        "one t": ((x, t[:1], y), ValueError, r"t has shape \(1,\); give one time a sample: \(2,\)"),
        "column of t": ((x, t[:, None], y), ValueError, r"t has shape \(2, 1\); give one time a sample"),
        "large label": ((x, t, y.clone().fill_(11)), ValueError, r"label 11 is out of range: .* 0 to 10 \(10 is"),
        "negative label": ((x, t, y - 11), ValueError, r"label -\d+ is out of range: .* labels from 0 to 10"),
        "float label": ((x, t, y.float()), TypeError, r"y must be int64, got torch\.float32; use y\.long\(\)"),
        "int32 label": ((x, t, y.int()), TypeError, r"y must be int64, got torch\.int32; use y\.long\(\)"),
        "list of labels": ((x, t, [1, 2]), TypeError, r"y must be an int64 tensor, got list; use torch\.tensor"),
        "one label": ((x, t, y[:1]), ValueError, r"y has shape \(1,\); give one label a sample: \(2,\)"),
        "one-hot": ((x, t, torch.eye(10, dtype=torch.int64)[:2]), ValueError, r"y has shape \(2, 10\); give one"),
        "no label": ((x, t, None), ValueError, r"y is missing: .* conditioned on 10 classes; .*num_classes=0"),
    }


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("what", wrong_inputs(*(torch.ones(2, 1, 8, 8), torch.ones(2), torch.ones(2).long())))
def test_a_wrong_input_is_named(name, what):
    model = lively(name)
    given, error, message = wrong_inputs(*inputs(model))[what]
    with pytest.raises(error, match=message) as caught:
        model(*given)
    assert re.search(rf"\b{type(model).__name__}\b", str(caught.value))


@pytest.mark.parametrize("name", TINY)
def test_an_unconditional_model_takes_no_labels(name):
    model = lively(name, num_classes=0)
    x, t, _ = inputs(model)
    with pytest.raises(ValueError, match=r"is unconditional \(num_classes=0\) and takes no y"):
        model(x, t, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", sorted(set(TINY) - set(MASKED)))
def test_a_mask_for_a_family_without_masks(name):
    model = lively(name)
    message = rf"^{type(model).__name__} does not take a mask \(its supports_masking is False\); call it without mask="
    with pytest.raises(ValueError, match=message):
        model(*inputs(model), mask=random_token_mask(2, 16, 0.3))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            random_token_mask(2, 64, 0.3),
            ValueError,
            r"covers \(2, 64\) tokens, but x has \(2, 16\); .*\(2, 16, ratio\)",
        ),
        (random_token_mask(3, 16, 0.3), ValueError, r"covers \(3, 16\) tokens, but x has \(2, 16\)"),
        (torch.zeros(2, 16), TypeError, r"is a Tensor; make a TokenMask with ditzoo\.random_token_mask"),
        (0.3, TypeError, r"is a float; make a TokenMask"),
    ],
)
def test_a_wrong_mask(name, mask, error, message):
    model = lively(name)
    with pytest.raises(error, match=f"^{type(model).__name__}: mask {message}"):
        model(*inputs(model), mask=mask)


def test_an_empty_input_has_no_tokens():
    with pytest.raises(ValueError, match=r"input of 0x8 is not divisible by patch_size 2; .* 2x8"):
        lively("dit_ti_2").num_tokens(0, 8)
