"""A drawing of a network in text, made from a forward pass that was watched."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch

from ditzoo.layers import random_token_mask
from ditzoo.metrics.flops import meta_twin
from ditzoo.models import DiffusionTransformer
from ditzoo.summary.layers import BLANK, in_words, kind_of, window_of
from ditzoo.summary.trace import Step, Trace

_ASCII = str.maketrans("│─┘┐├┬┴◄×", "|-+++++<x")  # noqa: RUF001
_COLUMNS = 76  # of text; links stand to the right of it
#: one step, or equal consecutive layers of a list, such as `blocks.3` and `blocks.4`
_Run = list[Step]


def drawable(encoding: str | None) -> bool:
    """Whether an output of this encoding, such as that of `sys.stdout`, carries the drawings as they are."""
    try:
        "".join(map(chr, _ASCII)).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def draw_blocks(model: DiffusionTransformer, *, ascii: bool = False) -> str:
    """Draw the way from the input to the output: the whole network, then the inside of each kind of block.

    The picture is made from a forward pass on the meta device: it shows what the network does, and asks nothing about
    its family. The stream runs from the top down, what joins it is written beside it, and links past other layers
    stand on the right. Shapes leave the batch out; `const(48)` are 48 numbers that are computed from no input and no
    parameter. A model that takes a mask has a picture of a masked pass as well.

    Args:
        model: any model of the zoo, yours included; left as it was.
        ascii: draw with ASCII characters only.
    """
    twin: Any = meta_twin(model)
    given = {"x": torch.empty(1, twin.in_channels, twin.input_size, twin.input_size), "t": torch.zeros(1)}
    if twin.num_classes:
        given["y"] = torch.zeros(1, dtype=torch.int64)
    given = {name: tensor.to("meta") for name, tensor in given.items()}
    plain = Trace(twin, list(given), **given)
    traces, title, ratio = [plain], "", getattr(twin, "mask_ratio", 0.3)
    if twin.supports_masking and ratio is not None:
        mask = random_token_mask(1, twin.num_tokens(), ratio, device="meta")
        traces.append(Trace(twin, [*given, "mask"], **given, mask=mask))
        title = f"In masked passes, here one that sees {mask.ids_keep.shape[1]} of {twin.num_tokens()} tokens:\n"
    blocks = set(twin.block_names())
    opened: dict[object, list[_Run]] = {}
    for run in (run for trace in traces for run in _runs(trace.steps)):
        step = run[0]
        if step.layer and (step.name in blocks or (step.operands and any(step.layer.children()))):
            opened.setdefault(_kind(step), []).append(run)
    masked = [title + _draw(trace, opened).removeprefix(_joining(plain)) for trace in traces[1:]]
    text = "\n\n".join([_draw(plain, opened), *masked, *map(_inside, opened.values())])
    return text.translate(_ASCII) if ascii else text


def _inside(runs: Sequence[_Run]) -> str:
    """A heading for equal layers, and what the first one does with the arguments that it was called with."""
    step, names = runs[0][0], list(dict.fromkeys(map(_name, runs)))
    assert step.layer is not None
    size = sum(parameter.numel() for parameter in step.layer.parameters())
    each = " each" if len(runs[0]) + len(names) > 2 else ""
    title = f"{type(step.layer).__name__}: {', '.join(names)} ({size:,} parameters{each})"
    if window := window_of(step.layer):
        title += f", in windows of {window}".replace(" of ", f"{BLANK}of{BLANK}")
    args, kwargs = step.call
    trace = Trace(step.layer, step.follow, *map(_fresh, args), **{key: _fresh(value) for key, value in kwargs.items()})
    return "\n".join([*_filled("", title, ""), _draw(trace)])


def _fresh(argument: Any) -> Any:
    """The same tensor may be two arguments, such as the input and a skip; the drawing tells them apart."""
    return argument.detach() if isinstance(argument, torch.Tensor) else argument


def _draw(trace: Trace, opened: Collection[object] = ()) -> str:
    """What joins the stream, and below it the stream with its links."""
    runs = _runs(trace.steps)
    run_of = [number for number, run in enumerate(runs) for _ in run]
    links = {(run_of[link.step or 0], run_of[place]) for place, step in enumerate(trace.steps) for link in step.links}
    links = {(source, target) for source, target in links if source < target}  # words tell of those inside a run
    indent = max(len(_name(run)) for run in runs) + 3
    lines: list[str] = []
    tips: list[int] = []
    forks: dict[int, int] = {}
    for number, run in enumerate(runs):
        lines += _edge(runs[number - 1][-1], run[0]) if number else []
        tips.append(len(lines))
        lines += _words(run, trace, _kind(run[0]) in opened, indent)
        if run[0].links:
            lines[tips[-1]] += f" ◄ {_link_words(run, trace.steps)}".rstrip()
        if any(source == number for source, _ in links):
            forks[number] = len(lines)
            lines.append(" ├")
    drawn = _connected(lines, ((forks[source], tips[target]) for source, target in links))
    return _joining(trace) + "\n".join(drawn)


def _joining(trace: Trace) -> str:
    """What time and class pass through before they join the stream."""
    lines = [f"{name} {_shape(value.shape)} = {value.text}" for name, value in trace.definitions.items()]
    indent = max(map(len, trace.layers), default=0) + 2
    for name, layer in trace.layers.items():
        lines += _filled(name.ljust(indent), in_words(layer), " " * indent)
    return "".join(f"{line}\n" for line in [*lines, *[""] * bool(lines)])


def _edge(before: Step, step: Step) -> Iterator[str]:
    """What stands on the line between two steps: a new shape; a gap where there is no line."""
    if step.chain is None:
        yield ""
    elif step.chain.shape != before.shape:
        yield f" │ {_shape(before.shape)} -> {_shape(step.chain.shape)}"
    elif before.chain and before.shape != before.chain.shape and step.name != "output":
        yield f" │ {_shape(before.shape)}"


def _words(run: _Run, trace: Trace, opened: bool, indent: int) -> list[str]:
    step = run[0]
    if step is trace.steps[0]:
        others = ", ".join(f"{name} {_shape(shape)}".rstrip() for name, shape in trace.inputs.items())
        return [f" {step.name} {_shape(step.shape)}" + f", with {others}" * bool(others)]
    if step is trace.steps[-1]:
        return [f" output {_shape(step.shape)}"]
    if step.layer is None:
        return _filled(f"({step.name}) ", step.operands, " │  ")
    words = type(step.layer).__name__ if opened else in_words(step.layer)
    title, *parts = words.split(": ", 1)
    text = f"{len(run)} x " * (len(run) > 1) + title + f" with {step.operands}" * bool(step.operands)
    return _filled(f" {_name(run)}".ljust(indent), ": ".join([text, *parts]), " │".ljust(indent))


def _link_words(run: _Run, steps: Sequence[Step]) -> str:
    """What happens on the way of links, and which layers they come from."""
    words = []
    for links in zip(*(step.links for step in run), strict=True):
        source = _name([steps[link.step or 0] for link in links])
        words += [links[0].text, source * (source not in run[0].operands.split(", "))]
        words += ["into each"] * (len(links) > 1 and links[0] == links[-1])
    return " ".join(filter(None, words))


def _shape(sizes: Sequence[int]) -> str:
    """`(256, 1152)`, without the batch of one; empty for what is one number a sample."""
    return f"({', '.join(map(str, sizes[sizes[0] == 1 :]))})" if sizes[1:] else ""


def _filled(start: str, text: str, indent: str) -> list[str]:
    lines = textwrap.wrap(text, _COLUMNS, initial_indent=start, subsequent_indent=indent, break_long_words=False)
    return [line.replace(BLANK, " ") for line in lines] or [start.rstrip()]


def _connected(lines: Sequence[str], links: Iterable[tuple[int, int]]) -> list[str]:
    """Draw links from line to line, to the right of all text, short ones inside long ones."""
    links = sorted(links, key=lambda link: (link[1] - link[0], link))
    edge = max(map(len, lines)) + 2
    grid = [list(line.ljust(edge + 2 * len(links))) for line in lines]
    corners = []
    for top, bottom in links:
        rows = range(top, bottom + 1)
        column = next(c for c in itertools.count(edge, 2) if all(grid[row][c] == " " for row in rows))
        for row in rows:
            grid[row][column] = {top: "┐", bottom: "┘"}.get(row, "│")
        corners += [(top, column), (bottom, column)]
    for row, column in corners:
        for place in range(len(lines[row]) + (lines[row][-1] not in "├◄"), column):
            grid[row][place] = {" ": "─", "┐": "┬", "┘": "┴"}.get(grid[row][place], grid[row][place])
    return ["".join(row).rstrip() for row in grid]


def _runs(steps: Sequence[Step]) -> list[_Run]:
    return [list(run) for _, run in itertools.groupby(steps, _alike)]


def _alike(step: Step) -> object:
    """Equal for neighbours that make a run."""
    if step.layer is None or step.chain is None or step.chain.shape != step.shape:
        return step
    return _kind(step), step.name.rpartition(".")[0], step.shape, step.operands


def _kind(step: Step) -> object:
    """Equal for layers that do the same; one that is called with a skip does something else than its like without."""
    return (kind_of(step.layer), *(link.text for link in step.links)) if step.layer else step.name


def _name(steps: Sequence[Step]) -> str:
    """`blocks.0-27`, or `blocks.27-0`, or the names of layers that are not numbered on; empty for operations."""
    names = list(dict.fromkeys(step.name for step in steps if step.layer))
    numbers = [name.rpartition(".")[2] for name in names]
    if len(names) > 1 and all(number.isdigit() for number in numbers):
        gaps = {int(after) - int(before) for before, after in itertools.pairwise(numbers)}
        if gaps in ({1}, {-1}) and len({name.rpartition(".")[0] for name in names}) == 1:
            return f"{names[0]}-{numbers[-1]}"
    return ", ".join(names)
