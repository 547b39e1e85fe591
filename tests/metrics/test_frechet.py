"""Frechet distances against closed forms, scipy's matrix square root, and the cases that are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from ditzoo.metrics import FeatureStatistics, FrechetDistance, frechet_distance

D = 5


def statistics(mean, covariance, count: int = 1000, extractor: str = "pixels") -> FeatureStatistics:
    return FeatureStatistics(np.asarray(mean), np.asarray(covariance), count, extractor)


def random_features(seed: int, count: int = 40, dimension: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimension, dimension))
    return rng.normal(size=(count, dimension)) @ mixing + rng.normal(size=dimension)


def rotation(seed: int, dimension: int = D) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))[0]


def test_one_dimension():
    a, b = statistics([1.0], [[4.0]]), statistics([3.0], [[9.0]])
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


def test_diagonal_covariances():
    rng = np.random.default_rng(0)
    m1, m2 = rng.normal(size=(2, D))
    v1, v2 = rng.uniform(0.1, 4, size=(2, D))
    expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(v1) - np.sqrt(v2)) ** 2).sum()
    assert frechet_distance(statistics(m1, np.diag(v1)), statistics(m2, np.diag(v2))) == pytest.approx(expected)


def test_commuting_covariances():
    rng = np.random.default_rng(1)
    q = rotation(1)
    v1, v2 = rng.uniform(0.1, 4, size=(2, D))
    a, b = (statistics(np.zeros(D), q @ np.diag(v) @ q.T) for v in (v1, v2))
    assert frechet_distance(a, b) == pytest.approx(((np.sqrt(v1) - np.sqrt(v2)) ** 2).sum())


def test_scipy_square_root():
    a, b = (FeatureStatistics.from_features(random_features(seed), extractor="pixels") for seed in (2, 3))
    root = sqrtm(a.covariance @ b.covariance).real
    shift = a.mean - b.mean
    expected = shift @ shift + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 8), st.floats(0.01, 100))
def test_symmetric_and_zero_at_equality(seed_a, seed_b, dimension, scale):
    a, b = (
        FeatureStatistics.from_features(scale * random_features(seed, 40, dimension), extractor="pixels")
        for seed in (seed_a, seed_b)
    )
    size = np.trace(a.covariance) + np.trace(b.covariance)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6, abs=1e-6 * size)
    assert 0 <= frechet_distance(a, a) <= 1e-6 * size
    assert frechet_distance(a, b) >= 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_invariant_under_rotation_and_quadratic_in_scale(seed):
    one, two, turn = random_features(seed), random_features(seed + 1), 3 * rotation(seed)
    a, b, ra, rb = (
        FeatureStatistics.from_features(features, extractor="pixels") for features in (one, two, one @ turn, two @ turn)
    )
    assert frechet_distance(ra, rb) == pytest.approx(9 * frechet_distance(a, b), rel=1e-6)


def test_statistics_are_unbiased_and_float64():
    features = random_features(4)
    stats = FeatureStatistics.from_features(features, extractor="pixels")
    centred = features - features.mean(0)
    np.testing.assert_allclose(stats.mean, features.mean(0))
    np.testing.assert_allclose(stats.covariance, centred.T @ centred / (len(features) - 1))
    assert (stats.num_samples, stats.dimension, stats.extractor) == (40, D, "pixels")
    assert stats.mean.dtype == stats.covariance.dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_features_are_promoted_before_the_sums(dtype):
    # In float16 the sum of 5000 values near 100 overflows, in float32 a variance of 1e-4 beside it drowns.
    features = (100 + 0.5 * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))).to(dtype)
    stats = FeatureStatistics.from_features(features.requires_grad_(), extractor="pixels")
    exact = features.detach().double().numpy()
    np.testing.assert_allclose(stats.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.covariance, np.cov(exact, rowvar=False), rtol=1e-12)


def test_rank_deficiency_is_refused_unless_asked_for():
    many = FeatureStatistics.from_features(random_features(5, 30, 20), extractor="pixels")
    few = FeatureStatistics.from_features(random_features(6, 20, 20), extractor="pixels")
    for a, b in ((many, few), (few, many)):
        with pytest.raises(ValueError, match=r"20 samples .* 20 features.*allow_rank_deficient=True"):
            frechet_distance(a, b)
    root = np.real(sqrtm(few.covariance) @ many.covariance @ sqrtm(few.covariance))
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh((root + root.T) / 2), 0, None)).sum()
    shift = many.mean - few.mean
    expected = shift @ shift + np.trace(many.covariance) + np.trace(few.covariance) - 2 * overlap
    assert frechet_distance(many, few, allow_rank_deficient=True) == pytest.approx(expected, rel=1e-6)
    result = FrechetDistance.between(few, many, name="rows", allow_rank_deficient=True)
    assert result.label == "Frechet distance (pixels, 20 samples, against 30 rows, rank-deficient covariance)"


def test_directions_without_any_variance():
    a, b = np.diag([4.0, 0.0, 0.0]), np.diag([1.0, 9.0, 0.0])
    zero = np.zeros(3)
    assert frechet_distance(statistics(zero, a), statistics(zero, b)) == pytest.approx((2 - 1) ** 2 + 9)
    assert frechet_distance(statistics(zero, a), statistics(zero, a)) == pytest.approx(0)


def test_incomparable_statistics_are_refused():
    ours = statistics([0.0], [[1.0]])
    with pytest.raises(ValueError, match="'pixels' and 'digits classifier'"):
        frechet_distance(ours, statistics([0.0], [[1.0]], extractor="digits classifier"))
    with pytest.raises(ValueError, match="1, 2"):
        frechet_distance(ours, statistics([0.0, 0.0], np.eye(2)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(4), r"not \(4,\)"),
        (np.zeros((1, 4)), r"not \(1, 4\)"),
        (np.zeros((4, 0)), r"not \(4, 0\)"),
        (np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, np.inf]]), "features of 2 of 3 samples hold NaN"),
    ],
)
def test_bad_features_are_refused(features, message):
    for values in (features, torch.from_numpy(features)):
        with pytest.raises(ValueError, match=message):
            FeatureStatistics.from_features(values, extractor="pixels")


def test_bad_statistics_are_refused():
    for mean, covariance in (([0.0], np.eye(2)), ([[0.0]], np.eye(1)), ([], np.zeros((0, 0)))):
        with pytest.raises(ValueError, match=r"shape \(D,\)"):
            statistics(mean, covariance)
    with pytest.raises(ValueError, match="NaN or infinite"):
        statistics([0.0], [[np.inf]])
    with pytest.raises(ValueError, match="2 samples or more, not 1"):
        statistics([0.0], [[1.0]], count=1)
    with pytest.raises(ValueError, match="extractor must say"):
        statistics([0.0], [[1.0]], extractor="")


def test_result_says_what_it_is():
    samples = statistics([1.0], [[1.0]], 1000, "digits classifier")
    reference = statistics([0.0], [[1.0]], 500, "digits classifier")
    result = FrechetDistance.between(samples, reference, name="held-out digits")
    assert result.label == "Frechet distance (digits classifier, 1000 samples, against 500 held-out digits)"
    assert float(result) == result.value == 1.0
    assert str(result) == f"{result.label}: 1"
    assert "FID" not in result.label
