"""Packs what `ditzoo verify` compares with into the package: `python -m tests.weights.pack_golden`.

It stands here because its input is `tests/golden`, and a test checks that the packaged files are what it makes of them.
Weights are left out: `ditzoo.weights.golden.draw_weights` repeats their random draws.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ditzoo.weights.golden import FOLDER
from ditzoo.weights.published import PARAM_COUNTS_FILE
from tests.golden_cases import golden_case, golden_facts

#: Small cases of every class.
NAMES = (
    *("dit", "dit_probe", "uvit", "uvit_conv_uncond", "uvit_probe"),
    *("mdtv1", "mdtv1_probe", "mdtv2", "mdtv2_probe", "diffit", "diffit_probe", "sit", "sit_probe"),
)
INPUTS = ("x", "t", "t_frac", "y", "ids_keep", "ids_restore", "mask")


def pack() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Contents of `cases.json` and `cases.safetensors`."""
    cases, tensors = {}, {}
    for name in NAMES:
        case = golden_case(name)
        cases[name] = asdict(case.packaged)
        del cases[name]["name"]
        keys = [*(f"in.{key}" for key in INPUTS), *(f"out.{key}" for key in case.packaged.outputs)]
        tensors |= {f"{name}/{key}": case[key] for key in keys if key in case.tensors}
    return {"recipe": "ditzoo-golden-v1", "cases": cases}, tensors


def pack_param_counts() -> dict[str, dict[str, Any]]:
    """Contents of `param_counts.json`: the official configurations that a registry name builds."""
    return {
        entry["name"]: {"total": entry["total"], "keys": entry["state_dict_keys"], "source": entry["official"]}
        for entry in golden_facts("param_counts").values()
        if not entry["options"]
    }


def to_json(content: dict[str, Any], entries: str | None = None) -> str:
    """One line an entry."""
    table = content if entries is None else content[entries]
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items())
    if entries is None:
        return f"{{\n{lines}\n}}\n"
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in content.items() if key != entries)
    return f"{{\n{head} {json.dumps(entries)}: {{\n{lines}\n }}\n}}\n"


def files() -> dict[Path, bytes]:
    facts, tensors = pack()
    return {
        FOLDER / "cases.json": to_json(facts, "cases").encode(),
        FOLDER / "cases.safetensors": save(tensors),
        PARAM_COUNTS_FILE: to_json(pack_param_counts()).encode(),
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_bytes(content)
        print(f"{path}: {len(content):,} bytes")
