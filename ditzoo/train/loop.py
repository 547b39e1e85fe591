"""The training loop, on one page."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ditzoo.diffusion import TrainingDraws, draw_training, make_process, training_loss
from ditzoo.diffusion.draws import epoch_order, step_uniform
from ditzoo.layers import TokenMask, random_token_mask
from ditzoo.models import DiffusionTransformer, EvaluationResult, ModelDetails
from ditzoo.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What does not outlive training; what does is the `Recipe`'s.

    Raises:
        ValueError: for a value outside its range.
    """

    num_images: int
    """images seen in all, repeats included; the last batch may be smaller"""
    batch_size: int = 32
    learning_rate: float = 1e-3
    """peak of AdamW's learning rate, which warms up linearly and then falls to zero along a cosine"""
    warmup_images: int = 1_000
    betas: tuple[float, float] = (0.9, 0.99)
    """decay of AdamW's averages of the gradient and of its square"""
    weight_decay: float = 0.0
    ema_decay: float = 0.995
    """decay of the moving average of the weights, a step"""
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}.")


@dataclass(frozen=True)
class TrainResult:
    """A trained model.

    Attributes:
        ema: a copy of the model with the averaged weights, in eval mode.
        losses: mean loss of each step.
        seconds: time the loop took.
    """

    ema: DiffusionTransformer
    losses: list[float]
    seconds: float


def train(
    model: DiffusionTransformer,
    images: Tensor,
    labels: Tensor | None,
    recipe: Recipe,
    options: TrainOptions,
    *,
    callback: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train `model` in place on a data set held in memory.

    The batches, times, noise, dropped labels and masks depend on the seed and on the running number of each sample
    alone. Trains on the device that the model is on.

    Both the model and its average get the recipe and the loss into their `details`, which saving and pushing keep; the
    data and the command are yours to add.

    Args:
        model: any of the zoo.
        images: (N, C, H, W) float in [-1, 1], or latents.
        labels: (N,) int64; None for an unconditional model.
        recipe: what is predicted, under which noise schedule, with MDT's masked pass or without.
        options: length, optimiser and seed.
        callback: called after each step with the number of images seen.

    Raises:
        FloatingPointError: at the first loss that is not finite, naming step and loss.
        ValueError: if the recipe masks tokens and the model takes no masks, or tells times that the model does not
            embed; if there are no images, or not as many labels as images.
    """
    if len(images) == 0:
        raise ValueError("there are no images to train on: images is empty.")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images; give one label an image.")
    if recipe.mask_ratio is not None and not model.supports_masking:
        raise ValueError(
            f"the recipe masks tokens (mask_ratio={recipe.mask_ratio}) but {type(model).__name__} takes no masks; "
            "use a recipe with mask_ratio=None."
        )
    model.check_recipe(recipe)
    process = make_process(recipe)
    ema = copy.deepcopy(model).eval()
    # Lists, because to walk a tree of modules in every step takes a tenth of a tiny model's time.
    weights, averages = list(model.parameters()), list(ema.parameters())
    update_averages = get_ema_multi_avg_fn(options.ema_decay)
    optimizer = torch.optim.AdamW(
        [weight for weight in weights if weight.requires_grad],
        lr=options.learning_rate,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=True,
    )
    losses: list[Tensor] = []
    model.train()
    start, seen, step = time.perf_counter(), 0, 0
    while seen < options.num_images:
        # Data: the next batch of the shuffled epoch.
        samples = range(seen, min(seen + options.batch_size, options.num_images))
        chosen = _shuffled(samples, len(images), options.seed)
        x0 = images[chosen].to(model.device)
        y = None if labels is None else labels[chosen].to(model.device)

        # Draws: everything random in this step.
        passes = draw_training(
            options.seed,
            samples,
            x0.shape[1:],
            num_timesteps=process.num_timesteps,
            num_tokens=0 if recipe.mask_ratio is None else model.num_tokens(*x0.shape[2:]),
            num_passes=1 if recipe.mask_ratio is None else 2,
        )
        mask = _draw_mask(recipe, passes[-1], options.seed, step)
        mask = None if mask is None else TokenMask(*(part.to(model.device) for part in mask))

        # Forward, backward.
        loss = training_loss(
            model,
            process,
            x0,
            y,
            passes,
            null_label=model.null_label,
            class_dropout_prob=model.class_dropout_prob,
            mask=mask,
        )
        losses.append(loss.detach())
        if not torch.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the loss became {losses[-1].item()} at step {step + 1} ({samples.stop} images seen); lower "
                f"learning_rate ({options.learning_rate})."
            )
        loss.backward()

        # Update.
        torch.nn.utils.clip_grad_norm_(weights, options.max_grad_norm)
        rate = options.learning_rate * _learning_rate_factor(seen, options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            ema.load_state_dict(model.state_dict())  # the average starts at the first trained weights
        else:
            update_averages(averages, weights, step)

        # Report.
        seen, step = samples.stop, step + 1
        if callback is not None:
            callback(seen)
    result = TrainResult(ema, torch.stack(losses).tolist(), time.perf_counter() - start)
    details = _details(model.details, options, result.losses)
    # A licence and a source that the recipe does not name are those of the weights that training began with.
    recipe = replace(
        recipe, licence=recipe.licence or details.licence, source=recipe.source or details.source, weights="raw"
    )
    model.details = replace(details, recipe=recipe)
    ema.details = replace(details, recipe=replace(recipe, weights="ema"))
    return result


def _details(before: ModelDetails, options: TrainOptions, losses: list[float]) -> ModelDetails:
    """Those from before training, without what was measured of the earlier weights, or said of how they were made."""
    last = losses[-50:]
    loss = EvaluationResult(
        metric="training loss",
        value=math.fsum(last) / len(last),
        dataset="the training data",
        settings=f"mean of the last {len(last)} steps; {options.num_images:,} images seen in batches of "
        f"{options.batch_size}, seed {options.seed}",
        source="ditzoo.train",
    )
    return replace(before, data=None, training_command=None, results=(loss,))


def _shuffled(samples: range, num_images: int, seed: int) -> Tensor:
    """Which images the running numbers `samples` stand for: each epoch is a shuffle of its own."""
    epochs = {number // num_images for number in samples}
    orders = {epoch: epoch_order(seed, epoch, num_images) for epoch in epochs}
    return torch.stack([orders[number // num_images][number % num_images] for number in samples])


def _draw_mask(recipe: Recipe, draws: TrainingDraws, seed: int, step: int) -> TokenMask | None:
    if recipe.mask_ratio is None:
        return None
    ratio: float | Tensor = recipe.mask_ratio
    if recipe.mask_ratio_spread:
        ratio = recipe.mask_ratio + recipe.mask_ratio_spread * step_uniform(seed, step)
    noise = draws.token_noise
    return random_token_mask(noise.shape[0], noise.shape[1], ratio, noise=noise)


def _learning_rate_factor(seen: int, options: TrainOptions) -> float:
    """From 0 to 1 along the warm-up, then down to 0 along a half cosine."""
    if seen < options.warmup_images:
        return (seen + options.batch_size) / (options.warmup_images + options.batch_size)
    rest = max(1, options.num_images - options.warmup_images)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (seen - options.warmup_images) / rest)))
