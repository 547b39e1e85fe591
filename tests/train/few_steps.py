"""A few training steps of a small model: what tests of processes and checkpoints run, in one process or several.

As a program it is one of several processes: `python -m tests.train.few_steps TASK FOLDER`.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditzoo.diffusion import draw_training, make_process, training_loss
from ditzoo.diffusion.draws import sample_noise
from ditzoo.layers import random_token_mask
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe
from ditzoo.train.averages import Averages
from ditzoo.train.checkpoints import Checkpoints, load_state
from ditzoo.train.devices import Devices, make_devices
from ditzoo.train.options import TrainOptions
from ditzoo.train.state import full_averages, full_state, restore
from tests.zoo import TINY, lively

ROOT = Path(__file__).parents[2]
BATCH = 8
#: Of timm, with state of different kinds: counters in groups, factored moments, matrices in whole.
OPTIMIZERS = ["adan", "lamb", "nadamw", "adafactorbv", "muon"]


class ModelWithLoss(nn.Module):
    def __init__(self, model: DiffusionTransformer, *, masked: bool) -> None:
        super().__init__()
        self.model, self.masked = model, masked
        self.process = make_process(Recipe(prediction="v_prediction", schedule="cosine"))

    def forward(self, numbers: range) -> Tensor:
        model = self.model
        x0 = sample_noise(1, numbers, (model.in_channels, model.input_size, model.input_size))
        y = torch.tensor([number % model.num_classes for number in numbers])
        passes = draw_training(
            0,
            numbers,
            x0.shape[1:],
            num_timesteps=1000,
            num_tokens=model.num_tokens(),
            num_passes=1 + self.masked,
        )
        mask = None
        if self.masked:
            noise = passes[-1].token_noise
            mask = random_token_mask(*noise.shape, 0.5, noise=noise)
        return training_loss(model, self.process, x0, y, passes, null_label=model.null_label, mask=mask)


def options(**changes: Any) -> TrainOptions:
    values = {"batch_size": BATCH, "learning_rate": 1e-2, "ema_decay": 0.8, **changes}
    return TrainOptions(**{"num_images": 10 * values["batch_size"], **values})


class Training:
    """What the loop keeps, of one model."""

    def __init__(self, devices: Devices, name: str, opts: TrainOptions, make_optimizer: Any = None) -> None:
        model = lively(name)
        # The main process decides how training begins.
        for weight in model.parameters() if devices.rank else ():
            weight.data.zero_()
        self.devices, self.opts, self.model, self.ema = devices, opts, model, copy.deepcopy(model).eval()
        masked = model.supports_masking
        self.network = devices.prepare(ModelWithLoss(model, masked=masked), model, masked=masked)
        self.weights = dict(model.named_parameters())
        trained = [weight for weight in self.weights.values() if weight.requires_grad]
        if make_optimizer is None:
            self.optimizer = torch.optim.AdamW(trained, lr=opts.learning_rate, fused=True)
        else:
            self.optimizer = make_optimizer(trained)
        self.averages = Averages(self.weights, opts)

    def run(self, start: int, stop: int) -> list[float]:
        """Losses of steps `start` to `stop - 1`."""
        losses = []
        for step in range(start, stop):
            losses.append(self.step(step))
        return losses

    def step(self, step: int) -> float:
        devices, parts, batch = self.devices, self.opts.accumulation, self.opts.batch_size
        size = batch // devices.world // parts
        total = torch.zeros(())
        for part in range(parts):
            first = step * batch + (devices.rank * parts + part) * size
            with devices.no_sync(self.network) if part < parts - 1 else torch.enable_grad():
                with devices.autocast():
                    loss = self.network(range(first, first + size)) / parts
                devices.backward(loss)
            total += loss.detach()
        weights = list(self.weights.values())
        self.norm = devices.gradient_norm(self.optimizer, weights)
        devices.clip_gradients(weights, self.norm, 1.0)
        assert devices.step(self.optimizer)
        self.averages.update(step=step, seen=(step + 1) * batch, batch_size=batch)
        return devices.mean(total).item()

    def save(self, folder: Path, step: int) -> None:
        state = full_state(self.weights, self.averages, self.optimizer, is_main=self.devices.is_main)
        averages = full_averages(self.averages, is_main=self.devices.is_main)
        if self.devices.is_main:
            self.ema.load_state_dict(averages["ema"], strict=False)
            Checkpoints(folder).save(self.ema, state, seen=step * self.opts.batch_size, step=step)
        else:
            assert not state.tensors
            assert not averages["ema"]
        self.devices.barrier()

    def resume(self, folder: Path) -> int:
        checkpoint = Checkpoints(folder).newest()
        assert checkpoint is not None
        restore(load_state(checkpoint), self.weights, self.averages, self.optimizer)
        return checkpoint.step

    def tensors(self) -> dict[str, Tensor]:
        """All that a run keeps."""
        state = full_state(self.weights, self.averages, self.optimizer)
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
    replicated = Training(make_devices(options(accumulation=2), "cpu"), "dit_ti_2", options(accumulation=2))
    result: dict[str, Any] = {"replicated": replicated.run(0, 2), "norm": replicated.norm.item()}
    replicated.save(folder / "replicated", 2)

    opts = options(fsdp=True, ema_profiles=(0.1,))
    devices = make_devices(opts, "cpu")
    sharded = Training(devices, "mdtv2_ti_2", opts)
    result["sharded"] = sharded.run(0, 2)
    result["kinds"] = sorted({type(weight).__name__ for weight in sharded.weights.values()})
    result["average kinds"] = sorted({type(tensor).__name__ for tensor in sharded.averages.tensors["ema"].values()})
    result["local numel"] = sum(weight.to_local().numel() for weight in sharded.weights.values())
    result["class"] = type(sharded.model).__name__
    sharded.save(folder / "sharded", 2)

    resumed = Training(devices, "mdtv2_ti_2", opts)
    assert resumed.resume(folder / "one") == 1
    result["resumed"] = resumed.run(1, 2)
    result["flags"] = devices.any(1 << devices.rank)
    result["mean"] = devices.mean(torch.tensor([1.0 + devices.rank, 4.0])).tolist()
    result["told"] = devices.broadcast(f"from {devices.rank}")
    return result


def task_families(folder: Path) -> dict[str, Any]:
    """Losses of every tiny model, sharded, in float32 and bfloat16."""
    return {
        f"{name} {precision}": _sharded(name, precision=precision)[0]
        for precision in ("float32", "bfloat16")
        for name in TINY
    }


def task_uneven(folder: Path) -> list[float]:
    """Losses of a model in three processes, sharded."""
    losses: list[float] = _sharded("uvit_ti_2", batch_size=6)[0]
    return losses


def task_optimizers(folder: Path) -> dict[str, Any]:
    """Losses under some of timm's optimisers, sharded, in one go and with a resume after the second step."""
    result = {}
    for name in OPTIMIZERS:
        whole, _ = _sharded("dit_ti_2", steps=4, optimizer=name)
        first, stopped = _sharded("dit_ti_2", steps=2, optimizer=name)
        stopped.save(folder / name, 2)
        second = _sharded("dit_ti_2", steps=0, optimizer=name)[1]
        second.resume(folder / name)
        result[name] = [whole, first + second.run(2, 4)]
    return result


def _sharded(name: str, *, steps: int = 2, optimizer: str | None = None, **changes: Any) -> tuple[Any, Training]:
    opts = options(fsdp=True, **changes)
    training = Training(make_devices(opts, "cpu"), name, opts, timm_optimizer(optimizer))
    return training.run(0, steps), training


def timm_optimizer(name: str | None) -> Any:
    if name is None:
        return None
    from timm.optim import create_optimizer_v2

    return lambda weights: create_optimizer_v2([{"params": weights}], opt=name, lr=1e-3, weight_decay=0.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, folder = sys.argv[1], Path(sys.argv[2])
    found = globals()[f"task_{task}"](folder)
    if os.environ["RANK"] == "0":
        (folder / f"{task}.json").write_text(json.dumps(found))
    import torch.distributed

    torch.distributed.destroy_process_group()
