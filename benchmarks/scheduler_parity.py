"""Compares the samplers with the schedulers of diffusers: same network, same noise, step by step.

The recorded table comes from

    python -m benchmarks.scheduler_parity

in a clone with the extra `diffusers`; it takes some seconds. The networks are those of the golden tensors in
`tests/golden`, guided like their recorded trajectories, and for EDM a Gaussian mixture whose best denoiser is known.
Each scheduler is driven with the same numbers as the sampler: random ones are the recorded ones, and where the
scheduler rounds its timesteps, a second row drives the sampler with the rounded ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from ditzoo.bench.results import write_atomically
from ditzoo.diffusion import (
    EDM,
    FlowMatching,
    GaussianDiffusion,
    ddim_sample,
    ddpm_sample,
    dpmpp_2m_sample,
    dpmpp_3s_sample,
    euler_sample,
    guide,
    unipc_sample,
)
from ditzoo.recipe import Guidance, Recipe
from tests.diffusion import mixture
from tests.golden_cases import ProcessCase, process_case

RESULTS = Path(__file__).resolve().parent / "results" / "scheduler_parity.json"
STEPS = 10
DIT = Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid", sampler="ddpm")
LINEAR: dict[str, Any] = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SCALED: dict[str, Any] = LINEAR | {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

#: (x, t in the network's units) -> prediction
Network = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[..., Tensor]


@dataclass(frozen=True)
class Row:
    """One comparison."""

    scheduler: str
    settings: str
    compared_with: str
    deviation: float
    """largest difference over all compared steps, over the largest value"""


# Trajectories.


def deviation(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference over the largest value of `theirs`."""
    expected = torch.stack(theirs).double()
    return float((torch.stack(ours).double() - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def trajectory(
    sample: Callable[..., Tensor], network: Network, process: Any, x: Tensor, **options: Any
) -> list[Tensor]:
    """The sample after each of a sampler's steps."""
    states: list[Tensor] = []
    sample(
        lambda x, t, y: network(x, t),
        process,
        x,
        callback=lambda step: states.append(step.sample),
        **options,
    )
    return states


@torch.no_grad()
def scheduled(scheduler: Any, network: Network, x: Tensor, **options: Any) -> list[Tensor]:
    """The sample after each of a scheduler's steps."""
    states = []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        x = scheduler.step(output, t, x, **options).prev_sample
        states.append(x)
    return states


@contextmanager
def noise_of(module: Any, noises: Tensor) -> Iterator[None]:
    """Let a scheduler's module draw the given noises, one after the other."""
    drawn, original = iter(noises), module.randn_tensor
    module.randn_tensor = lambda *_, **__: next(drawn)
    try:
        yield
    finally:
        module.randn_tensor = original


# Networks.


def dit_network(case: ProcessCase) -> Network:
    """The guided network of a recorded trajectory, on its conditional half, float32."""
    model, y = case.model(), case["in.loop_y"][:2]
    guided = guide(model, Guidance(scale=case.facts["cfg_scale"], channels=3), model.null_label)
    return lambda x, t: guided(x, torch.as_tensor(t).expand(len(x)), y)


def uvit_network(case: ProcessCase) -> Network:
    """As above, told its own times, which count from 1."""
    model, y = case.model(), case["in.sample_y"]
    guided = guide(model, Guidance(scale=case.facts["sampler"]["scale"], convention="uvit"), model.null_label)
    return lambda x, t: guided(x, torch.as_tensor(t, dtype=torch.float32).expand(len(x)), y)


# Comparisons.


def ddpm_rows() -> Iterator[Row]:
    from diffusers.schedulers import DDPMScheduler, scheduling_ddpm

    case = process_case("diffusion_dit")
    network, start, noises = dit_network(case), case["in.loop_x_T"][:2], case["in.loop_noise"][:, :2]
    name, settings = "DDPMScheduler", {"variance_type": "learned_range", "timestep_spacing": "linspace"}
    scheduler = DDPMScheduler(**LINEAR, **settings, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    with noise_of(scheduling_ddpm, noises):
        theirs = scheduled(scheduler, network, start)
    ours = trajectory(
        ddpm_sample,
        network,
        GaussianDiffusion(DIT),
        start,
        num_inference_steps=STEPS,
        step_noise=lambda step: noises[step],
    )
    recorded = list(case["out.p_sample_loop.steps"][:, :2])
    told = "learned_range, linspace, 10 steps"
    yield Row(name, told, "recorded", deviation(theirs, recorded))
    yield Row("ditzoo `ddpm`", "10 steps", "recorded", deviation(ours, recorded))
    default = DDPMScheduler(**LINEAR, clip_sample=False)
    default.set_timesteps(STEPS)
    with noise_of(scheduling_ddpm, noises):
        shortened = scheduled(default, lambda x, t: network(x, t)[:, :4], start)
    yield Row(name, "its defaults (fixed_small, leading), 10 steps", "recorded", deviation(shortened, recorded))
    # The logarithm of the variance at t = 0, which no sample sees and every likelihood.
    said = torch.full((1, 4, 2, 2), 0.3)
    log_variance = scheduler._get_variance(torch.tensor(0), predicted_variance=said)
    step = GaussianDiffusion(DIT).reverse_step(
        torch.zeros_like(said), torch.cat([said, said], dim=1), torch.zeros(1, dtype=torch.int64)
    )
    yield Row(name, "log-variance at t = 0", "ditzoo", deviation([log_variance], [step.log_variance]))


def ddim_rows() -> Iterator[Row]:
    from diffusers import DDIMScheduler

    case = process_case("diffusion_dit")
    full, start = dit_network(case), case["in.loop_x_T"][:2]
    process = GaussianDiffusion(DIT)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return full(x, t)[:, :4]

    def build(spacing: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        scheduler = DDIMScheduler(**LINEAR, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing)
        scheduler.set_timesteps(STEPS)
        return scheduled(scheduler, network, start.to(dtype))

    recorded = list(case["out.ddim_eta0.steps"][:, :2])
    yield Row("DDIMScheduler", "linspace, 10 steps", "recorded", deviation(build("linspace"), recorded))
    ours = trajectory(ddim_sample, network, process, start, num_inference_steps=STEPS)
    yield Row("ditzoo `ddim`", "10 steps", "recorded", deviation(ours, recorded))
    times = [*range(900, -1, -100), -1]
    same = trajectory(ddim_sample, network, process, start, times=times)
    yield Row("DDIMScheduler", "leading, 10 steps", "ditzoo `ddim` at its timesteps", deviation(build("leading"), same))
    # The network in float32, the sampler in float64: what the scheduler's tables lose.
    full = float64_inside(full)
    exact = trajectory(ddim_sample, network, process, start.double(), times=times)
    theirs = build("leading", torch.float64)
    yield Row("DDIMScheduler", "leading, 10 steps, float64", "ditzoo `ddim` in float64", deviation(theirs, exact))


def float64_inside(network: Network) -> Network:
    """The same network on float64 samples."""
    return lambda x, t: network(x.float(), t).double()


def dpm_rows() -> Iterator[Row]:
    from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler

    case = process_case("diffusion_uvit")
    told, start = uvit_network(case), case["in.z_init"]
    process = GaussianDiffusion(Recipe(prediction="epsilon", schedule="scaled_linear", time_offset=1.0))

    def network(x: Tensor, t: Tensor) -> Tensor:  # the schedulers count from 0
        return told(x, torch.as_tensor(t) + 1)

    single = DPMSolverSinglestepScheduler(
        **SCALED, solver_order=3, lower_order_final=True, final_sigmas_type="sigma_min"
    )
    single.set_timesteps(STEPS)
    recorded = [case["out.dpm10.sample"]]
    theirs = [scheduled(single, network, start)[-1]]
    yield Row("DPMSolverSinglestepScheduler", "order 3, 10 steps", "recorded", deviation(theirs, recorded))
    ours = trajectory(dpmpp_3s_sample, told, process, start, num_inference_steps=STEPS)
    yield Row("ditzoo `dpmpp_3s`", "10 steps", "recorded", deviation(ours[-1:], recorded))

    multi = DPMSolverMultistepScheduler(**SCALED, solver_order=2, timestep_spacing="linspace", final_sigmas_type="zero")
    multi.set_timesteps(20)
    times = [*map(float, multi.timesteps), -1.0]
    theirs = scheduled(multi, network, start)
    ours = trajectory(dpmpp_2m_sample, told, process, start, times=times, lower_order=False)
    name, settings = "DPMSolverMultistepScheduler", "order 2, linspace, 20 steps"
    yield Row(name, settings, "ditzoo `dpmpp_2m` at its timesteps", deviation(theirs, ours))
    asked = [999 - i * 999 / 20 for i in range(20)]
    even = trajectory(dpmpp_2m_sample, told, process, start, times=[*asked, -1.0], lower_order=False)
    yield Row(name, settings, "ditzoo `dpmpp_2m`, timesteps not rounded", deviation(theirs[-1:], even[-1:]))

    unipc = UniPCMultistepScheduler(
        **SCALED, solver_order=2, solver_type="bh2", timestep_spacing="linspace", final_sigmas_type="zero"
    )
    unipc.set_timesteps(20)
    times = [*map(float, unipc.timesteps), -1.0]
    ours = trajectory(unipc_sample, told, process, start, times=times, lower_order=False)
    theirs = scheduled(unipc, network, start)
    settings = "order 2, bh2, linspace, 20 steps"
    yield Row("UniPCMultistepScheduler", settings, "ditzoo `unipc` at its timesteps", deviation(theirs, ours))


def flow_rows() -> Iterator[Row]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    case = process_case("sit_transport")
    network, start = dit_network(case), case["in.loop_z"][:2]
    recorded = list(case["out.ode_euler_num_steps11.trajectory"][1:, :2])
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)

    def backwards(x: Tensor, t: Tensor) -> Tensor:  # its time is noise's share, times 1000
        return -network(x, 1 - torch.as_tensor(t) / 1000)

    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS).tolist())
    name, theirs = "FlowMatchEulerDiscreteScheduler", scheduled(scheduler, backwards, start)
    yield Row(name, "sigmas 1 to 0.1, 10 steps", "recorded", deviation(theirs, recorded))
    scheduler.set_timesteps(STEPS)
    yield Row(name, "its own sigmas, 10 steps", "recorded", deviation(scheduled(scheduler, backwards, start), recorded))
    ours = trajectory(euler_sample, network, FlowMatching(), start, num_inference_steps=STEPS)
    yield Row("ditzoo `euler`", "10 steps", "recorded", deviation(ours, recorded))


def edm_rows() -> Iterator[Row]:
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

    process = EDM()
    best = mixture.denoiser(process)

    def network(x: Tensor, t: Tensor) -> Tensor:
        told = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        return best(x.double(), told, None).to(x.dtype)

    start = process.initial_sample(mixture.gaussian(64)).float()
    levels: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras"}
    euler = EDMEulerScheduler(**levels)
    euler.set_timesteps(18)
    theirs = scheduled(euler, network, start)
    ours = trajectory(euler_sample, network, process, start, num_inference_steps=18)
    yield Row("EDMEulerScheduler", "karras, 18 steps", "ditzoo `euler` (edm)", deviation(theirs, ours))
    multi = EDMDPMSolverMultistepScheduler(**levels, solver_order=2, final_sigmas_type="zero")
    multi.set_timesteps(18)
    theirs = scheduled(multi, network, start)
    ours = trajectory(dpmpp_2m_sample, network, process, start, num_inference_steps=18, lower_order=False)
    name = "EDMDPMSolverMultistepScheduler"
    yield Row(name, "order 2, karras, 18 steps", "ditzoo `dpmpp_2m` (edm)", deviation(theirs, ours))


def compare() -> list[Row]:
    """All comparisons, in the order of the table."""
    return [row for rows in (ddpm_rows, ddim_rows, dpm_rows, flow_rows, edm_rows) for row in rows()]


def table(rows: list[Row]) -> str:
    """As `benchmarks/README.md` shows it."""
    lines = ["| scheduler | settings | compared with | largest deviation |", "| --- | --- | --- | ---: |"]
    lines += [
        f"| {row.scheduler if row.scheduler.startswith('ditzoo') else f'`{row.scheduler}`'} | {row.settings} | "
        f"{row.compared_with} | {row.deviation:.1e} |"
        for row in rows
    ]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of what was compared."""
    return {name: metadata.version(name) for name in ("ditzoo", "diffusers", "torch", "numpy")}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where to write rows.")
def main(out: Path) -> None:
    """Compare, print the table and write it."""
    rows = compare()
    click.echo(table(rows))
    content = {"versions": versions(), "rows": [asdict(row) for row in rows]}
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
