"""Frechet distance between two sets of features, each seen as a Gaussian.

Its value depends on the feature extractor, the number of samples and the reference, so
`FrechetDistance` carries all three. It is called FID-50K only where all three are those of that
metric, which is for the caller that extracts the features to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of a set of features, in float64."""

    mean: Array
    """(D,)"""
    covariance: Array
    """(D, D), unbiased: divided by `num_samples - 1`."""
    num_samples: int
    extractor: str
    """What computed the features, in words; only features of the same extractor may be compared."""

    def __post_init__(self) -> None:
        mean, covariance = (np.asarray(v, dtype=np.float64) for v in (self.mean, self.covariance))
        if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
            raise ValueError(
                f"a mean of shape (D,) and a covariance of shape (D, D) are needed, "
                f"not {mean.shape} and {covariance.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("the mean or covariance holds NaN or infinite values")
        if self.num_samples < 2:
            raise ValueError(f"a covariance needs 2 samples or more, not {self.num_samples!r}")
        if not self.extractor:
            raise ValueError(f"extractor must say what computed the features, not {self.extractor!r}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def from_features(cls, features: npt.NDArray[np.floating] | torch.Tensor, *, extractor: str) -> FeatureStatistics:
        """Statistics of `features` (N, D), promoted to float64 before anything is summed.

        Raises:
            ValueError: not two-dimensional, fewer than 2 samples, or NaN or infinite values.
        """
        if isinstance(features, torch.Tensor):
            features = features.detach().to("cpu", torch.float64).numpy()
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
            raise ValueError(f"features must have shape (N, D) with N of 2 or more, not {values.shape}")
        broken = int((~np.isfinite(values)).any(axis=1).sum())
        if broken:
            raise ValueError(f"features of {broken} of {len(values)} samples hold NaN or infinite values")
        covariance = np.atleast_2d(np.cov(values, rowvar=False))
        return cls(values.mean(axis=0), covariance, len(values), extractor)

    @property
    def dimension(self) -> int:
        """D, the number of features of a sample."""
        return self.mean.size

    @property
    def rank_deficient(self) -> bool:
        """Whether so few samples leave directions of the feature space without any variance."""
        return self.num_samples <= self.dimension


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, *, allow_rank_deficient: bool = False) -> float:
    """`|m_a - m_b|^2 + trace(S_a + S_b - 2 sqrt(S_a S_b))`, eq. 6 of arXiv:1706.08500, 0 or more.

    Raises:
        ValueError: the extractors or dimensions differ; or the samples of either side are not more than
            the dimension, so that its covariance is rank deficient and the result depends strongly on
            their number, and `allow_rank_deficient` is not set.
    """
    if a.extractor != b.extractor:
        raise ValueError(f"features of different extractors cannot be compared: {a.extractor!r} and {b.extractor!r}")
    if a.dimension != b.dimension:
        raise ValueError(f"features of different dimensions cannot be compared: {a.dimension}, {b.dimension}")
    for side in (a, b):
        if side.rank_deficient and not allow_rank_deficient:
            raise ValueError(
                f"{side.num_samples} samples give a rank-deficient covariance of {side.dimension} features: "
                f"use more than {side.dimension} samples, or set allow_rank_deficient=True and compare the "
                "result only with others of the same sample counts"
            )
    # The eigenvalues of a product of two covariances are real and not negative; round-off leaves some just
    # below 0 or just off the axis, where only the complex root is defined. Its real part is theirs.
    eigenvalues = np.linalg.eigvals(a.covariance @ b.covariance).astype(np.complex128)
    overlap = np.sqrt(eigenvalues).real.sum()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(distance))


@dataclass(frozen=True)
class FrechetDistance:
    """A Frechet distance with all that its value depends on."""

    value: float
    extractor: str
    num_samples: int
    reference: str
    """What the samples were compared with, in words that read after a number: "held-out digits"."""
    reference_samples: int
    rank_deficient: bool = False
    """Whether there were too few samples on either side for a covariance of full rank."""

    @classmethod
    def between(
        cls,
        samples: FeatureStatistics,
        reference: FeatureStatistics,
        *,
        name: str,
        allow_rank_deficient: bool = False,
    ) -> FrechetDistance:
        """`frechet_distance` of `samples` from `reference`, which is called `name`."""
        return cls(
            frechet_distance(samples, reference, allow_rank_deficient=allow_rank_deficient),
            samples.extractor,
            samples.num_samples,
            name,
            reference.num_samples,
            samples.rank_deficient or reference.rank_deficient,
        )

    @property
    def label(self) -> str:
        """The full name, such as "Frechet distance (digits classifier, 1000 samples, against 500 held-out
        digits)"."""
        note = ", rank-deficient covariance" if self.rank_deficient else ""
        against = f"against {self.reference_samples} {self.reference}"
        return f"Frechet distance ({self.extractor}, {self.num_samples} samples, {against}{note})"

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.label}: {self.value:.4g}"
