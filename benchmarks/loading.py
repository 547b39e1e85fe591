"""Times how weights are loaded from local files, and how much memory it takes at most: `dit_xl_2` on a CPU.

The recorded results come from

    python benchmarks/loading.py

It needs two minutes, 3 GB of disk space where temporary files go, 9 GB of memory, the system's cache of files included,
and Linux, which alone tells how much memory a process took. Weights are random and written on the spot, so that their
files are in that cache ("warm"): what a disk delivers is not measured.

`ditzoo.create(name, checkpoint=path)` reads every value once, since it looks for NaN; so all pages of the file have
taken their place in memory when it returns. Memory is that of a fresh process, beyond what it has after
`import ditzoo` and a first network on the meta device. It counts anonymous memory and mapped pages of files alike, and
tells the first apart.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch import Tensor

import ditzoo
from ditzoo.bench.results import provenance, write_atomically
from ditzoo.models import DiffusionTransformer
from ditzoo.weights import save_weights

RESULTS = Path(__file__).resolve().parent / "results" / "loading.json"
MODEL = "dit_xl_2"
SHARD_SIZE = "500MB"
REPEATS = 20
#: Where two threads have something else beside them on two cores, they wait for each other most of the time.
THREADS = 1
#: What the project allows itself.
MOST_MEMORY, MOST_SECONDS = 1.2, 3.0
#: Precisions, kinds and largest files. The limit of time is for those in bfloat16.
CASES = [
    (dtype, *case)
    for dtype in ("bfloat16", "float32")
    for case in (("safetensors", "5GB"), ("safetensors", SHARD_SIZE), ("PyTorch", "5GB"))
]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One case. Sizes are in bytes, times in seconds."""

    model: str
    dtype: str
    kind: str
    """`safetensors` or `PyTorch`"""
    files: int
    """1, or the number of shards"""
    weights: int
    """of all tensors"""
    load: tuple[float, float, float]
    """time until the network can be called: first quartile, median, third quartile"""
    memory: int
    """most memory until then"""
    memory_anonymous: int
    """what of it is no mapped file, at the end"""


def load(name: str, path: Path) -> DiffusionTransformer:
    """The network of this name with the weights of a file or folder: what is measured. Each value is read on the way,
    since `create` looks for NaN."""
    return ditzoo.create(name, checkpoint=path)


def random_weights(name: str) -> dict[str, Tensor]:
    """Of every tensor, none constant: fresh networks have zeros, of which a system may keep one page."""
    with torch.device("meta"):
        shapes = ditzoo.create(name).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(tensor.shape, generator=generator) * 0.02 for key, tensor in shapes.items()}


# What fresh processes do.


def times(name: str, path: Path, repeats: int) -> list[float]:
    """Seconds of loading, after one round that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model = load(name, path)
        seconds.append(time.perf_counter() - start)
        del model
    return seconds[1:]


def memory(name: str, path: Path) -> tuple[int, int]:
    """Most bytes beyond those at the start, and anonymous ones at the end."""
    with torch.device("meta"):
        ditzoo.create(name)
    import_module("ditzoo.weights.sources")  # late imports are no part of the weights
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of importing
    start = status()
    model = load(name, path)
    done = status()
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    return done["VmHWM"] - start["VmRSS"], done["RssAnon"] - start["RssAnon"]


def status() -> dict[str, int]:
    """This process's memory in bytes: present (`VmRSS`), peak (`VmHWM`), and present without files (`RssAnon`)."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(THREADS,)) as pool:
        return pool.submit(function, *arguments).result()


# Cases.


def measure(name: str, state: dict[str, Tensor], dtype: str, kind: str, max_shard_size: str, repeats: int) -> Row:
    """Write the weights into a temporary folder and load them from there, in a process for time and one for memory."""
    precision = getattr(torch, dtype)
    with tempfile.TemporaryDirectory() as folder:
        if kind == "PyTorch":
            path, count = Path(folder, "official.pt"), 1
            torch.save({key: tensor.to(precision) for key, tensor in state.items()}, path)
        else:
            paths = save_weights(state, folder, max_shard_size=max_shard_size, dtype=precision)
            path, count = Path(folder), max(1, len(paths) - 1)  # without the index
        seconds = in_fresh_process(times, name, path, repeats)
        most, anonymous = in_fresh_process(memory, name, path)
    return Row(
        model=name,
        dtype=dtype,
        kind=kind,
        files=count,
        weights=sum(tensor.numel() for tensor in state.values()) * precision.itemsize,
        load=quartiles(seconds),
        memory=most,
        memory_anonymous=anonymous,
    )


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, interpolated linearly."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, median, high


def table(rows: list[Row]) -> str:
    """As `benchmarks/README.md` shows it."""
    header = ["model", "precision", "kind", "files", "weights", "load", "memory", "anonymous"]
    lines = [header, ["---"] * 3 + ["---:"] * 5, *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row) -> list[str]:
    low, median, high = row.load
    seconds = f"{median:.3f} s ({low:.3f} to {high:.3f})"
    memory = [f"{size / row.weights:.3f}" for size in (row.memory, row.memory_anonymous)]
    weights = f"{row.weights / 1e9:.2f} GB"
    return [f"`{row.model}`", row.dtype, row.kind, str(row.files), weights, seconds, *memory]


def origin_line(origin: dict[str, Any]) -> str:
    """What the rows were measured with."""
    machine, versions = origin["machine"], ", ".join(f"{name} {it}" for name, it in origin["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}; {versions}, source digest "
        f"{origin['source_digest']}."
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where to write rows.")
@click.option("--model", "name", default=MODEL, show_default=True, help="Registry name.")
@click.option("--repeats", default=REPEATS, show_default=True, type=click.IntRange(min=2), help="Times of loading.")
def main(out: Path, name: str, repeats: int) -> None:
    """Measure, print the table and write it."""
    state = random_weights(name)
    rows = [measure(name, state, *case, repeats) for case in CASES]
    origin = provenance("cpu")
    origin["machine"]["threads"] = THREADS
    content = {"origin": origin, "rows": [asdict(row) for row in rows]}
    click.echo(f"{table(rows)}\n\n{origin_line(origin)}")
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
