"""A few training steps of a small model: what tests of processes and checkpoints run, in one process or several.

As a program it is one of several processes: `python -m tests.train.few_steps TASK FOLDER`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditzoo.data import load_digits_split
from ditzoo.data.source import TensorSource
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe
from ditzoo.train.checkpoints import Checkpoints, load_state
from ditzoo.train.devices import Devices, make_devices
from ditzoo.train.finetune import add_lora, freeze
from ditzoo.train.loop import Training
from ditzoo.train.options import TrainOptions
from ditzoo.train.state import full_state, restore
from tests.zoo import TINY, lively

ROOT = Path(__file__).parents[2]
BATCH = 8
#: Of timm, with state of different kinds: counters in groups, factored moments, whole matrices.
OPTIMIZERS = ["adan", "lamb", "nadamw", "adafactorbv", "muon"]


def options(**changes: Any) -> TrainOptions:
    values: dict[str, Any] = {"batch_size": BATCH, "learning_rate": 1e-2, "warmup_images": 0, "ema_decay": 0.8}
    values |= {"lr_schedule": "constant", **changes}
    return TrainOptions(**{"num_images": 10 * values["batch_size"], **values})


def start(
    name: str,
    devices: Devices | None = None,
    change: Callable[[DiffusionTransformer], object] = lambda model: None,
    **changes: Any,
) -> Training:
    """A run before its first step, in this process alone or as one of several."""
    opts, model = options(**changes), lively(name)
    change(model)
    devices = devices or make_devices(opts, "cpu")
    for weight in model.parameters() if devices.rank else ():
        weight.data.zero_()  # the main process decides how training begins
    recipe = Recipe(
        prediction="v_prediction",
        schedule="cosine",
        mask_ratio=0.5 if model.supports_masking else None,
        time_scale=1 / 999 if model.last_time else 1.0,
    )
    return Training(model, recipe, opts, devices)


def digits_source(model: DiffusionTransformer) -> TensorSource:
    """A few digits, as large as the model has them."""
    digits = load_digits_split("train")
    images = digits.images[:40]
    if model.input_size != images.shape[-1]:
        images = torch.nn.functional.interpolate(images, model.input_size)
    return TensorSource(images, digits.labels[:40])


def go(training: Training, steps: int) -> list[float]:
    """Losses of the next steps."""
    return [step.terms["loss"] for step in islice(training.steps(digits_source(training.model)), steps)]


def save(training: Training, folder: Path) -> None:
    is_main = training.devices.is_main
    state = full_state(training.weights, training.averages, training.optimizer, is_main=is_main)
    with training.averaged_model() as model:
        if is_main:
            Checkpoints(folder).save(model, state, seen=training.seen, step=training.step)
        else:
            assert not state.tensors
    training.devices.barrier()


def resume(training: Training, folder: Path) -> None:
    checkpoint = Checkpoints(folder).newest()
    assert checkpoint is not None
    restore(load_state(checkpoint), training.weights, training.averages, training.optimizer)
    training.seen, training.step = checkpoint.seen, checkpoint.step


def tensors(training: Training) -> dict[str, Tensor]:
    """A copy of all that a run keeps."""
    state = full_state(training.weights, training.averages, training.optimizer)
    return {name: tensor.clone() for name, tensor in state.tensors.items()}


def in_processes(task: str, folder: Path, world: int = 2) -> dict[str, Any]:
    """Run a task of this file in several processes; what the main one returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.few_steps", task, str(folder)]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(outputs)
    result: dict[str, Any] = json.loads((folder / f"{task}.json").read_text())
    return result


def task_both(folder: Path) -> dict[str, Any]:
    """Two steps with gradients averaged, two with weights sharded, and a sharded one that goes on from one process."""
    replicated = start("dit_ti_2", accumulation=2)
    result: dict[str, Any] = {"replicated": go(replicated, 2)}
    save(replicated, folder / "replicated")

    sharded = start("mdtv2_ti_2", fsdp=True, ema_profiles=(0.1,))
    devices = sharded.devices
    result["sharded"] = go(sharded, 2)
    result["kinds"] = sorted({type(weight).__name__ for weight in sharded.weights.values()})
    result["average kinds"] = sorted({type(tensor).__name__ for tensor in sharded.averages.tensors["ema"].values()})
    states = [value for state in sharded.optimizer.state.values() for value in state.values() if value.ndim]
    result["optimizer kinds"] = sorted({type(tensor).__name__ for tensor in states})
    result["local numel"] = sum(weight.to_local().numel() for weight in sharded.weights.values())  # type: ignore[attr-defined]
    result["class"] = type(sharded.model).__name__
    save(sharded, folder / "sharded")

    resumed = start("mdtv2_ti_2", devices, fsdp=True, ema_profiles=(0.1,))
    resume(resumed, folder / "one")
    result["resumed"] = go(resumed, 1)
    try:
        go(start("dit_ti_2", devices, fsdp=True, optimizer="adafactor"), 1)
    except ValueError as error:
        result["refused"] = str(error)
    result["flags"] = devices.any(1 << devices.rank)
    result["mean"] = devices.mean(torch.tensor([1.0 + devices.rank, 4.0])).tolist()
    result["told"] = devices.broadcast(f"from {devices.rank}")
    result["gathered"] = devices.gather(f"from {devices.rank}")
    devices.close()
    result["flags of another run"] = make_devices(options(), "cpu").any(1 << devices.rank)
    return result


def task_families(folder: Path) -> dict[str, Any]:
    """Losses of every tiny model, sharded, in float32 and bfloat16."""
    cases = [(name, precision) for precision in ("float32", "bfloat16") for name in TINY]
    return {f"{name} {precision}": go(start(name, fsdp=True, precision=precision), 2) for name, precision in cases}


#: Settings, and a change of the model before it trains.
VARIANTS: dict[str, tuple[str, dict[str, Any], Callable[[DiffusionTransformer], object]]] = {
    "masked": ("mdtv2_ti_2", {"grad_checkpointing": True, "accumulation": 2}, lambda model: None),
    "adapters": ("mdtv2_ti_2", {"grad_checkpointing": True}, lambda model: add_lora(model, rank=2, alpha=4.0)),
    "frozen parts": ("uvit_ti_2", {}, lambda model: freeze(model, ["*mlp*", "*attn.qkv*"])),
    "frozen blocks": ("dit_ti_2", {}, lambda model: freeze(model, ["blocks.*"])),
}


def variant(name: str, devices: Devices | None = None, **changes: Any) -> Training:
    model, settings, change = VARIANTS[name]
    return start(model, devices, change, optimizer="sgd", learning_rate=0.05, **settings, **changes)


def norms(training: Training) -> list[float]:
    """Of all that a run keeps."""
    return [tensor.norm().item() for tensor in tensors(training).values()]


def task_variants(folder: Path) -> dict[str, Any]:
    """Losses and norms of what is kept, replicated and sharded."""
    result = {}
    for name in VARIANTS:
        for kind, fsdp in (("replicated", False), ("sharded", True)):
            training = variant(name, fsdp=fsdp)
            result[f"{kind} {name}"] = [go(training, 3), norms(training)]
    return result


def task_overflow(folder: Path) -> dict[str, Any]:
    """Which steps are made where one process's gradients overflow in the second; float16 on the CPU is for this."""
    result = {}
    for fsdp in (False, True):
        devices = replace(make_devices(options(), "cpu"), fsdp=fsdp, precision="float16")
        backward, calls = devices.backward, []

        def overflow(loss: Tensor, devices=devices, backward=backward, calls=calls) -> None:
            calls.append(loss)
            backward(loss * (1e36 if len(calls) == 2 and devices.rank == 1 else 1.0))

        devices.backward = overflow  # type: ignore[method-assign]
        training = start("dit_ti_2", devices, fsdp=fsdp, precision="float16")
        updated = [step.updated for step in islice(training.steps(digits_source(training.model)), 3)]
        everywhere = devices.gather(norms(training))
        result[f"fsdp={fsdp}"] = [updated, devices.state_dict()["scale"], everywhere[0] == everywhere[1]]
    return result


def task_uneven(folder: Path) -> list[float]:
    """Losses in three processes, sharded."""
    return go(start("uvit_ti_2", fsdp=True, batch_size=6), 2)


def task_optimizers(folder: Path) -> dict[str, Any]:
    """Losses under some of timm's optimisers, sharded, in one go and with a resume after the second step."""
    result = {}
    for name in OPTIMIZERS:
        settings = {"fsdp": True, "optimizer": name, "betas": betas(name), "learning_rate": 1e-3}
        stopped, resumed = start("dit_ti_2", **settings), start("dit_ti_2", **settings)
        losses = go(stopped, 2)
        save(stopped, folder / name)
        resume(resumed, folder / name)
        result[name] = [go(start("dit_ti_2", **settings), 4), losses + go(resumed, 2)]
    return result


def betas(optimizer: str) -> tuple[float, ...]:
    return (0.98, 0.92, 0.99) if optimizer == "adan" else (0.9, 0.99)


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, out = sys.argv[1], Path(sys.argv[2])
    found = globals()[f"task_{task}"](out)
    if os.environ["RANK"] == "0":
        (out / f"{task}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
