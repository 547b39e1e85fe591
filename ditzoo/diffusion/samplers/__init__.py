"""Samplers: from noise to images with any model that a recipe describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import get_type_hints

from torch import Tensor

from ditzoo.diffusion.process import make_process
from ditzoo.diffusion.samplers.adaptive import dopri5_sample
from ditzoo.diffusion.samplers.diffusion import ddim_sample, ddpm_sample
from ditzoo.diffusion.samplers.exponential import (
    dpm_3s_sample,
    dpmpp_2m_sample,
    dpmpp_3m_sample,
    dpmpp_3s_sample,
    unipc_sample,
)
from ditzoo.diffusion.samplers.frame import Callback, NoiseOfStep, NonFiniteSampleError, SamplingStep
from ditzoo.diffusion.samplers.ode import edm_heun_sample, euler_sample, heun_sample
from ditzoo.diffusion.samplers.options import check_option
from ditzoo.diffusion.samplers.sde import euler_maruyama_sample, heun_maruyama_sample
from ditzoo.diffusion.samplers.times import sampler_times
from ditzoo.recipe import Recipe, Sampler

__all__ = [
    "SAMPLERS",
    "Callback",
    "NoiseOfStep",
    "NonFiniteSampleError",
    "SamplerInfo",
    "SamplingStep",
    "count_evaluations",
    "ddim_sample",
    "ddpm_sample",
    "dopri5_sample",
    "dpm_3s_sample",
    "dpmpp_2m_sample",
    "dpmpp_3m_sample",
    "dpmpp_3s_sample",
    "edm_heun_sample",
    "euler_maruyama_sample",
    "euler_sample",
    "get_sampler",
    "heun_maruyama_sample",
    "heun_sample",
    "sampler_times",
    "unipc_sample",
]


@dataclass(frozen=True)
class SamplerInfo:
    """What is known about a sampler.

    Attributes:
        function: called as `ddim_sample` is.
        order: of convergence, deterministic samplers only: the error falls with this power of the step.
        evaluations: calls of the model a step, of a last step perhaps fewer; None where they adapt to the model.
        title: in words.
        source: paper, and where in it.
    """

    function: Callable[..., Tensor]
    order: int | None
    evaluations: int | None
    title: str
    source: str

    @property
    def options(self) -> list[str]:
        """Keyword arguments that a recipe's `sampler_options` may set."""
        ours = ("num_inference_steps", "step_noise", "callback", "times")
        parameters = inspect.signature(self.function).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ours]

    @property
    def takes_noise(self) -> bool:
        """Whether the sampler may add noise, and takes `step_noise`."""
        return "step_noise" in inspect.signature(self.function).parameters


#: all samplers by the name that a recipe gives them
SAMPLERS: dict[Sampler, SamplerInfo] = {
    "ddpm": SamplerInfo(ddpm_sample, None, 1, "DDPM's ancestral sampling", "arXiv:2006.11239, algorithm 2"),
    "ddim": SamplerInfo(ddim_sample, 1, 1, "DDIM", "arXiv:2010.02502, eq. 12"),
    "dpmpp_2m": SamplerInfo(dpmpp_2m_sample, 2, 1, "DPM-Solver++(2M), multistep", "arXiv:2211.01095, algorithm 2"),
    "dpmpp_3m": SamplerInfo(dpmpp_3m_sample, 3, 1, "the same with a third prediction", "after arXiv:2211.01095"),
    "dpmpp_3s": SamplerInfo(dpmpp_3s_sample, 3, 1, "DPM-Solver++, singlestep", "arXiv:2211.01095, U-ViT's code"),
    "dpm_3s": SamplerInfo(dpm_3s_sample, 3, 1, "DPM-Solver-fast, singlestep", "arXiv:2206.00927, section 3.4"),
    "unipc": SamplerInfo(unipc_sample, 2, 1, "UniPC, multistep", "arXiv:2302.04867"),
    "edm_heun": SamplerInfo(edm_heun_sample, 2, 2, "Heun in the noise level", "arXiv:2206.00364, algorithm 2"),
    "euler": SamplerInfo(euler_sample, 1, 1, "Euler along the flow", "arXiv:2401.08740"),
    "heun": SamplerInfo(heun_sample, 2, 2, "Heun along the flow", "arXiv:2401.08740"),
    "dopri5": SamplerInfo(dopri5_sample, 5, None, "Dormand and Prince, adaptive", "torchdiffeq; SiT's default"),
    "euler_maruyama": SamplerInfo(
        euler_maruyama_sample, None, 1, "Euler-Maruyama on the reverse SDE", "arXiv:2401.08740; arXiv:2011.13456"
    ),
    "heun_maruyama": SamplerInfo(
        heun_maruyama_sample, None, 2, "a step's noise, then Heun on the drift", "arXiv:2401.08740"
    ),
}


def count_evaluations(recipe: Recipe) -> int | None:
    """How often a recipe's sampler calls the model for a sample, guidance not counted; None where that depends on the
    model."""
    info, process = SAMPLERS[recipe.sampler], make_process(recipe)
    if info.evaluations is None:
        return None
    last = process.times(recipe.num_inference_steps)[-1]
    shorter = {  # last steps of one evaluation, where the others have two
        "edm_heun": process.level(last)[1] == 0,
        "heun": last == process.data != process.end,
        "heun_maruyama": recipe.sampler_options.get("last_step", "mean") is not None,
    }
    return info.evaluations * recipe.num_inference_steps - shorter.get(recipe.sampler, False)


def get_sampler(recipe: Recipe) -> Callable[..., Tensor]:
    """The sampler that a recipe names with the recipe's `sampler_options`, called as `ddim_sample` is.

    Raises:
        TypeError: for an option that the sampler does not have, naming the nearest, or a value of the wrong type.
        ValueError: for a value that is no choice of its option, or a number that is not finite or out of range.
    """
    info = SAMPLERS[recipe.sampler]
    parameters, annotations = inspect.signature(info.function).parameters, get_type_hints(info.function)
    for option, value in recipe.sampler_options.items():
        if option not in info.options:
            near = get_close_matches(option, info.options, n=3, cutoff=0.6)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise TypeError(
                f"sampler {recipe.sampler!r} has no option {option!r:.60}.{hint} Its options: "
                f"{', '.join(info.options)}."
            )
        check_option(recipe.sampler, option, value, annotations[option], parameters[option].default)
    return partial(info.function, **recipe.sampler_options) if recipe.sampler_options else info.function
