"""What does not outlive training; what does is the `Recipe`'s."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Precision = Literal["float32", "bfloat16", "float16"]
LearningRateSchedule = Literal["constant", "cosine", "linear"]
OnNonFinite = Literal["stop", "skip"]
#: The relative width of the mean of all weights, gamma 0, in section 3.1 of arXiv:2312.02696.
WIDEST = 12**-0.5


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How weights are trained, whatever the model and the data.

    Raises:
        ValueError: for a value outside its range, or two that exclude each other; the message names the fields.
    """

    num_images: int
    """images seen in all, repeats included; the last batch may be smaller"""
    batch_size: int = 32
    """images of a step, over all processes and micro-batches"""
    accumulation: int = 1
    """micro-batches that each process cuts its part of a batch into: less memory, the same step"""
    optimizer: str = "adamw"
    """`"adamw"` is PyTorch's; any other name is timm's, such as `"adan"` (arXiv:2208.06677) or `"muon"`"""
    learning_rate: float = 1e-3
    """peak of the learning rate, after its warm-up"""
    lr_schedule: LearningRateSchedule = "cosine"
    """what follows the warm-up: the peak, half a cosine down to zero, or a straight line down to zero"""
    warmup_images: int = 1_000
    """images over which the learning rate rises linearly"""
    betas: tuple[float, ...] = (0.9, 0.99)
    """decay of the optimiser's averages of the gradient and of its square, a step; Adan has three"""
    weight_decay: float = 0.0
    """of the optimiser, decoupled; biases, norms and what `model.no_weight_decay()` names are not decayed"""
    ema_decay: float = 0.995
    """decay of the moving average of the weights, a step"""
    ema_warmup: bool = False
    """average less far back at first: the decay of step k is at most (1 + k) / (10 + k)"""
    ema_profiles: tuple[float, ...] = ()
    """relative widths of power-function averages that are kept besides, from which averages of any width can be made
    after training (arXiv:2312.02696, section 3)"""
    max_grad_norm: float = 1.0
    """gradients of a larger norm are scaled down to it; `inf` never clips"""
    precision: Precision = "float32"
    """of matrix products, by autocast; weights, norms, softmax, losses and the optimiser stay in float32"""
    compile: bool = False
    """compile the network: seconds to minutes at the start"""
    grad_checkpointing: bool = False
    """compute each block a second time in the backward pass rather than keep its activations"""
    fsdp: bool = False
    """shard weights, gradients, averages and the optimiser's state over the processes (PyTorch's FSDP2)"""
    on_non_finite: OnNonFinite = "stop"
    """what to do at a loss or gradient that is not finite: stop with a report, or leave the step out"""
    seed: int = 0
    """of batches, times, noise, dropped labels, flips and masks"""

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        for name in ("seed", "warmup_images", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate must be finite, got {self.learning_rate}.")
        for name, values in {"ema_decay": (self.ema_decay,), "betas": self.betas}.items():
            if not values or not all(0 <= value < 1 for value in values):
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        if not all(0 < width <= WIDEST for width in self.ema_profiles):
            raise ValueError(f"ema_profiles must be relative widths from 0 to 0.288, got {self.ema_profiles}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(get_args(choices))}."
                )
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation ({self.accumulation}) must divide batch_size ({self.batch_size}).")

    def learning_rate_at(self, seen: int) -> float:
        """The learning rate of the step after `seen` images: a function of nothing else, so that it is the same after
        a resume and whatever the number of processes."""
        if seen < self.warmup_images:
            return self.learning_rate * ((seen + self.batch_size) / (self.warmup_images + self.batch_size))
        if self.lr_schedule == "constant":
            return self.learning_rate
        progress = min(1.0, (seen - self.warmup_images) / max(1, self.num_images - self.warmup_images))
        if self.lr_schedule == "linear":
            return self.learning_rate * (1 - progress)
        return self.learning_rate * (0.5 * (1 + math.cos(math.pi * progress)))


_CHOICES = {"lr_schedule": LearningRateSchedule, "precision": Precision, "on_non_finite": OnNonFinite}
