"""Text and lines on a grid of characters; where lines meet, the right box character appears."""

from __future__ import annotations

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_CHARACTERS = " │││─┘┐┤─└┌├─┴┬┼"  # by the sum of the directions that a line takes from the cell
_DASHED = {"│": "┆", "─": "╌"}
_SPECIAL = "│─┘┐┤└┌├┴┬┼┆╌►◄×"  # noqa: RUF001
_ASCII = str.maketrans(_SPECIAL, "|-+++++++++:.><x")


def to_ascii(text: str) -> str:
    """The same drawing with the characters that every terminal has."""
    return text.translate(_ASCII)


def drawable(encoding: str | None) -> bool:
    """Whether an output of this encoding, such as that of `sys.stdout`, carries the drawings as they are."""
    try:
        _SPECIAL.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Canvas:
    """A grid that grows as it is drawn on. Rows count down from 0, columns to the right."""

    def __init__(self) -> None:
        self._text: dict[tuple[int, int], str] = {}
        self._lines: dict[tuple[int, int], int] = {}
        self._dashed: set[tuple[int, int]] = set()
        self._joints: set[tuple[int, int]] = set()

    @property
    def width(self) -> int:
        """Columns in use."""
        return 1 + max((column for _, column in [*self._text, *self._lines]), default=-1)

    def write(self, row: int, column: int, text: str) -> None:
        """Text from `column` on; it covers lines."""
        for place, character in enumerate(text, start=column):
            self._text[row, place] = character

    def down(self, column: int, top: int, bottom: int, dashed: bool = False) -> None:
        """A line from the middle of one cell to that of another one below."""
        for row in range(top, bottom + 1):
            self._add((row, column), (_UP if row > top else 0) | (_DOWN if row < bottom else 0), dashed)

    def across(self, row: int, left: int, right: int, dashed: bool = False) -> None:
        """A line from the middle of one cell to that of another one on the right."""
        for column in range(left, right + 1):
            self._add((row, column), (_LEFT if column > left else 0) | (_RIGHT if column < right else 0), dashed)

    def join(self, row: int, column: int) -> None:
        """Lines that cross here touch; elsewhere a line across passes below one down."""
        self._joints.add((row, column))

    def box(self, top: int, left: int, bottom: int, right: int, dashed: bool = False) -> None:
        """A frame."""
        for row in (top, bottom):
            self.across(row, left, right, dashed)
        for column in (left, right):
            self.down(column, top, bottom, dashed)

    def _add(self, cell: tuple[int, int], directions: int, dashed: bool) -> None:
        self._lines[cell] = self._lines.get(cell, 0) | directions
        if dashed:
            self._dashed.add(cell)

    def _character(self, cell: tuple[int, int]) -> str:
        if cell in self._text:
            return self._text[cell]
        directions = self._lines.get(cell, 0)
        if directions == _UP | _DOWN | _LEFT | _RIGHT and cell not in self._joints:
            directions = _UP | _DOWN
        character = _CHARACTERS[directions]
        return _DASHED.get(character, character) if cell in self._dashed else character

    def __str__(self) -> str:
        height = 1 + max((row for row, _ in [*self._text, *self._lines]), default=-1)
        width = self.width
        rows = ("".join(self._character((row, column)) for column in range(width)) for row in range(height))
        return "\n".join(row.rstrip() for row in rows)
