"""All that a run needs to go on, as plain tensors and JSON: the same from one process or many, sharded or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ditzoo.train.averages import Averages
from ditzoo.weights.checks import shown, some

#: What names of tensors begin with.
WEIGHTS, AVERAGE, OPTIMIZER = "weights/", "average/", "optimizer/"


@dataclass
class TrainingState:
    """A moment of training.

    Attributes:
        tensors: `weights/<name>`, `average/<average>/<name>` and `optimizer/<name>/<entry>`, whole, on the CPU. Without
            sharding they may be the run's own memory: write them before the next step.
        optimizer: what the optimiser keeps besides tensors, JSON-safe: `"groups"`, and `"weights"` by name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def average(self, key: str = "ema") -> dict[str, Tensor]:
        """One average, by name of the parameter."""
        prefix = f"{AVERAGE}{key}/"
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def full_state(
    weights: Mapping[str, Tensor], averages: Averages, optimizer: torch.optim.Optimizer, *, is_main: bool = True
) -> TrainingState:
    """The state of a run. Every process must ask at the same point: sharded tensors are put together, one by one.

    Args:
        weights: name -> parameter, all of the model's.
        averages: of the weights.
        optimizer: of the weights.
        is_main: whether this process wants it; others help and get an empty one.

    Raises:
        TypeError: where the optimiser keeps something that is neither a tensor nor JSON.
    """
    state = TrainingState(optimizer=_plain_optimizer(weights, optimizer))
    for name, tensor in _tensors(weights, averages, optimizer):
        whole = full_tensor(tensor)
        if is_main:
            state.tensors[name] = whole.cpu()
    return state if is_main else TrainingState()


def check_optimizer(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """That `full_state` can hold what an optimiser keeps: after the first step, rather than after hours.

    Raises:
        TypeError: where it keeps something that is neither a tensor nor JSON.
    """
    _plain_optimizer(weights, optimizer)


def full_averages(averages: Averages, *, is_main: bool = True) -> dict[str, dict[str, Tensor]]:
    """`averages.tensors`, whole, on the CPU: what `write_snapshots` takes, and under `"ema"` the weights to sample
    with. Every process must ask at the same point; all but the main one get empty ones."""
    whole: dict[str, dict[str, Tensor]] = {key: {} for key in averages.tensors}
    for key, group in averages.tensors.items():
        for name, tensor in group.items():
            value = full_tensor(tensor)
            if is_main:
                whole[key][name] = value.cpu()
    return whole


def restore(
    state: TrainingState, weights: Mapping[str, Tensor], averages: Averages, optimizer: torch.optim.Optimizer
) -> None:
    """Put a run into a state, whatever number of processes it came from. Each process takes its part of the tensors.

    Args:
        state: as `full_state` gives it, in every process.
        weights, averages, optimizer: as for `full_state`, freshly made for the same model and options.

    Raises:
        ValueError: where names or shapes differ; the message names some.
    """
    goals = dict(_tensors(weights, averages, None))
    kept = {name: tensor for name, tensor in state.tensors.items() if not name.startswith(OPTIMIZER)}
    _check_names(goals, kept)
    with torch.no_grad():
        for name, goal in goals.items():
            goal.copy_(sharded_as(kept[name], goal))
    _restore_optimizer(state, weights, optimizer)


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor put together; others as they are."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_as(value: Tensor, goal: Any) -> Tensor:
    """A whole tensor, sharded as another one is, or replicated where their shapes differ; no process sends anything."""
    if not hasattr(goal, "device_mesh"):
        return value
    from torch.distributed.tensor import Replicate, distribute_tensor

    placements = goal.placements if value.shape == goal.shape else [Replicate()] * goal.device_mesh.ndim
    return distribute_tensor(value.to(goal.device), goal.device_mesh, placements, src_data_rank=None)


def _tensors(
    weights: Mapping[str, Tensor], averages: Averages, optimizer: torch.optim.Optimizer | None
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a run with their names, in the same order in every process."""
    for name, weight in weights.items():
        yield WEIGHTS + name, weight
    for key, group in averages.tensors.items():
        for name, tensor in group.items():
            yield f"{AVERAGE}{key}/{name}", tensor
    if optimizer is not None:
        for name, entries in _optimizer_entries(weights, optimizer).items():
            for entry, value in entries.items():
                if isinstance(value, Tensor):
                    yield f"{OPTIMIZER}{name}/{entry}", value


def _optimizer_entries(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Mapping[str, Any]]:
    """What an optimiser keeps, by name of the parameter rather than by number."""
    content = optimizer.state_dict()["state"]
    return {name: content[number] for number, name in enumerate(_order(weights, optimizer)) if number in content}


def _order(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters as an optimiser numbers them."""
    names = {id(weight): name for name, weight in weights.items()}
    return [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]


def _plain_optimizer(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser keeps besides tensors, JSON-safe."""
    content = optimizer.state_dict()
    told = {key: value for key, value in content.items() if key not in ("state", "param_groups")}
    groups = [{key: _plain(value) for key, value in group.items()} for group in content["param_groups"]]
    # A precision is a setting, which the optimiser has again when it is made.
    groups = [
        {key: value for key, value in group.items() if key != "params" and not isinstance(value, torch.dtype)}
        for group in groups
    ]
    others = {
        name: {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
        for name, entries in _optimizer_entries(weights, optimizer).items()
    }
    for where in [told, *groups, *others.values()]:
        for key, value in where.items():
            if where is told or not _is_json(value):
                raise TypeError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} under {key!r}, which no checkpoint "
                    "can hold; train with another optimizer, such as 'adamw'."
                )
    return {"groups": groups, "weights": {name: entries for name, entries in others.items() if entries}}


def _plain(value: object) -> object:
    """A group's counter may be a tensor."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _is_json(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | float | str)


def _restore_optimizer(state: TrainingState, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    order, fresh = _order(weights, optimizer), optimizer.state_dict()["param_groups"]
    saved = state.optimizer["groups"]
    if len(saved) != len(fresh):
        raise ValueError(
            f"the checkpoint has {len(saved)} groups of parameters and the optimizer {len(fresh)}; resume with the "
            "optimizer and weight_decay that the run began with."
        )
    numbers = {name: number for number, name in enumerate(order)}
    entries: dict[int, dict[str, Any]] = {}
    for name, value in state.tensors.items():
        if name.startswith(OPTIMIZER):
            weight, _, entry = name.removeprefix(OPTIMIZER).rpartition("/")
            if weight not in numbers:
                raise ValueError(
                    f"the checkpoint has the optimizer's state of {shown(weight)}, which is not trained; resume "
                    "with the model and the frozen weights that the run began with."
                )
            # An optimiser without a dimension for it keeps a counter, the same in all processes. Copies: an optimiser
            # takes tensors as they are, and those of a file would hold its space when the checkpoint is removed.
            part = sharded_as(value, weights[weight]) if value.ndim else value
            entries.setdefault(numbers[weight], {})[entry] = part.clone()
    for name, plain in state.optimizer["weights"].items():
        entries.setdefault(numbers[name], {}).update(plain)
    groups = [{**now, **_as_before(now, before)} for now, before in zip(fresh, saved, strict=True)]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _as_before(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings and counters, tuples again where JSON made them lists."""
    return {key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in before.items()}


def _check_names(goals: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    misfits = [
        f"it lacks {some([shown(name) for name in sorted(goals.keys() - found.keys())])}" * bool(goals.keys() - found),
        f"it has {some([shown(name) for name in sorted(found.keys() - goals.keys())])} besides"
        * bool(found.keys() - goals.keys()),
        *(
            f"{shown(name)} is {tuple(found[name].shape)}, not {tuple(goals[name].shape)}"
            for name in sorted(goals.keys() & found.keys())
            if found[name].shape != goals[name].shape
        ),
    ]
    if told := [misfit for misfit in misfits if misfit]:
        raise ValueError(
            f"the checkpoint does not fit the model and options: {'; '.join(told[:3])}. Resume with the configuration "
            "that the run began with, or start another run."
        )
