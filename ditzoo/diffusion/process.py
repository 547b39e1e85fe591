"""From data to noise: the Gaussian diffusion process and the straight flow, each with what networks predict."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ditzoo.recipe import Prediction, Recipe, Schedule


def make_betas(schedule: Schedule, num_timesteps: int) -> Tensor:
    """Variances of the forward process's steps, (T,) float64.

    `"linear"` is DDPM's (arXiv:2006.11239) stretched to T steps, `"scaled_linear"` Stable Diffusion's, and
    `"cosine"` eq. 17 of arXiv:2102.09672.

    Raises:
        ValueError: for an unknown schedule, or so few steps that a variance leaves (0, 1).
    """
    betas = _betas(schedule, num_timesteps) if num_timesteps > 0 else torch.ones(1)
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"{num_timesteps} timesteps are too few for the {schedule} schedule; the papers use 1000.")
    return betas


def _betas(schedule: Schedule, num_timesteps: int) -> Tensor:
    if schedule == "linear":
        stretch = 1000 / num_timesteps
        return torch.linspace(1e-4 * stretch, 0.02 * stretch, num_timesteps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(0.00085**0.5, 0.012**0.5, num_timesteps, dtype=torch.float64) ** 2
    if schedule == "cosine":

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        edges = [alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(edges)]
        return torch.tensor(betas, dtype=torch.float64)
    raise ValueError(f"unknown schedule {schedule!r}; choose linear, scaled_linear or cosine.")


def make_process(recipe: Recipe) -> GaussianDiffusion | FlowMatching:
    """The process that a recipe's schedule names.

    Raises:
        ValueError: for a schedule that recipes can state and this release does not compute.
    """
    if recipe.schedule == "continuous_vp":
        raise ValueError(
            "this release states the schedule 'continuous_vp' in recipes and does not compute it; choose linear, "
            "scaled_linear, cosine or flow_linear."
        )
    return FlowMatching() if recipe.is_flow else GaussianDiffusion(recipe)


class GaussianDiffusion:
    """x_t = alpha_t x0 + sigma_t noise with alpha_t^2 + sigma_t^2 = 1.

    Args:
        recipe: its schedule, number of timesteps and prediction type decide everything here.

    Attributes:
        alphas_cumprod: alpha_t^2, (T,) float64 on the CPU.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.prediction: Prediction = recipe.prediction
        self.num_timesteps: int = recipe.num_train_timesteps
        self.alphas_cumprod = torch.cumprod(1 - make_betas(recipe.schedule, self.num_timesteps), dim=0)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise levels at integer times t (B,), float32 of shape (B, 1, 1, 1) on t's device."""
        alpha2 = self.alphas_cumprod.to(t.device)[t] if t.device.type != "mps" else self.alphas_cumprod[t.cpu()]
        alpha2 = alpha2.view(-1, 1, 1, 1)
        return alpha2.sqrt().float().to(t.device), (1 - alpha2).sqrt().float().to(t.device)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t from x0 and noise, (B, C, H, W)."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to return, (B, C, H, W)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        alpha, sigma = self.alpha_sigma(t)
        return alpha * noise - sigma * x0

    def denoise(self, x: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both x0 and noise, as implied by x_t and the network's prediction."""
        alpha, sigma = self.alpha_sigma(t)
        if self.prediction == "epsilon":
            return (x - sigma * prediction) / alpha, prediction
        if self.prediction == "sample":
            return prediction, (x - alpha * prediction) / sigma
        return alpha * x - sigma * prediction, sigma * x + alpha * prediction


class FlowMatching:
    """x_t = t x0 + (1 - t) noise: the straight line from noise at time 0 to data at time 1 (arXiv:2210.02747; the
    linear interpolant of SiT, arXiv:2401.08740, whose paper counts time the other way). Networks predict the
    velocity x0 - noise.

    Attributes:
        num_timesteps: None, since times are real numbers in [0, 1].
    """

    num_timesteps = None

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t from x0 and noise, (B, C, H, W), at times t (B,) in [0, 1]."""
        t = t.view(-1, 1, 1, 1)
        return t * x0 + (1 - t) * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity dx_t / dt, the same all along the line: (B, C, H, W)."""
        return x0 - noise
