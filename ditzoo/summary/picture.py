"""A flow on a canvas: the stream from the top down, what joins it on the left, links past other layers on the right."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from torch import nn

from ditzoo.summary.canvas import Canvas
from ditzoo.summary.flow import Flow, Link, Stop, number_of, range_of
from ditzoo.summary.layers import in_words, primitives, shape_of
from ditzoo.summary.trace import Node, Value

#: columns that text leaves to a drawing; names that are longer and links make it wider
WIDTH = 88
_BOX_COLUMNS = 31
_ROW_COLUMNS = (28, 46)


@dataclass
class _Column:
    """A line down, and what stands on it, for something beside the stream."""

    texts: list[str] = field(default_factory=list)
    """centred on the line"""
    labels: list[str] = field(default_factory=list)
    """to the right of the line"""
    parents: list[_Column] = field(default_factory=list)
    """columns that this one starts from"""
    center: int = 0
    bottom: int = 0
    """first free row"""


@dataclass
class _Rail:
    """A line past other layers, for one link or for all from one box to another."""

    source: Node
    target: Node
    tail: str = ""
    """which layer of a box it leaves"""
    tip: str = ""
    """what happens on the way"""
    inside: str = ""
    """what the box says where it arrives"""
    start: tuple[int, ...] = ()
    """row and column where it leaves"""
    end: tuple[int, ...] = ()
    """row and column of its tip"""


class Picture:
    """The drawing of one flow.

    Args:
        module: whose flow it is.
        flow: what joins the stream.
        stops: the stream, equal layers grouped.
        boxed: draw layers as boxes rather than as lines of text.
        opened: layers that are drawn elsewhere, and not described here.
        plain_shapes: shapes of the nodes outside masked passes, where the flow is that of a masked one; nodes that
            are not among them only a masked pass has.

    Attributes:
        canvas: what was drawn.
        notes: what the drawing leaves unsaid.
    """

    def __init__(
        self,
        module: nn.Module,
        flow: Flow,
        stops: list[Stop],
        *,
        boxed: bool,
        opened: frozenset[Node] = frozenset(),
        plain_shapes: Mapping[Node, tuple[int, ...]] | None = None,
    ) -> None:
        self.module, self.flow, self.stops = module, flow, stops
        self.boxed, self.opened, self.plain_shapes = boxed, opened, plain_shapes
        self.canvas = Canvas()
        self.notes: list[str] = []
        self._columns: dict[Node, _Column] = {}
        self._stop_of = {node: stop for stop in stops for node in stop.nodes}
        self._rails = [rail for stop in stops for rail in self._rails_to(stop)]
        self._words = {stop.first: self._box_words(stop) for stop in stops if boxed and stop.first.layer}
        inside = [[rail.inside for rail in self._rails], *self._words.values()]
        self._box_columns = max((len(text) for words in inside for text in words), default=0)
        self._draw_sides()
        left = self.canvas.width
        self._box_left = left + 3 if left else 0
        self._stream = self._box_left + 3 if boxed else left + 5 if left else 1
        self._draw_stream()
        self._draw_rails()

    # Left: what becomes of time and class before it meets the stream.

    def _draw_sides(self) -> None:
        used = {value.node: value for stop in self.stops for value in stop.sides}
        readers: dict[Node, list[Node]] = {node: [] for node in self.flow.sides}
        for node in self.flow.sides:
            for value in self.flow.beside(node):
                readers[value.node].append(node)
        columns: list[_Column] = []
        for node in self.flow.sides:
            values = self.flow.beside(node)
            passed = [name for value in values for name in value.functions]
            if len(values) == 1 and readers[values[0].node] == [node] and values[0].node not in used:
                column = self._columns[values[0].node]
            else:
                column = _Column(parents=[self._columns[value.node] for value in values])
                columns.append(column)
            self._columns[node] = column
            column.texts += [", ".join(passed)] * bool(passed) + self._side_texts(node)
            if node in used:
                column.labels.append(self._side_label(node, used[node]))
        self._place_columns(columns)
        for column in columns:
            self._draw_column(column)

    def _side_texts(self, node: Node) -> list[str]:
        if node.kind == "input":
            return [f"{node.name} {shape_of(node.shape)}" if len(node.shape) > 1 else node.name]
        if node.kind == "operation":
            return [self._operation(node, self.flow.operands(node))]
        assert node.layer is not None
        return [node.name, *primitives(node.layer)]

    @staticmethod
    def _side_label(node: Node, value: Value) -> str:
        """What flows on from a column: its name where an operation made it, and its shape."""
        functions = ", ".join(name for name in value.functions if " " not in name)
        if functions:
            return f"{functions} -> {value.argument} {shape_of(value.shape)}".replace("  ", " ")
        if node.kind == "operation":
            return f"{value.argument} {shape_of(node.shape)}".strip()
        size, whole = value.shape[-1], node.shape[-1]
        return f"{whole // size} of ({size})" if node.kind == "layer" and size < whole and whole % size == 0 else ""

    def _place_columns(self, columns: list[_Column]) -> None:
        """Columns that are needed longest stand on the left, so that arrows from them cross nothing; those that are
        needed equally long in the order of the operands; one in which others meet between them."""
        last_use = {
            value.node: (place, -operand)
            for place, stop in enumerate(self.stops)
            for operand, value in enumerate(stop.sides)
        }

        def needed(column: _Column) -> tuple[int, int]:
            below = [joint for joint in columns if any(parent is column for parent in joint.parents)]
            own = [last_use.get(node, (-1, 0)) for node, place in self._columns.items() if place is column]
            return max([*own, *(needed(joint) for joint in below)])

        edge = 0
        for column in sorted((column for column in columns if len(column.parents) < 2), key=needed, reverse=True):
            half = max(len(text) // 2 for text in column.texts)
            column.center = edge + half
            right = max(
                [half + 1, *((len(text) + 1) // 2 for text in column.texts), *(len(x) + 3 for x in column.labels if x)]
            )
            edge = column.center + right + 2
        for column in columns:
            if len(column.parents) > 1:
                centers = [parent.center for parent in column.parents]
                column.center = (min(centers) + max(centers)) // 2
        outside = max((len(text) // 2 - column.center for column in columns for text in column.texts), default=0)
        for column in columns:
            column.center += max(0, outside)

    def _draw_column(self, column: _Column) -> None:
        row = max((parent.bottom for parent in column.parents), default=0)
        texts = list(column.texts)
        if column.parents:
            centers = [parent.center for parent in column.parents]
            self.canvas.across(row, min([*centers, column.center]), max([*centers, column.center]))
            for parent in column.parents:
                self.canvas.down(parent.center, parent.bottom - 1, row)
                self.canvas.join(row, parent.center)
        for place, text in enumerate(texts):
            if place == (0 if len(column.parents) == 1 else 1):
                self.canvas.down(column.center, row - (place > 0), row + 1)
                row += 1
            self.canvas.write(row, column.center - len(text) // 2, text)
            row += 1
        for label in column.labels:
            if label:
                self.canvas.down(column.center, row - 1, row + 1)
                self.canvas.write(row, column.center + 2, label)
                row += 1
        column.bottom = row

    # The stream.

    def _draw_stream(self) -> None:
        start = self.stops[0].first
        self.canvas.write(0, self._stream, f"{start.name} {shape_of(start.shape)}")
        row, above, shown = 1, 0, self._shape(start)
        width = max((len(stop.first.name) for stop in self.stops if stop.first.layer), default=0)
        arrows: list[tuple[int, int, list[Value]]] = []
        for before, stop in zip(self.stops, self.stops[1:], strict=False):
            boxed = self.boxed and stop.first.kind == "layer"
            above_box = self.boxed and before.first.kind == "layer"
            edge = self._edge(before, stop, shown, always=above_box)
            for text in edge:
                self.canvas.write(row, self._stream + 2, text)
                row += 1
            if edge:
                shown = self._shape(before.last)
            leaving = [rail for rail in self._rails if rail.source is before.last and not rail.start]
            for rail in leaving:
                rail.start = (row, self._stream)
                self.canvas.down(self._stream, above, row)
            if leaving or (not edge and (above_box or stop.chain is None or (boxed and before is self.stops[0]))):
                row += 1
            row = max([row, *(self._columns[value.node].bottom - boxed for value in stop.sides)])
            if stop.chain is not None:
                self.canvas.down(self._stream, above, row)
            tip = row + 1 if boxed else row
            end = self._box_left if boxed else self._stream - (stop.first.kind == "operation")
            if stop.sides:
                arrows.append((tip, end - 1, stop.sides))
            row = self._draw_box(stop, row) if boxed else self._draw_row(stop, row, width)
            above = row - 1 if boxed else tip
        for row, column, values in arrows:
            self._draw_arrows(row, column, values)

    def _shape(self, node: Node) -> tuple[int, ...]:
        return node.shape if self.plain_shapes is None else self.plain_shapes.get(node, node.shape)

    def _edge(self, before: Stop, stop: Stop, shown: tuple[int, ...], always: bool) -> list[str]:
        """What to write beside the line between two stops."""
        node, texts = before.last, []
        if stop.chain is None:
            return []
        plain = self._shape(node)
        masked = f", masked {shape_of(node.shape)}" if plain != node.shape else ""
        changed = stop.chain.shape != node.shape
        if changed or (stop.first.kind != "output" and (always or plain != shown)):
            text = shape_of(plain) + masked + " *" * self._only_masked(before)
            if changed:
                how = "rearranged" if _count(stop.chain.shape) == _count(node.shape) else "cut"
                text += f" {how} to {shape_of(stop.chain.shape)}"
            texts.append(text)
        return texts + [", ".join(stop.chain.functions)] * bool(stop.chain.functions)

    def _draw_box(self, stop: Stop, top: int) -> int:
        """Draw a layer or several; return the row below."""
        words = self._words[stop.first]
        right = self._box_left + self._box_columns + 3
        arriving = [rail for rail in self._rails if rail.target in stop.nodes]
        silent = [rail for rail in arriving if not rail.inside]
        leaving = [rail for rail in self._rails if rail.source in stop.nodes]
        for place, rail in enumerate(silent, start=top + 1):
            rail.end = (place, right + 1)
        for place, rail in enumerate(leaving, start=top + 1 + len(silent)):
            rail.start = (place, right)
        bottom = top + 1 + max(len(words), len(silent) + len(leaving))
        for rail in arriving:
            if rail.inside:
                self.canvas.write(bottom, self._box_left + 2, rail.inside)
                rail.end = (bottom, right + 1)
                bottom += 1
        self.canvas.box(top, self._box_left, bottom, right, dashed=self._only_masked(stop))
        for place, text in enumerate(words, start=top + 1):
            self.canvas.write(place, self._box_left + 2, text)
        return bottom + 1

    def _box_words(self, stop: Stop) -> list[str]:
        layer = stop.first.layer
        assert layer is not None
        names = range_of([node.name for node in stop.nodes]) + " *" * self._only_masked(stop)
        count = f"{len(stop.nodes)} x " if len(stop.nodes) > 1 else ""
        if stop.first in self.opened:
            return [names, count + type(layer).__name__]
        words = in_words(layer, stop.first.shape[-1], _BOX_COLUMNS)
        return [names, count + words[0], *words[1:]]

    def _draw_row(self, stop: Stop, row: int, width: int) -> int:
        """Write an operation, the output, or a layer without a box; return the row below."""
        node = stop.first
        lines: list[str] = []
        if node.kind == "operation":
            text = self._operation(node, stop.operands) + self._order(stop) + " *" * self._only_masked(stop)
            column = self._stream - 1
        elif node.kind == "output":
            text, column = f"output {shape_of(node.shape)}", self._stream
        else:
            assert node.layer is not None
            room = WIDTH - self._stream - width - 4 - 3 * min(2, len(self._rails))
            lines = in_words(node.layer, node.shape[-1], min(max(room, _ROW_COLUMNS[0]), _ROW_COLUMNS[1]))
            text, column = node.name.ljust(width + 2) + lines[0], self._stream
        self.canvas.write(row, column, text)
        end = column + len(text) + (text[-1] != ")")
        for rail in self._rails:
            if rail.target is node:
                rail.end = (row, end)
        for line in lines[1:]:
            row += 1
            self.canvas.write(row, self._stream + width + 2, line)
        return row + 1

    def _operation(self, node: Node, operands: list[str]) -> str:
        names = [self._parameter(name) for name in operands]
        return f"({node.name}) {', '.join(names)}".strip()

    def _parameter(self, name: str) -> str:
        trained = dict(self.module.named_parameters()).get(name)
        return name if trained is None or trained.requires_grad else f"{name}, not trained"

    @staticmethod
    def _order(stop: Stop) -> str:
        """On which side a concatenation puts what joins the stream."""
        node = stop.first
        if node.name != "cat" or not stop.sides or stop.chain is None:
            return ""
        if node.inputs[0].node is stop.chain.node:
            return " behind"
        return " in front" if node.inputs[-1].node is stop.chain.node else " around"

    def _only_masked(self, stop: Stop) -> bool:
        return self.plain_shapes is not None and stop.first not in self.plain_shapes

    def _draw_arrows(self, row: int, tip: int, values: list[Value]) -> None:
        columns = [self._columns[value.node] for value in values]
        self.canvas.write(row, tip, "►")
        self.canvas.across(row, min(column.center for column in columns), tip)
        for column in columns:
            self.canvas.down(column.center, column.bottom - 1, row)
            self.canvas.join(row, column.center)
        arithmetic = " ".join(name for name in values[0].functions if " " in name)
        if arithmetic and len(values) == 1:
            self.canvas.write(row, tip - len(arithmetic) - 3, f" {arithmetic} ")

    # Right: links.

    def _rails_to(self, stop: Stop) -> list[_Rail]:
        """One line for each link; for those from one box to another, one together."""
        rails = []
        for links in zip(*stop.links, strict=True):
            several = len(links) > 1
            if several and links[0].source is links[1].source:
                rails.append(self._rail(links[0], stop.first, "this link into each"))
                continue
            pairs = zip(links, stop.nodes, strict=True)
            for _, some in groupby(pairs, lambda pair: self._stop_of[pair[0].source]):
                (link, target), *others = some
                if others:
                    rails.append(self._rail_of_several(link, target, *others[-1], count=1 + len(others)))
                else:
                    rails.append(self._rail(link, target, f"link into {target.name}" if several else ""))
        return rails

    def _rail(self, link: Link, target: Node, inside: str) -> _Rail:
        numbered = len(self._stop_of[link.source].nodes) > 1
        return _Rail(link.source, target, str(number_of(link.source.name)) if numbered else "", link.label, inside)

    def _rail_of_several(self, first: Link, target: Node, last: Link, last_target: Node, count: int) -> _Rail:
        links = [f"{link.source.name} -> {node.name}" for link, node in ((first, target), (last, last_target))]
        self.notes += textwrap.wrap(f"{count} links: {links[0]} to {links[1]}", WIDTH)
        turned = number_of(first.source.name) > number_of(last.source.name)
        inside = f"{count} links, {'last in first out' if turned else 'in order'}"
        return _Rail(first.source, target, "", first.label, inside)

    def _draw_rails(self) -> None:
        ends = [
            place + len(word) + 4
            for rail in self._rails
            for place, word in ((rail.start[1], rail.tail), (rail.end[1], rail.tip))
            if word
        ]
        base = max([self.canvas.width, *ends]) + 1
        tracks: list[list[tuple[int, int]]] = []
        for rail in sorted(self._rails, key=lambda rail: rail.end[0] - rail.start[0]):
            top, bottom = rail.start[0], rail.end[0]
            free = (place for place, taken in enumerate(tracks) if all(top > b or bottom < a for a, b in taken))
            track = next(free, len(tracks))
            if track == len(tracks):
                tracks.append([])
            tracks[track].append((top, bottom))
            self.canvas.write(bottom, rail.end[1], f"◄ {rail.tip} " if rail.tip else "◄")
            if rail.tail:
                self.canvas.write(top, rail.start[1] + 2, f" {rail.tail} ")
            column = base + 3 * track
            self.canvas.across(top, rail.start[1], column)
            self.canvas.across(bottom, rail.end[1], column)
            self.canvas.down(column, top, bottom)
            for row in (top, bottom):
                self.canvas.join(row, column)
            self.canvas.join(top, rail.start[1])


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
