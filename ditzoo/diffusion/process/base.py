"""From data to noise: x_t = alpha_t x0 + sigma_t noise, in every parametrisation that the papers use.

A process knows its noise levels, what its networks predict, and in which units they are told the time. Samplers and
losses ask nothing else, so that each works with every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ditzoo.recipe import Prediction

Spacing = Literal["time", "log_snr", "karras"]

#: exponent of the noise levels of `spacing="karras"` (eq. 5 of arXiv:2206.00364)
KARRAS_RHO = 7.0

#: grids in the log-SNR or noise level are laid out where |log(alpha / sigma)| stays below this; the first and last
#: interval reach from there to the ends of a process, where it may be infinite
LOG_SNR_LIMIT = 7.0


def exact(t: Tensor) -> Tensor:
    """Times in float64; on the CPU where their device has none."""
    return t.cpu().double() if t.device.type == "mps" else t.double()


def as_factor(values: Tensor, t: Tensor, x: Tensor | None = None) -> Tensor:
    """Values at times t (B,) as factors of a batch x, (B, 1, 1, 1) on t's device: float64 if x is, float32 else."""
    dtype = torch.float64 if x is not None and x.dtype == torch.float64 else torch.float32
    return values.to(dtype).to(t.device).view(-1, 1, 1, 1)


def check_steps(num_steps: object, most: int | None = None) -> None:
    """Refuse a number of steps that is no integer, below 1 or above `most`."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int):
        raise TypeError(f"num_inference_steps must be an integer, got {num_steps!r}.")
    if num_steps < 1 or (most is not None and num_steps > most):
        wanted = "1 or more" if most is None else f"from 1 to {most}"
        raise ValueError(f"num_inference_steps must be {wanted}, got {num_steps}.")


def shortened(values: Sequence[object]) -> str:
    """The first of some values, for a message."""
    return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


class Estimate(NamedTuple):
    """What a network's prediction says about a noisy sample.

    Attributes:
        x0: the clean sample, (B, C, H, W).
        noise: (B, C, H, W), so that x = alpha x0 + sigma noise.
        output: all that the network returned, a learned variance behind the first C channels.
    """

    x0: Tensor
    noise: Tensor
    output: Tensor


class Process:
    """Base of all processes. Subclasses give levels and, where they have one, the derivative.

    Times are in the process's own units, and run from `start` (noise) over `end` (the last at which networks are
    trained and called) to `data` (no noise at all; equal to `end` where the network can be called there).

    Args:
        prediction: what the network returns.
        time_scale: see `Recipe.time_scale`.
        time_offset: see `Recipe.time_offset`.

    Raises:
        ValueError: for a prediction that does not go with the process.
    """

    #: what its networks may predict
    predictions: ClassVar[tuple[Prediction, ...]] = ("epsilon", "v_prediction", "sample")
    #: whether samplers take a last step from `end` to `data`
    has_final_step: ClassVar[bool] = True
    default_spacing: ClassVar[Spacing] = "time"
    #: T of a table of noise levels; None where time is a real number
    num_timesteps: int | None = None
    #: mean and standard deviation of the normal variable whose logistic function is the time trained at, from 0 (data)
    #: to 1 (noise); None trains at all times alike
    logit_normal: tuple[float, float] | None = None
    start: float
    end: float
    data: float

    def __init__(self, prediction: Prediction, time_scale: float = 1.0, time_offset: float = 0.0) -> None:
        if prediction not in self.predictions:
            raise ValueError(
                f"{type(self).__name__} has no prediction {prediction!r}; choose one of {', '.join(self.predictions)}."
            )
        self.prediction: Prediction = prediction
        self.time_scale = time_scale
        self.time_offset = time_offset

    # What a subclass gives.

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at float64 times t, in float64 and t's shape."""
        raise TypeError(f"{type(self).__name__} does not define levels().")

    def derivatives(self, t: float) -> tuple[float, float]:
        """d alpha / dt and d sigma / dt.

        Raises:
            TypeError: for a process whose levels are a table.
        """
        raise TypeError(f"{type(self).__name__} has noise levels at whole timesteps only, and no derivative in time.")

    def time_at(self, log_snr: float) -> float:
        """The time at which log(alpha / sigma), half the log-SNR, has this value."""
        raise TypeError(f"{type(self).__name__} does not define time_at().")

    def uniform_times(self, t: Tensor) -> Tensor:
        """Times to train at from uniform numbers in [0, 1), or from timesteps, (B,)."""
        return t

    #: whether times rise towards the noise, as in all but flows
    _rises_to_noise: ClassVar[bool] = True

    # Training.

    @property
    def drawn_timesteps(self) -> int | None:
        """`draw_training`'s `num_timesteps`: T where timesteps are drawn, None where uniform numbers are."""
        return self.num_timesteps if self.logit_normal is None else None

    def training_times(self, t: Tensor) -> Tensor:
        """Times to train at, (B,), from the draws of `draw_training`: timesteps, or uniform numbers in [0, 1)."""
        if self.logit_normal is None:
            return self.uniform_times(t)
        mean, std = self.logit_normal
        normal = torch.special.ndtri(exact(t).clamp(2.0**-25, 1 - 2.0**-25))  # finite for a draw of 0
        noise = torch.sigmoid(mean + std * normal)
        if self.num_timesteps is not None:
            return (noise * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)
        return self.uniform_times((noise if self._rises_to_noise else 1 - noise).to(t.dtype))

    # Levels.

    def level(self, t: float) -> tuple[float, float]:
        """alpha and sigma at one time."""
        alpha, sigma = self.levels(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def log_snr(self, t: float) -> float:
        """log(alpha / sigma) at one time, half the log-SNR: lambda of arXiv:2206.00927; infinite at the ends."""
        alpha, sigma = self.level(t)
        if alpha <= 0:
            return -math.inf
        return math.log(alpha / sigma) if sigma > 0 else math.inf

    def noise_level(self, t: float) -> float:
        """sigma / alpha at one time."""
        return math.exp(-self.log_snr(t))

    def alpha_sigma(self, t: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Signal and noise levels at times t (B,), (B, 1, 1, 1) on t's device, float64 if x is, float32 else."""
        alpha, sigma = self.levels(exact(t))
        return as_factor(alpha, t, x), as_factor(sigma, t, x)

    # From data to noise.

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t from x0 and noise, (B, C, H, W), at times t (B,)."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def initial_sample(self, noise: Tensor) -> Tensor:
        """Where sampling starts, from standard normal noise (B, C, H, W)."""
        return noise

    def initial_noise(self, x: Tensor) -> Tensor:
        """The noise from which `initial_sample` makes x."""
        return x

    # What networks see and say.

    def scale_input(self, x: Tensor, t: Tensor) -> Tensor:
        """What of x (B, C, H, W) at times t (B,) goes into the network."""
        return x

    def network_time(self, t: Tensor) -> Tensor:
        """Times t (B,) in the network's units."""
        if self.time_scale == 1 and self.time_offset == 0:
            return t
        return self.time_offset + self.time_scale * t

    def process_time(self, network_time: float) -> float:
        """The time that a network is told as `network_time`."""
        return (network_time - self.time_offset) / self.time_scale

    def call(self, model: Callable[..., Tensor], x: Tensor, t: Tensor, y: Tensor | None, **kwargs: Any) -> Tensor:
        """The network's output for x (B, C, H, W) at times t (B,)."""
        return model(self.scale_input(x, t), self.network_time(t), y, **kwargs)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to return, (B, C, H, W)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        alpha, sigma = self.alpha_sigma(t, x0)
        if self.prediction == "v_prediction":
            return alpha * noise - sigma * x0
        raise TypeError(f"{type(self).__name__} has no target for prediction {self.prediction!r}.")

    def denoise(self, x: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both x0 and noise, as implied by x_t at times t (B,) and the network's prediction."""
        return self._split(x, prediction, *self.alpha_sigma(t, x))

    def estimate(self, x: Tensor, output: Tensor, t: float) -> Estimate:
        """Both, for a batch at one time, in the precision of x: what samplers call."""
        prediction = output[:, : x.shape[1]].to(x.dtype)
        return Estimate(*self._split_at(x, prediction, t), output)

    def _split_at(self, x: Tensor, prediction: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return self._split(x, prediction, *self.level(t))

    def _split(self, x: Tensor, prediction: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        if self.prediction == "epsilon":
            return (x - sigma * prediction) / alpha, prediction
        if self.prediction == "sample":
            return prediction, (x - alpha * prediction) / sigma
        if self.prediction == "score":
            return (x + sigma**2 * prediction) / alpha, -sigma * prediction
        # v of a process with alpha^2 + sigma^2 = 1
        return alpha * x - sigma * prediction, sigma * x + alpha * prediction

    # Grids.

    def times(self, num_steps: int, spacing: Spacing | None = None, *, final_step: bool | None = None) -> list[float]:
        """Times of a sampler: num_steps + 1 of them, noise first.

        Args:
            num_steps: intervals between the times.
            spacing: even in `"time"`, in `"log_snr"`, or in the seventh root of sigma / alpha, `"karras"`; the
                process's own where None.
            final_step: go from `end` to `data` in the last step; as the process's authors do where None.

        Raises:
            ValueError: for fewer than one step or an unknown spacing.
            TypeError: for a number of steps that is no integer.
        """
        check_steps(num_steps)
        final_step = self.has_final_step if final_step is None else final_step
        jump = [self.data] if final_step and self.end != self.data else []
        return self._spaced(num_steps + 1 - len(jump), spacing or self.default_spacing) + jump

    def _spaced(self, count: int, spacing: Spacing) -> list[float]:
        """`count` times from `start` to `end`."""
        if spacing == "time":
            return torch.linspace(self.start, self.end, count, dtype=torch.float64).tolist()
        low, high = max(self.log_snr(self.start), -LOG_SNR_LIMIT), min(self.log_snr(self.end), LOG_SNR_LIMIT)
        if spacing == "log_snr":
            grid = torch.linspace(low, high, count, dtype=torch.float64).tolist()
        elif spacing == "karras":
            first, last = (math.exp(-bound / KARRAS_RHO) for bound in (low, high))
            roots = torch.linspace(first, last, count, dtype=torch.float64)
            grid = (-KARRAS_RHO * roots.log()).tolist()
        else:
            raise ValueError(f"unknown spacing {spacing!r}; choose time, log_snr or karras.")
        inner = [self.time_at(value) for value in grid[1:-1]]
        ends = [self.start, self.end] if count > 1 else [self.start]
        return [ends[0], *inner, *ends[1:]]
