"""Position tables against their formulas, and at other sizes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditzoo.layers import (
    frozen_positions,
    relative_position_index,
    resize_position_table,
    resize_relative_position_table,
    sincos_position_table,
)

sides = st.integers(1, 7)


@given(rows=sides, columns=sides, quarter=st.integers(1, 6), data=st.data())
def test_every_entry_of_the_sincos_table(rows, columns, quarter, data):
    table = sincos_position_table(4 * quarter, (rows, columns))
    assert table.shape == (1, rows * columns, 4 * quarter)
    assert table.dtype == torch.float32
    i = data.draw(st.integers(0, rows - 1))
    j = data.draw(st.integers(0, columns - 1))
    k = data.draw(st.integers(0, quarter - 1))
    omega = 10000 ** (-k / quarter)
    token = table[0, i * columns + j]
    # The first half is the column's, the second the row's; in each the sines stand first.
    expected = [math.sin(j * omega), math.cos(j * omega), math.sin(i * omega), math.cos(i * omega)]
    assert token[k::quarter].tolist() == pytest.approx(expected, abs=1e-7)


def test_a_small_sincos_table_by_value():
    table = sincos_position_table(4, (2, 2))[0]
    sin, cos = math.sin(1), math.cos(1)
    expected = torch.tensor([[0, 1, 0, 1], [sin, cos, 0, 1], [0, 1, sin, cos], [sin, cos, sin, cos]])
    torch.testing.assert_close(table, expected)


def test_the_sincos_table_has_values_under_the_meta_device():
    with torch.device("meta"):
        table = sincos_position_table(8, (3, 3))
    assert torch.equal(table, sincos_position_table(8, (3, 3)))


@given(rows=sides, columns=sides, factor=st.integers(2, 4))
def test_on_a_finer_grid_every_nth_position_is_the_trained_one(rows, columns, factor):
    trained = sincos_position_table(16, (rows, columns))
    finer = sincos_position_table(16, (factor * rows, factor * columns), (rows, columns))
    kept = finer.view(factor * rows, factor * columns, 16)[::factor, ::factor]
    torch.testing.assert_close(kept.reshape(trained.shape), trained, rtol=0, atol=1e-6)


def test_rows_and_columns_are_scaled_apart():
    table = sincos_position_table(4, (2, 8), (4, 4)).view(2, 8, 4)
    assert table[1, 0].tolist() == pytest.approx([0, 1, math.sin(2), math.cos(2)])
    assert table[0, 1].tolist() == pytest.approx([math.sin(0.5), math.cos(0.5), 0, 1])


def test_frozen_positions_are_the_table_itself_on_the_trained_grid():
    table = torch.randn(1, 6, 8, dtype=torch.float64)
    assert frozen_positions(table, (2, 3), (2, 3)) is table
    other = frozen_positions(table, (2, 3), (3, 2))
    assert other.dtype == torch.float64
    assert torch.equal(other, sincos_position_table(8, (3, 2), (2, 3)).double())


def test_learned_positions_are_themselves_on_the_same_grid():
    table = torch.randn(1, 6, 8)
    assert resize_position_table(table, (2, 3), (2, 3)) is table


@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides))
def test_resized_constants_stay_constant(old, new):
    table = torch.tensor([1.0, -2.0, 3.0, 0.5]).expand(1, old[0] * old[1], 4)
    resized = resize_position_table(table, old, new)
    assert resized.shape == (1, new[0] * new[1], 4)
    torch.testing.assert_close(resized, table[:, :1].expand_as(resized))


def cubic(old, new):
    """(new, old) weights of bicubic interpolation along one side, with the usual a = -0.75 and clamped borders."""
    a, weights = -0.75, torch.zeros(new, old, dtype=torch.float64)
    for target in range(new):
        source = (target + 0.5) * old / new - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            d = abs(source - tap)
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[target, min(max(tap, 0), old - 1)] += weight
    return weights


@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides))
def test_learned_positions_are_interpolated_bicubically(old, new):
    table = torch.randn(1, old[0] * old[1], 4)
    image = table.double().view(*old, 4)
    expected = torch.einsum("Hh,Ww,hwd->HWd", cubic(old[0], new[0]), cubic(old[1], new[1]), image)
    resized = resize_position_table(table, old, new)
    torch.testing.assert_close(resized, expected.flatten(0, 1)[None].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_resizing_keeps_the_dtype(dtype):
    assert resize_position_table(torch.randn(1, 4, 4).to(dtype), (2, 2), (3, 3)).dtype == dtype
    table = torch.randn(9, 2).to(dtype)
    assert resize_relative_position_table(table, (2, 2), (3, 3)).dtype == dtype


@given(rows=sides, columns=sides)
def test_relative_position_index_formula(rows, columns):
    index = relative_position_index(rows, columns)
    assert index.dtype == torch.int64
    expected = [
        [(i - k + rows - 1) * (2 * columns - 1) + (j - m + columns - 1) for k in range(rows) for m in range(columns)]
        for i in range(rows)
        for j in range(columns)
    ]
    assert index.tolist() == expected
    assert set(index.flatten().tolist()) == set(range((2 * rows - 1) * (2 * columns - 1)))


def offsets(grid):
    return torch.stack(
        torch.meshgrid(
            torch.arange(1 - grid[0], grid[0]).float(), torch.arange(1 - grid[1], grid[1]).float(), indexing="ij"
        ),
        dim=-1,
    ).flatten(0, 1)


@given(grid=st.tuples(sides, sides), spare=st.integers(0, 3))
def test_a_relative_table_is_itself_on_the_same_grid(grid, spare):
    table = torch.randn((2 * grid[0] - 1) * (2 * grid[1] - 1) + spare, 4)
    torch.testing.assert_close(resize_relative_position_table(table, grid, grid), table)


@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides), spare=st.integers(0, 3))
def test_a_resized_relative_table_keeps_its_centre_its_symmetry_and_its_spare_rows(old, new, spare):
    entries, other = ((2 * g[0] - 1) * (2 * g[1] - 1) for g in (old, new))
    table = torch.randn(entries + spare, 3)
    resized = resize_relative_position_table(table, old, new)
    assert resized.shape == (other + spare, 3)
    assert torch.equal(resized[other:], table[entries:])
    # Sizes are odd, so offset zero lies in the middle of both.
    torch.testing.assert_close(resized[other // 2], table[entries // 2], rtol=1e-4, atol=1e-5)
    mirrored = torch.cat([table[:entries].flip(0), table[entries:]])
    expected = torch.cat([resized[:other].flip(0), resized[other:]])
    torch.testing.assert_close(resize_relative_position_table(mirrored, old, new), expected, rtol=1e-4, atol=1e-5)


def test_a_relative_table_of_slopes_is_stretched_over_the_new_offsets():
    resized = resize_relative_position_table(offsets((4, 4)), (4, 4), (8, 8)).view(15, 15, 2)
    # 15 offsets span what 7 did; bilinear interpolation reproduces straight lines away from the border.
    expected = torch.arange(-6.0, 7.0) * 7 / 15
    torch.testing.assert_close(resized[1:-1, 7, 0], expected)
    torch.testing.assert_close(resized[7, 1:-1, 1], expected)
    assert (resized[7, 7] == 0).all()
