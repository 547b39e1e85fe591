"""What tells a run that goes wrong: losses that jump, and a report of the step that is not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ditzoo.models import DiffusionTransformer


class SpikeWatch:
    """Losses that stand out from those before.

    The measure is their median, which a few spikes do not move, as they would a mean.

    Args:
        factor: how many times the median a loss is called a spike from; `inf` never.
        losses: of the steps before, where there were any.

    Raises:
        ValueError: for a factor that is not above 1.
    """

    #: losses that are looked back on
    window = 100
    #: losses before which nothing is called a spike: the first ones fall fast
    least = 20

    def __init__(self, factor: float, losses: Iterable[float] = ()) -> None:
        if not factor > 1:
            raise ValueError(f"spike_factor must be above 1, got {factor}; inf reports no spikes.")
        self.factor = factor
        self._losses = deque(losses, maxlen=self.window)

    def check(self, loss: float) -> str | None:
        """Remember the loss of a step; what to say of it if it is a spike. A loss that is not finite is neither."""
        if not math.isfinite(loss):
            return None
        spike = None
        if len(self._losses) >= self.least and self.factor < math.inf:
            usual = median(self._losses)
            if loss > self.factor * usual:
                spike = (
                    f"the loss is {loss:.4g}, {loss / usual:.1f} times the median {usual:.4g} of the "
                    f"{len(self._losses)} steps before"
                )
        self._losses.append(loss)
        return spike


def gradient_norms(model: DiffusionTransformer) -> dict[str, float]:
    """The norm of the gradient in each block, and in each other part by its top-level name, in order of execution as
    far as it is known: what stands before the blocks in the model comes first.

    Of sharded parameters it is that of all shards: every process must call it.
    """
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        part = _part(name, model.block_names())
        squares.setdefault(part, [])
        if parameter.grad is not None:
            norm = torch.linalg.vector_norm(parameter.grad.detach().to(torch.float32))
            squares[part].append(_whole(norm).to(torch.float64).square())
    return {part: float(torch.stack(values).sum().sqrt()) for part, values in squares.items() if values}


def non_finite_report(
    model: DiffusionTransformer,
    *,
    step: int,
    seen: int,
    terms: Mapping[str, float],
    learning_rate: float,
    newest_checkpoint: Path | None,
) -> str:
    """What is known of a step whose loss or gradient is not finite, and what to do, over several lines.

    Args:
        model: with the gradients of the step, if it came so far. Where it is sharded, every process must call this.
        step: counted from 1.
        seen: images, those of the step included.
        terms: of the loss, by name.
        learning_rate: of the step.
        newest_checkpoint: the folder of the newest whole checkpoint; None where there is none.
    """
    wrong = [name for name, value in terms.items() if not math.isfinite(value)]
    norms = gradient_norms(model)
    bad = [part for part, norm in norms.items() if not math.isfinite(norm)]
    if wrong:
        what = f"the loss is not finite: {', '.join(f'{name} is {terms[name]}' for name in wrong)}"
    else:
        what = f"the gradient is not finite in {', '.join(bad) or 'any norm that was measured'}"
    told = ", ".join(f"{name} {value:.6g}" for name, value in terms.items())
    lines = [
        f"Step {step} ({seen:,} images seen): {what}.",
        f"Loss: {told}. Learning rate: {learning_rate:.6g}.",
    ]
    if norms:
        lines.append("Norm of the gradient:")
        lines += [f"  {part}: {norm:.6g}" for part, norm in norms.items()]
    else:
        lines.append("There is no gradient: the forward pass came no further than the loss.")
    if newest_checkpoint is None:
        lines.append("There is no checkpoint before it.")
    else:
        lines.append(f"The newest checkpoint before it: {newest_checkpoint}.")
    lines.append("Lower learning_rate, lengthen warmup_images, or leave such steps out with on_non_finite=skip.")
    return "\n".join(lines)


def _part(name: str, block_names: Iterable[str]) -> str:
    """The block that a parameter is of, or else the first part of its name."""
    return next((block for block in block_names if name.startswith(f"{block}.")), name.partition(".")[0])


def _whole(value: Tensor) -> Tensor:
    """The value itself, of a tensor that lies in shards on several processes."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
