"""Times training: against a bare loop around diffusers' network, against its own parts, and a masked pass against a
full one; and measures its peak memory. No compiler, CPU.

The recorded results come from

    python -m benchmarks.training_speed

It needs the extra `diffusers`, Linux, 10 GB of memory, and ten minutes of two idle cores. Patterns pick cases, as in
`python -m benchmarks.training_speed "mask*"`. The row of a measured case replaces the earlier one in the result file.

The two sides of a case run in turn, each of them first in half of the pairs; `benchmarks/eager_speed.py` has the rest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click
import torch
import torch.nn.functional as F
from torch import Tensor

import ditzoo
from benchmarks.eager_speed import ROOF_SIZE, Comparison, compare, origin, record, spread
from ditzoo.bench.results import ResultRow, Value, now, provenance, read_rows
from ditzoo.data import TensorSource
from ditzoo.data.latents import LatentCache, LatentShard, write_shard
from ditzoo.data.loader import batches
from ditzoo.data.manifest import LatentManifest
from ditzoo.diffusion import draw_training
from ditzoo.interop import to_diffusers
from ditzoo.layers import random_token_mask
from ditzoo.metrics import Roof, square_product
from ditzoo.models import DiffusionTransformer
from ditzoo.train import TrainOptions
from ditzoo.train.devices import make_devices
from ditzoo.train.loop import Training

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "training_speed.jsonl"
SEED = 0
BATCH_SIZE = 8
MASK_RATIO = 0.5
#: never reached: a measurement ends before the training does
OPTIONS = TrainOptions(num_images=10**9, batch_size=BATCH_SIZE, learning_rate=1e-4, precision="bfloat16", seed=SEED)

#: Does the work of one step, or reads one batch.
Work = Callable[[], object]


class Sides(NamedTuple):
    """The two functions that a case compares."""

    first: Work
    second: Work


@dataclass(frozen=True)
class Case:
    """One comparison of times."""

    name: str
    model: str
    first: str
    second: str
    """what the two sides are"""
    limit: float | None
    """largest ratio, time of the first side over time of the second, that the project allows itself"""
    rounds: int
    """two pairs each"""
    sides: Callable[[DiffusionTransformer, Path], Sides]
    """given the model and an empty folder"""

    @property
    def settings(self) -> dict[str, object]:
        """What, with the model, tells its row from those of the other cases."""
        return {"case": self.name, "precision": OPTIONS.precision, "batch_size": BATCH_SIZE}


# The sides.


def loop_and_diffusers(model: DiffusionTransformer, folder: Path) -> Sides:
    """Steps of `ditzoo.train` with everything in them, and those of a script of the shortest kind."""
    return Sides(step_of(training_of(model)), bare_step(model))


def loop_and_parts(model: DiffusionTransformer, folder: Path) -> Sides:
    """Steps of the loop, and its forward, backward and optimiser alone, with times and noise drawn before."""
    training = training_of(model)
    x, y = latents_of(model, BATCH_SIZE)
    passes = draw_training(SEED, range(BATCH_SIZE), x.shape[1:], num_timesteps=training.process.drawn_timesteps)

    def parts() -> None:
        with training.devices.autocast():
            loss = training.network(x, y, passes, None)["loss"]
        training.devices.backward(loss)
        training.optimizer.step()
        training.optimizer.zero_grad()

    return Sides(step_of(training), parts)


def reading_and_step(model: DiffusionTransformer, folder: Path) -> Sides:
    """Reading batches of cached latents, in the order of training, and a step on latents in memory."""
    cache = LatentCache(random_cache(model, folder, num_samples=2048), flip=True)
    read = batches(cache, seed=SEED, batch_size=BATCH_SIZE, start=0, stop=OPTIONS.num_images)
    return Sides(lambda: next(read), step_of(training_of(model)))


def masked_and_full(model: DiffusionTransformer, folder: Path) -> Sides:
    """A pass over half of the tokens, and one over all of them: forward and backward."""
    x, y = latents_of(model, BATCH_SIZE)
    t = torch.randint(1000, (BATCH_SIZE,))
    mask = random_token_mask(BATCH_SIZE, model.num_tokens(), MASK_RATIO)

    def run(**options: object) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x, t, y, **options)
        output.float().square().mean().backward()
        model.zero_grad()

    return Sides(lambda: run(mask=mask), run)


CASES = (
    Case("loop", "dit_b_2", "`ditzoo.train`", "bare loop around diffusers", 1 / 0.95, 6, loop_and_diffusers),
    Case("overhead", "dit_b_2", "`ditzoo.train`", "its forward, backward and AdamW", 1.03, 6, loop_and_parts),
    Case("latents", "dit_b_2", "reading a batch of cached latents", "a step", 0.02, 4, reading_and_step),
    Case("mask", "mdt_b_2", "pass over half of the tokens", "pass over all", None, 6, masked_and_full),
    Case("mask", "mdtv2_b_2", "pass over half of the tokens", "pass over all", None, 6, masked_and_full),
)


def latents_of(model: DiffusionTransformer, count: int) -> tuple[Tensor, Tensor]:
    """Random latents and labels."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(count, model.in_channels, model.input_size, model.input_size, generator=generator)
    return x, torch.randint(model.num_classes, (count,), generator=generator)


def training_of(model: DiffusionTransformer, options: TrainOptions = OPTIONS) -> Training:
    """By the recipe of the model's name, on the CPU."""
    assert model.details.recipe is not None
    return Training(model, model.details.recipe, options, make_devices(options, "cpu"))


def step_of(training: Training) -> Work:
    """One step of the loop at each call, on latents in memory."""
    x, y = latents_of(training.model, 64)
    steps = training.steps(TensorSource(x, y, num_classes=training.model.num_classes))
    return lambda: next(steps)


def bare_step(model: DiffusionTransformer) -> Work:
    """One step of the shortest loop that trains diffusers' network: it predicts the noise, averages no weights, and
    clips no gradients."""
    peer = to_diffusers(model, patch=True).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=OPTIONS.learning_rate, weight_decay=0.0, fused=True)
    x, y = latents_of(model, 64)
    alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)

    def step() -> float:
        chosen = torch.randint(len(x), (BATCH_SIZE,))
        x0, labels, t = x[chosen], y[chosen], torch.randint(1000, (BATCH_SIZE,))
        noise, level = torch.randn_like(x0), alphas_cumprod[t].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            output = peer(level.sqrt() * x0 + (1 - level).sqrt() * noise, t, labels, return_dict=False)[0]
        loss = F.mse_loss(output[:, : x0.shape[1]].float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def random_cache(model: DiffusionTransformer, folder: Path, *, num_samples: int) -> Path:
    """A cache of latents for the model: random means and log-variances of images and of mirrored images."""
    channels, side = model.in_channels, model.input_size
    manifest = LatentManifest(
        num_samples=num_samples,
        shard_size=num_samples // 4,
        source_name="random latents",
        source_fingerprint="0" * 64,
        num_classes=model.num_classes,
        label_names=None,
        image_shape=(3, 8 * side, 8 * side),
        codec="stabilityai/sd-vae-ft-ema",
        encoder_hash="0" * 64,
        latent_scale=0.18215,
        latent_shift=0.0,
        latent_shape=(channels, side, side),
        has_variance=True,
        flip=True,
        dtype="bfloat16",
    )
    manifest.claim(folder)
    generator = torch.Generator().manual_seed(SEED)
    for number in range(manifest.num_shards):
        count = len(manifest.shard_range(number))
        moments = torch.randn(count, *manifest.moments_shape, generator=generator).bfloat16()
        labels = torch.randint(model.num_classes, (count,), generator=generator)
        write_shard(folder, manifest, number, LatentShard(moments, labels))
    return folder


# Measuring times.


def measure(case: Case) -> ResultRow:
    """Time one case, and put it into a row."""
    torch.manual_seed(SEED)
    model = ditzoo.create(case.model)
    with tempfile.TemporaryDirectory() as folder:
        first, second = case.sides(model, Path(folder))
        for side in (first, second):
            side()  # the first step makes the optimiser's state
        roof = square_product("cpu", torch.bfloat16, ROOF_SIZE)
        comparison = compare(first, second, roof, rounds=case.rounds)
    return result_row(case, comparison)


def result_row(case: Case, comparison: Comparison) -> ResultRow:
    """All there is to know about one measured case."""
    origin = provenance("cpu")
    origin["versions"]["diffusers"] = metadata.version("diffusers")
    roof = Roof("cpu", "bfloat16", ROOF_SIZE, comparison.roof)
    limit = {} if case.limit is None else {"limit": Value(case.limit, "largest ratio allowed")}
    return ResultRow(
        suite="training_speed",
        name=case.model,
        kind="model",
        seed=SEED,
        settings=case.settings,
        config=dict(ditzoo.model_info(case.model).config),
        values={
            "ratio": spread(comparison.ratios, f"time of {case.first} over time of {case.second}"),
            **limit,
            "pairs": Value(len(comparison.ratios), "pairs of measurements"),
            "first": spread(comparison.ours.seconds, f"s: {case.first}, {BATCH_SIZE} images"),
            "second": spread(comparison.theirs.seconds, f"s: {case.second}, {BATCH_SIZE} images"),
            "roof": Value(roof.gmacs_per_second, f"GMACs/s of a product of {ROOF_SIZE}x{ROOF_SIZE} matrices"),
        },
        finished_at=now(),
        **origin,
    )


# Measuring memory.

#: What a process prints: the most memory that two steps took beyond the start, the model included, in bytes.
CHILD = """
import sys
from dataclasses import replace
import torch, ditzoo
from benchmarks.training_speed import OPTIONS, step_of, training_of
def memory(kind):
    line = next(line for line in open("/proc/self/status") if line.startswith(kind))
    return 1024 * int(line.split()[1])
before = memory("VmRSS")
options = replace(OPTIONS, batch_size=int(sys.argv[2]), grad_checkpointing=sys.argv[3] == "True")
step = step_of(training_of(ditzoo.create(sys.argv[1]), options))
step(), step()
print(memory("VmHWM") - before)
"""
MEMORY_MODEL = "dit_b_2"
MEMORY_BATCHES = (8, 32)


def measure_memory(model: str, batch_size: int, *, checkpointing: bool) -> ResultRow:
    """Peak memory of training, in a process of its own."""
    command = [sys.executable, "-c", CHILD, model, str(batch_size), str(checkpointing)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return ResultRow(
        suite="training_speed",
        name=model,
        kind="model",
        seed=SEED,
        settings={
            "case": "memory",
            "precision": OPTIONS.precision,
            "batch_size": batch_size,
            "grad_checkpointing": checkpointing,
        },
        config=dict(ditzoo.model_info(model).config),
        values={"peak": Value(int(done.stdout) / 1e9, "GB beyond the imported libraries, the weights included")},
        finished_at=now(),
        **provenance("cpu"),
    )


# Results.

HEADER = ("case", "model", "compared", "ratio", "limit", "first s", "second s", "pairs", "roof GMACs/s")
MEMORY_HEADER = ("model", "batch", "checkpointed", "peak GB")


def report(rows: Sequence[ResultRow]) -> str:
    """The rows as tables in Markdown, times and then memory, and below them where they come from."""
    found = [(case, row) for case in CASES for row in rows if (row.name, row.settings) == (case.model, case.settings)]
    memory = [row for row in rows if row.settings["case"] == "memory"]
    tables = [
        _table(HEADER, 3, [_cells(case, row) for case, row in found]),
        _table(MEMORY_HEADER, 1, [_memory_cells(row) for row in memory]),
    ]
    origins = dict.fromkeys(origin(row) for row in (*(row for _, row in found), *memory))
    return "\n\n".join([*filter(None, tables), "\n".join(origins)])


def _table(header: Sequence[str], left: int, rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, `left` columns of text and then numbers; empty without rows."""
    if not rows:
        return ""
    lines = [header, ("---",) * left + ("---:",) * (len(header) - left), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _memory_cells(row: ResultRow) -> tuple[str, ...]:
    checkpointing = "yes" if row.settings["grad_checkpointing"] else "no"
    return (f"`{row.name}`", str(row.settings["batch_size"]), checkpointing, f"{row.values['peak'].value:.2f}")


def _cells(case: Case, row: ResultRow) -> tuple[str, ...]:
    def number(name: str, pattern: str) -> str:
        value = row.values.get(name)
        if value is None:
            return ""
        median, *quartiles = [pattern.format(n) for n in (value.value, value.low, value.high) if n is not None]
        return f"{median} ({' to '.join(quartiles)})" if quartiles else median

    digits = "{:.4f}" if case.limit and case.limit < 0.1 else "{:.3f}"
    return (
        case.name,
        f"`{row.name}`",
        f"{case.first} / {case.second}",
        number("ratio", digits),
        number("limit", "{:.3g}"),
        number("first", digits),
        number("second", "{:.3f}"),
        number("pairs", "{:.0f}"),
        number("roof", "{:.0f}"),
    )


def measurements() -> dict[str, Callable[[], ResultRow]]:
    """What the patterns of the command line are matched with, and how it is measured."""
    times = {f"{case.name} {case.model}": partial(measure, case) for case in CASES}
    memory = {
        f"memory {MEMORY_MODEL} {size}{' checkpointed' * kind}": partial(
            measure_memory, MEMORY_MODEL, size, checkpointing=kind
        )
        for size in MEMORY_BATCHES
        for kind in (False, True)
    }
    return {**times, **memory}


NAMES = "\n".join(measurements())


@click.command(help=f"Time training steps. PATTERNS pick cases, all by default:\n\n\b\n{NAMES}")
@click.argument("patterns", nargs=-1)
@click.option(
    "--out",
    default=RESULTS,
    show_default=f"benchmarks/results/{RESULTS.name}",
    type=click.Path(path_type=Path),
    help="Result file. Rows of the chosen cases are replaced.",
)
def main(patterns: tuple[str, ...], out: Path) -> None:
    chosen = {
        name: run
        for name, run in measurements().items()
        if any(fnmatchcase(name, pattern) for pattern in patterns or ("*",))
    }
    if not chosen:
        raise click.UsageError(f"no case matches {' or '.join(map(repr, patterns))}. The cases:\n{NAMES}")
    for name, run in chosen.items():
        row = run()
        record(out, row)
        value = row.values["ratio" if "ratio" in row.values else "peak"]
        click.echo(f"{name}: {value.value:.3f} {value.unit}", err=True)
    click.echo(report(read_rows(out)[0]))


if __name__ == "__main__":
    main()
