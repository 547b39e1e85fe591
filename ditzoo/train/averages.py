"""Averages of the weights over training: an exponential one, and power-function ones from which averages of any width
can be made afterwards (arXiv:2312.02696).

A power-function average of exponent gamma at time t weighs the weights of time tau with tau^gamma (section 3.1). Its
relative width sigma, the standard deviation of that weight over t, says the same more tellingly. Time is counted in
images seen.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditzoo.media.files import check_writable, remove_leftovers, writing
from ditzoo.models import DiffusionTransformer
from ditzoo.train.options import WIDEST, TrainOptions
from ditzoo.weights.checks import shown, some
from ditzoo.weights.files import load_state_dict
from ditzoo.weights.folders import CHECKPOINTS, CONFIG, load_model, model_folder
from ditzoo.weights.shards import write_safetensors

#: In the folder of a run.
SNAPSHOTS = "ema"
#: By how much a reconstructed average's weight over time may miss its own before a warning.
_TOLERATED = 0.05

_Numbers: TypeAlias = float | NDArray[np.float64]


class Averages:
    """The averages that a run keeps, of the weights that it trains.

    Args:
        weights: name -> parameter; those without `requires_grad` never change and are left out. Sharded ones have
            sharded averages.
        options: `ema_decay`, `ema_warmup` and `ema_profiles`.

    Attributes:
        tensors: average -> name -> tensor: under `"ema"` the exponential average, and one entry a profile, such as
            `"0.05"`.
    """

    def __init__(self, weights: Mapping[str, Tensor], options: TrainOptions) -> None:
        trained = {name: weight.detach() for name, weight in weights.items() if weight.requires_grad}
        self.decay, self.warmup = options.ema_decay, options.ema_warmup
        self.exponents = {f"{width:g}": width_to_exponent(width) for width in options.ema_profiles}
        self.tensors = {
            key: {name: weight.clone() for name, weight in trained.items()} for key in ("ema", *self.exponents)
        }
        # Averaging is done value by value, so that every process can do it on what it holds.
        self._weights = [_local(weight) for weight in trained.values()]
        self._averages = {key: [_local(tensor) for tensor in group.values()] for key, group in self.tensors.items()}

    @torch.no_grad()
    def update(self, *, step: int, seen: int, batch_size: int) -> None:
        """Take the weights after a step into account; after the first one averages are these weights.

        Also where the step left the weights as they were: to a power function that is time in which they stood still.

        Args:
            step: 0 for the first.
            seen: images seen, those of the step included.
            batch_size: images of the step.
        """
        for key, averages in self._averages.items():
            decay = self._ema_decay(step) if key == "ema" else power_decay(self.exponents[key], seen, batch_size)
            if step == 0:
                torch._foreach_copy_(averages, self._weights)
            else:
                torch._foreach_lerp_(averages, self._weights, 1 - decay)

    def _ema_decay(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a view of the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def width_to_exponent(width: float) -> float:
    """Gamma of a relative width: the largest root of the cubic that `exponent_to_width` comes down to.

    Raises:
        ValueError: for a width that no gamma of 0 or more has.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(f"width must be above 0 and at most 0.288, got {width}.")
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(roots.real[np.abs(roots.imag) < 1e-6]))


def exponent_to_width(exponent: float) -> float:
    """The relative width of gamma: sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) (section 3.1)."""
    return float(((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))) ** 0.5)


def power_decay(exponent: float, seen: int, batch_size: int) -> float:
    """What a power-function average keeps of itself in a step of `batch_size` images that ends at `seen`: the paper's
    (1 - 1/t)^(gamma + 1) (section 3.1) for steps of any size."""
    return float((1 - batch_size / seen) ** (exponent + 1))


@dataclass(frozen=True)
class Snapshot:
    """A power-function average, as it was at some time.

    Attributes:
        path: of the file.
        seen: images seen.
        width: relative.
    """

    path: Path
    seen: int
    width: float


def write_snapshots(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], seen: int) -> list[Snapshot]:
    """Write the profiles of a moment, a file each.

    Args:
        folder: made where it is missing.
        tensors: as `Averages.tensors` has them, whole and on the CPU; the exponential average is left out.
        seen: images seen.

    Raises:
        OSError: where they cannot be written.
    """
    snapshots = []
    if folder.is_dir():
        remove_leftovers(folder)
    for key in tensors:
        if key != "ema":
            snapshot = Snapshot(folder / f"{seen:09d}-{key}.safetensors", seen, float(key))
            with writing(snapshot.path) as temporary:
                write_safetensors(temporary, tensors[key])
            snapshots.append(snapshot)
    return snapshots


def find_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, oldest first."""
    found = ((path, re.fullmatch(r"(\d+)-(\d[\d.e-]*)", path.stem)) for path in folder.glob("*.safetensors"))
    snapshots = [Snapshot(path, int(match[1]), float(match[2])) for path, match in found if match]
    return sorted(snapshots, key=lambda snapshot: (snapshot.seen, snapshot.width))


def reconstruct(folder: Path, width: float, *, seen: int | None = None) -> dict[str, Tensor]:
    """An average of another width, from the snapshots of a run (section 3.2 and appendix C of arXiv:2312.02696).

    Args:
        folder: where `write_snapshots` wrote.
        width: relative, above 0 and at most 0.288; the paper finds its best between 0.02 and 0.2.
        seen: the end of the average, in images; None is the last snapshot.

    Returns:
        Name -> tensor, float32. Memory holds one snapshot besides.

    Raises:
        FileNotFoundError: where there are no snapshots.
        ValueError: for a width out of range, or a time without snapshots up to it.
    """
    exponent, snapshots = width_to_exponent(width), find_snapshots(folder)
    if not snapshots:
        raise FileNotFoundError(
            f"{folder} has no snapshots to make averages from; train with ema_profiles, such as (0.05, 0.1)."
        )
    times = sorted({snapshot.seen for snapshot in snapshots})
    end = times[-1] if seen is None else seen
    if not times[0] <= end <= times[-1]:
        raise ValueError(f"seen must be from {times[0]} to {times[-1]}, where {folder} has snapshots, got {end}.")
    # An average at a time that has snapshots needs none of later times.
    used = [snapshot for snapshot in snapshots if snapshot.seen <= end or end not in times]
    parts = [(width_to_exponent(snapshot.width), snapshot.seen) for snapshot in used]
    factors, error = combination(parts, (exponent, end))
    if error > _TOLERATED:
        kept = ", ".join(f"{each:g}" for each in sorted({snapshot.width for snapshot in used}))
        warnings.warn(
            f"width {width:g} at {end:,} images is known from {len(used)} snapshots in {folder} to {error:.0%} only: "
            f"weights may be worse than they are. Take a width nearer to those kept ({kept}), or train with more "
            "snapshots (a smaller checkpoint_every) or with ema_profiles around it.",
            stacklevel=2,
        )
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(used, factors, strict=True):
        for name, tensor in load_state_dict(snapshot.path).items():
            part = tensor.double() * factor
            total[name] = part if name not in total else total[name].add_(part)
    return {name: tensor.float() for name, tensor in total.items()}


def reconstructed_model(run: Path | str, width: float, *, seen: int | None = None) -> DiffusionTransformer:
    """The model of a run with an average of another width.

    Args:
        run: folder of a run that was made with `ema_profiles`.
        width, seen: as for `reconstruct`.

    Returns:
        A model on the CPU, without the results that were measured with other weights.

    Raises:
        FileNotFoundError: where there are no snapshots, or no checkpoint.
        ValueError: as `reconstruct`; for averages of adapters; for a folder of something else than a run.
    """
    run = Path(run)
    if not (run / CHECKPOINTS).is_dir():
        raise ValueError(f"{run} is no folder of a training run; give the one that holds {CHECKPOINTS}/.")
    weights, model = reconstruct(run / SNAPSHOTS, width, seen=seen), load_model(model_folder(run))
    if unknown := sorted(weights.keys() - dict(model.named_parameters()).keys()):
        raise ValueError(
            f"{run / SNAPSHOTS} has averages of {some([shown(name) for name in unknown])}, which the model in its "
            "checkpoints does not have: adapters are merged there. Use that model as it is."
        )
    model.load_state_dict(weights, strict=False)
    model.details = replace(model.details, results=())
    return model


def save_reconstructed(run: Path | str, out: Path | str, width: float, *, seen: int | None = None) -> None:
    """Write `reconstructed_model` into a folder of its own.

    Raises:
        ValueError: as `reconstructed_model`; for a folder inside the run's, which would stand for the run's own model.
        OSError: where the folder cannot be written.
    """
    if (there := Path(out).resolve()).is_relative_to(Path(run).resolve()):
        raise ValueError(f"{out} lies in the folder of the run, {run}; give a folder outside of it.")
    check_writable(there / CONFIG)
    reconstructed_model(run, width, seen=seen).save_pretrained(out)


def combination(parts: Sequence[tuple[float, int]], goal: tuple[float, int]) -> tuple[list[float], float]:
    """Factors of the snapshots whose weighted sum has a weight over time as near as can be to another's, by least
    squares (appendix C).

    Args:
        parts: (gamma, time) of each snapshot.
        goal: those of the average that is wanted.

    Returns:
        The factors, and how far their sum is from the goal: the norm of the difference of the weights over time, as a
        part of the goal's. Factors of a sum that is near add up to 1.
    """
    gammas, times = np.array(parts, dtype=np.float64).T
    gram = inner_product((gammas[:, None], times[:, None]), (gammas, times))
    wanted = inner_product((gammas, times), goal)
    # Rows and columns scaled to a unit diagonal: snapshots of early times have tall and narrow weights.
    scale = 1 / np.sqrt(np.diag(gram))
    solution, *_ = np.linalg.lstsq(gram * scale[:, None] * scale, wanted * scale, rcond=1e-12)
    factors = solution * scale
    squared = 1 + (factors @ gram @ factors - 2 * factors @ wanted) / inner_product(goal, goal)
    return factors.tolist(), float(max(0.0, squared) ** 0.5)


def inner_product(a: tuple[_Numbers, _Numbers], b: tuple[_Numbers, _Numbers]) -> Any:
    """The integral over time of the product of two power-function weights (gamma, time), each (gamma + 1) tau^gamma /
    t^(gamma + 1) up to its time t, and 0 after it. Numbers, or arrays of many."""
    (gamma_a, t_a), (gamma_b, t_b) = a, b
    # The earlier one ends the integral; in ratios, because the powers themselves overflow.
    earlier, later = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma = np.where(np.less(t_a, t_b), gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (earlier / later) ** gamma / later
