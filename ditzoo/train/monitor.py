"""What one looks at while a model trains: rows of numbers, pictures, and the distance from real images."""

from __future__ import annotations

import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ditzoo.data.digits import load_digits_split
from ditzoo.data.source import Source
from ditzoo.media import Codec, to_uint8
from ditzoo.media.files import writing
from ditzoo.metrics import FeatureStatistics, FrechetDistance
from ditzoo.metrics.digits import DIGITS_EXTRACTOR, load_digits_classifier
from ditzoo.metrics.inception import INCEPTION_EXTRACTOR, load_inception
from ditzoo.models import DiffusionTransformer
from ditzoo.pipeline import Pipeline
from ditzoo.pipeline.sharing import draw_samples
from ditzoo.recipe import Recipe

_logger = logging.getLogger("ditzoo")

Features = Literal["auto", "digits", "inception"]


class MetricsFile:
    """`metrics.jsonl`: a JSON object a line, each with `kind` and `seen`, the images seen.

    A killed process may leave half a line at the end, which reading passes over and the next row replaces.

    Args:
        path: of the file; made, with its folder, at the first row.
        trackers: that get every row as well.
    """

    def __init__(self, path: Path | str, trackers: Trackers | None = None) -> None:
        self.path, self.trackers = Path(path), trackers

    def append(self, kind: str, seen: int, **values: Any) -> None:
        """Add a row, whole or not at all. Numbers that are not finite become null, which JSON has for them."""
        row = {"kind": kind, "seen": seen, **{name: _json_safe(value) for name, value in values.items()}}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.truncate(_last_line_end(self.path))
            os.write(file.fileno(), line)
        if self.trackers is not None:
            self.trackers.log(row)

    def rows(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All rows, or those of a kind, in order; none where there is no file.

        Raises:
            ValueError: for a line that is no such row, other than half a line at the end; the message names file and
                line.
        """
        return [row for _, row in self._read() if kind in (None, row["kind"])]

    def truncate(self, seen: int) -> None:
        """Drop the rows after `seen` images, which a run that goes on from there writes again.

        Raises:
            ValueError: as `rows`.
        """
        if not self.path.exists():
            return
        kept = [line for line, row in self._read() if row["seen"] <= seen]
        with writing(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))

    def _read(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        if not self.path.exists():
            return
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not {"kind", "seen"} <= set(row):
                raise ValueError(
                    f"line {number} of {self.path} is no row of metrics: {line[:60]!r}. Remove that line, or the file."
                )
            yield line, row


def _json_safe(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _last_line_end(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


class Trackers:
    """TensorBoard, Weights & Biases and the others that accelerate knows, each of which gets the rows of a run.

    Args:
        names: such as `("tensorboard",)`.
        run: the folder of the run, whose name the run has there. TensorBoard's files go into it, under `tensorboard`.
        config: settings of the run, flat.
        seen: images seen so far: what TensorBoard has of later steps is hidden, a run that goes on writes it again.

    Raises:
        ValueError: for a tracker that accelerate does not know.
        ImportError: where accelerate or the tracker is not installed.
    """

    def __init__(self, names: Sequence[str], *, run: Path | str, config: Mapping[str, Any], seen: int = 0) -> None:
        known = check_trackers(names)
        from accelerate import PartialState

        run = Path(run)
        PartialState()  # what decides which process is the main one
        self._trackers = [
            known[name](*_arguments(name, known[name], run), **_init_options(name, run, seen)) for name in names
        ]
        for tracker in self._trackers:
            tracker.start()
            if seen == 0 or tracker.name != "tensorboard":
                tracker.store_init_configuration({key: _plain(value) for key, value in config.items()})

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of `MetricsFile`: its numbers as `kind/name`, its texts likewise, at step `seen`."""
        kind, seen = row["kind"], row["seen"]
        values = {f"{kind}/{name}": value for name, value in row.items() if name not in ("kind", "seen")}
        values = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
        for tracker in self._trackers:
            tracker.log(values, step=seen)

    def close(self) -> None:
        """Write what is left."""
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(names: Sequence[str]) -> dict[str, Any]:
    """That these trackers can be had, before anything is trained or written.

    Returns:
        Those that accelerate knows, by name.

    Raises:
        ValueError, ImportError: as `Trackers`.
    """
    try:
        from accelerate import tracking
    except ImportError as error:
        raise ImportError('trackers need accelerate: pip install "ditzoo[train]"') from error
    known = {str(name): tracker for name, tracker in tracking.LOGGER_TYPE_TO_CLASS.items()}
    for name in names:
        if name not in known:
            raise ValueError(f"unknown tracker {name!r}; choose from {', '.join(sorted(known))}.")
        if name not in map(str, tracking.get_available_trackers()):
            package = '"ditzoo[trackers]"' if name == "tensorboard" else name
            raise ImportError(f"the tracker {name} is not installed: pip install {package}")
    return known


def _arguments(name: str, tracker: Any, run: Path) -> tuple[str, ...]:
    """TensorBoard's is the folder within the run; of the others, the project."""
    if name == "tensorboard":
        return name, str(run)
    return ("ditzoo", str(run)) if tracker.requires_logging_directory else ("ditzoo",)


def _init_options(name: str, run: Path, seen: int) -> dict[str, Any]:
    if name == "tensorboard":
        return {"purge_step": seen + 1}
    return {"name": run.name, "dir": str(run), "id": _wandb_id(run), "resume": "allow"} if name == "wandb" else {}


def _wandb_id(run: Path) -> str:
    """By which a run that goes on is the same one there; drawn once, and kept beside what else wandb has in the folder.
    Rows that are written again after a kill are left out there, and are the same."""
    file = run / "wandb" / "run-id"
    if not file.exists():
        with writing(file) as temporary:
            temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """As trackers take settings."""
    return value if isinstance(value, int | float | str) else str(value)


def draw_grid(
    model: DiffusionTransformer,
    recipe: Recipe,
    path: Path | str,
    *,
    seed: int = 0,
    rows: int = 4,
    columns: int = 10,
    codec: Codec | None = None,
    label_names: Sequence[str] | None = None,
    batch_size: int = 64,
) -> str:
    """Draw samples from the same noise at every call: a column for each of some classes; of few classes, several
    columns each.

    Args:
        model: such as the averaged one. Its mode is put back.
        recipe: whose sampler, steps and guidance are used.
        path: of the picture, a PNG file, in which the caption stands too.
        seed: of the noise.
        rows: of the grid.
        columns: likewise, at most.
        codec: of its latents; None takes the recipe's.
        label_names: of its classes.
        batch_size: samples at a time.

    Returns:
        The caption: which classes, in which order.

    Raises:
        FloatingPointError: where a sample is not finite.
        OSError: where the picture cannot be written, or the autoencoder cannot be loaded.
    """
    training = model.training
    try:
        pipe = Pipeline(model, recipe, codec, label_names=label_names)
        options = {"seed": seed, "batch_size": batch_size, "progress": False}
        return draw_samples(pipe, Path(path), rows=rows, columns=columns, **options)
    finally:
        model.train(training)


@dataclass(frozen=True)
class _Extractor:
    """Features of 8-bit images, and what they are called.

    Attributes:
        name: in every distance.
        features: of (B, C, H, W) uint8 to (B, D).
    """

    name: str
    features: Callable[[Tensor], Tensor]


class Evaluator:
    """Measures how far a model's samples are from real images.

    Made at the start of a run, so that what is missing is told then and not after hours.

    Digits are compared with the held-out digits, by the digits classifier, as the benchmark does. All else is compared
    with the training data, by Inception features; latents are decoded first, by the same autoencoder as the samples.
    The classes of samples are drawn uniformly.

    Args:
        recipe: whose sampler, steps and guidance are used.
        source: the training data.
        num_samples: of the model. Of the data as many are taken, evenly spaced, or all where there are fewer.
        seed: of the samples' noise and labels.
        features: `"auto"` is `"digits"` for images of 1x8x8 with ten classes, `"inception"` for all else.
        codec: of the latents; None takes the recipe's.
        batch_size: samples at a time.
        device: where features are computed, and where the codec is loaded.

    Raises:
        ValueError: for features that are unknown or do not fit the data, or fewer than 2 samples.
        ImportError: where a package is missing; the message names the extra.
        OSError: where the weights of Inception or of the autoencoder cannot be had.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        *,
        num_samples: int,
        seed: int = 0,
        features: Features = "auto",
        codec: Codec | None = None,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        if features not in get_args(Features):
            raise ValueError(f"unknown features {features!r}; choose one of {', '.join(get_args(Features))}.")
        if num_samples < 2:
            raise ValueError(f"evaluation_samples must be 2 or more, got {num_samples}.")
        is_digits = recipe.latent_codec is None and tuple(source.shape) == (1, 8, 8)
        if features == "auto":
            features = "digits" if is_digits and source.num_classes == 10 else "inception"
        if features == "digits" and not is_digits:
            what = "images" if recipe.latent_codec is None else "latents"
            raise ValueError(
                f"features='digits' are for images of 1x8x8 pixels, and {source.name} is {what} of "
                f"{'x'.join(map(str, source.shape))}: use 'inception'."
            )
        self.recipe, self.source, self.num_samples, self.seed = recipe, source, num_samples, seed
        self.batch_size, self.device, self.codec = batch_size, torch.device(device), codec
        if codec is None and recipe.latent_codec is not None:
            self.codec = _load_codec(recipe, self.device)
        self._is_digits = features == "digits"
        self._extractor = _digits_extractor() if self._is_digits else _inception_extractor(self.device)
        self._reference: FeatureStatistics | None = None
        if self._is_digits:
            _ = self.reference  # cheap, and needs scikit-learn

    @property
    def reference_name(self) -> str:
        """What samples are compared with, in words that read after a number."""
        if self._is_digits:
            return "held-out digits"
        return "decoded training latents" if self.recipe.latent_codec is not None else "training images"

    @property
    def reference(self) -> FeatureStatistics:
        """Of the real images; computed when first asked for, which takes about as long as the features of samples."""
        if self._reference is None:
            batches = [self._extractor.features(images) for images in self._real_images()]
            self._reference = FeatureStatistics.from_features(torch.cat(batches), extractor=self._extractor.name)
        return self._reference

    def features(self, model: DiffusionTransformer, indices: range) -> Tensor:
        """Features (len(indices), D) of samples `indices`, on the CPU: processes can share the samples of a model."""
        training = model.training
        found = []
        try:
            pipe = Pipeline(model, self.recipe, self.codec)
            for first in range(indices.start, indices.stop, self.batch_size):
                samples = pipe(
                    num_images=min(self.batch_size, indices.stop - first),
                    first_index=first,
                    seed=self.seed,
                    batch_size=self.batch_size,
                    progress=False,
                )
                assert samples.pixels is not None
                found.append(self._extractor.features(torch.from_numpy(samples.pixels).permute(0, 3, 1, 2)))
        finally:
            model.train(training)
        return torch.cat([torch.empty(0), *found])  # of many processes, some may have no sample

    def distance(self, features: Tensor) -> FrechetDistance:
        """Of the features of all samples from the reference. Few samples are allowed, and told of."""
        statistics = FeatureStatistics.from_features(features, extractor=self._extractor.name)
        return FrechetDistance.between(statistics, self.reference, name=self.reference_name, allow_rank_deficient=True)

    def __call__(self, model: DiffusionTransformer) -> FrechetDistance:
        """Sample the model, whose mode is put back, and measure.

        Raises:
            FloatingPointError: where a sample is not finite.
        """
        return self.distance(self.features(model, range(self.num_samples)))

    def _real_images(self) -> Iterator[Tensor]:
        """(B, C, H, W) uint8."""
        if self._is_digits:
            yield to_uint8(load_digits_split("test").images)
            return
        count = min(self.num_samples, len(self.source))
        chosen = self.source.some_indices(count)
        for first in range(0, count, self.batch_size):
            batch = chosen[first : first + self.batch_size]
            x, _, unreadable = self.source.load(batch, batch, self.seed)
            for message in unreadable:
                _logger.warning("%s", message)
            yield to_uint8((x if self.codec is None else self.codec.decode(x)).cpu())


def evaluate(
    model: DiffusionTransformer, recipe: Recipe, source: Source, *, num_samples: int, **options: Any
) -> FrechetDistance:
    """One measurement: see `Evaluator`, which is for several."""
    return Evaluator(recipe, source, num_samples=num_samples, **options)(model)


def distance_values(distance: FrechetDistance) -> dict[str, Any]:
    """A distance as a row of metrics has it."""
    return {
        "frechet_distance": distance.value,
        "extractor": distance.extractor,
        "num_samples": distance.num_samples,
        "reference": f"{distance.reference_samples} {distance.reference}",
        "rank_deficient": distance.rank_deficient,
    }


def _load_codec(recipe: Recipe, device: torch.device) -> Codec:
    from ditzoo.media import load_codec

    assert recipe.latent_codec is not None
    return load_codec(recipe.latent_codec, scale=recipe.latent_scale, shift=recipe.latent_shift, device=device)


def _digits_extractor() -> _Extractor:
    classifier = load_digits_classifier()

    def features(images: Tensor) -> Tensor:
        # A copy in plain order: sums over images of other strides round differently.
        normalized = images.clone(memory_format=torch.contiguous_format).float() / 127.5 - 1
        return classifier.features(normalized)

    return _Extractor(DIGITS_EXTRACTOR, features)


def _inception_extractor(device: torch.device) -> _Extractor:
    return _Extractor(INCEPTION_EXTRACTOR, load_inception(device))
