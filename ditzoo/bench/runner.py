"""Run the quick suite: train, sample and judge each model, and keep every finished row on disk."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditzoo import registry
from ditzoo.bench.measure import measure_memory, measure_size, measure_speed, new_model
from ditzoo.bench.results import (
    ResultRow,
    Value,
    evaluation_results,
    now,
    provenance,
    read_rows,
    write_atomically,
    write_row,
)
from ditzoo.bench.suites import QUICK, QuickSuite
from ditzoo.bench.workers import Progress, one_thread, run_jobs
from ditzoo.data import load_digits_split, to_uint8
from ditzoo.diffusion import SamplingStep
from ditzoo.media import LabelNames
from ditzoo.metrics import FeatureStatistics, FrechetDistance
from ditzoo.metrics.digits import DIGITS_EXTRACTOR, load_digits_classifier
from ditzoo.models import DiffusionTransformer
from ditzoo.models.digits import DIGITS_DATA
from ditzoo.pipeline import Pipeline
from ditzoo.recipe import Recipe
from ditzoo.train import train
from ditzoo.weights.checks import checked_device
from ditzoo.weights.folders import read_config, rewrite_details

RESULTS = "results.jsonl"
REAL, UNTRAINED = "real digits", "untrained"


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

    def samples_path(self, row: ResultRow) -> Path:
        """Where the samples of a row are kept: rows of other settings in the same folder have files of their own."""
        return self.out / "samples" / f"{_file_stem(row)}.npz"

    def model_path(self, row: ResultRow) -> Path:
        """The folder of the model that a row measured, to be loaded, pushed or sampled from; likewise."""
        return self.out / "models" / _file_stem(row)

    def load_samples(self, row: ResultRow) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, H, W, C) uint8 and labels (N,) of a finished row."""
        with np.load(self.samples_path(row)) as file:
            return file["arr_0"], file["labels"]


def _file_stem(row: ResultRow) -> str:
    digest = hashlib.sha256(row.identity().encode()).hexdigest()[:8]
    return f"{row.name.replace(' ', '_')}-{digest}"


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
    device = _checked_device(device)
    run = QuickRun(suite, names, device, Path(out), provenance(device))
    _make_folder(run.out)
    rows, run.problems = read_rows(run.out / RESULTS)
    found = {row.identity(): row for row in rows}
    for name in (REAL, UNTRAINED, *names):
        row = found.get(_blank_row(run, name).identity())
        if row is None:
            continue
        if problem := _damage(run, row):
            run.problems.append(f"The finished row of {name} cannot be used ({problem}); it is measured again.")
            continue
        run.rows[name] = row
        run.resumed.append(name)
    return run


def _damage(run: QuickRun, row: ResultRow) -> str | None:
    """What keeps a row that was found on disk from being reported."""
    wanted = {"frechet_distance", "accuracy"}
    if row.kind == "model":
        wanted |= {
            "num_params",
            "gmacs",
            "train_peak_memory",
            "training_time",
            "forward_throughput",
            "train_throughput",
        }
    missing = wanted - set(row.values)
    missing |= {"extractor", "num_samples", "reference", "reference_samples"} - set(row.frechet)
    if missing:
        return f"it lacks {', '.join(sorted(missing))}"
    try:
        run.load_samples(row)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        return f"its samples cannot be read: {error}"
    return None


def run_quick(
    run: QuickRun, progress: Progress = lambda stage, done, total: None, *, num_workers: int | None = 0
) -> None:
    """Do what is not done yet. May be interrupted at any moment: prepare the same run again, and it goes on.

    Every model trains on the same number of images in the same order with the same draws, and is sampled with its
    averaged weights from the same noise at the same guidance scale. On a CPU each trains with one thread, whatever
    the number of workers, so that the samples do not depend on it.

    Args:
        run: from `prepare_quick`.
        progress: called with stage, done and total.
        num_workers: processes that train models side by side on a CPU; None takes one a core, 0 none. A script that
            asks for workers must guard its entry with `if __name__ == "__main__"`.
    """
    judge = _Judge(run.suite.num_samples)
    if REAL not in run.rows:
        _finish(run, REAL, *judge.real_images(), {}, judge)
    todo = [name for name in run.models if name not in run.rows]
    measured = _measure(run, todo, progress)
    # Rows and the models that they sample: the untrained row is the first model before its training.
    sources = {} if UNTRAINED in run.rows else {UNTRAINED: run.models[0]}
    sources |= {name: name for name in todo}
    jobs = [
        (run.suite, row, source, run.device, run.model_path(_blank_row(run, row))) for row, source in sources.items()
    ]
    if num_workers is None:
        num_workers = torch.get_num_threads()
    if run.device != "cpu" or len(jobs) < 2:
        num_workers = 0
    if num_workers:
        # The longest first, so that no worker is left alone with one at the end.
        jobs.sort(key=lambda job: measured[job[1]]["train_throughput"].value if job[1] in measured else math.inf)
    with closing(run_jobs(train_and_sample, jobs, num_workers, progress)) as results:
        for (_, row, *_), (pixels, labels, told) in results:
            samples = torch.from_numpy(pixels), torch.from_numpy(labels)
            _finish(run, row, *samples, {**measured.get(row, {}), **told}, judge)


def _measure(run: QuickRun, names: Sequence[str], progress: Progress) -> dict[str, dict[str, Value]]:
    """Size, speed and memory of models, while nothing else runs."""
    if not names:
        return {}
    with torch.device("meta"):
        recipes = {name: run.suite.recipe_for(name, registry.create(name)) for name in names}
    speeds = measure_speed(recipes, run.suite, run.device, lambda done, total: progress("measure speed", done, total))
    measured = {}
    for done, (name, recipe) in enumerate(recipes.items(), start=1):
        measured[name] = {**measure_size(name), **speeds[name], **measure_memory(name, recipe, run.suite, run.device)}
        progress("measure memory", done, len(recipes))
    return measured


def train_and_sample(
    suite: QuickSuite, row: str, source: str, device: str, folder: Path, progress: Progress
) -> tuple[np.ndarray, np.ndarray, dict[str, Value]]:
    """Samples for `row` from the model `source`, their labels, and what training has to tell: one job of a worker.

    The trained model goes into `folder`.
    """
    model = new_model(source, suite.train.seed, device)
    recipe = suite.recipe_for(source, model)
    told = {}
    with one_thread():
        if row != UNTRAINED:
            digits, total = load_digits_split("train"), suite.train.num_images
            trained = train(
                model,
                digits.images,
                digits.labels,
                recipe,
                suite.train,
                callback=lambda seen: progress(f"train {row}", seen, total),
            )
            model = trained.ema if recipe.weights == "ema" else model
            _save(model, folder, source, suite)
            told = {
                "training_time": Value(trained.seconds, "s, on a CPU with one thread and other models training beside"),
                "final_loss": Value(float(np.mean(trained.losses[-50:])), "squared error a pixel, summed over passes"),
            }
        pixels, labels = sample_digits(suite, model, recipe, f"sample {row}", progress)
    return pixels.numpy(), labels.numpy(), told


def _save(model: DiffusionTransformer, folder: Path, name: str, suite: QuickSuite) -> None:
    options = suite.train
    model.details = replace(
        model.details,
        name=name,
        label_names=tuple(LabelNames.digits()),
        data=DIGITS_DATA,
        training_command=f"ditzoo bench {suite.name} --models {name} --images {options.num_images} --seed "
        f"{options.seed}",
    )
    model.save_pretrained(folder)


def sample_digits(
    suite: QuickSuite, model: DiffusionTransformer, recipe: Recipe, stage: str, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Guided samples (N, C, H, W) uint8 and their labels (N,), as many of each class, on the CPU."""
    count, steps = suite.num_samples, recipe.num_inference_steps

    def report(step: SamplingStep, indices: Sequence[int]) -> None:
        progress(stage, indices[0] * steps + step.number * len(indices), count * steps)

    samples = Pipeline(model, recipe)(
        range(model.num_classes),
        num_images=count,
        seed=suite.train.seed,
        batch_size=suite.sample_batch_size,
        callback=report,
        progress=False,
    )
    assert samples.pixels is not None
    assert samples.labels is not None
    return torch.from_numpy(samples.pixels).permute(0, 3, 1, 2), samples.labels


class _Judge:
    """Frechet distance and accuracy of 8-bit images, by the digits classifier against the held-out digits: what is
    judged is what is saved."""

    def __init__(self, num_samples: int) -> None:
        self.classifier = load_digits_classifier()
        self.reference = self._statistics(self._normalized(to_uint8(load_digits_split("test").images)))
        self.num_samples = num_samples

    def real_images(self) -> tuple[Tensor, Tensor]:
        """As many training images, and of each class, as a model's samples."""
        images, labels = load_digits_split("train")
        members = [(labels == label).nonzero().flatten()[: self.num_samples // 10] for label in range(10)]
        chosen = torch.stack(members, dim=1).flatten()  # labels 0, 1, ..., 9, 0, 1, ... like the samples
        return to_uint8(images[chosen]), labels[chosen]

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[FrechetDistance, float]:
        images = self._normalized(pixels)
        distance = FrechetDistance.between(self._statistics(images), self.reference, name="held-out digits")
        accuracy = (self.classifier(images).argmax(1) == labels).double().mean().item()
        return distance, accuracy

    @staticmethod
    def _normalized(pixels: Tensor) -> Tensor:
        """uint8 as float32 in [-1, 1]."""
        # A copy in plain order: sums over images of other strides round differently, with a worker or without.
        return pixels.clone(memory_format=torch.contiguous_format).float() / 127.5 - 1

    def _statistics(self, images: Tensor) -> FeatureStatistics:
        return FeatureStatistics.from_features(self.classifier.features(images), extractor=DIGITS_EXTRACTOR)


def _blank_row(run: QuickRun, name: str) -> ResultRow:
    """The row without its values: what will be measured, how, with what and where."""
    is_model = name not in (REAL, UNTRAINED)
    source = name if is_model else run.models[0]
    with torch.device("meta"):
        model = registry.create(source)
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
        recipe={} if name == REAL else run.suite.recipe_for(source, model).to_dict(),
        **run.origin,
    )


def _finish(
    run: QuickRun, name: str, pixels: Tensor, labels: Tensor, values: Mapping[str, Value], judge: _Judge
) -> None:
    """Judge images (N, C, H, W), save them, and then the row: a row on disk has its samples and its model beside it."""
    distance, accuracy = judge(pixels, labels)
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
        finished_at=now(),
    )
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, arr_0=pixels.permute(0, 2, 3, 1).numpy(), labels=labels.numpy(), recipe=json.dumps(row.recipe)
    )
    write_atomically(run.samples_path(row), buffer.getvalue())
    if (folder := run.model_path(row)).is_dir():
        details = read_config(folder).details
        rewrite_details(folder, replace(details, results=(*details.results, *evaluation_results(row))))
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


def _checked_device(device: str) -> str:
    """The device in torch's spelling, "cpu" for every CPU."""
    found = checked_device(device)
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} cannot be used here (memory is measured on cpu and cuda); cpu always can.")
    return "cpu" if found.type == "cpu" else str(found)
