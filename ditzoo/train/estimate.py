"""What a run will cost: parameters, multiply-adds, memory, steps. Counted or computed, nothing is trained."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ditzoo.layers import random_token_mask
from ditzoo.metrics import count_macs
from ditzoo.models import DiffusionTransformer
from ditzoo.train.config import RunConfig
from ditzoo.train.precision import keep_norms_in_float32

_FLOAT32 = 4
#: Tensors as large as the weights that an optimiser keeps; two for those not named.
_STATES = {"adan": 4, "adanw": 4, "sgd": 1, "sgdw": 1, "momentum": 1, "lion": 1, "muon": 1, "nmuon": 1, "adafactor": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes that tensors of a training step hold in each process: an estimate.

    What libraries hold besides, memory lost between tensors, buffers of communication, and what the loss and single
    operations need for a moment are not in it.

    Attributes:
        weights: 4 bytes a parameter.
        gradients: 4 bytes a parameter that trains.
        optimizer: 4 bytes for each state of each of them; AdamW has two.
        averages: 4 bytes a parameter that trains, for the moving average and for each profile.
        casts: copies of weights in half precision; none in float32.
        activations: what autograd keeps of a micro-batch until the backward pass, counted operation by operation; under
            gradient checkpointing the inputs of the blocks and, once, what a block keeps.
        adds_up: whether gradients are there beside all that is kept: those of an earlier micro-batch; under gradient
            checkpointing, those of later blocks; and the buffers in which replicated processes exchange them.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    casts: int
    activations: int
    adds_up: bool

    @property
    def kept(self) -> int:
        """casts + activations: what the backward pass releases."""
        return self.casts + self.activations

    @property
    def total(self) -> int:
        """weights + optimizer + averages + the larger of `kept` and gradients, which the backward pass makes while
        it releases the former. Their sum where `adds_up`."""
        peak = self.kept + self.gradients if self.adds_up else max(self.kept, self.gradients)
        return self.weights + self.optimizer + self.averages + peak


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        num_params: parameters of the network, frozen tables included.
        num_trained: those that the optimiser changes.
        gmacs: 1e9 multiply-adds of a forward pass of one image.
        training_gmacs: of a training step, per image: each pass forward, and twice as much backward.
        memory: of each process.
        num_images: to see.
        num_steps: of `batch_size`.
        num_epochs: None where the size of the data is not known.
    """

    num_params: int
    num_trained: int
    gmacs: float
    training_gmacs: float
    memory: Memory
    num_images: int
    num_steps: int
    num_epochs: float | None


def estimate(
    config: RunConfig, network: DiffusionTransformer, *, num_samples: int | None = None, processes: int = 1
) -> Estimate:
    """What the run will cost.

    Args:
        config: the settings.
        network: on the meta device, from `meta_network`, with what is frozen and the adapters of low-rank updates.
        num_samples: of the data, one epoch.
        processes: that share a batch; under FSDP they share weights, gradients, averages and the optimiser's state too.
    """
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    mask_ratio = config.recipe.get("mask_ratio", network.config.get("mask_ratio"))  # as `run_recipe` has it
    passes = [count_macs(network).gmacs]
    if mask_ratio is not None:
        passes.append(count_macs(network, mask=_mask(network, 1, mask_ratio, torch.device("meta"))).gmacs)
    return Estimate(
        num_params=total,
        num_trained=trained,
        gmacs=passes[0],
        training_gmacs=(4 if config.grad_checkpointing else 3) * sum(passes),
        memory=_memory(config, network, mask_ratio, processes),
        num_images=config.num_images,
        num_steps=-(-config.num_images // config.batch_size),
        num_epochs=config.num_images / num_samples if num_samples else None,
    )


def _memory(config: RunConfig, network: DiffusionTransformer, mask_ratio: float | None, processes: int) -> Memory:
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    shards = processes if config.fsdp else 1
    micro_batch = max(1, config.batch_size // (processes * config.accumulation))
    casts, kept = kept_for_backward(
        network, config.precision, mask_ratio=mask_ratio, checkpointing=config.grad_checkpointing
    )
    return Memory(
        weights=_FLOAT32 * total // shards,
        gradients=_FLOAT32 * trained // shards,
        optimizer=_FLOAT32 * trained * _STATES.get(config.optimizer, 2) // shards,
        averages=_FLOAT32 * trained * (1 + len(config.ema_profiles)) // shards,
        casts=casts // shards,
        activations=kept * micro_batch,
        adds_up=config.accumulation > 1 or config.grad_checkpointing or (processes > 1 and not config.fsdp),
    )


def kept_for_backward(
    network: DiffusionTransformer, precision: str, *, mask_ratio: float | None, checkpointing: bool
) -> tuple[int, int]:
    """Bytes that autograd keeps in a forward pass, or in MDT's two: for the weights, and for each image.

    Counted with tensors that have shapes and no values, once with one image and once with two.
    """

    def kept(count: int) -> int:
        found = _kept(network, count, precision, mask_ratio, checkpointing)
        if checkpointing:
            runs = len(network.block_names()) * (1 if mask_ratio is None else 2)
            found += _kept(network, count, precision, mask_ratio, False) // runs
        return found

    one, two = kept(1), kept(2)
    return max(0, 2 * one - two), two - one


def _kept(
    network: DiffusionTransformer, count: int, precision: str, mask_ratio: float | None, checkpointing: bool
) -> int:
    model = copy.deepcopy(network).to("meta").train()
    model.set_grad_checkpointing(checkpointing)
    if precision != "float32":
        keep_norms_in_float32(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, Any] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage  # held, so that no other gets its place
            return tensor

        side = (count, model.in_channels, model.input_size, model.input_size)
        x, t = torch.empty(side), torch.empty(count)
        y = torch.empty(count, dtype=torch.int64) if model.num_classes else None
        outputs = []
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _autocast(precision):
            outputs.append(model(x, t, y))
            if mask_ratio is not None:
                outputs.append(model(x, t, y, mask=_mask(model, count, mask_ratio, torch.device("cpu"))))
        return sum(storage.nbytes() for storage in kept.values())


@contextlib.contextmanager
def _autocast(precision: str) -> Iterator[None]:
    if precision == "float32":
        yield
        return
    with torch.autocast("cpu", torch.bfloat16):  # float16 takes as much
        yield


def _mask(network: DiffusionTransformer, count: int, ratio: float, device: torch.device) -> Any:
    tokens = network.num_tokens()
    noise = torch.empty(count, tokens, device=device)
    return random_token_mask(count, tokens, ratio, noise=noise)
