"""Every recorded number of the official schedules, losses and samplers, computed again."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import ditzoo
from ditzoo.diffusion import (
    ContinuousVP,
    FlowMatching,
    GaussianDiffusion,
    LossTerms,
    SamplingStep,
    TrainingDraws,
    ddim_sample,
    ddpm_sample,
    denoising_loss,
    denoising_terms,
    dopri5_sample,
    dpmpp_3s_sample,
    euler_maruyama_sample,
    euler_sample,
    guide,
    heun_maruyama_sample,
    heun_sample,
    loss_terms,
    make_betas,
    make_process,
    min_snr_weight,
    prior_bits,
    space_timesteps,
    training_loss,
    variational_bound,
)
from ditzoo.diffusion.samplers.exponential import singlestep_orders
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Guidance, Recipe
from tests.golden_cases import PROCESS_CASES, process_case

#: name behind `out.` -> what ditzoo computes
Outputs = dict[str, Tensor]
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]

#: case -> (pattern of outputs, what computes those that match)
COMPUTED: dict[str, list[tuple[str, Callable[[], Outputs]]]] = {case: [] for case in PROCESS_CASES}

DIT = Recipe(
    prediction="epsilon",
    schedule="linear",
    variance="learned_range",
    loss="hybrid",
    guidance=Guidance(scale=1.5, channels=3),
    sampler="ddpm",
)
UVIT = Recipe(
    prediction="epsilon",
    schedule="scaled_linear",
    time_offset=1.0,
    guidance=Guidance(scale=0.4, convention="uvit"),
    sampler="dpmpp_3s",
)
NULL = 10


def computes(case: str, *patterns: str) -> Callable[[Callable[[], Outputs]], Callable[[], Outputs]]:
    """Declare that a function gives the outputs of a case that match one of the patterns."""

    def register(function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        COMPUTED[case] += [(pattern, cached) for cached in [cache(function)] for pattern in patterns]
        return function

    return register


def names(case: str, pattern: str) -> list[str]:
    """Outputs of a case, without `out.`, that match."""
    return fnmatch.filter([output.removeprefix("out.") for output in process_case(case).outputs], pattern)


@pytest.mark.parametrize(("case", "output"), [(case, o) for case in PROCESS_CASES for o in process_case(case).outputs])
def test_every_recorded_output_is_reproduced(case: str, output: str) -> None:
    name = output.removeprefix("out.")
    computed = [function for pattern, function in COMPUTED[case] if fnmatch.fnmatchcase(name, pattern)]
    assert len(computed) == 1, f"{case} records {output}, which {len(computed)} functions here compute"
    values = computed[0]()
    assert name in values, f"{case} records {output}, which is not computed with what stands beside it"
    assert process_case(case).agrees(output, values[name])


@pytest.mark.parametrize("case", PROCESS_CASES)
def test_nothing_is_computed_that_was_not_recorded(case: str) -> None:
    computed = {name for _, function in COMPUTED[case] for name in function()}
    assert computed == {output.removeprefix("out.") for output in process_case(case).outputs}


@dataclass
class Recorder:
    """Calls a network and remembers when, where and what it said."""

    network: Network
    t: list[Tensor] = field(default_factory=list)
    x: list[Tensor] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        output = self.network(x, t, y)
        assert bool((t == t[0]).all())
        self.t.append(t[0])
        self.x.append(x)
        self.said.append(output)
        return output


def official_batch(model: DiffusionTransformer, guidance: Guidance) -> Network:
    """A network on the official batch [n conditional | n null]. Both halves see the first one's x and get its guided
    channels; the others are each half's own."""
    guided = guide(model, guidance, model.null_label)

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        half = len(x) // 2
        assert (y[half:] == model.null_label).all()
        first = guided(x[:half], t[:half], y[:half])
        unconditional = model(x[:half], t[half:], y[half:])
        return torch.cat([first, torch.cat([first[:, :3], unconditional[:, 3:]], dim=1)])

    return network


@torch.no_grad()
def sampled(
    sample: Callable[..., Tensor], network: Network, process: Any, start: Tensor, y: Tensor | None, **options: Any
) -> tuple[Tensor, list[SamplingStep], Recorder]:
    recorder, steps = Recorder(network), []
    x = sample(recorder, process, start, y, callback=steps.append, **options)
    return x, steps, recorder


# DiT.


def dit_process(respaced: bool = False, **changes: Any) -> GaussianDiffusion:
    process = GaussianDiffusion(replace(DIT, **changes))
    return process.respace(10) if respaced else process


@computes("diffusion_dit", "schedule.*")
def dit_schedule() -> Outputs:
    process = dit_process()
    alphas_cumprod = process.alphas_cumprod
    alpha, sigma = process.levels(torch.arange(1000))
    own = [
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "alphas_cumprod_next", "posterior_variance"),
        *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    ]
    derived = {
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
        "sqrt_recip_alphas_cumprod": 1 / alpha,
        "sqrt_recipm1_alphas_cumprod": sigma / alpha,
    }
    tables = {name: getattr(process, name) for name in own} | derived
    return {f"schedule.{name}": table for name, table in tables.items()}


@computes("diffusion_dit", "betas_*")
def dit_betas() -> Outputs:
    return {
        f"betas_{official}_{count}": make_betas(schedule, count)
        for schedule, official in (("linear", "linear"), ("cosine", "squaredcos_cap_v2"))
        for count in (100, 1000)
    }


@computes("diffusion_dit", "spaced.*")
def dit_spacings() -> Outputs:
    spacings: dict[str, tuple[int, Any]] = {
        "1000_1": (1000, 1),
        "1000_10": (1000, 10),
        "1000_50": (1000, 50),
        "1000_250": (1000, 250),
        "1000_10_15_20": (1000, [10, 15, 20]),
        "1000_str_10_15_20": (1000, "10,15,20"),
        "1000_list1000": (1000, [1000]),
        "1000_ddim25": (1000, "ddim25"),
        "1000_ddim50": (1000, "ddim50"),
        "300_10_15_20": (300, [10, 15, 20]),
    }
    return {f"spaced.{name}": torch.tensor(space_timesteps(*given)) for name, given in spacings.items()}


@computes("diffusion_dit", "respaced_*")
def dit_respaced() -> Outputs:
    outputs: Outputs = {}
    for count in (10, 50, 250):
        process = dit_process().respace(count)
        for name in ("betas", "posterior_variance", "timestep_map"):
            outputs[f"respaced_{count}.{name}"] = getattr(process, name)
    return outputs


@computes("diffusion_dit", "p_mean_variance.*")
def dit_reverse_steps() -> Outputs:
    case = process_case("diffusion_dit")
    variants: dict[str, dict[str, Any]] = {
        "learned_range": {},
        "learned_range_clip": {},
        "learned_range_respaced": {},
        "learned_range_xstart": {"prediction": "sample"},
        "fixed_large": {"variance": "fixed_large", "loss": "mse"},
        "fixed_small": {"variance": "fixed_small", "loss": "mse"},
    }
    outputs: Outputs = {}
    for variant, changes in variants.items():
        respaced, clip = variant.endswith("respaced"), variant.endswith("clip")
        process, t = dit_process(respaced, **changes), case["in.t_respaced" if respaced else "in.t"]
        step = process.reverse_step(case["in.x_t"], case["in.model_output"], t, clip_sample=clip)
        variance = step.log_variance.exp()
        if variant == "fixed_small":  # whose logarithm is clipped at t = 0 and whose variance is not
            variance = factor(process.posterior_variance[t]).expand_as(step.mean)
        outputs |= {
            f"p_mean_variance.{variant}.mean": step.mean,
            f"p_mean_variance.{variant}.variance": variance,
            f"p_mean_variance.{variant}.log_variance": step.log_variance,
            f"p_mean_variance.{variant}.pred_xstart": step.x0,
        }
    return outputs


@computes("diffusion_dit", "q_*", "predict_*")
def dit_forward() -> Outputs:
    case, process = process_case("diffusion_dit"), dit_process()
    x0, noise, x, t = (case[f"in.{name}"] for name in ("x_start", "noise", "x_t", "t"))
    alpha, sigma = process.alpha_sigma(t)
    mean, log_variance = process.posterior(x0, x, t)
    return {
        "q_sample": process.add_noise(x0, noise, t),
        "q_mean_variance.mean": alpha * x0,
        "q_mean_variance.variance": sigma.square().expand_as(x),
        "q_mean_variance.log_variance": 2 * sigma.log().expand_as(x),
        "q_posterior.mean": mean,
        "q_posterior.variance": factor(process.posterior_variance[t]).expand_as(x),
        "q_posterior.log_variance_clipped": log_variance.expand_as(x),
        "predict_xstart_from_eps": process.denoise(x, case["in.model_output"][:, :3], t)[0],
        "predict_eps_from_xstart": dit_process(prediction="sample").denoise(x, x0, t)[1],
    }


@computes("diffusion_dit", "prior_bpd", "vb_terms_bpd")
def dit_bounds() -> Outputs:
    case, process = process_case("diffusion_dit"), dit_process()
    x0, t = case["in.x_start"], case["in.t"]
    x = process.add_noise(x0, case["in.noise"], t)
    return {
        "prior_bpd": prior_bits(process, x0),
        "vb_terms_bpd": variational_bound(process, x0, x, case["in.model_output"], t),
    }


@computes("diffusion_dit", "training_losses.*")
def dit_losses() -> Outputs:
    case = process_case("diffusion_dit")
    variants: dict[str, dict[str, Any]] = {
        "mse_fixed": {"variance": "fixed_large", "loss": "mse"},
        "mse_learned": {},
        "mse_learned_respaced": {},
        "mse_learned_xstart": {"prediction": "sample"},
        "rescaled_kl_learned": {"loss": "vlb"},
        "rescaled_mse_learned": {"loss": "rescaled_hybrid"},
        "rescaled_mse_learned_respaced": {"loss": "rescaled_hybrid"},
    }
    outputs: Outputs = {}
    for variant, changes in variants.items():
        respaced = variant.endswith("respaced")
        process, t = dit_process(respaced, **changes), case["in.t_respaced" if respaced else "in.t"]
        output = case["in.model_output_xstart" if variant.endswith("xstart") else "in.model_output"]
        output = output[:, : 3 if variant == "mse_fixed" else 6].clone().requires_grad_()
        x = process.add_noise(case["in.x_start"], case["in.noise"], t)
        terms = loss_terms(process, case["in.x_start"], x, case["in.noise"], output, t)
        terms.loss.mean().backward()
        values = {"loss": terms.loss, "grad_model_output": output.grad}
        if terms.mse is not None:  # vb alone is the loss itself
            values |= {"mse": terms.mse} | ({} if terms.vb is None else {"vb": terms.vb})
        outputs |= {f"training_losses.{variant}.{name}": value for name, value in values.items()}
    return outputs


def dit_sampled(
    sample: Callable[..., Tensor], noise: str, **options: Any
) -> tuple[Tensor, list[SamplingStep], Recorder]:
    case = process_case("diffusion_dit")
    network = official_batch(case.model(), DIT.guidance)
    given = {"num_inference_steps": 10, "step_noise": lambda step: case[noise][step], **options}
    return sampled(sample, network, dit_process(), case["in.loop_x_T"], case["in.loop_y"], **given)


@computes("diffusion_dit", "p_sample_loop*")
def dit_ancestral() -> Outputs:
    x, steps, network = dit_sampled(ddpm_sample, "in.loop_noise")
    return {
        "p_sample_loop.sample": x,
        "p_sample_loop.steps": torch.stack([step.sample for step in steps]),
        "p_sample_loop.pred_xstart": torch.stack([step.x0 for step in steps]),
        "p_sample_loop.model_t": torch.stack(network.t),
        "p_sample_loop_clip.sample": dit_sampled(ddpm_sample, "in.loop_noise", clip_sample=True)[0],
    }


@computes("diffusion_dit", "ddim_*")
def dit_implicit() -> Outputs:
    outputs: Outputs = {}
    for eta in (0, 1):
        x, steps, _ = dit_sampled(ddim_sample, "in.loop_noise_ddim", eta=float(eta))
        outputs[f"ddim_eta{eta}.sample"] = x
        outputs[f"ddim_eta{eta}.steps"] = torch.stack([step.sample for step in steps])
        clipped, _, _ = dit_sampled(ddim_sample, "in.loop_noise_ddim", eta=float(eta), clip_sample=True)
        outputs[f"ddim_eta{eta}_clip.sample"] = clipped
    kept = space_timesteps(1000, 10)
    outputs["ddim_reverse_step"], _, _ = dit_sampled(ddim_sample, "in.loop_noise_ddim", times=kept[3:5])
    return outputs


# U-ViT, discrete.


@computes("diffusion_uvit", "schedule.*")
def uvit_schedule() -> Outputs:
    betas, alphas_cumprod = make_betas("scaled_linear", 1000), GaussianDiffusion(UVIT).alphas_cumprod
    zero = torch.zeros(1, dtype=torch.float64)  # entry 0 stands for no noise
    cum_alphas = torch.cat([1 + zero, alphas_cumprod])
    return {
        "schedule.betas": torch.cat([zero, betas]),
        "schedule.alphas": torch.cat([1 + zero, 1 - betas]),
        "schedule.cum_alphas": cum_alphas,
        "schedule.cum_betas": 1 - cum_alphas,
        "schedule.snr_1_to_1000": alphas_cumprod / (1 - alphas_cumprod),
    }


@computes("diffusion_uvit", "ns.*")
def uvit_continuous_schedule() -> Outputs:
    case, process = process_case("diffusion_uvit"), GaussianDiffusion(UVIT)
    times = [1000 * float(t) - 1 for t in case["in.t_query"]]
    alpha, sigma = process.levels(torch.tensor(times, dtype=torch.float64))
    return {
        "ns.alpha": alpha,
        "ns.std": sigma,
        "ns.log_mean_coeff": alpha.log(),
        "ns.lambda": torch.tensor([process.log_snr(time) for time in times]),
        "ns.inverse_lambda": torch.tensor([(process.time_at(float(v)) + 1) / 1000 for v in case["in.lambda_query"]]),
    }


@computes("diffusion_uvit", "lsimple.*")
@torch.no_grad()
def uvit_loss() -> Outputs:
    case, process = process_case("diffusion_uvit"), GaussianDiffusion(UVIT)
    model, seen = case.model(), []

    def network(x: Tensor, t: Tensor, y: Tensor | None, *, mask: object) -> Tensor:
        seen.extend([x, t, output := model(x, t, y)])
        return output

    loss = denoising_loss(network, process, case["in.x0"], case["in.y"], draws(case["in.n"] - 1, case["in.eps"]))
    x, t, output = seen
    assert torch.equal(t, t.round())
    return {"lsimple.xn": x, "lsimple.model_t": t.long(), "lsimple.eps_pred": output, "lsimple.loss": loss}


@computes("diffusion_uvit", "dpm*")
def uvit_sampled() -> Outputs:
    case, process = process_case("diffusion_uvit"), GaussianDiffusion(UVIT)
    model = case.model()
    outputs: Outputs = {}
    for name, steps, guidance in (
        ("dpm10", 10, UVIT.guidance),
        ("dpm9", 9, UVIT.guidance),
        ("dpm8", 8, UVIT.guidance),
        ("dpm10_nocfg", 10, Guidance(scale=0.0, convention="uvit")),
    ):
        x, finished, network = sampled(
            dpmpp_3s_sample,
            guide(model, guidance, model.null_label),
            process,
            case["in.z_init"],
            case["in.sample_y"],
            num_inference_steps=steps,
        )
        ends = [0, *(step.number for step in finished)]
        assert [b - a for a, b in itertools.pairwise(ends)] == singlestep_orders(steps)
        times = process.times(steps, final_step=False)
        outputs |= {
            f"{name}.sample": x,
            f"{name}.model_t": torch.stack(network.t).float(),
            f"{name}.orders": torch.tensor(singlestep_orders(steps)),
            f"{name}.timesteps": (torch.tensor(times) + 1) / 1000,
        }
        if name == "dpm10":
            outputs |= {"dpm10.model_x": torch.stack(network.x), "dpm10.model_eps": torch.stack(network.said)}
    return outputs


# U-ViT, in continuous time.


@computes("diffusion_uvit_sde", "*")
@torch.no_grad()
def uvit_sde() -> Outputs:
    case, process = process_case("diffusion_uvit_sde"), ContinuousVP("epsilon", time_scale=999.0)
    model, t = case.model(), case["in.t_rand"]
    alpha, sigma = process.levels(t.double())
    noise, start = case["in.em_noise"], case["in.x_init"]
    euler, _, network = sampled(euler_sample, model, process, start, None, num_inference_steps=10)
    assert len(network.t) == 10
    return {
        "cum_alpha": alpha**2,
        "cum_beta": sigma**2,
        "squared_diffusion": torch.tensor([process.beta(float(time)) for time in t]),
        "lsimple.xt": process.add_noise(case["in.x0"], case["in.eps"], t),
        "lsimple.loss": denoising_loss(model, process, case["in.x0"], None, draws(t, case["in.eps"])),
        "euler_maruyama_ode": euler,
        "euler_maruyama_sde": sampled(
            euler_maruyama_sample,
            model,
            process,
            start,
            None,
            num_inference_steps=10,
            step_noise=lambda step: noise[step],
        )[0],
    }


# MDT.


def mdt_recipe(version: str) -> Recipe:
    sampler = process_case("diffusion_mdt").facts["sampler"]
    guidance = Guidance(scale=sampler["cfg_scale"], channels=3, schedule="power_cosine", power=sampler["scale_pow"])
    return replace(DIT, guidance=guidance, min_snr_gamma=5.0 if version == "v2" else None)


@dataclass
class MdtStep:
    """One training step with the recorded draws."""

    version: str
    mode: str
    model: DiffusionTransformer = field(init=False)

    def __post_init__(self) -> None:
        self.model = process_case("diffusion_mdt").model(self.version)

    def __getitem__(self, name: str) -> Tensor:
        return process_case("diffusion_mdt")[f"in.{self.version}.{name}"]

    def passes(self) -> list[TrainingDraws]:
        return [
            TrainingDraws(self["t"], self[f"label_rand_{kind}"], self[f"noise_{kind}"], self["mask_noise"])
            for kind in ("unmasked", "masked")
        ]

    def mask(self) -> ditzoo.TokenMask:
        ratio: Any = self.model.config["mask_ratio"]
        if self.version == "v2":  # drawn anew each step, in float32
            ratio = ratio + self.model.mask_ratio_spread * self["mask_ratio_rand"]
        return ditzoo.random_token_mask(4, 16, ratio, noise=self["mask_noise"])

    def arguments(self) -> tuple[Any, ...]:
        return self.model, GaussianDiffusion(mdt_recipe(self.version)), self["x_start"], self["y"]

    def options(self) -> dict[str, Any]:
        return {"null_label": NULL, "class_dropout_prob": 0.1 if self.mode == "train" else 0.0}

    def terms(self) -> list[LossTerms]:
        masks = [None, self.mask()]
        return [
            denoising_terms(*self.arguments(), these, mask=mask, **self.options())
            for these, mask in zip(self.passes(), masks, strict=True)
        ]

    def total(self) -> Tensor:
        return training_loss(*self.arguments(), self.passes(), mask=self.mask(), **self.options())


@computes("diffusion_mdt", "v?.eval.*", "v?.train.*")
@torch.no_grad()
def mdt_losses() -> Outputs:
    outputs: Outputs = {}
    for version in ("v1", "v2"):
        for mode in ("eval", "train"):
            step = MdtStep(version, mode)
            outputs[f"{version}.{mode}.total"] = step.total().view(1)
            for kind, terms in zip(("unmasked", "masked"), step.terms(), strict=True):
                assert terms.mse is not None
                assert terms.vb is not None
                for name, value in terms._asdict().items():
                    outputs[f"{version}.{mode}.{kind}.{name}"] = value
    return outputs


@computes("diffusion_mdt", "v?.grad*")
def mdt_gradients() -> Outputs:
    outputs: Outputs = {}
    for version in ("v1", "v2"):
        step = MdtStep(version, "eval")
        step.total().backward()
        gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
        squares = [gradient.double().square().sum() for gradient in gradients.values()]
        outputs[f"{version}.grad_norm_total"] = torch.stack(squares).sum().sqrt().view(1)
        for name in names("diffusion_mdt", f"{version}.grad.*"):
            outputs[name] = gradients[name.removeprefix(f"{version}.grad.")]
    return outputs


@computes("diffusion_mdt", "v2.snr_f64", "v2.min_snr_weight_f64")
def mdt_weights() -> Outputs:
    process, t = GaussianDiffusion(mdt_recipe("v2")), process_case("diffusion_mdt")["in.v2.t"]
    alpha, sigma = process.levels(t)
    return {"v2.snr_f64": (alpha / sigma) ** 2, "v2.min_snr_weight_f64": min_snr_weight(process, t)}


@computes("diffusion_mdt", "v?.p_sample_loop.*")
def mdt_sampled() -> Outputs:
    case = process_case("diffusion_mdt")
    outputs: Outputs = {}
    for version in ("v1", "v2"):
        recipe, given = mdt_recipe(version), MdtStep(version, "eval")
        x, steps, _ = sampled(
            ddpm_sample,
            official_batch(case.model(version), recipe.guidance),
            GaussianDiffusion(recipe),
            given["loop_x_T"],
            given["loop_y"],
            num_inference_steps=10,
            step_noise=lambda step, given=given: given["loop_noise"][step],
        )
        outputs[f"{version}.p_sample_loop.sample"] = x
        outputs[f"{version}.p_sample_loop.steps"] = torch.stack([step.sample for step in steps])
    return outputs


# SiT.


@computes("sit_transport", "Linear.*", "GVP.*", "VP.*", "compute_drift.*", "score_from_velocity")
def sit_paths() -> Outputs:
    case = process_case("sit_transport")
    data, noise, t = case["in.x1"], case["in.x0"], case["in.t_rand"]
    outputs: Outputs = {}
    for official, schedule in (("Linear", "flow_linear"), ("GVP", "flow_gvp"), ("VP", "flow_vp")):
        process = make_process(Recipe(prediction="velocity", schedule=schedule, sampler="euler"))
        outputs[f"{official}.x_t"] = process.add_noise(data, noise, t)
        outputs[f"{official}.u_t"] = process.target(data, noise, t)
    # These two were called with velocity in.x0 at x in.x1, away from both ends.
    line, t = FlowMatching(), t.clamp(0.05, 0.95)
    (alpha, sigma), (d_alpha, _) = line.alpha_sigma(t), line.derivatives(0.5)
    outputs["compute_drift.mean"] = -d_alpha / alpha * data
    outputs["compute_drift.var"] = line.sbdm(t).view(-1, 1, 1, 1)
    outputs["score_from_velocity"] = -line.denoise(data, noise, t)[1] / sigma
    return outputs


@computes("sit_transport", "loss", "pred", "*_pred.*")
@torch.no_grad()
def sit_losses() -> Outputs:
    case = process_case("sit_transport")
    model, outputs = case.model(), {}
    said: list[Tensor] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None, *, mask: object) -> Tensor:
        said.append(model(x, t, y))
        return said[-1]

    for name, prediction in (("", "velocity"), ("noise_pred.", "epsilon"), ("score_pred.", "score")):
        process = FlowMatching("linear", prediction)
        these = draws(case["in.t_rand"], case["in.x0"])
        outputs[f"{name}loss"] = denoising_loss(network, process, case["in.x1"], case["in.y"], these)
    outputs["pred"] = said[0]
    outputs["noise_pred.interval"] = torch.tensor(
        FlowMatching("linear", "epsilon").training_interval, dtype=torch.float64
    )
    return outputs


def sit_sampled(
    sample: Callable[..., Tensor], steps: int, **options: Any
) -> tuple[Tensor, list[SamplingStep], Recorder]:
    """With the recorded noise; official grids of n points make n - 1 steps."""
    case = process_case("sit_transport")
    network = official_batch(case.model(), Guidance(scale=case.facts["cfg_scale"], channels=3))
    start, y = case["in.loop_z"], case["in.loop_y"]
    return sampled(sample, network, FlowMatching(), start, y, num_inference_steps=steps, **options)


@computes("sit_transport", "ode_*")
def sit_flows() -> Outputs:
    start = process_case("sit_transport")["in.loop_z"]
    outputs: Outputs = {}
    for name, sample in (("euler", euler_sample), ("heun2", heun_sample)):
        for points in (10, 11):
            x, steps, network = sit_sampled(sample, points - 1)
            outputs[f"ode_{name}_num_steps{points}.sample"] = x
            outputs[f"ode_{name}_num_steps{points}.model_t"] = torch.stack(network.t)
        outputs[f"ode_{name}_num_steps11.trajectory"] = torch.stack([start, *(step.sample for step in steps)])
    times = FlowMatching().times(10)
    outputs["ode_t_grid_num_steps11"] = torch.tensor(times)
    outputs["ode_euler_reverse.sample"] = sit_sampled(euler_sample, 10, times=times[::-1])[0]
    outputs["ode_dopri5_default.sample"] = sit_sampled(dopri5_sample, 49)[0]
    return outputs


@computes("sit_transport", "sde_*")
def sit_stochastic() -> Outputs:
    noise = {"step_noise": lambda step: process_case("sit_transport")["in.sde_noise"][step]}
    mean, steps, _ = sit_sampled(euler_maruyama_sample, 10, **noise)
    none, all_steps, _ = sit_sampled(euler_maruyama_sample, 9, last_step=None, **noise)
    return {
        "sde_euler_sigma_lastMean.sample": mean,
        "sde_euler_sigma_lastMean.before_last": steps[-2].sample,
        "sde_euler_sigma_lastNone.sample": none,
        "sde_euler_sigma_lastNone.before_last": all_steps[-1].sample,
        "sde_heun_sigma_lastMean.sample": sit_sampled(heun_maruyama_sample, 10, **noise)[0],
    }


def draws(t: Tensor, noise: Tensor) -> TrainingDraws:
    """Of a pass in which no label is dropped."""
    return TrainingDraws(t, torch.ones(len(t)), noise, torch.empty(len(t), 0))


def factor(values: Tensor) -> Tensor:
    """(B,) as float32 factors of a batch."""
    return values.float().view(-1, 1, 1, 1)
