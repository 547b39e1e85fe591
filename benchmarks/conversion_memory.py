"""Peak memory of `ditzoo.convert` on a DiT-XL/2 of random weights, each conversion in a process of its own.

The recorded results come from

    python benchmarks/conversion_memory.py

It needs the extra `diffusers`, Linux, 26 GB of disk and 9 GB of memory, and takes five minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click
import torch

import ditzoo
from ditzoo.bench.results import write_atomically
from ditzoo.layers import sincos_position_table

RESULTS = Path(__file__).resolve().parent / "results" / "conversion_memory.json"
MODEL = "dit_xl_2"
#: What a process prints: the most memory that the conversion took beyond the imported libraries, in bytes.
CHILD = """
import sys, warnings
import torch, ditzoo
import ditzoo.interop.convert
def memory(kind):
    line = next(line for line in open("/proc/self/status") if line.startswith(kind))
    return 1024 * int(line.split()[1])
warnings.simplefilter("ignore")
src, dst, to, dtype, name = sys.argv[1:]
if to == "diffusers":
    import diffusers.models.transformers.dit_transformer_2d
before = memory("VmRSS")
ditzoo.convert(src, dst, to=to, name=name or None, dtype=getattr(torch, dtype) if dtype else None)
print(memory("VmHWM") - before)
"""


class Conversion(NamedTuple):
    """One row to measure."""

    src: str
    dst: str
    to: str
    dtype: str = ""


#: In order: each reads what an earlier one has written.
CONVERSIONS = (
    Conversion("official.pt", "ditzoo", "ditzoo"),
    Conversion("ditzoo", "official.safetensors", "official"),
    Conversion("ditzoo", "copy.pt", "official"),
    Conversion("official.pt", "diffusers", "diffusers"),
    Conversion("diffusers", "from-diffusers", "ditzoo"),
    Conversion("official.pt", "half", "ditzoo", "bfloat16"),
    Conversion("official.pt", "half-diffusers", "diffusers", "bfloat16"),
    Conversion("official.pt", "half.safetensors", "official", "bfloat16"),
    Conversion("official.pt", "half.pt", "official", "bfloat16"),
    Conversion("half", "wide", "ditzoo", "float32"),
)


@dataclass(frozen=True)
class Row:
    """One conversion."""

    conversion: str
    source_bytes: int
    """of the files of weights that are read"""
    peak_bytes: int
    """of memory, mapped files included, beyond the imported libraries"""

    @property
    def ratio(self) -> float:
        return self.peak_bytes / self.source_bytes


def measure(folder: Path) -> list[Row]:
    with torch.device("meta"):
        model = ditzoo.create(MODEL)
    state = {key: 0.02 * torch.randn(value.shape) for key, value in model.state_dict().items()}
    state["pos_embed"] = sincos_position_table(model.hidden_size, model.grid)
    torch.save(state, folder / "official.pt")
    del state
    rows = []
    for src, dst, to, dtype in CONVERSIONS:
        name = MODEL if src == "official.pt" else ""
        command = [sys.executable, "-c", CHILD, str(folder / src), str(folder / dst), to, dtype, name]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(Row(f"{src} to {dst}{f', {dtype}' if dtype else ''}", _num_bytes(folder / src), peak))
    return rows


def _num_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def table(rows: list[Row]) -> str:
    """As `docs/converting.md` shows it."""
    lines = ["| conversion | read, GB | peak, GB | peak over read |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row.conversion} | {row.source_bytes / 1e9:.2f} | {row.peak_bytes / 1e9:.2f} | {row.ratio:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where to write rows.")
def main(out: Path) -> None:
    """Measure, print the table and write it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    click.echo(table(rows))
    versions = {name: metadata.version(name) for name in ("ditzoo", "diffusers", "torch", "safetensors")}
    content = {"model": MODEL, "versions": versions, "rows": [asdict(row) for row in rows]}
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
