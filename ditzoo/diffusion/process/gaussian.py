"""Discrete diffusion over a table of noise levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from ditzoo.diffusion.process.base import Process, as_factor, check_steps, shortened
from ditzoo.diffusion.schedules import make_betas, space_timesteps
from ditzoo.recipe import Recipe


class ReverseStep(NamedTuple):
    """What a network says about x_{t-1} given x_t: the mean and variance of a Gaussian, (B, C, H, W) each.

    Attributes:
        mean: of x_{t-1}.
        log_variance: of x_{t-1}.
        x0: the clean sample that the mean aims at.
    """

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class GaussianDiffusion(Process):
    """Discrete diffusion, alpha_t^2 + sigma_t^2 = 1, with times t = 0, ..., T - 1 (arXiv:2006.11239).

    Between two timesteps log(alpha) is interpolated linearly, as solvers of continuous time need, and beyond the last
    one it goes on straight; t = -1 is the data.

    Args:
        recipe: its schedule, T, prediction, variance and units of time decide everything here.
        timesteps: which of the T the process keeps, ascending; all where None. The kept ones are numbered from 0, with
            betas of their own, and networks are told their numbers in the full process.

    Raises:
        ValueError: for timesteps that are none of these, or do not rise.

    Attributes:
        betas: variances of the forward steps, (T,) float64 on the CPU, as all tables here.
        alphas_cumprod: alpha_t^2.
        alphas_cumprod_prev: shifted by one step towards the data, 1 first.
        alphas_cumprod_next: shifted by one step towards the noise, 0 last.
        posterior_variance: of q(x_{t-1} | x_t, x0), eq. 7 of arXiv:2006.11239.
        posterior_log_variance_clipped: its logarithm, the first entry, log(0), replaced by the second.
        posterior_mean_coef1: weight of x0 in the posterior's mean.
        posterior_mean_coef2: weight of x_t.
        timestep_map: number of each timestep in the full process, (T,) int64.
    """

    def __init__(self, recipe: Recipe, timesteps: Sequence[int] | Tensor | None = None) -> None:
        super().__init__(recipe.prediction, recipe.time_scale, recipe.time_offset)
        self.recipe = recipe
        full = torch.cumprod(1 - make_betas(recipe.schedule, recipe.num_train_timesteps), dim=0)
        kept = range(len(full)) if timesteps is None else _checked_timesteps(timesteps, len(full))
        self.timestep_map = torch.tensor(kept)
        self.num_timesteps: int = len(self.timestep_map)
        self.start, self.end, self.data = float(self.num_timesteps - 1), 0.0, -1.0
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self.alphas_cumprod = full[self.timestep_map]
        self.alphas_cumprod_prev = torch.cat([one, self.alphas_cumprod[:-1]])
        self.alphas_cumprod_next = torch.cat([self.alphas_cumprod[1:], zero])
        self.betas = 1 - self.alphas_cumprod / self.alphas_cumprod_prev
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        # In place of the first, which is 0; a single timestep has nothing but its beta.
        self._second = self.posterior_variance[1:2] if self.num_timesteps > 1 else self.betas
        self.posterior_log_variance_clipped = torch.cat([self._second, self.posterior_variance[1:]]).log()
        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)
        self._log_alphas = torch.cat([zero, 0.5 * self.alphas_cumprod.log()])  # entry t + 1 is timestep t

    def respace(self, spacing: int | str | Sequence[int]) -> GaussianDiffusion:
        """The process of fewer timesteps that `space_timesteps` keeps."""
        return self.keep(space_timesteps(self.num_timesteps, spacing))

    def keep(self, timesteps: Sequence[int] | Tensor) -> GaussianDiffusion:
        """The process of these timesteps alone, in ascending order.

        Raises:
            ValueError: for timesteps that this process does not have, or that do not rise.
        """
        return GaussianDiffusion(self.recipe, self.timestep_map[_checked_timesteps(timesteps, self.num_timesteps)])

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if not t.is_floating_point():
            alpha2 = self.alphas_cumprod.to(t.device)[t]
            return alpha2.sqrt(), (1 - alpha2).sqrt()
        log_alphas = self._log_alphas.to(t.device)
        place = (t + 1).clamp(min=0)
        lower = place.floor().long().clamp(max=self.num_timesteps - 1)
        log_alpha = torch.lerp(log_alphas[lower], log_alphas[lower + 1], place - lower)
        return log_alpha.exp(), torch.expm1(2 * log_alpha).abs().sqrt()

    def alpha_sigma(self, t: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if t.is_floating_point():
            return super().alpha_sigma(t, x)
        alpha, sigma = self.levels(t if t.device.type != "mps" else t.cpu())
        return as_factor(alpha, t, x), as_factor(sigma, t, x)

    def time_at(self, log_snr: float) -> float:
        wanted = -0.5 * math.log1p(math.exp(-2 * log_snr))  # log(alpha)
        descending = self._log_alphas.flip(0)
        place = int(torch.searchsorted(descending, torch.tensor(wanted, dtype=torch.float64)))
        place = min(max(place, 1), self.num_timesteps)
        low, high = float(descending[place - 1]), float(descending[place])
        return self.num_timesteps - 1 - (place - 1 + (wanted - low) / (high - low))

    def network_time(self, t: Tensor) -> Tensor:
        if t.is_floating_point():
            kept = self.timestep_map.to(t.device, t.dtype)
            lower = t.floor().long().clamp(0, self.num_timesteps - 1)
            t = torch.lerp(kept[lower], kept[(lower + 1).clamp(max=self.num_timesteps - 1)], t - lower)
        else:
            t = self.timestep_map.to(t.device)[t]
        return super().network_time(t)

    def process_time(self, network_time: float) -> float:
        if self.num_timesteps != self.recipe.num_train_timesteps:
            raise TypeError("a process of fewer timesteps cannot tell its times from the network's; use the full one.")
        return super().process_time(network_time)

    def posterior(self, x0: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and clipped log-variance (B, 1, 1, 1) of q(x_{t-1} | x_t, x0) at timesteps t (B,)."""
        mean = self._at(self.posterior_mean_coef1, t, x) * x0 + self._at(self.posterior_mean_coef2, t, x) * x
        return mean, self._at(self.posterior_log_variance_clipped, t, x)

    def reverse_step(self, x: Tensor, output: Tensor, t: Tensor, *, clip_sample: bool = False) -> ReverseStep:
        """p(x_{t-1} | x_t) as the network's output has it, at timesteps t (B,).

        Args:
            x: (B, C, H, W).
            output: (B, C, H, W), or (B, 2C, H, W) where the recipe's variance is learned; of a fixed variance, further
                channels are left out.
            t: (B,) int64.
            clip_sample: clamp x0 to [-1, 1].

        Raises:
            ValueError: where a learned variance is missing from the output, or the process has a single timestep, whose
                posterior has no variance to learn.
        """
        prediction, rest = output[:, : x.shape[1]].to(x.dtype), output[:, x.shape[1] :].to(x.dtype)
        x0, _ = self.denoise(x, prediction, t)
        if clip_sample:
            x0 = x0.clamp(-1, 1)
        mean, smallest = self.posterior(x0, x, t)
        return ReverseStep(mean, self._log_variance(x, rest, smallest, t), x0)

    def _log_variance(self, x: Tensor, learned: Tensor, smallest: Tensor, t: Tensor) -> Tensor:
        variance = self.recipe.variance
        if variance == "fixed_small":
            return smallest.expand_as(x)
        if variance == "fixed_large":
            large = torch.cat([self._second, self.betas[1:]]).log()
            return self._at(large, t, x).expand_as(x)
        if learned.shape != x.shape:
            raise ValueError(
                f"the recipe's variance is learned, and the model returned {learned.shape[1]} channels for it where x "
                f"has {x.shape[1]}: build the model with learn_sigma=True, or use variance='fixed_large', loss='mse'."
            )
        if self.num_timesteps == 1:
            raise ValueError("a learned variance needs 2 timesteps or more; sample with more steps, or with 'ddim'.")
        share = (learned + 1) / 2
        return share * self._at(self.betas.log(), t, x) + (1 - share) * smallest

    def _at(self, table: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """Entries of a float64 table at t (B,) as factors of x."""
        return as_factor(table[t.cpu()], t, x)

    def integer_times(self, num_steps: int) -> list[float]:
        """The whole timesteps of DDPM's and DDIM's samplers, spread by `space_timesteps`, noise first, data last; a
        single step starts at the last timestep.

        Raises:
            ValueError: for a step count below 1 or above T.
            TypeError: for one that is no integer.
        """
        check_steps(num_steps, self.num_timesteps)
        kept = space_timesteps(self.num_timesteps, num_steps) if num_steps > 1 else [self.num_timesteps - 1]
        return [*map(float, reversed(kept)), self.data]


def _checked_timesteps(timesteps: Sequence[int] | Tensor, total: int) -> list[int]:
    kept = timesteps.tolist() if isinstance(timesteps, Tensor) else list(timesteps)
    if not kept:
        raise ValueError(f"a process needs one timestep or more, got none; give some of 0 to {total - 1}.")
    if wrong := [t for t in kept if not (isinstance(t, Integral) and 0 <= int(t) < total)]:
        raise ValueError(f"timesteps must be whole numbers from 0 to {total - 1}, got {shortened(wrong)}.")
    if falling := [f"{after} after {before}" for before, after in itertools.pairwise(kept) if after <= before]:
        raise ValueError(f"timesteps must rise, got {shortened(falling)}; sort them, and give each once.")
    return [int(t) for t in kept]
