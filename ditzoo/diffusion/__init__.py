"""The mathematics of diffusion, over any callable model."""

from ditzoo.diffusion.draws import TrainingDraws, draw_training, sample_noise
from ditzoo.diffusion.guidance import guide
from ditzoo.diffusion.losses import denoising_loss, training_loss
from ditzoo.diffusion.process import FlowMatching, GaussianDiffusion, make_betas, make_process
from ditzoo.diffusion.samplers import SAMPLERS, ddim_sample, euler_sample, get_sampler, heun_sample

__all__ = [
    "SAMPLERS",
    "FlowMatching",
    "GaussianDiffusion",
    "TrainingDraws",
    "ddim_sample",
    "denoising_loss",
    "draw_training",
    "euler_sample",
    "get_sampler",
    "guide",
    "heun_sample",
    "make_betas",
    "make_process",
    "sample_noise",
    "training_loss",
]
