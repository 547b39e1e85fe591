"""The devices and processes that a run trains on: one process as it is, several through accelerate.

With one process nothing of accelerate or torch.distributed is imported.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ditzoo.models import DiffusionTransformer
from ditzoo.pipeline.jobs import process_of_launcher
from ditzoo.train.options import Precision, TrainOptions
from ditzoo.weights.checks import checked_device

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

_DTYPES: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
#: What accelerate calls them.
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(kw_only=True)
class Devices:
    """What this process trains on, and with how many others.

    Attributes:
        device: of this process.
        rank: number of this process, from 0 to world - 1.
        world: number of processes.
        fsdp: whether weights are sharded over the processes.
        reshard: under `fsdp`, whether a block's weights are dropped between its forward and its backward pass.
        precision: of autocast.
        cpu_group: through which all processes exchange flags and objects; None for one process.
        joined: whether the processes met for this run, rather than before it.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    fsdp: bool = False
    reshard: bool = True
    precision: Precision = "float32"
    cpu_group: ProcessGroup | None = None
    joined: bool = False

    def __post_init__(self) -> None:
        # Float16's range ends where small gradients begin: the loss is scaled up, and the gradients down again.
        self._scaler = torch.amp.GradScaler(self.device.type) if self.precision == "float16" else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def prepare(self, network: nn.Module, model: DiffusionTransformer, *, masked: bool = False) -> nn.Module:
        """Move a network to the device, and wrap it for several processes; all begin with the main one's weights.

        Sharding puts other parameters in the place of those there were: make optimiser and averages afterwards, from
        `model.named_parameters()`.

        Args:
            network: what the loop calls once a micro-batch: the model with its loss.
            model: the model in it, whose blocks are sharded one by one.
            masked: whether the loop runs masked passes, without which some weights have no gradient.

        Returns:
            What to call in place of `network`.
        """
        network.to(self.device)
        if self.world == 1:
            return network
        if self.fsdp:
            return self._shard(network, model)
        from torch.nn.parallel import DistributedDataParallel

        unused = {weights.name for weights in model.unused_weights() if weights.rows is None}
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # it has another name
            return DistributedDataParallel(
                network,
                device_ids=None if self.device.type == "cpu" else [self.device],
                broadcast_buffers=False,  # they are constants
                find_unused_parameters=bool(unused & trained) or (model.supports_masking and not masked),
                gradient_as_bucket_view=True,
            )

    def _shard(self, network: nn.Module, model: DiffusionTransformer) -> nn.Module:
        import torch.distributed as dist
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        for tensor in [*network.parameters(), *network.buffers()]:
            dist.broadcast(tensor.detach(), src=0)
        # Autocast decides which operations run in lower precision; that weights travel in it halves the traffic. Inputs
        # are not cast: bfloat16 cannot tell timestep 999 from 1000.
        policy = MixedPrecisionPolicy(
            param_dtype=_DTYPES.get(self.precision), reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for name in model.block_names():
            fully_shard(model.get_submodule(name), mp_policy=policy, reshard_after_forward=self.reshard)
        fully_shard(network, mp_policy=policy)
        return network

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        dtype = _DTYPES.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def no_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        """The context of all micro-batches of a step but the last: processes add up their gradients once a step.

        Sharded ones do it every time, because whole gradients would need the memory that sharding saves.
        """
        if self.world == 1 or self.fsdp:
            return nullcontext()
        context: AbstractContextManager[Any] = network.no_sync()  # type: ignore[operator]
        return context

    def backward(self, loss: Tensor) -> None:
        """Gradients of the mean of `loss` over all processes."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def gradient_norm(self, optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> Tensor:
        """The norm of the gradients of all processes, without dimensions, on the device; once a step, after the last
        backward pass."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        return norm.full_tensor() if self.fsdp else norm  # type: ignore[attr-defined]

    def clip_gradients(self, weights: Sequence[Tensor], norm: Tensor, max_norm: float) -> None:
        """Scale gradients of this norm down to `max_norm`, where they are larger."""
        if not self.fsdp:
            nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
            return
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as the function above has it
        shards: list[Any] = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_mul_([shard.to_local() for shard in shards], factor)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """One step of the optimiser, and no gradients afterwards.

        Returns:
            False where float16's gradients overflowed: the step is left out, and the next loss scaled up less.

        Raises:
            ValueError: for an optimiser that does not work on shards.
        """
        stepped = True
        try:
            if self._scaler is None:
                optimizer.step()
            else:
                before = self._scaler.get_scale()
                self._scaler.step(optimizer)
                self._scaler.update()
                stepped = self._scaler.get_scale() >= before
        except RuntimeError as error:
            if self.fsdp and "DTensor" in str(error):
                raise ValueError(
                    f"the optimizer {type(optimizer).__name__} does not work on sharded weights; take another, such as "
                    "'adamw', or set fsdp=False."
                ) from error
            raise
        optimizer.zero_grad()
        return stepped

    @property
    def may_overflow(self) -> bool:
        """Whether gradients that are not finite may come of float16's scale alone, which `step` then makes smaller."""
        return self._scaler is not None and self._scaler.get_scale() > 1

    def skip(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave a step out: drop its gradients, after `gradient_norm`."""
        if self._scaler is not None:
            self._scaler.update(max(1.0, self._scaler.get_scale() * self._scaler.get_backoff_factor()))
        optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the scale of float16's losses. JSON-safe."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` returned."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))

    def any(self, flags: int) -> int:
        """The bits that are set in any process, the same answer in all; every process must ask at the same point."""
        if self.cpu_group is None:
            return flags
        import torch.distributed as dist

        bits = torch.tensor(flags)
        dist.all_reduce(bits, op=dist.ReduceOp.BOR, group=self.cpu_group)
        return int(bits)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of each value over all processes, float64 on the CPU; every process must ask at the same point."""
        values = values.detach().double().cpu()
        if self.cpu_group is not None:
            import torch.distributed as dist

            dist.all_reduce(values, group=self.cpu_group)
        return values / self.world

    def broadcast(self, value: T) -> T:
        """The main process's value, in all."""
        if self.cpu_group is None:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.cpu_group)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in all."""
        if self.cpu_group is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(0)

    def close(self) -> None:
        """After training, let the processes part when they end; until then they can train again.

        Not after a failure: others may be waiting for this process, which must end without waiting for them.
        """
        if self.joined:
            atexit.register(_part)


def make_devices(options: TrainOptions, device: str | torch.device | None = None) -> Devices:
    """The devices of this process, as torchrun or `accelerate launch` started it, or of a single one.

    Of a configuration of accelerate, FSDP2 counts (`fsdp_version: 2`, and its `fsdp_reshard_after_forward`); settings
    that a run has itself must agree with the run's.

    Args:
        options: batch size, precision and sharding.
        device: None takes the accelerator if there is one. Of several processes each takes its own; give them
            `"cpu"` or none.

    Raises:
        ValueError: for a batch that the processes cannot share evenly, float16 on the CPU, `fsdp` without several
            processes, a device that is not there, and settings of accelerate that contradict the run or that ditzoo
            has nothing for.
        ImportError: for several processes without accelerate, naming the extra to install.
    """
    _, world = process_of_launcher()
    if device is None and _is_set("ACCELERATE_USE_CPU"):
        device = "cpu"
    fsdp = _check_accelerate(options) or options.fsdp
    if fsdp and world == 1:
        raise ValueError(
            "fsdp shards weights over several processes and there is one; start several with torchrun or accelerate "
            "launch, or set fsdp=False."
        )
    _check_batches(options, world)
    if world == 1:
        found, rank, group, joined = checked_device(_default_device() if device is None else device), 0, None, False
    else:
        found, rank, group, joined = _join(world, device)
    if options.precision == "float16" and found.type == "cpu":
        raise ValueError("precision 'float16' is for GPUs; on the CPU use 'bfloat16' or 'float32'.")
    return Devices(
        device=found,
        rank=rank,
        world=world,
        fsdp=fsdp,
        reshard=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false",
        precision=options.precision,
        cpu_group=group,
        joined=joined,
    )


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_batches(options: TrainOptions, world: int) -> None:
    """That every micro-batch of every step has the same size; means over processes would be wrong otherwise."""
    parts = world * options.accumulation
    among = f"{world} process{'es' if world > 1 else ''}"
    among += f" with {options.accumulation} micro-batches each" if options.accumulation > 1 else ""
    if options.batch_size % parts:
        raise ValueError(
            f"batch_size {options.batch_size} cannot be divided among {among}; use "
            f"{_multiples(options.batch_size, parts)}."
        )
    if (last := options.num_images % options.batch_size) % parts:
        below = options.num_images - last % parts
        raise ValueError(
            f"num_images {options.num_images} leaves a last batch of {last}, which cannot be divided among {among}; "
            f"use {below} or {below + parts}."
        )


def _multiples(number: int, of: int) -> str:
    below = number // of * of
    return f"{below} or {below + of}" if below else str(of)


def _join(world: int, device: str | torch.device | None) -> tuple[torch.device, int, ProcessGroup, bool]:
    """Meet the other processes, unless they have met: device, rank, group on the CPU, and whether they met here."""
    if device is not None and torch.device(device).index is not None:
        raise ValueError(
            f"device {str(device)!r} is one device and there are {world} processes; give 'cpu', or none, and each "
            "takes its own."
        )
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError('training in several processes needs accelerate: pip install "ditzoo[train]"') from error
    import torch.distributed as dist

    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={world} in the environment comes without {', '.join(missing)}; start the processes with "
            "torchrun or accelerate launch, or unset it."
        )
    on_cpu = not torch.accelerator.is_available() if device is None else torch.device(device).type == "cpu"
    joined = not dist.is_initialized()
    state = PartialState(cpu=on_cpu)
    if state.num_processes != world:
        raise ValueError(
            f"accelerate knows no way for {world} processes to meet on {state.device.type!r}; set device='cpu', or "
            "start one process."
        )
    if device is not None and state.device.type != torch.device(device).type:
        raise ValueError(
            f"device {str(device)!r} cannot be used here, where processes meet on {state.device.type!r}; give that, or "
            "none."
        )
    # GPUs' own backends take no tensors of the CPU.
    group: Any = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return state.device, state.process_index, group, joined


def _part() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


#: Settings of accelerate that have no effect here, and what a run has in their place.
_ELSEWHERE = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed is not supported; shard with FSDP2, which splits what ZeRO's stage 3 splits: fsdp=True, or "
        "distributed_type: FSDP with fsdp_version: 2"
    ),
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported; shard with FSDP2: fsdp=True, or fsdp_version: 2",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "weights are sharded over all processes; leave parallelism_config out",
    "FSDP_OFFLOAD_PARAMS": "weights are not moved to the CPU; shard over more processes",
    "FSDP_ACTIVATION_CHECKPOINTING": "set grad_checkpointing of the run instead",
}


def _check_accelerate(options: TrainOptions) -> bool:
    """Whether a configuration of accelerate asks for FSDP2."""
    for name, remedy in _ELSEWHERE.items():
        if _is_set(name):
            raise ValueError(f"accelerate's configuration sets {name}={os.environ[name]}: {remedy}.")
    expected = {
        "ACCELERATE_MIXED_PRECISION": ("precision", options.precision, _PRECISIONS[options.precision], "no"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            "accumulation",
            options.accumulation,
            str(options.accumulation),
            "1",
        ),
        "ACCELERATE_DYNAMO_BACKEND": ("compile", options.compile, "inductor" if options.compile else "no", "no"),
    }
    for name, (field, value, wanted, default) in expected.items():
        if (found := os.environ.get(name, default)).lower() not in (default, wanted):
            raise ValueError(
                f"accelerate's configuration sets {name}={found} and the run has {field}={value!r}; set it in the run "
                "alone."
            )
    if not _is_set("ACCELERATE_USE_FSDP"):
        return False
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ValueError(f"accelerate's configuration asks for version {version} of FSDP; set fsdp_version: 2.")
    return True


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
