"""The golden cases: what the official implementations computed. `tests/golden/README.md` tells how."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ditzoo import models
from ditzoo.layers import relative_position_index
from ditzoo.models import DiffusionTransformer
from ditzoo.weights.golden import GoldenCase, draw_weights

FOLDER = Path(__file__).parent / "golden"

#: U-ViT's own names for the options that all families share here.
_UVIT_OPTIONS = {"img_size": "input_size", "in_chans": "in_channels", "embed_dim": "hidden_size"}
#: Outputs that `ditzoo verify` can compute without guidance, labels dropped or draws of its own.
_PLAIN_OUTPUTS = ("forward", "forward_tfrac", "forward_masked")


@dataclass(frozen=True)
class Case:
    """One model case: `facts` as in its JSON file, `tensors` as in its safetensors file."""

    name: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    @property
    def model_cls(self) -> type[DiffusionTransformer]:
        return getattr(models, self.facts["constructor"])

    @property
    def options(self) -> dict[str, Any]:
        """The official constructor's arguments under this library's names."""
        options = {_UVIT_OPTIONS.get(k, k): v for k, v in self.facts["constructor_args"].items()}
        if self.model_cls is models.UViT:  # counts the null label as a class, and writes none as -1
            options["num_classes"] = max(options["num_classes"] - 1, 0)
        return options

    @property
    def state(self) -> dict[str, Tensor]:
        """The official state dict, constant buffers included: as recorded, or drawn again where it is not stored."""
        state = self.stored_state or _drawn_state(self.name)
        return {key: value.clone() for key, value in state.items()}

    @property
    def stored_state(self) -> dict[str, Tensor]:
        """The recorded state dict; empty where the file leaves it out."""
        return {key.removeprefix("state."): value for key, value in self.tensors.items() if key.startswith("state.")}

    @property
    def packaged(self) -> GoldenCase:
        """The case in the form that travels with the package, which is all that redrawing its weights takes."""
        official, weights = self.facts["official"], self.facts["weights"]
        return GoldenCase(
            name=self.name,
            model_cls=self.facts["constructor"],
            options=self.options,
            outputs=tuple(output for output in _PLAIN_OUTPUTS if f"out.{output}" in self.tensors),
            tolerance=self.facts["relative_tolerance"],
            source=f"{official['repo']}@{official['commit'][:12]}",
            tag=weights["tag"],
            positions_from_table=weights["positions_from_table"],
            post_scale=weights["post_scale"],
        )

    @property
    def outputs(self) -> list[str]:
        return list(self.facts["outputs"])

    def tolerance(self, dtype: torch.dtype = torch.float32) -> float:
        """Allowed difference over the largest output. The recorded numbers are float32."""
        return 1e-5 if dtype == torch.float64 else self.facts["relative_tolerance"]

    def model(self, dtype: torch.dtype = torch.float32) -> DiffusionTransformer:
        """A fresh model with the official weights, in eval mode."""
        model = self.model_cls(**self.options)
        model.load_state_dict(self.state, strict=True)
        return model.to(dtype).eval()


@dataclass(frozen=True)
class ProcessCase:
    """One case of schedules, losses and samplers: `facts` as in its JSON file, `tensors` as in its safetensors file."""

    name: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    @property
    def outputs(self) -> list[str]:
        """All that the official code computed: every key that begins with `out.`."""
        return sorted(key for key in self.tensors if key.startswith("out."))

    def tolerance(self, output: str) -> float:
        """Allowed difference of an output over its largest value: none of integers, 1e-12 of schedule tables in
        float64, and what the JSON file states of the rest."""
        exact = {torch.int64: 0.0, torch.float64: 1e-12}
        otherwise = exact.get(self[output].dtype, self.facts["relative_tolerance"])
        return self.facts.get("tolerances", {}).get(output, otherwise)

    def agrees(self, output: str, computed: Tensor) -> bool:
        """Whether `computed` is the recorded output within its tolerance. NaN is not; another shape is an error."""
        expected = self[output].double()
        assert computed.shape == expected.shape, f"{output}: {tuple(computed.shape)}, not {tuple(expected.shape)}"
        difference = (computed.detach().double() - expected).abs().max()
        return bool(difference <= self.tolerance(output) * expected.abs().max())

    def model(self, version: str | None = None, dtype: torch.dtype = torch.float32) -> DiffusionTransformer:
        """The network that the official code ran; `version` is MDT's `v1` or `v2`."""
        name = self.facts["model_case"] if version is None else self.facts["model_cases"][version]
        return golden_case(name).model(dtype)


def draw_state(case: GoldenCase) -> dict[str, Tensor]:
    """The official state dict of a case, drawn again: weights, and the constant buffers beside relative tables."""
    with torch.device("meta"):
        model = getattr(models, case.model_cls)(**case.options)
    state = draw_weights(case, model)
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    buffers = {f"{table.rpartition('.')[0]}.{name}" for table in tables for name in model.constant_buffers}
    return state | {buffer: relative_position_index(*model.grid, device=torch.device("cpu")) for buffer in buffers}


@cache
def _drawn_state(name: str) -> dict[str, Tensor]:
    return draw_state(golden_case(name).packaged)


def checksum(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all entries, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@cache
def golden_case(name: str) -> Case:
    return Case(name, golden_facts(name), golden_tensors(name))


@cache
def process_case(name: str) -> ProcessCase:
    return ProcessCase(name, golden_facts(name), golden_tensors(name))


@cache
def golden_tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


@cache
def golden_facts(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


#: Names of all model cases.
CASES = sorted(path.stem for path in FOLDER.glob("*.json") if "constructor" in golden_facts(path.stem))
#: Names of all cases of schedules, losses and samplers.
PROCESS_CASES = sorted(path.stem for path in FOLDER.glob("*.json") if "notes" in golden_facts(path.stem))


def relative_error(output: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    assert output.shape == expected.shape
    output, expected = output.detach().double(), expected.detach().double()
    return float((output - expected).abs().max() / expected.abs().max())
