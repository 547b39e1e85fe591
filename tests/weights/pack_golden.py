"""Packs what `ditzoo verify` compares with into the package: `python -m tests.weights.pack_golden`.

It stands here because its input is `tests/golden`, and a test checks that the packaged files are what it makes of them.
Weights are left out: `ditzoo.weights.golden.draw_weights` repeats their random draws.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ditzoo.weights.golden import FOLDER
from ditzoo.weights.published import PARAM_COUNTS_FILE
from tests.golden_cases import golden_case, golden_facts

#: Small cases of every class, and the seed in the tag of their random draws.
SEEDS = {
    **{"dit": 1001, "dit_probe": 1701},
    **{"uvit": 1201, "uvit_conv_uncond": 1202, "uvit_probe": 1707},
    **{"mdtv1": 1301, "mdtv1_probe": 1704, "mdtv2": 1401, "mdtv2_probe": 1705},
    **{"diffit": 1501, "diffit_probe": 1703},
    **{"sit": 1101, "sit_probe": 1702},
}
OUTPUTS = ("forward", "forward_tfrac", "forward_masked")
INPUTS = ("x", "t", "t_frac", "y", "ids_keep", "ids_restore", "mask")
#: Tokens of a variance near 1e-6 enter the first norms, and the MLPs are wide awake.
PROBE_SCALE = {
    **{"^x_embedder.proj": 2e-3, "^patch_embed.proj": 2e-3, "pos_embed": 2e-3},
    **{"label_emb.weight": 2e-3, "mask_token": 2e-3, "mlp.fc1.weight": 5.0, "mlp.fc2.weight": 2.0},
}


def outputs_of(name: str) -> list[str]:
    return [output for output in OUTPUTS if f"out.{output}" in golden_case(name).tensors]


def pack() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Contents of `cases.json` and `cases.safetensors`."""
    cases, tensors = {}, {}
    for name, seed in SEEDS.items():
        case = golden_case(name)
        official = case.facts["official"]
        cases[name] = {
            "model_cls": case.facts["constructor"],
            "options": case.options,
            "outputs": outputs_of(name),
            "tolerance": case.facts["relative_tolerance"],
            "source": f"{official['repo']}@{official['commit'][:12]}",
            "tag": f"ditzoo-golden-v1/visible/{name}/{seed}",
            "positions_from_table": case.facts["constructor"].startswith("MDT"),
            "post_scale": PROBE_SCALE if name.endswith("_probe") else {},
        }
        keys = [*(f"in.{key}" for key in INPUTS), *(f"out.{key}" for key in outputs_of(name))]
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
