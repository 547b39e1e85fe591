"""Every random number of training and sampling, drawn per sample from (seed, sample index).

Sample i of a seed is the same whatever the batch size, the order or the number of processes; a resumed run draws
what an uninterrupted one would have drawn. Always on the CPU, whose generator is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# One stream for each use, so that the noise of a sample and the draws of its training never coincide.
_SAMPLING, _TRAINING, _STEP, _EPOCH, _SAMPLING_STEP, _LABEL, _DATA = range(7)


class TrainingDraws(NamedTuple):
    """The random numbers of one pass over a batch.

    Attributes:
        t: (B,) times, int64 and uniform over 0 .. T - 1, or float32 and uniform over [0, 1).
        label_uniform: (B,) float32; labels whose number is below the dropout probability are dropped.
        noise: (B, C, H, W) float32, standard normal.
        token_noise: (B, N) float32 uniform, whose order decides which tokens are masked.
    """

    t: Tensor
    label_uniform: Tensor
    noise: Tensor
    token_noise: Tensor


def sample_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal start of samples `indices`, (len(indices), *shape) float32."""
    return torch.stack([torch.randn(*shape, generator=_generator(_SAMPLING, seed, i)) for i in indices])


def sample_labels(seed: int, indices: Sequence[int], num_classes: int) -> Tensor:
    """Uniformly random classes of samples `indices`, (len(indices),) int64."""
    return torch.tensor(
        [int(torch.randint(num_classes, (), generator=_generator(_LABEL, seed, index))) for index in indices],
        dtype=torch.int64,
    )


class StepNoise:
    """Noise that stochastic samplers add: a function of the step, each sample's its own.

    Args:
        seed: of the samples, as in `sample_noise`.
        indices: numbers of the samples in the batch.
        shape: (C, H, W).
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int]) -> None:
        self.seed, self.indices, self.shape = seed, list(indices), tuple(shape)

    def __call__(self, step: int) -> Tensor:
        """Standard normal, (len(indices), *shape) float32 on the CPU."""
        generators = (_generator(_SAMPLING_STEP, self.seed, index, step) for index in self.indices)
        return torch.stack([torch.randn(*self.shape, generator=generator) for generator in generators])


def draw_training(
    seed: int,
    indices: Sequence[int],
    shape: Sequence[int],
    *,
    num_timesteps: int | None,
    num_tokens: int = 0,
    num_passes: int = 1,
) -> list[TrainingDraws]:
    """Draws for `num_passes` passes over one batch; all passes share t and have their own noise.

    Args:
        seed: of the run.
        indices: (B) running numbers of the samples since training began.
        shape: (C, H, W).
        num_timesteps: T; None draws real times, as flows need.
        num_tokens: N, for token masks; 0 where nothing is masked.
        num_passes: MDT's training makes two.
    """
    times, passes = [], [([], [], []) for _ in range(num_passes)]  # type: ignore[var-annotated]
    for index in indices:
        generator = _generator(_TRAINING, seed, index)
        if num_timesteps is None:
            times.append(torch.rand((), generator=generator))
        else:
            times.append(torch.randint(num_timesteps, (), generator=generator))
        for noises, label_uniforms, token_noises in passes:
            noises.append(torch.randn(*shape, generator=generator))
            label_uniforms.append(torch.rand((), generator=generator))
            token_noises.append(torch.rand(num_tokens, generator=generator))
    t = torch.stack(times)
    return [
        TrainingDraws(t, torch.stack(label_uniforms), torch.stack(noises), torch.stack(token_noises))
        for noises, label_uniforms, token_noises in passes
    ]


def step_uniform(seed: int, step: int) -> Tensor:
    """One float32 number in [0, 1) that all processes of a step share, (1,)."""
    return torch.rand(1, generator=_generator(_STEP, seed, step))


def epoch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """A shuffle of the data set for one epoch, (num_images,) int64."""
    return torch.randperm(num_images, generator=_generator(_EPOCH, seed, epoch))


def data_generator(seed: int, number: int) -> torch.Generator:
    """What a data set draws for the sample of a running number: flips, crops, a latent's noise."""
    return _generator(_DATA, seed, number)


def _generator(stream: int, seed: int, *place: int) -> torch.Generator:
    state = np.random.SeedSequence((stream, seed, *place)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
