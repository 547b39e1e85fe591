"""Inputs of another size than the trained one: what becomes of the position tables. Windowed attention has none that
depend on the size; `test_diffit_unet.py` has its windows."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ditzoo import random_token_mask
from ditzoo.layers import RelativePositionBias
from tests.golden_cases import relative_error
from tests.zoo import MASKED, PLAIN, TINY, inputs, lively, reached, resize_to_nearest

GRIDS = [(8, 8), (4, 8), (8, 4), (2, 6), (3, 3), (1, 1)]


def sincos(width, rows, columns, scale):
    """The sin-cos table entry by entry: columns before rows, sines before cosines."""
    quarter = width // 4
    omega = [10000 ** (-k / quarter) for k in range(quarter)]
    table = torch.empty(rows, columns, width, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            phases = [torch.tensor(omega, dtype=torch.float64) * v for v in (j * scale[1], i * scale[0])]
            table[i, j] = torch.cat([f(phase) for phase in phases for f in (torch.sin, torch.cos)])
    return table.flatten(0, 1)[None].float()


def resized(table, old, new, mode):
    """A (..., rows * columns, width) table as an image of another size."""
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    return F.interpolate(image, size=new, mode=mode, align_corners=False).flatten(2).transpose(1, 2)


def made_for(model, grid):
    """A copy that has the expected tables for `grid` as its own and takes them as they are."""
    other, old = copy.deepcopy(model), model.grid
    other.grid = grid
    if not model.pos_embed.requires_grad:  # frozen: computed anew, with coordinates scaled to the trained grid
        scale = old[0] / grid[0], old[1] / grid[1]
        other.pos_embed.data = sincos(model.hidden_size, *grid, scale)
    else:  # learned: bicubic, extra tokens untouched
        for name in {"pos_embed", "decoder_pos_embed"} & set(dict(model.named_parameters())):
            extra, patches = getattr(model, name).data.tensor_split([model.num_extra_tokens], dim=1)
            getattr(other, name).data = torch.cat([extra, resized(patches, old, grid, "bicubic")], dim=1)
    for module in other.modules():  # relative: bilinear over the offsets, spare rows untouched
        if isinstance(module, RelativePositionBias):
            offsets = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (old, grid)]
            table = module.relative_position_bias_table.data
            table, spare = table.tensor_split([offsets[0][0] * offsets[0][1]])
            table = resized(table, *offsets, "bilinear")[0]
            module.relative_position_bias_table.data = torch.cat([table, spare])
            module.grid = grid
    return other


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("grid", GRIDS)
def test_tables_are_resized_as_each_kind_asks_for(name, grid):
    model = lively(name)
    x, t, y = inputs(model, 2, *(2 * side for side in grid))
    assert relative_error(model(x, t, y), made_for(model, grid)(x, t, y)) < 1e-5


@pytest.mark.parametrize("name", PLAIN)
def test_the_comparison_notices_tables_that_are_not_resized(name):
    model = lively(name)
    x, t, y = inputs(model, 2, 8, 16)
    transposed = made_for(model, (8, 4))
    transposed.grid = (4, 8)
    for module in transposed.modules():
        if isinstance(module, RelativePositionBias):
            module.grid = (4, 8)
    assert relative_error(transposed(x, t, y), model(x, t, y)) > 1e-3


@pytest.mark.parametrize("kind", ["frozen", "learned", "relative"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_comparison_notices_nearest_neighbours(name, kind, monkeypatch):
    model = lively(name)
    x, t, y = inputs(model, 2, 16, 16)
    expected = made_for(model, (8, 8))(x, t, y)
    tables = {"learned" if model.pos_embed.requires_grad else "frozen"}
    tables |= {"relative" for module in model.modules() if isinstance(module, RelativePositionBias)}
    resize_to_nearest(monkeypatch, kind)
    error = relative_error(model(x, t, y), expected)
    assert error > 1e-4 if kind in tables else error < 1e-5


@pytest.mark.parametrize("name", PLAIN)
def test_at_the_trained_size_the_tables_are_used_as_they_are(name):
    model = lively(name)
    given = inputs(model)
    assert torch.equal(model(*given), made_for(model, model.grid)(*given))


@pytest.mark.parametrize("name", TINY)
def test_resizing_leaves_the_weights_alone(name):
    model = lively(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(*inputs(model, 2, 16, 4))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", TINY)
def test_resized_tables_are_trained(name):
    model = lively(name).double()
    model(*inputs(model, 2, 16, 4)).square().sum().backward()
    tables = {n for n in model.no_weight_decay() if "pos" in n and not n.startswith("sideblocks")}
    assert tables
    assert tables & reached(model) == {table for table in tables if model.get_parameter(table).requires_grad}


@pytest.mark.parametrize("name", TINY)
def test_half_precision_tables_resize_too(name):
    model = lively(name)
    given = inputs(model, 2, 12, 4)
    x, t, y = given
    assert relative_error(model.bfloat16()(x.bfloat16(), t, y).float(), lively(name)(*given)) < 0.05


@pytest.mark.parametrize("name", MASKED)
def test_masks_cover_other_sizes(name):
    model = lively(name)
    x, t, y = inputs(model, 2, 16, 8)
    mask = random_token_mask(2, 32, 0.4)
    output = model(x, t, y, mask=mask)
    assert relative_error(output, made_for(model, (8, 4))(x, t, y, mask=mask)) < 1e-5
