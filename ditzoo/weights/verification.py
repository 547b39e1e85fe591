"""Is this network, and this file of weights, what it claims to be? `ditzoo verify` on a user's own machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ditzoo import registry
from ditzoo.models import DiffusionTransformer, DiT
from ditzoo.weights.checks import Check, Verification, checked_device
from ditzoo.weights.diffusers_names import dit_state, is_diffusers_state, transformer_folder
from ditzoo.weights.file_checks import file_checks, hints
from ditzoo.weights.files import Nest, WeightsFile, read_checkpoint
from ditzoo.weights.match import FileForNetwork
from ditzoo.weights.network_checks import HALF_PRECISION, golden_checks, network_checks
from ditzoo.weights.packaged import packaged_file
from ditzoo.weights.records import record_check


def verify(
    name: str,
    checkpoint: Path | str | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: Nest | None = None,
    record: bool = False,
) -> Verification:
    """Compare a network of the zoo, and a file of weights for it, with what is known of the original.

    Args:
        name: registry name, with the tag of the weights where they are published ones: of those it is known that they
            are trained, so that constant tensors and an output of zeros fail.
        checkpoint: safetensors file, index of shards, PyTorch checkpoint, or a folder with one of them, as
            `load_state_dict` takes it; for DiT, the same of diffusers, or a pipeline's folder. None takes the
            file that comes with ditzoo, such as that of `dit_ti_2.digits`, and for others checks the network alone.
        device: where forward passes run.
        dtype: their precision: float32, bfloat16 or float16.
        weights: which weights of a training checkpoint, the moving average (`"ema"`) or the last step (`"raw"`); None
            takes the average where there is one.
        record: keep size and hashes of a file that passes in the user's cache, where `name` is that of weights that
            their authors published. Later files for the name are compared with it, whether they are recorded or not.

    Raises:
        ValueError: unknown name, device or dtype; a file that is damaged, holds no weights or would run code.
        OSError: no such file, or a folder without weights; or this installation lacks a file that comes with ditzoo.
    """
    device = checked_device(device)
    if dtype not in (torch.float32, *HALF_PRECISION):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}.")
    if checkpoint is None and registry.model_info(name).packaged:
        with packaged_file(name) as path:
            result = verify(name, path, device=device, dtype=dtype, weights=weights)
        return replace(result, checks=(Check("weights", "note", "those that come with ditzoo"), *result.checks))
    with torch.device("meta"):
        model = registry.create(name)
    # Before the slower checks: a wrong path should be told at once.
    file = None if checkpoint is None else read_checkpoint(_place(checkpoint), weights=weights)
    checks = [*network_checks(name, model), *golden_checks(model, device, dtype)]
    if file is None:
        checks.append(Check("weights", "not checked", "no file given", "--checkpoint PATH"))
        return Verification(name, None, device, dtype, tuple(checks))
    official = _with_official_names(file, model)
    if official is not file:
        checks.append(Check("names of diffusers", "note", "read as the official ones"))
    candidate = FileForNetwork.match(name, model, official)
    checks += file_checks(candidate, weights, device, dtype)
    digest = candidate.digest
    result = Verification(name, file.path, device, dtype, tuple(checks), tuple(hints(candidate)), digest)
    if digest is None or not candidate.is_published or registry.model_info(name).packaged:
        return result
    place = file.files[0] if len(file.files) == 1 else file.path
    row = record_check(name, place, file.num_bytes, digest, passed=result.passed, record=record)
    return result if row is None else replace(result, checks=(*result.checks, row))


def _place(checkpoint: Path | str) -> Path | str:
    """Of a pipeline of diffusers the folder of its network."""
    if str(checkpoint) and Path(checkpoint).is_dir():
        return transformer_folder(checkpoint) or checkpoint
    return checkpoint


def _with_official_names(file: WeightsFile, model: DiffusionTransformer) -> WeightsFile:
    """diffusers has other names for the same weights of a DiT."""
    if type(model) is not DiT or not is_diffusers_state(file.tensors):
        return file
    try:
        return replace(file, tensors=dit_state(file.tensors, model))
    except ValueError:  # of another network: the checks say how the names differ
        return file
