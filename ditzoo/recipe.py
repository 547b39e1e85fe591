"""How a model was trained and is to be sampled. Travels with weights, samples and benchmark rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity", "score", "edm"]
Schedule = Literal["linear", "scaled_linear", "cosine", "continuous_vp", "flow_linear", "flow_gvp", "flow_vp", "edm"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
Loss = Literal["mse", "hybrid", "rescaled_hybrid", "vlb"]
TimeDistribution = Literal["uniform", "logit_normal"]
LossWeighting = Literal["none", "velocity", "likelihood"]
GuidanceKind = Literal["classifier_free", "autoguidance"]
GuidanceConvention = Literal["dit", "uvit"]
GuidanceSchedule = Literal["constant", "power_cosine"]
Sampler = Literal[
    "ddpm",
    "ddim",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_3s",
    "dpm_3s",
    "unipc",
    "edm_heun",
    "euler",
    "heun",
    "dopri5",
    "euler_maruyama",
    "heun_maruyama",
]
Weights = Literal["ema", "raw"]
PixelRule = Literal["dit", "adm"]

_DISCRETE: tuple[Schedule, ...] = ("linear", "scaled_linear", "cosine")
_FLOWS: tuple[Schedule, ...] = ("flow_linear", "flow_gvp", "flow_vp")
#: These solve for x0 or noise between two noise levels, whatever the process.
_ANY_PROCESS: tuple[Sampler, ...] = ("ddim", "dpmpp_2m", "dpmpp_3m", "dpmpp_3s", "dpm_3s", "unipc", "edm_heun")
#: samplers of the schedules that are tables of noise levels
DISCRETE_SAMPLERS: tuple[Sampler, ...] = ("ddpm", *_ANY_PROCESS)
#: samplers of the schedules in continuous time; the last five need its derivative, which tables do not have
CONTINUOUS_SAMPLERS: tuple[Sampler, ...] = (
    *_ANY_PROCESS,
    "euler",
    "heun",
    "dopri5",
    "euler_maruyama",
    "heun_maruyama",
)
#: the noisiest (for flows: cleanest) time of the schedules in continuous time
_LATEST: dict[Schedule, float] = {
    "continuous_vp": 1.0,
    "flow_linear": 1.0,
    "flow_gvp": 1.0,
    "flow_vp": 1.0,
    "edm": 80.0,
}
#: schedules whose sigma has an infinite derivative at that time
_SINGULAR: tuple[Schedule, ...] = ("flow_vp",)
#: Times and noise levels are kept in tables as long as this; a longer one is a mistake, or meant to fill the memory.
_MOST_STEPS = 10**6
#: What drives a terminal, turns the direction of writing around, or is no text at all (a half of a surrogate pair).
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance with all that papers leave unsaid.

    With c and u the conditional and unconditional predictions, `"dit"` is u + scale * (c - u), off at 1;
    `"uvit"` is c + scale * (c - u), off at 0: U-ViT's 0.4 is DiT's 1.4.

    Raises:
        ValueError: for a value outside its range.
        TypeError: for a number that is none.
    """

    scale: float = 1.0
    kind: GuidanceKind = "classifier_free"
    """`"classifier_free"`: u is the model's own prediction for the null label (arXiv:2207.12598); `"autoguidance"`: u
    is a weaker model's prediction for the same label (arXiv:2406.02507)"""
    convention: GuidanceConvention = "dit"
    channels: int | None = None
    """how many of the first output channels are guided (DiT, SiT, MDT: 3); None guides all of the prediction"""
    schedule: GuidanceSchedule = "constant"
    """`"power_cosine"` raises the scale from 1 at the last timestep to `scale` at 0 (MDT, DiffiT)"""
    power: float = 4.0
    """exponent of the power-cosine schedule"""
    interval: tuple[float, float] | None = None
    """guide only where low < sigma / alpha <= high (arXiv:2404.07724, section 3); None guides everywhere"""

    def __post_init__(self) -> None:
        _check_choice("guidance kind", self.kind, GuidanceKind)
        _check_choice("guidance convention", self.convention, GuidanceConvention)
        _check_choice("guidance schedule", self.schedule, GuidanceSchedule)
        _check_number("guidance scale", self.scale)
        _check_number("guidance power", self.power)
        if self.power <= 0:
            raise ValueError(f"guidance power must be above 0, got {self.power}.")
        if self.channels is not None:
            _check_whole("guided channels", self.channels)
            if self.channels < 1:
                raise ValueError(f"guided channels must be 1 or more, or None for all, got {self.channels}.")
        if self.interval is not None:
            object.__setattr__(self, "interval", _checked_interval(self.interval))

    @property
    def off(self) -> float:
        """The scale that leaves the conditional prediction as it is."""
        return 1.0 if self.convention == "dit" else 0.0

    @property
    def is_off(self) -> bool:
        """Whether this guidance leaves the conditional prediction as it is."""
        return self.scale == self.off


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything besides the network that decides what its samples look like.

    Raises:
        ValueError: for a value outside its range, or two that exclude each other; the message names the valid ones. Or
            for a text with control characters, which could drive a terminal on which it is shown.
        TypeError: for a number or a text that is none.
    """

    prediction: Prediction
    """what the network predicts: the noise, v = alpha * noise - sigma * x0 (arXiv:2202.00512), x0, the velocity
    dx_t / dt of a flow, the score -noise / sigma, or what EDM's preconditioning makes x0 of (arXiv:2206.00364)"""
    schedule: Schedule
    """noise schedule: DDPM's linear one, Stable Diffusion's, the cosine of arXiv:2102.09672; `"continuous_vp"`, the
    variance-preserving SDE of arXiv:2011.13456; `"flow_linear"`, the straight line of flow matching
    (arXiv:2210.02747), and SiT's other paths from noise at time 0 to data at 1 (arXiv:2401.08740); `"edm"`, noise
    added to unscaled data, whose time is its standard deviation"""
    num_train_timesteps: int = 1000
    """T of the schedules that are tables, whose times are 0 to T - 1, at most a million; without meaning elsewhere"""
    time_scale: float = 1.0
    time_offset: float = 0.0
    """the network is called with time_offset + time_scale * t: U-ViT counts the thousand levels from 1, and calls its
    continuous-time networks with 999 t. Without meaning under `"edm"`, where networks see log(sigma) / 4"""
    end_time: float | None = None
    """the last time at which samplers call the network, in the units of a schedule in continuous time; the process's
    own where None. Below 1 under `"flow_vp"`, whose sigma has an infinite derivative there"""
    variance: Variance = "fixed_large"
    """of a DDPM step: the posterior's, beta, or what the second half of the network's channels interpolates between
    the two (arXiv:2102.09672)"""
    loss: Loss = "mse"
    """what trains a learned variance: `"hybrid"` adds the variational bound in bits per dimension, as DiT and MDT do;
    `"rescaled_hybrid"` weights it by T / 1000 and `"vlb"` is the bound alone (T times)"""
    loss_weighting: LossWeighting = "none"
    """SiT's weights of the losses of noise and score (arXiv:2401.08740, section 3)"""
    min_snr_gamma: float | None = None
    """weight the squared error as x0's would be by min(snr, gamma), with snr = (alpha / sigma)^2 (section 3.4 of
    arXiv:2303.09556): of `"sample"` by min(snr, gamma), of `"epsilon"` by min(snr, gamma) / snr, of `"v_prediction"` by
    min(snr, gamma) / (snr + 1). The bound of a learned variance is not weighted. MDTv2: 5"""
    time_distribution: TimeDistribution = "uniform"
    """of the times that training draws: `"logit_normal"` prefers those in the middle (section 3.1 of
    arXiv:2403.03206). EDM has its own, a normal distribution of log(sigma)"""
    time_mean: float = 0.0
    """of the logit of the noise time (0 data, 1 noise) under `"logit_normal"`: above 0 prefers noisier times"""
    time_std: float = 1.0
    """its standard deviation"""
    guidance: Guidance = field(default_factory=Guidance)
    sampler: Sampler = "ddim"
    num_inference_steps: int = 50
    """steps of the sampler, at most T where the schedule is a table, and a million elsewhere;
    `ditzoo.diffusion.count_evaluations` tells what they cost"""
    sampler_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """keyword arguments of the sampler that differ from its defaults, such as `{"eta": 1.0}` of `"ddim"`;
    `ditzoo.diffusion.get_sampler` checks names and values"""
    latent_codec: str | None = None
    """the autoencoder whose latents the network denoises, as named by the authors; None for pixels"""
    latent_scale: float = 1.0
    latent_shift: float = 0.0
    """the network sees (latents - latent_shift) * latent_scale"""
    pixel_rule: PixelRule = "dit"
    """images in [-1, 1] become bytes as 127.5 x + 128 (DiT) or (x + 1) 127.5 (ADM, MDT, DiffiT), clamped, truncated"""
    mask_ratio: float | None = None
    """least part of the tokens hidden in MDT's second training pass; None trains with one pass"""
    mask_ratio_spread: float = 0.0
    """MDTv2 draws the ratio from [mask_ratio, mask_ratio + mask_ratio_spread) once a step"""
    weights: Weights = "ema"
    """which weights are sampled from: the moving average of training, or its last step"""
    licence: str | None = None
    """of the weights that this recipe belongs to"""
    source: str | None = None
    """where these weights are"""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        if not isinstance(self.guidance, Guidance):
            raise TypeError(
                f"guidance must be a Guidance, got {self.guidance!r}; Recipe.from_dict() takes plain dicts."
            )
        if not isinstance(self.sampler_options, Mapping):
            raise TypeError(f"sampler_options must be a mapping of names to values, got {self.sampler_options!r:.60}.")
        object.__setattr__(self, "sampler_options", dict(self.sampler_options))
        self._check_texts()
        self._check_numbers()
        self._check_prediction()
        self._check_variance()
        self._check_sampling()

    def _check_texts(self) -> None:
        for name in ("latent_codec", "licence", "source"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))

    def _check_numbers(self) -> None:
        for name in ("num_train_timesteps", "num_inference_steps"):
            _check_whole(name, getattr(self, name))
            if not 1 <= getattr(self, name) <= _MOST_STEPS:
                raise ValueError(f"{name} must be from 1 to {_MOST_STEPS:,}, got {getattr(self, name)!r:.60}.")
        for name in ("time_scale", "time_std", "latent_scale"):
            _check_number(name, getattr(self, name))
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be a number above 0, got {getattr(self, name)}.")
        for name in ("time_offset", "time_mean", "latent_shift", "mask_ratio_spread"):
            _check_number(name, getattr(self, name))
        if self.mask_ratio is not None:
            _check_number("mask_ratio", self.mask_ratio)
            if not 0 <= self.mask_ratio <= self.mask_ratio + self.mask_ratio_spread < 1:
                raise ValueError(
                    f"mask_ratio {self.mask_ratio} (+ up to {self.mask_ratio_spread}) must be at least 0 and stay "
                    "below 1."
                )
        if self.end_time is not None:
            _check_number("end_time", self.end_time)
            if self.is_discrete:
                raise ValueError(
                    f"end_time goes with schedules in continuous time, got {self.end_time} for {self.schedule!r}; use "
                    "None."
                )
            self._check_end_time(self.end_time)
        if self.min_snr_gamma is not None:
            _check_number("min_snr_gamma", self.min_snr_gamma)
            if self.min_snr_gamma <= 0:
                raise ValueError(f"min_snr_gamma must be above 0, or None, got {self.min_snr_gamma}.")

    def _check_end_time(self, end_time: float) -> None:
        latest, singular = _LATEST[self.schedule], self.schedule in _SINGULAR
        if not 0 < end_time <= latest or (singular and end_time == latest):
            reason = f" (at {latest:g} the noise falls infinitely fast)" if singular else ""
            raise ValueError(
                f"end_time must be above 0 and {'below' if singular else 'at most'} {latest:g} under "
                f"{self.schedule!r}{reason}, or None for the schedule's own end, got {end_time}."
            )

    def _check_prediction(self) -> None:
        valid: tuple[Prediction, ...]
        if self.is_flow:
            valid = ("velocity", "epsilon", "score")
        elif self.schedule == "edm":
            valid = ("edm",)
        else:
            valid = ("epsilon", "v_prediction", "sample")
        if self.prediction not in valid:
            raise ValueError(
                f"prediction {self.prediction!r} does not go with schedule {self.schedule!r}, whose networks predict "
                f"{' or '.join(map(repr, valid))}."
            )
        weightable = self.is_flow and self.prediction in ("epsilon", "score")
        if self.loss_weighting != "none" and not weightable:
            raise ValueError(
                f"loss_weighting {self.loss_weighting!r} is for flows that predict 'epsilon' or 'score', not for "
                f"{self.prediction!r} under {self.schedule!r}; use 'none'."
            )

        if self.schedule == "edm" and self.time_distribution != "uniform":
            raise ValueError(
                f"time_distribution {self.time_distribution!r} does not go with schedule 'edm', which draws log(sigma) "
                "from a normal distribution of its own; use 'uniform'."
            )

    def _check_variance(self) -> None:
        learned = self.variance == "learned_range"
        if learned and not self.is_discrete:
            raise ValueError(
                f"variance 'learned_range' is of DDPM's steps, which schedule {self.schedule!r} does not make; choose "
                f"one of the schedules {', '.join(_DISCRETE)}."
            )
        if learned != (self.loss != "mse"):
            raise ValueError(
                f"loss {self.loss!r} does not train variance {self.variance!r}: 'mse' goes with the fixed variances, "
                "'hybrid', 'rescaled_hybrid' and 'vlb' with 'learned_range'."
            )
        if self.min_snr_gamma is not None and not self.is_discrete:
            raise ValueError(f"min_snr_gamma weights the schedules {', '.join(_DISCRETE)}, not {self.schedule!r}.")

    def _check_sampling(self) -> None:
        if self.sampler not in self.samplers:
            raise ValueError(
                f"sampler {self.sampler!r} does not go with schedule {self.schedule!r}; choose one of "
                f"{', '.join(self.samplers)}."
            )
        if self.is_discrete and self.num_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be from 1 to num_train_timesteps ({self.num_train_timesteps}) under "
                f"{self.schedule!r}, got {self.num_inference_steps}."
            )
        if not self.is_discrete and self.guidance.schedule != "constant":
            raise ValueError(
                f"{self.guidance.schedule} guidance counts timesteps, of which {self.schedule!r} has none; use "
                "'constant'."
            )

    @property
    def is_flow(self) -> bool:
        """Whether this is flow matching, with time from 0 (noise) to 1 (data)."""
        return self.schedule in _FLOWS

    @property
    def is_discrete(self) -> bool:
        """Whether the noise levels are a table, with times 0 to T - 1."""
        return self.schedule in _DISCRETE

    @property
    def last_network_time(self) -> float:
        """The largest time that networks are told."""
        if self.schedule == "edm":
            return math.log(_LATEST["edm"]) / 4
        latest = self.num_train_timesteps - 1 if self.is_discrete else _LATEST[self.schedule]
        return self.time_offset + self.time_scale * latest

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The samplers that go with this schedule."""
        return DISCRETE_SAMPLERS if self.is_discrete else CONTINUOUS_SAMPLERS

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_dict` gives the same recipe back."""
        values = asdict(self)
        if self.guidance.interval is not None:
            values["guidance"]["interval"] = list(self.guidance.interval)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote.

        Raises:
            ValueError: for a key that no recipe has, or a value out of range.
            TypeError: for a value of the wrong type.
        """
        guidance = values.get("guidance", {})
        if not isinstance(guidance, Mapping):
            raise TypeError(f"guidance must be a mapping of names to values, got {guidance!r:.60}.")
        unknown = set(values) - {f.name for f in fields(cls)} | set(guidance) - {f.name for f in fields(Guidance)}
        if unknown:
            raise ValueError(f"unknown recipe entries: {', '.join(f'{name!r:.60}' for name in sorted(unknown))}.")
        if missing := {"prediction", "schedule"} - set(values):
            raise ValueError(f"a recipe needs {' and '.join(sorted(missing))}.")
        return cls(**{**values, "guidance": Guidance(**guidance)})


_CHOICES = {
    "prediction": Prediction,
    "schedule": Schedule,
    "variance": Variance,
    "loss": Loss,
    "loss_weighting": LossWeighting,
    "time_distribution": TimeDistribution,
    "sampler": Sampler,
    "weights": Weights,
    "pixel_rule": PixelRule,
}


def check_text(what: str, value: object, *, in_one_line: bool = False) -> None:
    """Refuse what is no text, and text that would do more than be read: it is shown on terminals and web pages."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, got {value!r:.60}.")
    if _CONTROL.search(value) or (in_one_line and "\n" in value):
        kind = "line breaks or other control characters" if in_one_line else "control characters"
        raise ValueError(f"{what} must be a text without {kind}, got {value!r:.60}; take them out.")


def _check_choice(what: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"unknown {what} {value!r:.60}; choose one of {', '.join(get_args(choices))}.")


def _check_number(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number, got {value!r:.60}.")
    if not is_finite(value):
        raise ValueError(f"{what} must be a finite number, got {value!r:.60}.")


def is_finite(value: float) -> bool:
    """Whether a number is finite, and no integer beyond all floats."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_whole(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, got {value!r:.60}.")


def _checked_interval(interval: object) -> tuple[float, float]:
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        raise TypeError(f"guidance interval must be two noise levels (low, high), got {interval!r:.60}.")
    low, high = interval
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise TypeError(f"guidance interval must be two noise levels (low, high), got {interval!r:.60}.")
    if not 0 <= low < high or not is_finite(high):
        raise ValueError(
            f"guidance interval (low, high) must satisfy 0 <= low < high, both finite, got {interval!r:.60}."
        )
    return float(low), float(high)
