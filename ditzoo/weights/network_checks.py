"""Checks of a network without weights: its size, its cost, and its arithmetic on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ditzoo.metrics import count_macs
from ditzoo.models import DiffusionTransformer
from ditzoo.weights.checks import Check, compare, message
from ditzoo.weights.golden import GoldenCase, cases_of, golden_errors
from ditzoo.weights.published import agrees, allowance, official_count, published_cost

#: Difference from the official float32 outputs that half precision may make, over their largest value. It rounds to
#: 8 and 11 bits, 0.4 % and 0.05 % at a time.
HALF_PRECISION = {torch.bfloat16: 0.05, torch.float16: 0.01}


def network_checks(name: str, model: DiffusionTransformer) -> Iterator[Check]:
    config = model.config
    shape = f"{config['in_channels']}x{config['input_size']}x{config['input_size']}"
    yield Check("network", "note", f"{type(model).__name__} for {shape} inputs")
    yield _parameter_check(name, model)
    official, keys = official_count(name), len(model.state_dict())
    # The originals keep one constant index beside every relative-position table.
    buffers = sum(key.endswith("relative_position_bias_table") for key in model.state_dict())
    buffers *= bool(model.constant_buffers)
    if official is None:
        yield Check("state-dict names", "note", f"{keys:,}", "no official number")
    else:
        found = f"{keys:,}" + (f" and {buffers} constant buffers" if buffers else "")
        good = keys + buffers == official.keys
        yield compare("state-dict names", good, found, f"{official.keys:,} in all", source=official.source)
    yield _cost_check(name, model)


def _parameter_check(name: str, model: DiffusionTransformer) -> Check:
    official, cost = official_count(name), published_cost(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    if official is not None:
        good = count == official.total
        return compare("parameters", good, f"{count:,}", f"{official.total:,}", source=official.source)
    if cost is not None and cost.params is not None:
        good = agrees(count / 1e6, cost.params)
        expected = f"{cost.params}M +- {allowance(cost.params):.3g}M"
        return compare("parameters", good, f"{count:,}", expected, source=cost.source)
    return Check("parameters", "note", f"{count:,}", "no official number")


def _cost_check(name: str, model: DiffusionTransformer) -> Check:
    counted, cost = count_macs(model), published_cost(name)
    if cost is None:
        return Check("GMACs", "note", f"{counted.gmacs:.4g}", "no published figure")
    gmacs = counted.gmacs if cost.attention else counted.gmacs_without_attention
    without = "" if cost.attention else " without attention products"
    found, expected = f"{gmacs:.2f}{without}", f"{cost.gmacs} +- {allowance(cost.gmacs):.3g}"
    return compare("GMACs", agrees(gmacs, cost.gmacs), found, expected, source=cost.source)


def golden_checks(model: DiffusionTransformer, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    cases = cases_of(type(model))
    if not cases:
        missing = "outputs of it are recorded" if model.has_original else "implementation of it exists"
        found = f"none for class {type(model).__name__}"
        yield Check("golden forward", "note", found, details=f"no official {missing}")
        return
    conditioning = model.config.get("conditioning", "adaln_zero")
    if conditioning != "adaln_zero":
        details = "no official implementation of it exists"
        yield Check("golden forward", "note", f"none for conditioning {conditioning!r}", details=details)
        return
    for case in cases:
        yield _golden_check(case, device, dtype)


def _golden_check(case: GoldenCase, device: torch.device, dtype: torch.dtype) -> Check:
    row = f"golden {case.name}"
    bound = HALF_PRECISION.get(dtype, case.tolerance)
    try:
        with _full_float32():
            errors = golden_errors(case, device, dtype)
    except (RuntimeError, ValueError, TypeError) as error:
        found = f"stopped by a {type(error).__name__}"
        return Check(row, "FAIL", found, "the official outputs", message(error), case.source)
    worst = max(errors, key=lambda output: math.inf if math.isnan(errors[output]) else errors[output])
    return compare(
        row,
        errors[worst] <= bound,
        f"differs by {errors[worst]:.1e} ({worst})",
        f"at most {bound:g} of the largest",
        source=case.source,
    )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Float32 products in float32: on some GPUs PyTorch rounds the factors to 11 bits (TF32) where it may."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
