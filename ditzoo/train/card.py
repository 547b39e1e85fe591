"""What a run says of itself: the details that travel with its weights, and the README of its folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditzoo.media.files import writing
from ditzoo.metrics import FrechetDistance
from ditzoo.models import DiffusionTransformer, EvaluationResult, ModelDetails
from ditzoo.pipeline.card import CardSubject, is_generated, model_card
from ditzoo.pipeline.sharing import caption_of
from ditzoo.recipe import Recipe
from ditzoo.train.options import TrainOptions
from ditzoo.weights.hub import CARD, SAMPLES

#: steps at the end whose mean loss is told
_LAST = 50


def trained_details(
    before: ModelDetails,
    *,
    recipe: Recipe,
    options: TrainOptions,
    losses: Sequence[float],
    seen: int | None = None,
    distance: FrechetDistance | None = None,
    data: str | None = None,
    label_names: Sequence[str] | None = None,
    command: str | None = None,
) -> ModelDetails:
    """The details of trained weights: those from before training, without what was measured of the earlier weights or
    said of how they were made.

    Args:
        before: those that training began with, whose licence and source stay where the recipe names none.
        recipe: of the training, with `weights` as these weights are, averaged or raw.
        options: of the training.
        losses: of the steps, of which the last ones count; may be empty.
        seen: images, where training is not at its end.
        distance: the last that was measured.
        data: what was trained on, in words.
        label_names: of the classes; None keeps those from before.
        command: that trained it.
    """
    seen = options.num_images if seen is None else seen
    results = []
    if last := list(losses[-_LAST:]):
        mean = math.fsum(last) / len(last)
        settings = (
            f"mean of the last {len(last)} steps; {seen:,} images seen in batches of {options.batch_size}, "
            f"seed {options.seed}"
        )
        results.append(_result("training loss", mean, "the training data", settings))
    if distance is not None:
        note = ", rank-deficient covariance" if distance.rank_deficient else ""
        metric = f"Frechet distance ({distance.extractor})"
        against = f"{distance.reference_samples:,} {distance.reference}"
        results.append(_result(metric, distance.value, against, f"{distance.num_samples:,} samples{note}"))
    recipe = replace(recipe, licence=recipe.licence or before.licence, source=recipe.source or before.source)
    return replace(
        before,
        recipe=recipe,
        data=data,
        label_names=before.label_names if label_names is None else tuple(label_names),
        training_command=command,
        results=tuple(result for result in results if result is not None),
    )


def _result(metric: str, value: float, dataset: str, settings: str) -> EvaluationResult | None:
    """None for a value that is not finite, which no card shows."""
    if not math.isfinite(value):
        return None
    return EvaluationResult(metric=metric, value=value, dataset=dataset, settings=settings, source="ditzoo.train")


def write_card(run: Path | str, model: DiffusionTransformer, *, picture: Path | None = None) -> bool:
    """Write the run's README, a model card that `ditzoo push` makes anew for its repository, and the picture in it.

    Args:
        run: its folder, whose name is the model's in the card.
        model: without adapters, with the `details` that the card shows.
        picture: of samples, the newest grid; None keeps what there is.

    Returns:
        Whether it was written: a README that somebody wrote or edited stays.

    Raises:
        OSError: where it cannot be written.
    """
    run = Path(run)
    card, samples = run / CARD, run / SAMPLES
    if picture is not None:
        with writing(samples) as temporary:
            shutil.copyfile(picture, temporary)
    if card.exists() and not is_generated(card.read_text(encoding="utf-8", errors="replace")):
        return False
    caption = caption_of(samples) if samples.exists() else None
    text = model_card(CardSubject(model=model, details=model.details), f"user/{run.resolve().name}", caption=caption)
    with writing(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return True
