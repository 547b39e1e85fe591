"""Processes in continuous time: the variance-preserving SDE, flows, and EDM's."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ditzoo.diffusion.process.base import Process, as_factor, exact
from ditzoo.recipe import LossWeighting, Prediction

Path = Literal["linear", "gvp", "vp"]


class ContinuousVP(Process):
    """The variance-preserving SDE in continuous time, from t = 1 (noise) to 0 (data) (arXiv:2011.13456, eq. 11).

    beta(t) rises linearly from 0.1 to 20, alpha_t = exp(-1/2 integral of beta), sigma_t^2 = 1 - alpha_t^2.

    Args:
        prediction: `"epsilon"`, `"v_prediction"` or `"sample"`.
        time_scale: networks see time_scale * t; U-ViT's 999 t.
        time_offset: see `Recipe.time_offset`.
    """

    beta_min, beta_max = 0.1, 20.0

    def __init__(
        self,
        prediction: Prediction = "epsilon",
        time_scale: float = 1.0,
        time_offset: float = 0.0,
    ) -> None:
        super().__init__(prediction, time_scale, time_offset)
        self.start, self.end, self.data = 1.0, 1e-3, 0.0

    def beta(self, t: float) -> float:
        """The diffusion's square at time t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = -0.5 * self.beta_min * t - 0.25 * (self.beta_max - self.beta_min) * t**2
        return log_alpha.exp(), torch.expm1(2 * log_alpha).abs().sqrt()

    def derivatives(self, t: float) -> tuple[float, float]:
        alpha, sigma = self.level(t)
        beta = self.beta(t)
        return -beta * alpha / 2, beta * alpha**2 / (2 * sigma)

    def time_at(self, log_snr: float) -> float:
        # beta_min t + (beta_max - beta_min) t^2 / 2 = log(1 + exp(-2 lambda)), solved without cancellation.
        integral = max(-2 * log_snr, 0) + math.log1p(math.exp(-abs(2 * log_snr)))
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * integral))


class FlowMatching(Process):
    """x_t = alpha_t x0 + sigma_t noise from noise at time 0 to data at time 1 (arXiv:2210.02747), along the paths of
    SiT (arXiv:2401.08740, section 2), whose paper counts time the other way.

    | path | alpha_t | sigma_t |
    |---|---|---|
    | `"linear"` | t | 1 - t |
    | `"gvp"` | sin(pi t / 2) | cos(pi t / 2) |
    | `"vp"` | exp(-(1 - t)^2 19.9 / 4 - (1 - t) 0.05) | sqrt(1 - alpha_t^2) |

    Args:
        path: one of these.
        prediction: `"velocity"` dx_t / dt, `"epsilon"` or `"score"`.
        time_scale: networks see time_offset + time_scale * t.
        time_offset: as above.
        loss_weighting: see `Recipe.loss_weighting`.

    Raises:
        ValueError: for an unknown path or prediction.
    """

    predictions = ("velocity", "epsilon", "score")
    has_final_step = False
    _rises_to_noise = False
    data = 1.0

    def __init__(
        self,
        path: Path = "linear",
        prediction: Prediction = "velocity",
        time_scale: float = 1.0,
        time_offset: float = 0.0,
        loss_weighting: LossWeighting = "none",
    ) -> None:
        super().__init__(prediction, time_scale, time_offset)
        if path not in get_args(Path):
            raise ValueError(f"unknown path {path!r}; choose one of {', '.join(get_args(Path))}.")
        self.path = path
        self.loss_weighting: LossWeighting = loss_weighting
        #: times to train at
        self.training_interval: tuple[float, float] = (0.0, 1.0)
        self.start, self.end = 0.0, 1.0
        if path == "vp":  # the derivative of sigma is infinite at the data
            self.training_interval = (0.0, 1 - 1e-5)
            self.end = 1 - 1e-3
        elif prediction != "velocity":  # x0 cannot be told from noise alone, nor noise from x0
            self.training_interval = self.start, self.end = 1e-3, 1 - 1e-3

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.path == "linear":
            return t, 1 - t
        if self.path == "gvp":
            return torch.sin(math.pi / 2 * t), torch.sin(math.pi / 2 * (1 - t))  # cos, exactly 0 at t = 1
        log_alpha = -((1 - t) ** 2) * 19.9 / 4 - (1 - t) * 0.05
        return log_alpha.exp(), torch.expm1(2 * log_alpha).abs().sqrt()

    def derivatives(self, t: float) -> tuple[float, float]:
        d_alpha, d_sigma = self._derivatives(torch.tensor(t, dtype=torch.float64))
        return float(d_alpha), float(d_sigma)

    def _derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.path == "linear":
            return torch.ones_like(t), -torch.ones_like(t)
        if self.path == "gvp":
            half = math.pi / 2
            return half * torch.cos(half * t), -half * torch.sin(half * t)
        alpha, sigma = self.levels(t)
        d_alpha = alpha * ((1 - t) * 19.9 / 2 + 0.05)
        return d_alpha, -alpha * d_alpha / sigma

    def time_at(self, log_snr: float) -> float:
        if self.path == "linear":
            return 1 / (1 + math.exp(-log_snr))
        if self.path == "gvp":
            return math.atan(math.exp(log_snr)) * 2 / math.pi
        return 1 - ContinuousVP.time_at(_VP, log_snr)

    def uniform_times(self, t: Tensor) -> Tensor:
        low, high = self.training_interval
        return t * (high - low) + low

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "velocity":
            return self.velocity(x0, noise, t)
        _, sigma = self.alpha_sigma(t, x0)
        return noise if self.prediction == "epsilon" else -noise / sigma

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """dx_t / dt, (B, C, H, W)."""
        d_alpha, d_sigma = (as_factor(d, t, x0) for d in self._derivatives(exact(t)))
        return d_alpha * x0 + d_sigma * noise

    def sbdm(self, t: Tensor) -> Tensor:
        """sigma^2 alpha' / alpha - sigma sigma', half the square of the score SDE's diffusion, (B,) float32."""
        (alpha, sigma), (d_alpha, d_sigma) = self.levels(exact(t)), self._derivatives(exact(t))
        return (sigma**2 * d_alpha / alpha - sigma * d_sigma).float().to(t.device)

    def denoise(self, x: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.prediction != "velocity":
            return super().denoise(x, prediction, t)
        derivatives = (as_factor(d, t, x) for d in self._derivatives(exact(t)))
        return _solve_velocity(x, prediction, *self.alpha_sigma(t, x), *derivatives)

    def _split_at(self, x: Tensor, prediction: Tensor, t: float) -> tuple[Tensor, Tensor]:
        if self.prediction != "velocity":
            return super()._split_at(x, prediction, t)
        return _solve_velocity(x, prediction, *self.level(t), *self.derivatives(t))


def _solve_velocity(
    x: Tensor, velocity: Tensor, alpha: Any, sigma: Any, d_alpha: Any, d_sigma: Any
) -> tuple[Tensor, Tensor]:
    """x0 and noise from x = alpha x0 + sigma noise and velocity = alpha' x0 + sigma' noise."""
    determinant = alpha * d_sigma - sigma * d_alpha
    x0 = (d_sigma * x - sigma * velocity) / determinant
    return x0, (alpha * velocity - d_alpha * x) / determinant


class EDM(Process):
    """x = x0 + sigma noise, with sigma itself as time, and the preconditioned network of arXiv:2206.00364, table 1.

    x0 = c_skip x + c_out F(c_in x, ln(sigma) / 4); F is trained by the plain squared error, which is the paper's
    weighted error of x0.

    Attributes:
        sigma_data: standard deviation of the data.
        p_mean: mean of ln(sigma) in training.
        p_std: its standard deviation.
    """

    predictions = ("edm",)
    default_spacing = "karras"
    sigma_data = 0.5
    p_mean, p_std = -1.2, 1.2

    def __init__(self, prediction: Prediction = "edm") -> None:
        super().__init__(prediction)
        self.start, self.end, self.data = 80.0, 0.002, 0.0

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def derivatives(self, t: float) -> tuple[float, float]:
        return 0.0, 1.0

    def time_at(self, log_snr: float) -> float:
        return math.exp(-log_snr)

    def uniform_times(self, t: Tensor) -> Tensor:
        # The normal quantile of the uniform draw; 2^-25 keeps a draw of 0 finite.
        normal = torch.special.ndtri(t.double().clamp(2.0**-25, 1 - 2.0**-25))
        return (self.p_mean + self.p_std * normal).exp().float()

    def initial_sample(self, noise: Tensor) -> Tensor:
        return self.start * noise

    def initial_noise(self, x: Tensor) -> Tensor:
        return x / self.start

    def scale_input(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, *[1] * (x.ndim - 1))
        return (x / (t**2 + self.sigma_data**2).sqrt()).to(x.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        return t.log() / 4

    def process_time(self, network_time: float) -> float:
        return math.exp(4 * network_time)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        skip, out = self._coefficients(t)
        return (x0 - skip * (x0 + t * noise)) / out

    def denoise(self, x: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._precondition(x, prediction, t.view(-1, 1, 1, 1))

    def _split_at(self, x: Tensor, prediction: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return self._precondition(x, prediction, t)

    def _precondition(self, x: Tensor, prediction: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        skip, out = self._coefficients(t)
        x0 = skip * x + out * prediction
        return x0, (x - x0) / t

    def _coefficients(self, t: Any) -> tuple[Any, Any]:
        total = t**2 + self.sigma_data**2
        return self.sigma_data**2 / total, t * self.sigma_data / total**0.5


_VP = ContinuousVP()
