"""At which times a recipe's sampler stands."""

from __future__ import annotations

from ditzoo.diffusion.process import GaussianDiffusion, make_process
from ditzoo.diffusion.samplers.exponential import fast_times
from ditzoo.diffusion.samplers.ode import edm_times
from ditzoo.diffusion.samplers.sde import sde_times
from ditzoo.recipe import Recipe


def sampler_times(recipe: Recipe) -> list[float]:
    """The times of the process between which the recipe's sampler steps, noise first: num_inference_steps + 1 of them.

    Given to the sampler as `times`, they change nothing; a part of them, such as `times[5:]`, walks a part of the way.

    Args:
        recipe: schedule, sampler with its options, and number of steps.

    Raises:
        ValueError: for options of the sampler that leave no grid.
    """
    process, steps, options = make_process(recipe), recipe.num_inference_steps, recipe.sampler_options
    spacing = options.get("spacing")
    if recipe.sampler in ("ddpm", "ddim") and isinstance(process, GaussianDiffusion) and spacing is None:
        return process.integer_times(steps)
    if recipe.sampler in ("euler_maruyama", "heun_maruyama"):
        return sde_times(process, steps, options.get("last_step", "mean"), options.get("last_step_size", 0.04))
    if recipe.sampler == "edm_heun":
        return edm_times(process, steps, spacing=spacing)
    if recipe.sampler == "dpm_3s" and spacing is None:
        return fast_times(process, steps, options.get("final_step", False))
    short = recipe.sampler in ("dpmpp_3s", "dpm_3s", "dopri5")
    return process.times(steps, spacing, final_step=options.get("final_step", False) if short else None)
