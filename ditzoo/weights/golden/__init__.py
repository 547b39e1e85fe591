"""What the official implementations computed, small enough to travel with the package.

`cases.safetensors` holds inputs and outputs recorded by running the official code, and `cases.json` says which network
they belong to. Its weights are not stored: they were random draws that `draw_weights` repeats bit for bit.
`tests/weights/pack_golden.py` packs both files from `tests/golden`, whose README names commits and licences.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ditzoo import models
from ditzoo.layers import TokenMask, sincos_position_table
from ditzoo.models import DiffusionTransformer

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class GoldenCase:
    """One small network of an official implementation.

    Attributes:
        name: as in `tests/golden`.
        model_cls: name of the class in `ditzoo.models`.
        options: its constructor arguments.
        outputs: names of the recorded outputs.
        tolerance: float32 difference allowed, over the largest official value.
        source: official repository and commit.
        tag: what the random draws of the weights are seeded with.
        positions_from_table: whether learned position tables were drawn around the sin-cos table.
        post_scale: factors on weights whose name ends so, or begins so where it is written with a `^`. Cases that
            have some are probes: they show the eps of norms and the kind of GELU, which ordinary weights hide.
    """

    name: str
    model_cls: str
    options: Mapping[str, Any]
    outputs: tuple[str, ...]
    tolerance: float
    source: str
    tag: str
    positions_from_table: bool
    post_scale: Mapping[str, float]

    def build(self) -> DiffusionTransformer:
        """The network with the weights of the recording, on the CPU, in float32 and eval mode."""
        with torch.device("meta"):
            model: DiffusionTransformer = getattr(models, self.model_cls)(**self.options)
        model.load_state_dict(draw_weights(self, model), strict=True, assign=True)
        return model.eval()


@cache
def golden_cases() -> tuple[GoldenCase, ...]:
    """All packaged cases."""
    cases = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
    return tuple(
        GoldenCase(name, **{**facts, "outputs": tuple(facts["outputs"])}) for name, facts in cases["cases"].items()
    )


def cases_of(model_cls: type[DiffusionTransformer]) -> list[GoldenCase]:
    """Those of exactly this class."""
    return [case for case in golden_cases() if getattr(models, case.model_cls) is model_cls]


@cache
def golden_tensors(name: str) -> dict[str, Tensor]:
    """Recorded tensors of a case: `in.*` and `out.*`."""
    prefix = f"{name}/"
    with safe_open(FOLDER / "cases.safetensors", "pt") as file:
        keys = [key for key in list(file.keys()) if key.startswith(prefix)]
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}


def golden_errors(case: GoldenCase, device: torch.device | str, dtype: torch.dtype) -> dict[str, float]:
    """Run a case: output -> largest difference from the official one, over its largest value. NaN stays NaN.

    The recording is float32; in another `dtype` the difference is that of rounding.
    """
    recorded = {key: tensor.to(device) for key, tensor in golden_tensors(case.name).items()}
    model = case.build().to(device, dtype)
    x = recorded["in.x"].to(dtype)
    errors = {}
    with torch.no_grad():
        for output in case.outputs:
            t = recorded["in.t_frac" if output == "forward_tfrac" else "in.t"]
            options: dict[str, Any] = {}
            if output == "forward_masked":
                options["mask"] = TokenMask(*(recorded[f"in.{name}"] for name in TokenMask._fields))
            computed = model(x, t, recorded.get("in.y"), **options).cpu().double()
            official = recorded[f"out.{output}"].cpu().double()
            errors[output] = float((computed - official).abs().max() / official.abs().max())
    return errors


def draw_weights(case: GoldenCase, model: DiffusionTransformer) -> dict[str, Tensor]:
    """The weights of the recording, float32: fresh normal draws at a scale that depends on the parameter's kind, so
    that gates, biases and tables that start at zero all have an effect (`ditzoo-golden-v1`).

    Drawn by NumPy's `RandomState`, whose stream is frozen, one seed a parameter. `model` gives names and shapes.
    """
    table = sincos_position_table(model.hidden_size, model.grid).double().numpy()
    state = {}
    for name, parameter in model.named_parameters():
        frozen = not parameter.requires_grad
        value = _value(case, name, tuple(parameter.shape), table, frozen).astype(np.float32)
        for pattern, factor in case.post_scale.items():
            if name.startswith(pattern[1:]) if pattern.startswith("^") else name.endswith(pattern):
                value = value * np.float32(factor)
        state[name] = torch.from_numpy(value)
    return state


def _value(case: GoldenCase, name: str, shape: tuple[int, ...], table: np.ndarray, frozen: bool) -> np.ndarray:
    leaf = name.rpartition(".")[2]
    if leaf == "pos_embed" and frozen:
        return table
    generator = np.random.RandomState(zlib.crc32(f"{case.tag}/{name}".encode()))
    z = generator.standard_normal(math.prod(shape)).reshape(shape)
    if leaf in ("pos_embed", "decoder_pos_embed"):
        return table + 0.1 * z if case.positions_from_table else 0.3 * z
    if leaf in ("relative_position_bias_table", "mask_token"):
        return 0.5 * z
    if name.endswith(("embedding_table.weight", "label_emb.weight")):
        return 0.3 * z
    if leaf == "weight" and len(shape) == 1:
        return 1 + 0.1 * z
    if leaf == "bias":
        return (0.2 if "adaLN_modulation" in name else 0.1) * z
    return float(np.clip(0.8 / math.sqrt(math.prod(shape[1:])), 0.02, 0.1)) * z
