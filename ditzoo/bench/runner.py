"""Run the quick suite: train, sample and judge each model, and keep every finished row on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.bench.measure import measure_memory, measure_size, measure_speed, new_model
from ditzoo.bench.results import ResultRow, Value, provenance, read_rows, write_atomically, write_row
from ditzoo.bench.suites import QUICK, QuickSuite
from ditzoo.data import load_digits_split, to_uint8
from ditzoo.diffusion import GaussianDiffusion, ddim_sample, guide, sample_noise
from ditzoo.metrics import FeatureStatistics, FrechetDistance
from ditzoo.metrics.digits import DIGITS_EXTRACTOR, load_digits_classifier
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe
from ditzoo.train import train

RESULTS = "results.jsonl"
REAL, UNTRAINED = "real digits", "untrained"

#: (stage, done, total): called often; a stage ends with done == total
Progress = Callable[[str, int, int], None]


@dataclass
class QuickRun:
    """One run of the quick suite, finished or not; made by `prepare_quick`.

    Attributes:
        suite: its settings.
        models: registry names, in the order in which they run.
        device: where models run.
        out: the folder of results.
        origin: versions, commit and machine, the same for all rows made now.
        rows: finished rows by name: those found on disk and those made since.
        resumed: names of the rows that were found on disk.
        problems: complaints about damaged lines of an earlier results file.
    """

    suite: QuickSuite
    models: list[str]
    device: str
    out: Path
    origin: Mapping[str, Any]
    rows: dict[str, ResultRow] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """Of weights, training and sampling."""
        return self.suite.train.seed

    def samples_path(self, name: str) -> Path:
        """Where the samples of a row are kept."""
        return self.out / "samples" / f"{name.replace(' ', '_')}.npz"

    def load_samples(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, H, W, C) uint8 and labels (N,) of a finished row."""
        with np.load(self.samples_path(name)) as file:
            return file["arr_0"], file["labels"]


def prepare_quick(
    out: Path | str,
    *,
    models: Sequence[str] | None = None,
    num_images: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    suite: QuickSuite = QUICK,
) -> QuickRun:
    """Check every argument, make the folder, and pick up the rows that an earlier run has finished.

    Args:
        out: folder for results; made if it does not exist.
        models: registry names; the tiny model of every family where None.
        num_images: images that each model trains on, repeats included; the suite's number where None.
        seed: of weights, training and sampling.
        device: such as "cpu" or "cuda".
        suite: all other settings.

    Raises:
        ValueError: for an unknown model, one that is not made for digits, a number of images below 1 or a device
            that is not there.
        OSError: where `out` cannot be written; the message names it.
    """
    options = replace(suite.train, seed=seed, num_images=suite.train.num_images if num_images is None else num_images)
    suite = replace(suite, train=options)
    names = suite.default_models() if models is None else list(dict.fromkeys(models))
    if not names:
        raise ValueError(f"no models to run; name some of {', '.join(suite.default_models())}.")
    suite.check_models(names)
    _check_device(device)
    run = QuickRun(suite, names, device, Path(out), provenance(device))
    _make_folder(run.out)
    rows, run.problems = read_rows(run.out / RESULTS)
    found = {row.identity(): row for row in rows}
    for name in (REAL, UNTRAINED, *names):
        row = found.get(_blank_row(run, name).identity())
        if row is not None and run.samples_path(name).exists():
            run.rows[name] = row
            run.resumed.append(name)
    return run


def run_quick(run: QuickRun, progress: Progress = lambda stage, done, total: None) -> None:
    """Do what is not done yet. May be interrupted at any moment: prepare the same run again, and it goes on.

    Every model trains on the same number of images in the same order with the same draws, and is sampled with its
    averaged weights from the same noise at the same guidance scale.
    """
    judge = _Judge(run.suite.num_samples)
    if REAL not in run.rows:
        images, labels = judge.real_images()
        _finish(run, REAL, images, labels, {}, judge)
    if UNTRAINED not in run.rows:
        model = new_model(run.models[0], run.seed, run.device)
        images, labels = sample_digits(run, model, run.suite.recipe_for(model), f"sample {UNTRAINED}", progress)
        _finish(run, UNTRAINED, images, labels, {}, judge)
    models = {name: new_model(name, run.seed, run.device) for name in run.models if name not in run.rows}
    recipes = {name: run.suite.recipe_for(model) for name, model in models.items()}
    speeds = {}
    if recipes:
        speeds = measure_speed(
            recipes, run.suite, run.device, lambda done, total: progress("measure speed", done, total)
        )
    for name, model in models.items():
        values = {
            **measure_size(name),
            **speeds[name],
            **measure_memory(name, recipes[name], run.suite, run.device),
        }
        images, labels, training = _train_and_sample(run, name, model, recipes[name], progress)
        _finish(run, name, images, labels, {**values, **training}, judge)


def _train_and_sample(
    run: QuickRun, name: str, model: DiffusionTransformer, recipe: Recipe, progress: Progress
) -> tuple[Tensor, Tensor, dict[str, Value]]:
    """Samples of the trained model, their labels, and what training has to tell."""
    digits = load_digits_split("train")
    total = run.suite.train.num_images
    trained = train(
        model,
        digits.images,
        digits.labels,
        recipe,
        run.suite.train,
        callback=lambda seen: progress(f"train {name}", seen, total),
    )
    images, labels = sample_digits(run, trained.ema, recipe, f"sample {name}", progress)
    values = {
        "training_time": Value(trained.seconds, "s"),
        "final_loss": Value(float(np.mean(trained.losses[-50:])), "squared error a pixel, summed over passes"),
    }
    return images, labels, values


@torch.inference_mode()
def sample_digits(
    run: QuickRun, model: DiffusionTransformer, recipe: Recipe, stage: str, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Guided samples (N, C, H, W) in [-1, 1] and their labels, as many of each class, on the CPU."""
    model.eval()
    process = GaussianDiffusion(recipe)
    guided = guide(model, recipe.guidance, model.null_label, num_train_timesteps=recipe.num_train_timesteps)
    shape = (model.in_channels, model.input_size, model.input_size)
    count, steps = run.suite.num_samples, recipe.num_inference_steps
    labels = torch.arange(count) % model.num_classes
    batches = []
    for start in range(0, count, run.suite.sample_batch_size):
        chosen = range(start, min(start + run.suite.sample_batch_size, count))

        def report(step: int, chosen: range = chosen) -> None:
            progress(stage, chosen.start * steps + step * len(chosen), count * steps)

        noise = sample_noise(run.seed, chosen, shape).to(run.device)
        y = labels[chosen.start : chosen.stop].to(run.device)
        batches.append(ddim_sample(guided, process, noise, y, num_inference_steps=steps, callback=report))
    return torch.cat(batches).clamp(-1, 1).cpu(), labels


class _Judge:
    """Frechet distance and accuracy of images, by the digits classifier against the held-out digits."""

    def __init__(self, num_samples: int) -> None:
        self.classifier = load_digits_classifier()
        self.reference = self._statistics(load_digits_split("test").images)
        self.num_samples = num_samples

    def real_images(self) -> tuple[Tensor, Tensor]:
        """As many training images, and of each class, as a model's samples."""
        images, labels = load_digits_split("train")
        members = [(labels == label).nonzero().flatten()[: self.num_samples // 10] for label in range(10)]
        chosen = torch.stack(members, dim=1).flatten()  # labels 0, 1, ..., 9, 0, 1, ... like the samples
        return images[chosen], labels[chosen]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[FrechetDistance, float]:
        distance = FrechetDistance.between(self._statistics(images), self.reference, name="held-out digits")
        accuracy = (self.classifier(images).argmax(1) == labels).double().mean().item()
        return distance, accuracy

    def _statistics(self, images: Tensor) -> FeatureStatistics:
        return FeatureStatistics.from_features(self.classifier.features(images), extractor=DIGITS_EXTRACTOR)


def _blank_row(run: QuickRun, name: str) -> ResultRow:
    """The row without its values: what will be measured, how, with what and where."""
    is_model = name not in (REAL, UNTRAINED)
    with torch.device("meta"):
        model = registry.create(name if is_model else run.models[0])
    settings = {
        "train": asdict(run.suite.train),
        "num_samples": run.suite.num_samples,
        "sample_batch_size": run.suite.sample_batch_size,
        "forward_batch_size": run.suite.forward_batch_size,
        "speed_rounds": run.suite.speed_rounds,
        "speed_seconds": run.suite.speed_seconds,
    }
    return ResultRow(
        suite=run.suite.name,
        name=name,
        kind="model" if is_model else "reference",
        seed=run.seed,
        settings=settings,
        config={} if name == REAL else model.config,
        recipe={} if name == REAL else run.suite.recipe_for(model).to_dict(),
        **run.origin,
    )


def _finish(
    run: QuickRun, name: str, images: Tensor, labels: Tensor, values: Mapping[str, Value], judge: _Judge
) -> None:
    """Judge images, save them, and then the row: a row on disk has its samples beside it."""
    distance, accuracy = judge(images, labels)
    row = replace(
        _blank_row(run, name),
        frechet={
            "extractor": distance.extractor,
            "num_samples": distance.num_samples,
            "reference": distance.reference,
            "reference_samples": distance.reference_samples,
        },
        values={
            "frechet_distance": Value(distance.value, "squared feature units"),
            "accuracy": Value(accuracy, "share of samples classified as their label"),
            **values,
        },
    )
    buffer = io.BytesIO()
    pixels = to_uint8(images).permute(0, 2, 3, 1).numpy()  # (N, H, W, C)
    np.savez_compressed(buffer, arr_0=pixels, labels=labels.numpy(), recipe=json.dumps(row.recipe))
    write_atomically(run.samples_path(name), buffer.getvalue())
    write_row(run.out / RESULTS, row)
    run.rows[name] = row


def _make_folder(out: Path) -> None:
    try:
        (out / "samples").mkdir(parents=True, exist_ok=True)
        probe = out / "samples" / ".writable"
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {out} ({error.strerror or error}); give another folder with --out.") from error


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); cpu always can.") from error
