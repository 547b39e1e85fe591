"""The mathematics of diffusion, over any callable model."""

from ditzoo.diffusion.draws import TrainingDraws, draw_training, sample_noise
from ditzoo.diffusion.guidance import guide
from ditzoo.diffusion.losses import denoising_loss, training_loss
from ditzoo.diffusion.process import GaussianDiffusion, make_betas
from ditzoo.diffusion.samplers import SAMPLERS, ddim_sample

__all__ = [
    "SAMPLERS",
    "GaussianDiffusion",
    "TrainingDraws",
    "ddim_sample",
    "denoising_loss",
    "draw_training",
    "guide",
    "make_betas",
    "sample_noise",
    "training_loss",
]
