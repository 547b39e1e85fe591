"""Size, speed and memory of models, as values for result rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.bench.results import Value
from ditzoo.bench.suites import QuickSuite
from ditzoo.diffusion import draw_training, make_process, training_loss
from ditzoo.layers import random_token_mask
from ditzoo.metrics import Roof, Timing, count_macs, peak_memory, square_product, time_interleaved
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe


def new_model(name: str, seed: int, device: str) -> DiffusionTransformer:
    """A fresh model whose weights depend on name and seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.create(name).to(device)


def measure_size(name: str) -> dict[str, Value]:
    """Parameters and multiply-adds."""
    macs = count_macs(name)
    return {
        "num_params": Value(registry.model_info(name).num_params, "parameters"),
        "gmacs": Value(macs.gmacs, "GMACs a forward pass of one image"),
        "gflops": Value(macs.gflops, "GFLOPs a forward pass of one image (2 x GMACs)"),
    }


def measure_speed(
    recipes: Mapping[str, Recipe],
    suite: QuickSuite,
    device: str,
    callback: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Value]]:
    """Forward and training throughput of all models, and the roof of the machine, in one interleaved run.

    Args:
        recipes: model name -> recipe it trains with.
        suite: batch sizes, rounds and length of measurements.
        device: where to run.
        callback: called with measurements done and measurements in all.
    """
    functions: dict[str, Callable[[], object]] = {}
    for name, recipe in recipes.items():
        model = new_model(name, 0, device)
        functions[f"train {name}"] = training_step(model, recipe, suite.train.batch_size)
        functions[f"forward {name}"] = forward_pass(new_model(name, 0, device), suite.forward_batch_size)
    roof_size = 1024 if device == "cpu" else 8192
    functions["roof"] = square_product(device, size=roof_size)
    timings = time_interleaved(
        functions, rounds=suite.speed_rounds, min_seconds=suite.speed_seconds, device=device, callback=callback
    )
    roof = Roof(device, "float32", roof_size, timings["roof"])
    return {
        name: {
            "forward_throughput": _throughput(timings[f"forward {name}"], suite.forward_batch_size),
            "train_throughput": _throughput(timings[f"train {name}"], suite.train.batch_size),
            "roof": Value(roof.gmacs_per_second, f"GMACs/s of a float32 product of {roof_size}x{roof_size} matrices"),
        }
        for name in recipes
    }


def _throughput(timing: Timing, batch_size: int) -> Value:
    return Value(batch_size / timing.median, "images/s", low=batch_size / timing.high, high=batch_size / timing.low)


def measure_memory(name: str, recipe: Recipe, suite: QuickSuite, device: str) -> dict[str, Value]:
    """Most memory that tensors hold at once, weights included."""

    def forward() -> None:
        forward_pass(new_model(name, 0, device), suite.forward_batch_size)()

    def training() -> None:
        step = training_step(new_model(name, 0, device), recipe, suite.train.batch_size)
        step()
        step()  # the optimiser's state exists from the second step on

    unit = "bytes held by tensors at once, weights included"
    return {
        "forward_peak_memory": Value(peak_memory(forward, device=device), unit),
        "train_peak_memory": Value(peak_memory(training, device=device), unit),
    }


def forward_pass(model: DiffusionTransformer, batch_size: int) -> Callable[[], Tensor]:
    """A function that runs the model once on a batch, without gradients."""
    model.eval()
    x, t, y = _random_batch(model, batch_size)

    @torch.inference_mode()
    def forward() -> Tensor:
        return model(x, t, y)

    return forward


def training_step(model: DiffusionTransformer, recipe: Recipe, batch_size: int) -> Callable[[], None]:
    """A function that makes one training step of the recipe: where it masks tokens, that is two passes."""
    x, _, y = _random_batch(model, batch_size)
    process = make_process(recipe)
    passes = draw_training(
        0,
        range(batch_size),
        x.shape[1:],
        num_timesteps=process.num_timesteps,
        num_tokens=model.num_tokens(),
        num_passes=1 if recipe.mask_ratio is None else 2,
    )
    mask = None
    if recipe.mask_ratio is not None:
        # MDTv2 draws its ratio each step; the middle of the range stands for all.
        ratio = recipe.mask_ratio + recipe.mask_ratio_spread / 2
        mask = random_token_mask(batch_size, model.num_tokens(), ratio, noise=passes[1].token_noise.to(model.device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        training_loss(model, process, x, y, passes, mask=mask).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _random_batch(model: DiffusionTransformer, batch_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, model.in_channels, model.input_size, model.input_size, generator=generator)
    t = torch.randint(1000, (batch_size,), generator=generator)
    y = torch.randint(model.num_classes, (batch_size,), generator=generator) if model.num_classes else None
    return x.to(model.device), t.to(model.device), None if y is None else y.to(model.device)
