"""Flops, speed, memory and Frechet distance: pure functions over models, callables and features."""

from ditzoo.metrics.flops import MacCount, count_macs
from ditzoo.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from ditzoo.metrics.memory import parameter_bytes, peak_memory
from ditzoo.metrics.speed import Roof, Timing, matmul_roof, square_product, time_interleaved

__all__ = [
    "FeatureStatistics",
    "FrechetDistance",
    "MacCount",
    "Roof",
    "Timing",
    "count_macs",
    "frechet_distance",
    "matmul_roof",
    "parameter_bytes",
    "peak_memory",
    "square_product",
    "time_interleaved",
]
