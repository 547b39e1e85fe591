"""The main stream of a trace, from input to output, and what joins it from the side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from ditzoo.summary.trace import Node, Trace, Value


class Link(NamedTuple):
    """An earlier place of the stream that feeds a later one past those between."""

    source: Node
    label: str
    """what happens on the way"""


@dataclass
class Stop:
    """A place on the stream: its start, a layer or several equal ones in a row, an operation, or the output."""

    nodes: list[Node]
    chain: Value | None = None
    """what the stop before gives this one; None where it does not feed it"""
    sides: list[Value] = field(default_factory=list)
    """what joins from beside the stream"""
    links: list[list[Link]] = field(default_factory=list)
    """of each node"""
    operands: list[str] = field(default_factory=list)
    """parameters and masks of an operation, by name"""

    @property
    def first(self) -> Node:
        return self.nodes[0]

    @property
    def last(self) -> Node:
        return self.nodes[-1]


class Flow:
    """A trace taken apart.

    Args:
        trace: of any module.
        main: the argument at which the stream starts.
        quiet: arguments that operations name where they use them, and that are not drawn.

    Attributes:
        stops: the stream, in order of execution.
        sides: inputs, layers and operations beside the stream on which it depends, in order of execution.
    """

    def __init__(self, trace: Trace, main: str, quiet: frozenset[str]) -> None:
        start = next(node for node in trace.inputs if node.name == main)
        self._stream = {start}
        self._quiet: dict[Node, bool] = {}
        self._names_of_quiet = quiet
        for node in trace.nodes:
            if any(value.node in self._stream for value in node.inputs):
                self._stream.add(node)
        uses = Counter(node for user in trace.nodes for node in {value.node for value in user.inputs})
        self.stops = [Stop([start])]
        # An operation on an earlier place of the stream that only one later place uses is part of the link there.
        folded: dict[Node, Link] = {}
        for node in trace.nodes:
            if node not in self._stream and node.kind != "output":
                continue
            stop = self._stop(node, self.stops[-1].last, folded)
            alone = stop.chain is None and not stop.sides and len(stop.links[0]) == 1
            if alone and node.kind == "operation" and uses[node] == 1:
                folded[node] = Link(stop.links[0][0].source, " ".join([node.name, *stop.operands]))
            else:
                self.stops.append(stop)
        wanted = {value.node for stop in self.stops for value in stop.sides}
        self.sides: list[Node] = []
        for node in reversed([*trace.inputs, *trace.nodes]):
            if node in wanted:
                self.sides.insert(0, node)
                wanted |= {value.node for value in self.beside(node)}

    def beside(self, node: Node) -> list[Value]:
        """What flows into a node from beside the stream, each source once."""
        found: dict[Node, Value] = {}
        for value in [] if node.kind == "output" else node.inputs:
            if value.node not in self._stream and not self._is_quiet(value.node):
                found.setdefault(value.node, value)
        return list(found.values())

    def arguments(self, node: Node) -> frozenset[str]:
        """The arguments of a layer through which something flows."""
        return frozenset(value.argument for value in node.inputs if not self._is_quiet(value.node))

    def operands(self, node: Node) -> list[str]:
        """What an operation takes of parameters and quiet arguments, by name."""
        if node.kind != "operation":
            return []
        quiet = [value for value in node.inputs if self._is_quiet(value.node)]
        names = [(" ".join([*value.functions, value.node.name]), value.functions) for value in quiet]
        return list(dict.fromkeys(f"({name})" if functions else name for name, functions in names))

    def _is_quiet(self, node: Node) -> bool:
        if node not in self._quiet:
            named = node.kind == "parameter" or (node.kind == "input" and node.name in self._names_of_quiet)
            derived = node.kind == "operation" and all(self._is_quiet(value.node) for value in node.inputs)
            self._quiet[node] = named or derived
        return self._quiet[node]

    def _stop(self, node: Node, before: Node, folded: Mapping[Node, Link]) -> Stop:
        chain, links = None, []
        for value in node.inputs:
            if value.node not in self._stream:
                continue
            if value.node is before and chain is None:
                chain = value
            elif value.node in folded:
                links.append(folded[value.node])
            elif chain is None or value.node is not chain.node or node.kind == "layer":
                links.append(Link(value.node, " ".join(value.functions)))
        return Stop([node], chain, self.beside(node), [list(dict.fromkeys(links))], self.operands(node))


def grouped(stops: list[Stop], kinds: Mapping[Node, object]) -> list[Stop]:
    """Equal consecutive layers of a list, such as `blocks.3` and `blocks.4`, as one stop."""
    groups: list[Stop] = []
    for stop in stops:
        if groups and _continues(groups[-1], stop, kinds):
            groups[-1].nodes += stop.nodes
            groups[-1].links += stop.links
        else:
            groups.append(stop)
    return groups


def _continues(group: Stop, stop: Stop, kinds: Mapping[Node, object]) -> bool:
    last, node = group.last, stop.first
    return (
        last.kind == node.kind == "layer"
        and kinds[last] == kinds[node]
        and _follows(last.name, node.name, 1)
        and last.shape == node.shape
        and stop.chain is not None
        and stop.chain.node is last
        and stop.chain.shape == last.shape
        and [value.node for value in group.sides] == [value.node for value in stop.sides]
        and len(group.links[0]) == len(stop.links[0])
        and all(
            _moves_on([links[place] for links in group.links], link, kinds) for place, link in enumerate(stop.links[0])
        )
    )


def _moves_on(links: list[Link], link: Link, kinds: Mapping[Node, object]) -> bool:
    """Whether the source stays the same, or goes steadily through equal layers of a list."""
    last = links[-1].source
    if last is link.source:
        return len(links) == 1 or links[-2].source is last
    steps = [1, -1] if len(links) == 1 else [number_of(last.name) - number_of(links[-2].source.name)]
    equal = last.kind == link.source.kind == "layer" and kinds[last] == kinds[link.source]
    return equal and any(_follows(last.name, link.source.name, step) for step in steps)


def _follows(name: str, following: str, step: int) -> bool:
    (prefix, _, number), (same, _, other) = name.rpartition("."), following.rpartition(".")
    return prefix == same and number.isdigit() and other.isdigit() and int(other) - int(number) == step != 0


def number_of(name: str) -> int:
    """The number at the end of a layer's name; -1 without one."""
    number = name.rpartition(".")[2]
    return int(number) if number.isdigit() else -1


def range_of(names: list[str]) -> str:
    """`blocks.0-27`, or the name of a single layer."""
    return names[0] if len(names) == 1 else f"{names[0]}-{number_of(names[-1])}"


def kind_of(layer: nn.Module) -> object:
    """Equal for layers that differ in nothing but their weights."""
    return (
        repr(layer),
        tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters()),
        tuple(getattr(part, "num_heads", None) for part in layer.modules()),
    )
