"""Position tables: fixed sin-cos, learned, and relative; and what becomes of them at another size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def sincos_position_table(
    hidden_size: int, grid: tuple[int, int], trained_grid: tuple[int, int] | None = None
) -> Tensor:
    """The fixed 2-D sin-cos table of DiT and MAE (arXiv:2111.06377, appendix A.1).

    The first half of the channels encodes the column and the second half the row; in each half the
    sines stand before the cosines. Evaluated in float64, returned in float32, on the CPU.

    Args:
        hidden_size: D, divisible by 4.
        grid: rows and columns of tokens.
        trained_grid: scale the coordinates so that `grid` spans this one; None leaves them as they are.

    Returns:
        (1, rows * columns, D) float32.
    """
    # The device is explicit because the table must have values under a meta device context as well, and
    # float64 does not exist on every accelerator.
    kwargs = {"dtype": torch.float64, "device": "cpu"}
    rows, columns = (torch.arange(n, **kwargs) for n in grid)  # type: ignore[call-overload]
    if trained_grid is not None:
        rows, columns = rows * (trained_grid[0] / grid[0]), columns * (trained_grid[1] / grid[1])
    quarter = hidden_size // 4
    omega = 10000.0 ** (-torch.arange(quarter, **kwargs) / quarter)  # type: ignore[call-overload]
    column_phase = (columns[None, :, None] * omega).expand(grid[0], -1, -1)  # (rows, columns, D/4)
    row_phase = (rows[:, None, None] * omega).expand(-1, grid[1], -1)  # (rows, columns, D/4)
    table = torch.cat([column_phase.sin(), column_phase.cos(), row_phase.sin(), row_phase.cos()], dim=-1)
    return rearrange(table, "h w d -> 1 (h w) d").float()


def frozen_positions(table: Tensor, trained_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The sin-cos table for `grid`: `table` itself on the trained grid, elsewhere computed anew with the
    coordinates scaled to the trained grid. (1, N, D)."""
    if grid == trained_grid:
        return table
    return sincos_position_table(table.shape[-1], grid, trained_grid).to(table)


def resize_position_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a learned (1, old rows * old columns, D) table to the `new` grid, bicubically."""
    if old == new:
        return table
    image = rearrange(table, "1 (h w) d -> 1 d h w", h=old[0], w=old[1])
    # Interpolated in float32: half precision has no bicubic kernel on every device.
    resized = F.interpolate(image.float(), size=new, mode="bicubic", align_corners=False)
    return rearrange(resized, "1 d h w -> 1 (h w) d").to(table.dtype)


def relative_position_index(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Which row of a relative-position table belongs to each pair of tokens.

    Token (i, j) attending to token (k, l) uses row (i - k + rows - 1) * (2 * columns - 1)
    + (j - l + columns - 1).

    Returns:
        (rows * columns, rows * columns) int64, queries first.
    """
    i = torch.arange(rows, device=device).repeat_interleave(columns)  # (N,)
    j = torch.arange(columns, device=device).repeat(rows)  # (N,)
    row_offset = i[:, None] - i[None, :] + rows - 1
    column_offset = j[:, None] - j[None, :] + columns - 1
    return row_offset * (2 * columns - 1) + column_offset


def resize_relative_position_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a ((2h - 1) * (2w - 1) + spare, H) table from grid `old` to grid `new`.

    Bilinear over the two-dimensional offsets, so that offset zero stays where it is; spare rows at the
    end are kept as they are.
    """
    height, width = (2 * n - 1 for n in old)
    offsets, spare = table[: height * width], table[height * width :]
    image = rearrange(offsets, "(h w) n -> 1 n h w", h=height)
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    resized = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False)
    return torch.cat([rearrange(resized, "1 n h w -> (h w) n").to(table.dtype), spare])
