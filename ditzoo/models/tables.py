"""Tables with a row for every place of the token grid, and what their rows stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PositionTable:
    """What the weights of another `input_size` need to know about a table of positions.

    Attributes:
        kind: `"sincos"`: (1, N, D), the fixed formula of `sincos_position_table`; computed anew. `"learned"`:
            (1, extra + N, D); resized bicubically. `"relative"`: a row for each offset between two places of the grid,
            ((2 rows - 1) * (2 columns - 1) + spare, H); resized bilinearly. `"window"`: the same for places of a
            window, whose offsets keep their meaning: those of both sizes are kept.
        grid: rows and columns.
        extra_tokens: names of the tokens whose rows stand in front of a learned table's grid; never resized.
    """

    kind: Literal["sincos", "learned", "relative", "window"]
    grid: tuple[int, int]
    extra_tokens: tuple[str, ...] = ()
