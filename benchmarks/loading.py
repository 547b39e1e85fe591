"""Times how weights are loaded from local files, and how much memory it takes at most: `dit_xl_2` on a CPU.

The recorded results come from

    python benchmarks/loading.py

It needs two minutes, 3 GB of disk space where temporary files go, 9 GB of memory, the system's cache of files included,
and Linux, which alone tells how much memory a process took. Weights are random and written on the spot, so that their
files are in that cache ("warm"): what a disk delivers is not measured.

Memory is that of a fresh process, beyond what it has after `import ditzoo` and a first network on the meta device. It
counts anonymous memory and mapped pages of files alike: a page of a mapped file is read when a value in it is, so that
loading itself takes little, and all weights have taken their place when each has been read once. Both are reported.
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
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch import Tensor

import ditzoo
from ditzoo.bench.results import provenance, write_atomically
from ditzoo.models import DiffusionTransformer
from ditzoo.weights import load_state_dict, save_weights, warn_of_non_finite

RESULTS = Path(__file__).resolve().parent / "results" / "loading.json"
MODEL = "dit_xl_2"
SHARD_SIZE = "500MB"
REPEATS = 20
#: Where two threads have something else beside them on two cores, they wait for each other most of the time.
THREADS = 1
#: What the project allows itself.
MOST_MEMORY, MOST_SECONDS = 1.2, 3.0
#: Precisions and largest files. The limit of time is for those in bfloat16.
CASES = [(dtype, size) for dtype in ("bfloat16", "float32") for size in ("5GB", SHARD_SIZE)]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One case. Sizes are in bytes, times in seconds."""

    model: str
    dtype: str
    files: int
    """1, or the number of shards"""
    weights: int
    """of all tensors"""
    load: tuple[float, float, float]
    """time until the network can be called: first quartile, median, third quartile"""
    load_and_read: tuple[float, float, float]
    """the same with a look at each value, which finds NaN"""
    memory_loaded: int
    """most memory until the network can be called"""
    memory_read: int
    """most memory until each value has been read"""
    memory_anonymous: int
    """of the last, what is no mapped file"""


def load(name: str, path: Path) -> DiffusionTransformer:
    """The network of this name with the weights of a file or folder: what is measured."""
    with torch.device("meta"):
        model = ditzoo.create(name)
    model.load_state_dict(load_state_dict(path), assign=True)
    return model


def read(model: DiffusionTransformer) -> None:
    """Look at each value."""
    broken = warn_of_non_finite(model.state_dict())
    assert not broken, broken


def random_weights(name: str) -> dict[str, Tensor]:
    """Of every tensor, none constant: fresh networks have zeros, of which a system may keep one page."""
    with torch.device("meta"):
        shapes = ditzoo.create(name).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(tensor.shape, generator=generator) * 0.02 for key, tensor in shapes.items()}


# What fresh processes do.


def times(name: str, path: Path, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of loading, and of loading and reading, after one round that does not count."""
    loading, reading = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model = load(name, path)
        loading.append(time.perf_counter() - start)
        read(model)
        reading.append(time.perf_counter() - start)
        del model
    return loading[1:], reading[1:]


def memory(name: str, path: Path) -> tuple[int, int, int]:
    """Most bytes beyond those at the start, after loading and after reading; and anonymous ones at the end."""
    with torch.device("meta"):
        ditzoo.create(name)  # loads what is imported late
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of importing
    start = status()
    model = load(name, path)
    loaded = status()
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    read(model)
    done = status()
    return loaded["VmHWM"] - start["VmRSS"], done["VmHWM"] - start["VmRSS"], done["RssAnon"] - start["RssAnon"]


def status() -> dict[str, int]:
    """This process's memory in bytes: present (`VmRSS`), peak (`VmHWM`), and present without files (`RssAnon`)."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(THREADS,)) as pool:
        return pool.submit(function, *arguments).result()


# Cases.


def measure(name: str, state: dict[str, Tensor], dtype: str, max_shard_size: str, repeats: int) -> Row:
    """Write the weights into a temporary folder and load them from there, in a process for time and one for memory."""
    with tempfile.TemporaryDirectory() as folder:
        paths = save_weights(state, folder, max_shard_size=max_shard_size, dtype=getattr(torch, dtype))
        loading, reading = in_fresh_process(times, name, Path(folder), repeats)
        loaded, done, anonymous = in_fresh_process(memory, name, Path(folder))
    return Row(
        model=name,
        dtype=dtype,
        files=max(1, len(paths) - 1),  # without the index
        weights=sum(tensor.numel() for tensor in state.values()) * getattr(torch, dtype).itemsize,
        load=quartiles(loading),
        load_and_read=quartiles(reading),
        memory_loaded=loaded,
        memory_read=done,
        memory_anonymous=anonymous,
    )


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, interpolated linearly."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, median, high


def table(rows: list[Row]) -> str:
    """As `benchmarks/README.md` shows it."""
    header = ["model", "precision", "files", "weights", "load", "load and read", "memory", "after reading", "anonymous"]
    lines = [header, ["---"] * 2 + ["---:"] * 7, *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row) -> list[str]:
    def seconds(values: tuple[float, float, float]) -> str:
        return f"{values[1]:.3f} s ({values[0]:.3f} to {values[2]:.3f})"

    memory = [f"{size / row.weights:.3f}" for size in (row.memory_loaded, row.memory_read, row.memory_anonymous)]
    weights = f"{row.weights / 1e9:.2f} GB"
    return [
        f"`{row.model}`",
        row.dtype,
        str(row.files),
        weights,
        seconds(row.load),
        seconds(row.load_and_read),
        *memory,
    ]


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
    rows = [measure(name, state, dtype, size, repeats) for dtype, size in CASES]
    origin = provenance("cpu")
    origin["machine"]["threads"] = THREADS
    content = {"origin": origin, "rows": [asdict(row) for row in rows]}
    click.echo(f"{table(rows)}\n\n{origin_line(origin)}")
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
