"""A Gaussian mixture, for which the best denoiser, and so everything that samplers should give, is known.

Letters in shape comments: B batch, K components. Points have two coordinates, in the place of channels: (B, 2, 1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import get_args

import torch
from torch import Tensor

from ditzoo.diffusion import EDM, Process, make_process
from ditzoo.recipe import Prediction, Recipe, Schedule

#: weights, means and covariances of the components; the second and third are correlated
WEIGHTS = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
MEANS = torch.tensor([[-1.2, 0.4], [0.2, -1.1], [1.0, 0.6]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.09, 0.0], [0.0, 0.04]], [[0.10, 0.06], [0.06, 0.08]], [[0.05, -0.03], [-0.03, 0.12]]], dtype=torch.float64
)
VARIANCES, AXES = torch.linalg.eigh(COVARIANCES)  # of the components along their own axes

#: schedules and what networks may predict under them
KINDS: list[tuple[Schedule, Prediction]] = [
    *((schedule, prediction) for schedule in ("linear", "scaled_linear", "cosine", "continuous_vp")
      for prediction in ("epsilon", "v_prediction", "sample")),
    *((schedule, prediction) for schedule in ("flow_linear", "flow_gvp", "flow_vp")
      for prediction in ("velocity", "epsilon", "score")),
    ("edm", "edm"),
]  # fmt: skip


def recipe_of(schedule: Schedule, prediction: Prediction) -> Recipe:
    """With units of time that no test should get past: U-ViT's two and DiT's."""
    scales = {"scaled_linear": (1.0, 1.0), "continuous_vp": (999.0, 0.0)}
    scale, offset = scales.get(schedule, (1.0, 0.0))
    return Recipe(prediction=prediction, schedule=schedule, time_scale=scale, time_offset=offset)


def process_of(schedule: Schedule, prediction: Prediction) -> Process:
    return make_process(recipe_of(schedule, prediction))


def every_kind() -> Iterator[tuple[Schedule, Prediction]]:
    """All that recipes accept."""
    for schedule in get_args(Schedule):
        for prediction in get_args(Prediction):
            try:
                Recipe(prediction=prediction, schedule=schedule)
            except ValueError:
                continue
            yield schedule, prediction


def mean() -> Tensor:
    """(2,)"""
    return WEIGHTS @ MEANS


def covariance() -> Tensor:
    """(2, 2)"""
    apart = MEANS - mean()
    return torch.einsum("k,kij->ij", WEIGHTS, COVARIANCES + apart[:, :, None] * apart[:, None, :])


def covariance_errors(count: int) -> Tensor:
    """Standard deviations of the entries of a covariance measured on `count` exact samples, (2, 2): from the fourth
    moments of Gaussians with mean d and covariance C, E[yi^2 yj^2] = (di^2 + Cii)(dj^2 + Cjj) + 4 di dj Cij + 2 Cij^2.
    """
    d, diagonal = MEANS - mean(), torch.diagonal(COVARIANCES, dim1=1, dim2=2)
    second = d**2 + diagonal  # (K, 2)
    fourth = second[:, :, None] * second[:, None, :] + 4 * d[:, :, None] * d[:, None, :] * COVARIANCES
    fourth = torch.einsum("k,kij->ij", WEIGHTS, fourth + 2 * COVARIANCES**2)
    return ((fourth - covariance() ** 2) / count).sqrt()


def z_scores(points: Tensor) -> Tensor:
    """How far mean (2) and covariance (3) of points (B, 2, 1, 1) lie from the mixture's, in their standard errors."""
    points = points.flatten(1)
    count = len(points)
    of_mean = (points.mean(dim=0) - mean()) / (covariance().diagonal() / count).sqrt()
    measured = (points - mean()).T @ (points - mean()) / count
    of_covariance = (measured - covariance()) / covariance_errors(count)
    return torch.cat([of_mean, of_covariance[[0, 0, 1], [0, 1, 1]]])


def exact(count: int, seed: int = 0) -> Tensor:
    """Points of the mixture, (B, 2, 1, 1) float64."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    normal = torch.randn(count, 2, dtype=torch.float64, generator=generator) * VARIANCES[chosen].sqrt()
    return (MEANS[chosen] + torch.einsum("bij,bj->bi", AXES[chosen], normal)).view(count, 2, 1, 1)


def gaussian(count: int, seed: int = 1) -> Tensor:
    """Standard normal points, (B, 2, 1, 1) float64."""
    return torch.randn(count, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def denoiser(process: Process) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What a perfectly trained network of this process returns, in float64. Batches share one time."""

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        time = process.process_time(float(t[0]))
        alpha, sigma = process.level(time)
        if isinstance(process, EDM):
            x = x * math.sqrt(sigma**2 + 0.25)
        x0, noise = expectations(x.flatten(1), alpha, sigma)
        return _prediction(process, x.flatten(1), x0, noise, time).view_as(x)

    return network


def expectations(x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """E[x0 | x] and E[noise | x] for x = alpha x0 + sigma noise, (B, 2) each."""
    variances = alpha**2 * VARIANCES + sigma**2  # (K, 2), of x along the axes
    apart = torch.einsum("kij,bki->bkj", AXES, x[:, None] - alpha * MEANS)  # (B, K, 2)
    logits = WEIGHTS.log() - 0.5 * (apart**2 / variances + variances.log()).sum(dim=2)
    shares = torch.softmax(logits, dim=1)  # (B, K), of the components
    scaled = apart / variances
    x0 = MEANS + torch.einsum("kij,bkj->bki", AXES, alpha * VARIANCES * scaled)
    noise = torch.einsum("kij,bkj->bki", AXES, sigma * scaled)
    return tuple(torch.einsum("bk,bki->bi", shares, value) for value in (x0, noise))  # type: ignore[return-value]


def _prediction(process: Process, x: Tensor, x0: Tensor, noise: Tensor, time: float) -> Tensor:
    alpha, sigma = process.level(time)
    if process.prediction == "velocity":
        d_alpha, d_sigma = process.derivatives(time)
        return d_alpha * x0 + d_sigma * noise
    if process.prediction == "edm":  # table 1 of arXiv:2206.00364
        total = sigma**2 + 0.25
        return (x0 - 0.25 / total * x) / (0.5 * sigma / math.sqrt(total))
    return {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": alpha * noise - sigma * x0,
        "score": -noise / max(sigma, 1e-300),
    }[process.prediction]
