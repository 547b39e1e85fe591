"""Times ditzoo's DiT against the `DiTTransformer2DModel` of diffusers: same weights, same inputs, no compiler, CPU.

The recorded results come from

    python benchmarks/eager_speed.py

It needs the extra `diffusers`, 7 GB of memory, and eight minutes of two idle cores. `python benchmarks/eager_speed.py
"forward * bfloat16*"` measures some cases only. The row of a measured case replaces the earlier one in the result file.

The two networks must agree before they are timed. Then they run in turn, each of them first in half of the pairs, with
a product of two square matrices between every two pairs. What counts is the ratio of the two times of a pair: a machine
that slows down slows both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ditzoo
from ditzoo.bench.results import ResultRow, Value, now, provenance, read_rows, write_atomically
from ditzoo.interop import to_diffusers
from ditzoo.metrics import Roof, Timing, square_product, time_interleaved
from ditzoo.metrics.speed import Clock
from ditzoo.models import DiffusionTransformer

RESULTS = Path(__file__).resolve().parent / "results" / "eager_speed.jsonl"
SEED = 0
ROOF_SIZE = 1024


@dataclass(frozen=True)
class Case:
    """One comparison."""

    task: Literal["forward", "train"]
    """a forward pass in inference mode; or forward, mean squared error, backward and AdamW"""
    model: str
    precision: Literal["float32", "bfloat16", "autocast"]
    """of weights and inputs; `autocast` is float32 weights under an autocast to bfloat16"""
    batch_size: int
    limit: float
    """largest ratio, time of ditzoo over time of diffusers, that the project allows itself"""
    rounds: int
    """two pairs each"""

    @property
    def name(self) -> str:
        """What the patterns of the command line are matched with."""
        return f"{self.task} {self.model} {self.precision} {self.batch_size}"

    @property
    def weights(self) -> torch.dtype:
        """Precision of weights and inputs."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def products(self) -> torch.dtype:
        """Precision of the matrix products."""
        return torch.float32 if self.precision == "float32" else torch.bfloat16

    @property
    def tolerance(self) -> float:
        """Largest difference between the two networks, relative to the largest value."""
        return 1e-4 if self.precision == "float32" else 3e-2

    @property
    def settings(self) -> dict[str, Any]:
        """What, with the model, tells its row from those of the other cases."""
        return {"task": self.task, "precision": self.precision, "batch_size": self.batch_size}


CASES = (
    Case("forward", "dit_xl_2", "float32", 1, limit=1.03, rounds=10),
    Case("forward", "dit_xl_2", "float32", 4, limit=1.03, rounds=4),
    Case("forward", "dit_xl_2", "bfloat16", 1, limit=1.03, rounds=20),
    Case("forward", "dit_xl_2", "bfloat16", 4, limit=1.03, rounds=8),
    Case("train", "dit_b_2", "float32", 4, limit=1.05, rounds=5),
    Case("train", "dit_b_2", "autocast", 4, limit=1.05, rounds=8),
)


# The two networks.


class Pair(NamedTuple):
    """The same network with the same weights, twice."""

    ours: DiffusionTransformer
    theirs: nn.Module


def build_pair(name: str, **config: Any) -> Pair:
    """A model of ditzoo, each of whose parameters has an effect, and its peer.

    Fresh models keep gates and output at zero. Evaluation mode matters to diffusers alone, which drops labels at random
    in training mode; in ditzoo the loss does that.
    """
    torch.manual_seed(SEED)
    ours = ditzoo.create(name, **config).eval()
    for parameter in ours.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return Pair(ours, to_diffusers(ours, patch=True))


# What is timed.

#: Does the work and returns what the two networks must agree on.
Work = Callable[[], tuple[Tensor, ...]]


def work_of(pair: Pair, case: Case) -> tuple[Work, Work]:
    """The case's work for ditzoo and for diffusers, on the same batch."""
    model, peer = pair.ours, pair.theirs
    generator = torch.Generator().manual_seed(SEED)

    def images(channels: int) -> Tensor:
        return torch.randn(case.batch_size, channels, model.input_size, model.input_size, generator=generator)

    x, target = images(model.in_channels).to(case.weights), images(model.out_channels)
    t = torch.randint(1000, (case.batch_size,), generator=generator)
    y = torch.randint(model.num_classes, (case.batch_size,), generator=generator)
    model.to(case.weights)
    nn.Module.to(peer, case.weights)  # diffusers' own `to` warns of layers to keep in float32, and names none

    def ours() -> Tensor:
        return model(x, t, y)

    def theirs() -> Tensor:
        return peer(x, t, y, return_dict=False)[0]

    if case.task == "forward":
        return forward_pass(ours), forward_pass(theirs)
    autocast = case.precision == "autocast"
    return (
        training_step(ours, target, model, "x_embedder.proj.weight", autocast),
        training_step(theirs, target, peer, "pos_embed.proj.weight", autocast),
    )


def forward_pass(forward: Callable[[], Tensor]) -> Work:
    """A function that returns the output."""

    @torch.inference_mode()
    def run() -> tuple[Tensor]:
        return (forward(),)

    return run


def training_step(
    forward: Callable[[], Tensor], target: Tensor, network: nn.Module, first_weight: str, autocast: bool
) -> Work:
    """A function that returns the loss and the gradient of the patch projection, which has come through all layers.

    The learning rate is 0: AdamW does the same work, and the two networks keep the same weights.
    """
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.0, fused=True)
    first = network.get_parameter(first_weight)

    def step() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = forward()
        loss = F.mse_loss(output.float(), target)
        loss.backward()
        optimizer.step()
        gradient = first.grad
        optimizer.zero_grad()
        assert gradient is not None
        return loss.detach(), gradient

    return step


def check_agreement(ours: Work, theirs: Work, case: Case) -> float:
    """Run both once.

    Returns:
        The largest difference of what they return, relative to the largest value.

    Raises:
        RuntimeError: where that is more than the case's tolerance.
    """
    differences = [relative_difference(*results) for results in zip(ours(), theirs(), strict=True)]
    difference = torch.tensor(differences).max().item()  # a NaN stays one, unlike with Python's max
    if not difference <= case.tolerance:
        raise RuntimeError(
            f"{case.name}: the two networks differ by {difference:.2g} of the largest value, more than "
            f"{case.tolerance:g}, so their times do not compare."
        )
    return difference


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Largest difference over the reference's largest value; NaN where there is one in either."""
    return ((value.double() - reference.double()).abs().max() / reference.double().abs().max()).item()


# Measuring.


@dataclass(frozen=True)
class Comparison:
    """Times of two functions, measured in pairs, and of the product of two matrices."""

    ours: Timing
    theirs: Timing
    roof: Timing

    @property
    def ratios(self) -> tuple[float, ...]:
        """Our time over theirs, one for each pair."""
        return tuple(a / b for a, b in zip(self.ours.seconds, self.theirs.seconds, strict=True))


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    roof: Callable[[], object],
    *,
    rounds: int,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Time both in turn, two pairs a round: ours before theirs, theirs before ours."""
    order = {"ours 1": ours, "theirs 1": theirs, "theirs 2": theirs, "ours 2": ours, "roof": roof}
    # No warm-up: `check_agreement` has run both once, and every function runs before the rounds begin.
    timings = time_interleaved(order, rounds=rounds, warmup=0, clock=clock)

    def pairs(name: str) -> Timing:
        first, second = timings[f"{name} 1"], timings[f"{name} 2"]
        seconds = chain.from_iterable(zip(first.seconds, second.seconds, strict=True))
        return Timing(tuple(seconds), min(first.repeats, second.repeats))

    return Comparison(pairs("ours"), pairs("theirs"), timings["roof"])


def measure(pair: Pair, case: Case) -> ResultRow:
    """Check one case, time it, and put it into a row."""
    ours, theirs = work_of(pair, case)
    difference = check_agreement(ours, theirs, case)
    roof = square_product("cpu", case.products, ROOF_SIZE)
    comparison = compare(ours, theirs, roof, rounds=case.rounds)
    return result_row(case, pair.ours.config, difference, comparison)


def result_row(case: Case, config: dict[str, Any], difference: float, comparison: Comparison) -> ResultRow:
    """All there is to know about one measured case."""
    images = "1 image" if case.batch_size == 1 else f"{case.batch_size} images"
    seconds = f"s a {'forward pass' if case.task == 'forward' else 'training step'} of {images}"
    roof = Roof("cpu", str(case.products).removeprefix("torch."), ROOF_SIZE, comparison.roof)
    origin = provenance("cpu")
    origin["versions"]["diffusers"] = metadata.version("diffusers")
    return ResultRow(
        suite="eager_speed",
        name=case.model,
        kind="model",
        seed=SEED,
        settings=case.settings,
        config=config,
        values={
            "ratio": spread(comparison.ratios, "time of ditzoo over time of diffusers, one after the other"),
            "limit": Value(case.limit, "largest ratio allowed"),
            "pairs": Value(len(comparison.ratios), "pairs of measurements"),
            "ditzoo": spread(comparison.ours.seconds, seconds),
            "diffusers": spread(comparison.theirs.seconds, seconds),
            "difference": Value(difference, "largest difference of the two networks over the largest value"),
            "roof": Value(
                roof.gmacs_per_second, f"GMACs/s of a {roof.dtype} product of {ROOF_SIZE}x{ROOF_SIZE} matrices"
            ),
        },
        finished_at=now(),
        **origin,
    )


def spread(values: Sequence[float], unit: str) -> Value:
    """Median and quartiles, interpolated linearly."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Value(median, unit, low, high)


# Results.


def record(path: Path, row: ResultRow) -> None:
    """Write a row into a result file, in place of an earlier one of the same case."""
    others = [old for old in read_rows(path)[0] if (old.name, old.settings) != (row.name, row.settings)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(f"{kept.to_json()}\n" for kept in [*others, row]).encode())


HEADER = ("task", "model", "precision", "batch", "ratio", "limit", "ditzoo s", "diffusers s", "pairs", "roof GMACs/s")


def report(rows: Sequence[ResultRow]) -> str:
    """The rows as a table in Markdown, in the order of `CASES`, and below it where they come from."""
    rows = [row for case in CASES for row in rows if (row.name, row.settings) == (case.model, case.settings)]
    lines = [HEADER, ("---",) * 3 + ("---:",) * (len(HEADER) - 3), *(_cells(row) for row in rows)]
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([*table, "", *dict.fromkeys(origin(row) for row in rows)])


def _cells(row: ResultRow) -> tuple[str, ...]:
    def number(name: str, pattern: str) -> str:
        value = row.values[name]
        median, *quartiles = [pattern.format(n) for n in (value.value, value.low, value.high) if n is not None]
        return f"{median} ({' to '.join(quartiles)})" if quartiles else median

    return (
        row.settings["task"],
        f"`{row.name}`",
        row.settings["precision"],
        str(row.settings["batch_size"]),
        number("ratio", "{:.3f}"),
        number("limit", "{:.2f}"),
        number("ditzoo", "{:.3f}"),
        number("diffusers", "{:.3f}"),
        number("pairs", "{:.0f}"),
        number("roof", "{:.0f}"),
    )


def origin(row: ResultRow) -> str:
    """Where a row comes from, as a line below a table."""
    machine, versions = row.machine, ", ".join(f"{name} {version}" for name, version in row.versions.items())
    return (
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads. {versions}, "
        f"source digest {row.source_digest}."
    )


NAMES = "\n".join(case.name for case in CASES)


@click.command(help=f"Time ditzoo's DiT against diffusers'. PATTERNS pick cases, all by default:\n\n\b\n{NAMES}")
@click.argument("patterns", nargs=-1)
@click.option(
    "--out",
    default=RESULTS,
    show_default=f"benchmarks/results/{RESULTS.name}",
    type=click.Path(path_type=Path),
    help="Result file. Rows of the chosen cases are replaced.",
)
def main(patterns: tuple[str, ...], out: Path) -> None:
    chosen = [case for case in CASES if any(fnmatchcase(case.name, pattern) for pattern in patterns or ("*",))]
    if not chosen:
        raise click.UsageError(f"no case matches {' or '.join(map(repr, patterns))}. The cases:\n{NAMES}")
    for model, cases in groupby(chosen, key=lambda case: case.model):
        pair = build_pair(model)
        for case in cases:
            row = measure(pair, case)
            record(out, row)
            click.echo(f"{case.name}: ratio {_cells(row)[HEADER.index('ratio')]}", err=True)
        del pair  # the next one is built while nothing else takes memory
    click.echo(report(read_rows(out)[0]))


if __name__ == "__main__":
    main()
