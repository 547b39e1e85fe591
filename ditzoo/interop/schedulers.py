"""Recipes and the schedulers of diffusers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ditzoo.interop.package import import_diffusers
from ditzoo.recipe import Guidance, Recipe, Sampler, Schedule, Variance
from ditzoo.weights.checks import message

#: What diffusers' schedulers do by default and ditzoo's samplers, too; other values have no exact equal.
_SHARED: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"thresholding": False, "clip_sample_range": 1.0},
    # ours derives the noise anew from a clipped x0, diffusers keeps what the network has predicted
    "DDIMScheduler": {"thresholding": False, "clip_sample": False, "set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": {
        "thresholding": False,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "use_beta_sigmas": False,
    },
    "UniPCMultistepScheduler": {
        "thresholding": False,
        "predict_x0": True,
        "solver_type": "bh2",
        "disable_corrector": [],
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "use_beta_sigmas": False,
    },
}
_DPM_SOLVERS: dict[int, Sampler] = {1: "ddim", 2: "dpmpp_2m", 3: "dpmpp_3m"}
_HIGHEST_ORDER = 3
#: Grids of noise levels; exponential ones and Lu's are even in the logarithm, both.
_SPACINGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "log_snr", "use_lu_lambdas": "log_snr"}
#: "fixed_large_log" gives NaN in diffusers, and "learned" is a variance that no recipe has.
_FIXED_VARIANCES: dict[str, Variance] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
}
#: What diffusers' schedulers assume for an entry that their configuration leaves out.
_DEFAULTS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
_DEFAULTS_OF_CLASS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"clip_sample": True, "variance_type": "fixed_small"},
    "DDIMScheduler": {"clip_sample": True},
}
#: `DiTPipeline`'s own, where its caller gives none.
_PIPELINE_GUIDANCE, _PIPELINE_STEPS = Guidance(scale=4.0), 50


def make_scheduler(recipe: Recipe) -> Any:
    """The plainest scheduler of diffusers that belongs to a recipe's noise levels and predictions.

    Another one of the same noise levels: `DPMSolverMultistepScheduler.from_config(make_scheduler(recipe).config)`.

    Args:
        recipe: of a discrete schedule, of `"continuous_vp"`, or of `"flow_linear"` that predicts the velocity.

    Returns:
        A `DDIMScheduler` that does not clip, or a `FlowMatchEulerDiscreteScheduler` for the flow. `"continuous_vp"`
        gets the `"linear"` betas, whose noise levels `DiffusersTransformer` translates into times.

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        ValueError: for another recipe.
    """
    diffusers = import_diffusers("make_scheduler")
    check_drivable(recipe)
    steps = recipe.num_train_timesteps
    if recipe.is_flow:
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    schedule = recipe.schedule if recipe.is_discrete else "linear"
    return diffusers.DDIMScheduler(
        num_train_timesteps=steps,
        prediction_type=recipe.prediction,
        clip_sample=False,
        **_beta_options(schedule, steps),
    )


def check_drivable(recipe: Recipe) -> None:
    """Raise a ValueError for a recipe whose network no scheduler of diffusers can drive."""
    straight_flow = recipe.schedule == "flow_linear" and recipe.prediction == "velocity"
    if not (recipe.is_discrete or recipe.schedule == "continuous_vp" or straight_flow):
        raise ValueError(
            f"no scheduler of diffusers drives a network of schedule {recipe.schedule!r} and prediction "
            f"{recipe.prediction!r}. What works: linear, scaled_linear, cosine and continuous_vp with any prediction, "
            "and flow_linear with velocity. ditzoo.diffusion samples the others."
        )


def recipe_of_pipeline(
    scheduler: Mapping[str, Any], *, learned_variance: bool, vae: Mapping[str, Any] | None, vae_name: str, source: str
) -> Recipe:
    """How `DiTPipeline` samples a model, from configurations as diffusers stores them.

    Args:
        scheduler: of the scheduler.
        learned_variance: whether the network has one; the pipeline drops it.
        vae: of the autoencoder; None where there is none.
        vae_name: where that is.
        source: where all of it is.

    Returns:
        The scheduler's noise levels, prediction and, where ditzoo has it, algorithm (else DDIM) with its options, on
        ditzoo's own timesteps; the pipeline's guidance of 4.0 over all channels in 50 steps. `"dpmpp_3m"` stands for
        DPM-Solver++ of order 3, whose coefficients of third order differ a little.

    Raises:
        ValueError: for noise levels or a prediction that no recipe has, and for entries of wrong types.

    Warns:
        UserWarning: naming the algorithm or options that no sampler here has.
    """
    with _named_wrong_types():
        prediction = scheduler.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"the scheduler's prediction_type {prediction!r:.60} has no counterpart; epsilon, v_prediction or "
                "sample do."
            )
        schedule, algorithm = _schedule_of(scheduler), _algorithm_of(scheduler, learned_variance)
        if algorithm.without_equal:
            warnings.warn(
                f"sampler {algorithm.sampler!r} of the recipe is not exactly what the pipeline does with "
                f"{algorithm.without_equal}: images differ. Another sampler: dataclasses.replace(recipe, sampler=...).",
                UserWarning,
                stacklevel=3,
            )
        return Recipe(
            prediction=prediction,
            schedule=schedule,
            num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
            variance=algorithm.variance,
            loss="hybrid" if algorithm.variance == "learned_range" else "mse",
            guidance=_PIPELINE_GUIDANCE,
            sampler=algorithm.sampler,
            num_inference_steps=_PIPELINE_STEPS,
            sampler_options=algorithm.options,
            latent_codec=None if vae is None else vae_name,
            latent_scale=1.0 if vae is None else vae.get("scaling_factor", 0.18215),
            latent_shift=0.0 if vae is None else vae.get("shift_factor") or 0.0,
            source=source,
        )


@contextmanager
def _named_wrong_types() -> Iterator[None]:
    """Configurations may be strangers', and what they hold of any type."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            "the configuration of the scheduler or the autoencoder has an entry of a wrong type or size "
            f"({message(error)}); fetch or save it again."
        ) from error


class _Algorithm(NamedTuple):
    """How a scheduler goes from noise to data."""

    sampler: Sampler
    options: dict[str, Any]
    variance: Variance
    #: what of it no sampler of ditzoo does, for a message; empty where all is the same
    without_equal: str


def _algorithm_of(scheduler: Mapping[str, Any], learned_variance: bool) -> _Algorithm:
    kind = scheduler.get("_class_name", "")
    config = {**_DEFAULTS_OF_CLASS.get(kind, {}), **scheduler}
    sampler, options = _sampler_of(kind, config)
    variance: Variance = "learned_range" if learned_variance else "fixed_large"
    if kind and kind not in _SHARED:
        return _Algorithm(sampler, options, variance, kind)
    if not config.get("clip_sample"):
        config.pop("clip_sample_range", None)
    lost = [key for key, value in _SHARED.get(kind, {}).items() if config.get(key, value) != value]
    if config.get("solver_order", 2) > _HIGHEST_ORDER:
        lost.append("solver_order")
    if sampler == "ddpm" and config["variance_type"] in _FIXED_VARIANCES:
        variance = _FIXED_VARIANCES[config["variance_type"]]
    elif sampler == "ddpm" and config["variance_type"] != variance:
        lost.append("variance_type")
    entries = ", ".join(f"{key}={config[key]!r:.60}" for key in lost)
    return _Algorithm(sampler, options, variance, f"{kind}({entries})" if lost else "")


def _sampler_of(kind: str, config: Mapping[str, Any]) -> tuple[Sampler, dict[str, Any]]:
    """ditzoo's sampler for a class of scheduler, and that sampler's options."""
    if kind in ("DDPMScheduler", "DDIMScheduler"):
        return "ddpm" if kind == "DDPMScheduler" else "ddim", {"clip_sample": True} if config["clip_sample"] else {}
    if kind not in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        return "ddim", {}
    spacing = next((spacing for key, spacing in _SPACINGS.items() if config.get(key)), None)
    options: dict[str, Any] = {} if spacing is None else {"spacing": spacing}
    order = min(config.get("solver_order", 2), _HIGHEST_ORDER)
    if kind == "DPMSolverMultistepScheduler":
        return _DPM_SOLVERS[order], options
    return "unipc", options if order == 2 else {**options, "order": order}


def _beta_options(schedule: Schedule, steps: int) -> dict[str, Any]:
    """diffusers' arguments for a table of `ditzoo.diffusion.make_betas`."""
    if schedule == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2"}
    if schedule == "scaled_linear":
        return {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return {"beta_schedule": "linear", "beta_start": 1e-4 * 1000 / steps, "beta_end": 0.02 * 1000 / steps}


def _schedule_of(scheduler: Mapping[str, Any]) -> Schedule:
    """ditzoo's name of a scheduler's noise levels."""
    steps = scheduler.get("num_train_timesteps", 1000)
    plain = scheduler.get("trained_betas") is None and not scheduler.get("rescale_betas_zero_snr")
    flow = scheduler.get("_class_name", "").startswith("FlowMatch") or scheduler.get("use_flow_sigmas")
    names: tuple[Schedule, ...] = ("linear", "scaled_linear", "cosine")
    for schedule in names:
        wanted = _beta_options(schedule, steps)
        if plain and not flow and all(_same(scheduler.get(key, _DEFAULTS[key]), wanted[key]) for key in wanted):
            return schedule
    entries = ("_class_name", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
    found = ", ".join(f"{key}={scheduler[key]!r:.40}" for key in entries if scheduler.get(key) is not None)
    raise ValueError(
        f"the scheduler's noise levels have no name in ditzoo: {found}. Recipes have, for 1000 steps, linear betas "
        "from 0.0001 to 0.02, scaled_linear from 0.00085 to 0.012, and squaredcos_cap_v2. from_diffusers(transformer) "
        "takes the weights alone."
    )


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
