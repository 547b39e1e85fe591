"""Training: one loop for every family."""

from ditzoo.train.loop import TrainOptions, TrainResult, train

__all__ = ["TrainOptions", "TrainResult", "train"]
