"""The training loop, on one page: `Training.steps`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ditzoo.data.loader import Batch, batches, next_step_end
from ditzoo.data.source import Source, TensorSource
from ditzoo.diffusion import TrainingDraws, draw_training, make_process, training_terms
from ditzoo.diffusion.draws import step_uniform
from ditzoo.layers import TokenMask, random_token_mask
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe
from ditzoo.train.averages import Averages
from ditzoo.train.card import trained_details
from ditzoo.train.devices import Devices, make_devices
from ditzoo.train.guards import non_finite_report
from ditzoo.train.optimizers import make_optimizer
from ditzoo.train.options import TrainOptions
from ditzoo.train.precision import keep_norms_in_float32
from ditzoo.train.state import full_tensor


class Step(NamedTuple):
    """What happened in a step of all processes.

    Attributes:
        number: of the step, from 1.
        seen: images seen, those of the step included.
        terms: the loss and what it is made of, averaged over the batch; see `ditzoo.diffusion.training_terms`.
        learning_rate: of the step.
        grad_norm: of the gradients before they were clipped.
        updated: False where the step was left out: its loss or gradients were not finite.
        unreadable: what could not be read, one message a file.
    """

    number: int
    seen: int
    terms: dict[str, float]
    learning_rate: float
    grad_norm: float
    updated: bool
    unreadable: tuple[str, ...]


class NetworkWithLoss(nn.Module):
    """A model and its recipe's loss in one forward, since processes synchronise at the ends of a forward."""

    def __init__(self, model: DiffusionTransformer, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.process = model, make_process(recipe)

    def forward(
        self, x0: Tensor, y: Tensor | None, passes: list[TrainingDraws], mask: TokenMask | None
    ) -> dict[str, Tensor]:
        """The terms of the loss of a batch x0 (B, C, H, W) with labels y (B,)."""
        return training_terms(
            self.model,
            self.process,
            x0,
            y,
            passes,
            null_label=self.model.null_label,
            class_dropout_prob=self.model.class_dropout_prob,
            mask=mask,
        )


class Training:
    """A model in training: its weights, their averages, the optimiser, and how far it is.

    The batches, times, noise, dropped labels and masks depend on the seed and on the running number of each sample
    alone, so that nothing else is needed to go on, with any number of processes.

    Args:
        model: trained in place; moved to the device.
        recipe: what is predicted, under which noise schedule, with MDT's masked pass or without.
        options: length, optimiser, precision and seed.
        devices: of this process.

    Raises:
        ValueError: if the recipe masks tokens and the model takes no masks, or tells times that the model does not
            embed; for options out of range.

    Attributes:
        step, seen: steps made and images seen.
        weights: name -> parameter; shards of them under FSDP.
    """

    def __init__(self, model: DiffusionTransformer, recipe: Recipe, options: TrainOptions, devices: Devices) -> None:
        if recipe.mask_ratio is not None and not model.supports_masking:
            raise ValueError(
                f"the recipe masks tokens (mask_ratio={recipe.mask_ratio}) but {type(model).__name__} takes no masks; "
                "use a recipe with mask_ratio=None."
            )
        model.check_recipe(recipe)
        self.model, self.recipe, self.options, self.devices = model, recipe, options, devices
        self.step = self.seen = 0
        self._averaged = copy.deepcopy(model).eval()
        model.set_grad_checkpointing(options.grad_checkpointing)
        if options.precision != "float32":
            keep_norms_in_float32(model)
        if options.compile:
            for name in model.block_names():
                model.get_submodule(name).compile()
        network = NetworkWithLoss(model, recipe)
        self.process = network.process
        self.network = devices.prepare(network, model, masked=recipe.mask_ratio is not None)
        self.weights = dict(model.named_parameters())
        self.optimizer = make_optimizer(model, options)
        self.averages = Averages(self.weights, options)
        #: for reports of what went wrong
        self.newest_checkpoint: Path | None = None

    def steps(self, source: Source, *, num_workers: int = 0) -> Generator[Step, None, None]:
        """Train, from where training is, to the number of images of the options. Closing it ends what reads the data.

        Args:
            source: of images or latents.
            num_workers: processes that read data; 0 reads in between.

        Raises:
            FloatingPointError: at the first loss or gradient that is not finite, where the options say to stop.
            OSError, ValueError: where too much of the data cannot be read.
        """
        options, devices, weights = self.options, self.devices, list(self.weights.values())
        micro_batches = batches(
            source,
            seed=options.seed,
            batch_size=options.batch_size,
            start=self.seen,
            stop=options.num_images,
            rank=devices.rank,
            world=devices.world,
            accumulation=options.accumulation,
            num_workers=num_workers,
            pin_memory=devices.device.type == "cuda",
        )
        self.network.train()
        with closing(micro_batches):
            while self.seen < options.num_images:
                end = next_step_end(self.seen, options.num_images, options.batch_size)

                # Forward and backward, one micro-batch after the other.
                found: list[dict[str, Tensor]] = []
                unreadable: list[str] = []
                for place in range(options.accumulation):
                    batch = next(micro_batches)
                    found.append(self._accumulate(batch, is_last=place == options.accumulation - 1))
                    unreadable += batch.unreadable

                # What all processes found: the loss, its terms, the norm of the gradients.
                names = list(found[0])
                grad_norm = devices.gradient_norm(self.optimizer, weights)
                means = torch.stack([torch.stack([terms[name] for terms in found]).mean() for name in names])
                values = devices.mean(torch.cat([means, grad_norm[None]])).tolist()
                terms, norm = dict(zip(names, values, strict=False)), values[-1]
                rate = options.learning_rate_at(self.seen)

                # Update, unless a value is not finite.
                if self._is_finite(terms, norm, rate, end):
                    devices.clip_gradients(weights, grad_norm, options.max_grad_norm)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                    updated = devices.step(self.optimizer)
                    self.averages.update(step=self.step, seen=end, batch_size=end - self.seen)
                else:  # nor averages, which one infinite weight would spoil for good
                    devices.skip(self.optimizer)
                    updated = False
                self.seen, self.step = end, self.step + 1
                yield Step(self.step, self.seen, terms, rate, norm, updated, tuple(unreadable))
                if not self.network.training:  # who looked at samples in between
                    self.network.train()

    def _accumulate(self, batch: Batch, *, is_last: bool) -> dict[str, Tensor]:
        """Add a micro-batch's gradients; its terms, without gradients."""
        devices, recipe, seed = self.devices, self.recipe, self.options.seed
        x0 = batch.x.to(devices.device, non_blocking=True)
        y = None if batch.y is None or not self.model.num_classes else batch.y.to(devices.device, non_blocking=True)
        is_masked = recipe.mask_ratio is not None

        # Everything random in this micro-batch.
        passes = draw_training(
            seed,
            batch.numbers,
            x0.shape[1:],
            num_timesteps=self.process.drawn_timesteps,
            num_tokens=self.model.num_tokens(*x0.shape[2:]) if is_masked else 0,
            num_passes=2 if is_masked else 1,
        )
        mask = _draw_mask(recipe, passes[-1], seed, self.step)
        mask = None if mask is None else TokenMask(*(part.to(devices.device) for part in mask))

        with nullcontext() if is_last else devices.no_sync(self.network):
            with devices.autocast():
                terms = self.network(x0, y, passes, mask)
            loss = terms["loss"]
            devices.backward(loss if self.options.accumulation == 1 else loss / self.options.accumulation)
        return {name: value.detach() for name, value in terms.items()}

    def _is_finite(self, terms: dict[str, float], grad_norm: float, rate: float, end: int) -> bool:
        """Whether the step can be made.

        Raises:
            FloatingPointError: where it cannot, and the options say to stop.
        """
        # Float16's gradients overflow now and then: the scaler leaves such a step out and scales less.
        if all(map(math.isfinite, terms.values())) and (math.isfinite(grad_norm) or self.devices.may_overflow):
            return True
        if self.options.on_non_finite == "stop":
            raise FloatingPointError(
                non_finite_report(
                    self.model,
                    step=self.step + 1,
                    seen=end,
                    terms=terms,
                    learning_rate=rate,
                    newest_checkpoint=self.newest_checkpoint,
                )
            )
        return False

    @contextmanager
    def averaged_model(self) -> Iterator[DiffusionTransformer]:
        """The model with the averaged weights, whole, in evaluation mode; all processes must ask at the same point.

        Its memory is that of the averages. Where they are sharded, it is on the CPU, where it takes no room from
        training.
        """
        averages, sharded = self.averages.tensors["ema"], self.devices.fsdp
        whole = {
            name: full_tensor(average).to("cpu" if sharded else average.device) for name, average in averages.items()
        }
        self._averaged.load_state_dict(whole, strict=False, assign=True)
        # After a resume, those of the checkpoint: what the model was made from may have changed since.
        frozen = {name: full_tensor(weight) for name, weight in self.weights.items() if name not in averages}
        self._averaged.load_state_dict(frozen, strict=False)
        try:
            yield self._averaged.eval()
        finally:
            if self.devices.fsdp:
                self._averaged.to("cpu")  # whoever drew from it had it on the device


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
    """Train `model` in place on a data set held in memory. `ditzoo.train.run` does it with checkpoints, from files.

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
        FloatingPointError: at the first loss or gradient that is not finite, naming step and loss.
        ValueError: if the recipe masks tokens and the model takes no masks, or tells times that the model does not
            embed; if there are no images, not as many labels as images, or more classes than the model has.
    """
    source = TensorSource(images, labels)
    if 0 < model.num_classes < source.num_classes:
        raise ValueError(
            f"labels go up to {source.num_classes - 1} and the model has {model.num_classes} classes: create it with "
            f"num_classes={source.num_classes}, or with 0 to train without labels."
        )
    training = Training(model, recipe, options, make_devices(options, model.device))
    losses: list[float] = []
    start = time.perf_counter()
    for step in training.steps(source):
        losses.append(step.terms["loss"])
        if callback is not None:
            callback(step.seen)
    seconds = time.perf_counter() - start
    before = model.details
    model.details = trained_details(before, recipe=replace(recipe, weights="raw"), options=options, losses=losses)
    with training.averaged_model() as ema:
        ema.details = trained_details(before, recipe=replace(recipe, weights="ema"), options=options, losses=losses)
        return TrainResult(ema, losses, seconds)


def _draw_mask(recipe: Recipe, draws: TrainingDraws, seed: int, step: int) -> TokenMask | None:
    if recipe.mask_ratio is None:
        return None
    ratio: float | Tensor = recipe.mask_ratio
    if recipe.mask_ratio_spread:  # one ratio a step for all processes
        ratio = recipe.mask_ratio + recipe.mask_ratio_spread * step_uniform(seed, step)
    noise = draws.token_noise
    return random_token_mask(noise.shape[0], noise.shape[1], ratio, noise=noise)
