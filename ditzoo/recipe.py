"""How a model was trained and is to be sampled. Travels with weights, samples and benchmark rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]
Schedule = Literal["linear", "scaled_linear", "cosine", "continuous_vp", "flow_linear"]
GuidanceConvention = Literal["dit", "uvit"]
GuidanceSchedule = Literal["constant", "power_cosine"]
Sampler = Literal["ddim", "ddpm", "dpm_solver", "dpm_solver++", "euler", "heun", "euler_maruyama"]
Weights = Literal["ema", "raw"]
_FLOW_SAMPLERS: tuple[Sampler, ...] = ("euler", "heun", "euler_maruyama")
_DIFFUSION_SAMPLERS: tuple[Sampler, ...] = ("ddim", "ddpm", "dpm_solver", "dpm_solver++", "euler_maruyama")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (arXiv:2207.12598) with all that papers leave unsaid.

    With c and u the conditional and unconditional predictions, `"dit"` is u + scale * (c - u), off at 1;
    `"uvit"` is c + scale * (c - u), off at 0: U-ViT's 0.4 is DiT's 1.4.
    """

    scale: float = 1.0
    convention: GuidanceConvention = "dit"
    channels: int | None = None
    """how many of the first output channels are guided (DiT, SiT, MDT: 3); None guides all of the prediction"""
    schedule: GuidanceSchedule = "constant"
    """`"power_cosine"` raises the scale from 1 at the last timestep to `scale` at 0 (MDT, DiffiT)"""
    power: float = 4.0
    """exponent of the power-cosine schedule"""

    def __post_init__(self) -> None:
        _check_choice("convention", self.convention, GuidanceConvention)
        _check_choice("guidance schedule", self.schedule, GuidanceSchedule)
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance scale must be a finite number, got {self.scale}.")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guided channels must be 1 or more, or None for all, got {self.channels}.")

    @property
    def is_off(self) -> bool:
        """Whether this guidance leaves the conditional prediction as it is."""
        return self.scale == (1.0 if self.convention == "dit" else 0.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything besides the network that decides what its samples look like.

    It can state more than this release computes with: `ditzoo.diffusion` names the schedules and samplers it has.

    Raises:
        ValueError: for a value outside its range; the message names the valid ones.
    """

    prediction: Prediction
    """what the network predicts: the noise, v = alpha * noise - sigma * x0 (arXiv:2202.00512), x0, or, under a flow
    schedule, the velocity x0 - noise"""
    schedule: Schedule
    """noise schedule: DDPM's linear one, Stable Diffusion's, the cosine of arXiv:2102.09672, `"continuous_vp"`, the
    variance-preserving SDE of arXiv:2011.13456, or `"flow_linear"`, the straight line from noise to data of flow
    matching (arXiv:2210.02747), on which time runs from 0 (noise) to 1 (data)"""
    num_train_timesteps: int = 1000
    """T; the network is called with t from 0 to T - 1. Without meaning under a flow schedule"""
    guidance: Guidance = field(default_factory=Guidance)
    sampler: Sampler = "ddim"
    num_inference_steps: int = 50
    """steps of the sampler. A step evaluates the network once, `"heun"`'s twice; each evaluation is two forward
    passes under guidance"""
    latent_codec: str | None = None
    """the autoencoder whose latents the network denoises, as named by the authors; None for pixels"""
    latent_scale: float = 1.0
    """what the codec's latents are multiplied by before the network sees them"""
    mask_ratio: float | None = None
    """least part of the tokens hidden in MDT's second training pass; None trains with one pass"""
    mask_ratio_spread: float = 0.0
    """MDTv2 draws the ratio from [mask_ratio, mask_ratio + mask_ratio_spread) once a step"""
    weights: Weights = "ema"
    """which weights are sampled from: the moving average of training, or its last step"""

    def __post_init__(self) -> None:
        _check_choice("prediction", self.prediction, Prediction)
        _check_choice("schedule", self.schedule, Schedule)
        _check_choice("sampler", self.sampler, Sampler)
        _check_choice("weights", self.weights, Weights)
        if not isinstance(self.guidance, Guidance):
            raise TypeError(
                f"guidance must be a Guidance, got {self.guidance!r}; Recipe.from_dict() takes plain dicts."
            )
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be 1 or more, got {self.num_train_timesteps}.")
        most = math.inf if self.is_flow else self.num_train_timesteps
        if not 1 <= self.num_inference_steps <= most:
            valid = "1 or more" if self.is_flow else f"from 1 to num_train_timesteps ({most})"
            raise ValueError(f"num_inference_steps must be {valid}, got {self.num_inference_steps}.")
        if self.is_flow != (self.prediction == "velocity"):
            raise ValueError(
                f"prediction {self.prediction!r} does not go with schedule {self.schedule!r}: flow schedules train "
                "'velocity', and the others train 'epsilon', 'v_prediction' or 'sample'."
            )
        samplers = _FLOW_SAMPLERS if self.is_flow else _DIFFUSION_SAMPLERS
        if self.sampler not in samplers:
            raise ValueError(
                f"sampler {self.sampler!r} does not go with schedule {self.schedule!r}; choose one of "
                f"{', '.join(samplers)}."
            )
        if self.is_flow and self.guidance.schedule != "constant":
            raise ValueError("power_cosine guidance counts timesteps, of which a flow has none; use 'constant'.")
        if not (math.isfinite(self.latent_scale) and self.latent_scale > 0):
            raise ValueError(f"latent_scale must be a number above 0, got {self.latent_scale}.")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio <= self.mask_ratio + self.mask_ratio_spread < 1:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} (+ up to {self.mask_ratio_spread}) must be at least 0 and stay below 1."
            )

    @property
    def is_flow(self) -> bool:
        """Whether this is flow matching, with time from 0 (noise) to 1 (data)."""
        return self.schedule == "flow_linear"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` gives the same recipe back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote.

        Raises:
            ValueError: for a key that no recipe has, or a value out of range.
        """
        guidance = values.get("guidance", {})
        unknown = set(values) - {f.name for f in fields(cls)} | set(guidance) - {f.name for f in fields(Guidance)}
        if unknown:
            raise ValueError(f"unknown recipe entries: {', '.join(sorted(unknown))}.")
        if missing := {"prediction", "schedule"} - set(values):
            raise ValueError(f"a recipe needs {' and '.join(sorted(missing))}.")
        return cls(**{**values, "guidance": Guidance(**guidance)})


def _check_choice(what: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(get_args(choices))}.")
