"""From noise to latents and pixels, batch by batch: what everything that samples goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from ditzoo.diffusion import (
    NonFiniteSampleError,
    SamplingStep,
    StepNoise,
    get_sampler,
    guide,
    make_process,
)
from ditzoo.diffusion.guidance import Denoiser
from ditzoo.diffusion.samplers import SAMPLERS
from ditzoo.models import DiffusionTransformer
from ditzoo.pipeline.progress import Report, progress_bar
from ditzoo.pipeline.samples import Samples, joined
from ditzoo.pipeline.settings import check_whole
from ditzoo.recipe import Recipe

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import Pipeline

Output = Literal["images", "latents"]
Frames = Literal["x0", "sample"]
#: (step, indices of the batch) -> None, or a tensor in the sample's place
StepCallback = Callable[[SamplingStep, Sequence[int]], object]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How samples are made, and what is kept of them; see `Pipeline.__call__`.

    Raises:
        ValueError: for a batch size below 1, or another output or frames than there are.
        TypeError: for a batch size that is no whole number.
    """

    batch_size: int = 64
    output: Output = "images"
    frames: Frames | None = None
    callback: StepCallback | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, least=1)
        for what, value, valid in (
            ("output", self.output, get_args(Output)),
            ("frames", self.frames, (None, *get_args(Frames))),
        ):
            if value not in valid:
                raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(map(str, valid))}.")


class NonFiniteImageError(FloatingPointError):
    """Decoding gave a value that is no finite number.

    Attributes:
        finished: the batches before, if any.
    """

    finished: Samples | None = None


class Batch(NamedTuple):
    """What is to be denoised together.

    Attributes:
        rows: places of its samples among all of the call.
        indices: their numbers.
        labels: (B,), or None.
        callback: called after each step, if any.
    """

    rows: slice
    indices: list[int]
    labels: Tensor | None
    callback: Callable[[SamplingStep], object] | None = None


class Denoised(NamedTuple):
    """A denoised batch.

    Attributes:
        latents: (B, C, H, W) float32 on the CPU.
        evaluations: calls of the network.
        rows: samples that went through it, and through the weaker model of autoguidance, all calls together.
    """

    latents: Tensor
    evaluations: int
    rows: int


def sample_in_batches(
    pipeline: Pipeline,
    settings: Recipe,
    labels: Tensor | None,
    indices: Sequence[int],
    seed: int,
    options: RunOptions,
    denoise_batch: Callable[[Batch], Denoised],
) -> Samples:
    """All samples of a call, each batch denoised by `denoise_batch` and decoded.

    Raises:
        NonFiniteSampleError: with the samples' numbers; `finished` has the batches before.
        NonFiniteImageError: likewise.
        OSError, ValueError: where images are asked for and the codec cannot be loaded, before anything is sampled.
    """
    if options.output == "images" or options.frames is not None:
        _ = pipeline.codec
    finished: list[Samples] = []

    def samples_of(rows: slice, report: Report) -> Samples:
        numbers, kept = list(indices[rows]), list[Tensor]()

        def on_step(step: SamplingStep) -> object:
            if options.frames is not None:
                kept.append((step.x0 if options.frames == "x0" else step.sample).cpu())
            report(rows.stop, len(numbers), step)
            return None if options.callback is None else options.callback(step, numbers)

        batch = Batch(rows, numbers, None if labels is None else labels[rows], on_step)
        try:
            run = denoise_batch(batch)
        except NonFiniteSampleError as error:
            raise _numbered(error, numbers, finished) from error
        try:
            pixels = pipeline.decode(run.latents, settings) if options.output == "images" else None
            frames = [pipeline.decode(frame, settings) for frame in kept]
        except NonFiniteImageError as error:
            error.finished = joined(finished) if finished else None
            raise
        return Samples(
            latents=run.latents,
            pixels=pixels,
            labels=batch.labels,
            seed=seed,
            indices=numbers,
            recipe=settings,
            evaluations=run.evaluations,
            forward_passes=run.rows / len(numbers),
            frames=frames,
            label_names=pipeline.label_names,
        )

    count = len(indices)
    with progress_bar(options.progress, count, settings.num_inference_steps) as report:
        for start in range(0, count, options.batch_size):
            finished.append(samples_of(slice(start, min(start + options.batch_size, count)), report))
    return joined(finished)


def _numbered(error: NonFiniteSampleError, indices: list[int], finished: list[Samples]) -> NonFiniteSampleError:
    numbers = [indices[row] for row in error.rows]
    numbered = NonFiniteSampleError(error.step, error.num_steps, numbers, numbered=True)
    numbered.finished = joined(finished) if finished else None
    return numbered


@torch.inference_mode()
def denoise(
    pipeline: Pipeline,
    settings: Recipe,
    batch: Batch,
    noise: Tensor,
    *,
    seed: int = 0,
    times: Sequence[float] | None = None,
    start: Tensor | None = None,
    mixture: tuple[Sequence[Tensor], Tensor] | None = None,
) -> Denoised:
    """One batch from noise to latents.

    Args:
        pipeline: its models.
        settings: a recipe.
        batch: numbers and labels of the samples, and the callback.
        noise: (B, C, H, W) standard normal.
        seed: of the noise that the sampler adds.
        times: of the process, instead of the recipe's number of steps.
        start: the sample at the first of these times, instead of noise.
        mixture: two tensors of labels (B,), and how much of the second's prediction each sample takes, (B,).
    """
    model, process = pipeline.model, make_process(settings)
    network, weak = _Network(model), None
    if settings.guidance.kind == "autoguidance" and pipeline.weak_model is not None:
        weak = _Network(pipeline.weak_model)
    guided = guide(
        network,
        settings.guidance,
        model.null_label,
        num_train_timesteps=settings.num_train_timesteps,
        process=process,
        weak_model=weak,
    )
    if mixture is not None:
        guided = _mixed(guided, *mixture)
    x = (process.initial_sample(noise.float()) if start is None else start).to(model.device)
    options: dict[str, Any] = {"num_inference_steps": settings.num_inference_steps, "callback": batch.callback}
    if times is not None:
        options["times"] = times
    if SAMPLERS[settings.sampler].takes_noise:
        options["step_noise"] = StepNoise(seed, batch.indices, x.shape[1:])
    y = None if batch.labels is None else batch.labels.to(model.device)
    latents = get_sampler(settings)(guided, process, x, y, **options)
    rows = network.rows + (0 if weak is None else weak.rows)
    return Denoised(latents.float().cpu(), network.calls, rows)


class _Network:
    """The model in its own precision, for samples in theirs; counts what goes through it."""

    def __init__(self, model: DiffusionTransformer) -> None:
        self.model = model
        self.calls = self.rows = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self.calls += 1
        self.rows += x.shape[0]
        return cast(Tensor, self.model(x.to(self.model.dtype), t, y)).to(x.dtype)


def _mixed(model: Denoiser, labels: Sequence[Tensor], weights: Tensor) -> Denoiser:
    """Predictions for two labels each, mixed."""

    def mixed(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        first, last = (model(x, t, ends.to(x.device)) for ends in labels)
        return torch.lerp(first, last, weights.to(x).view(-1, 1, 1, 1))

    return mixed
