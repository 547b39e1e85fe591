"""Takes the weights out of the recorded cases in `tests/golden`: `python -m tests.strip_golden CASE ...`

A case loses its stored state dict if drawing its weights again gives every entry bit for bit; its JSON file keeps the
checksum by which the tests know the redrawn ones. How the weights were drawn, the JSON file says under "weights".
"""

from __future__ import annotations

import json
import sys
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ditzoo.bench.results import write_atomically
from tests.golden_cases import FOLDER, Case, checksum, draw_state, golden_case

#: What the JSON files give a line to each entry of.
TABLES = ("notes", "tolerances", "inputs", "outputs", "cfg_kwargs", "official_init_stats")


def strip(case: Case) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a case without its weights.

    Raises:
        ValueError: for a case without stored weights, or whose weights are others when drawn again.
    """
    stored, drawn = case.stored_state, draw_state(case.packaged)
    if not stored:
        raise ValueError(f"{case.name} has no stored weights.")
    entries = {key: checksum({key: value}) for key, value in stored.items()}
    again = {key: checksum({key: value}) for key, value in drawn.items()}
    if different := sorted({key for key, _ in entries.items() ^ again.items()}):
        raise ValueError(f"{case.name}: the weights drawn again are not the recorded ones: {', '.join(different)}.")
    tensors = {key: value for key, value in case.tensors.items() if not key.startswith("state.")}
    if not case.facts["official_init_stats"]["pos_embed"]["trainable"] and not case.packaged.post_scale:
        tensors["init.pos_embed"] = stored["pos_embed"]  # the official table, for which the redrawn one cannot vouch
    return case.facts | {"weights": case.facts["weights"] | {"sha256": checksum(stored)}}, tensors


def to_json(facts: dict[str, Any]) -> str:
    """One line a fact, and one an entry of the long tables."""

    def value(key: str, content: Any) -> str:
        if key not in TABLES or not content:
            return json.dumps(content)
        lines = ",\n".join(f"    {json.dumps(entry)}: {json.dumps(each)}" for entry, each in content.items())
        return f"{{\n{lines}\n  }}"

    lines = ",\n".join(f"  {json.dumps(key)}: {value(key, content)}" for key, content in facts.items())
    return f"{{\n{lines}\n}}\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        facts, tensors = strip(golden_case(name))
        write_atomically(FOLDER / f"{name}.json", to_json(facts).encode())
        write_atomically(FOLDER / f"{name}.safetensors", save(tensors))
        print(f"{name}: {sum(tensor.nbytes for tensor in tensors.values()):,} bytes are left")
