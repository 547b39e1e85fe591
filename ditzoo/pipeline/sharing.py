"""Models to the Hub, with a card and samples."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ditzoo.diffusion import count_evaluations
from ditzoo.media.files import writing, writing_folder
from ditzoo.metrics import count_macs
from ditzoo.models import DiffusionTransformer, EvaluationResult, ModelDetails
from ditzoo.pipeline.card import CardSubject, is_generated, model_card
from ditzoo.pipeline.pipeline import Pipeline
from ditzoo.weights.folders import (
    CONFIG,
    STEM,
    TRAINING_STATE,
    WEAK_STEM,
    FolderConfig,
    load_network,
    model_folder,
    read_config,
    rewrite_details,
    save_model,
)
from ditzoo.weights.hub import CARD, SAMPLES, push_folder
from ditzoo.weights.index import check_inside
from ditzoo.weights.sources import fetch_model_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Multiply-adds that a picture for the card may cost without being asked for: a minute or so on a small machine.
_QUICK = 2e12
_ROWS, _COLUMNS = 4, 10
#: The entry of a picture that says what it shows, as PNG files have it.
_CAPTION = "Description"
#: Files that people read or look at, by pattern.
_WORDS = (CARD, SAMPLES, "LICENSE*")
#: Files of a model likewise; nothing else in a folder is uploaded, and not the state of an optimiser.
_TRAVELLING = (CONFIG, "*.safetensors", "*.safetensors.index.json", *_WORDS)

_logger = logging.getLogger("ditzoo")


def push_model(
    model: DiffusionTransformer,
    repo_id: str,
    *,
    details: ModelDetails | None = None,
    weak_model: DiffusionTransformer | None = None,
    samples: Path | str | bool | None = None,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
    **where: Any,
) -> str:
    """See `DiffusionTransformer.push_to_hub`."""
    details = details or model.details
    with TemporaryDirectory(prefix="ditzoo-push-") as name:
        folder = Path(name)
        save_model(model, folder, details=details, weak_model=weak_model, max_shard_size=max_shard_size, dtype=dtype)
        subject = CardSubject(model=model, details=details, weak_model=weak_model, dtype=dtype)
        return _push(folder, subject, repo_id, samples, where)


def push_saved(
    folder: Path | str,
    repo_id: str,
    *,
    samples: Path | str | bool | None = None,
    licence: str | None = None,
    results: Sequence[EvaluationResult] = (),
    **where: Any,
) -> str:
    """Upload a folder that `save_pretrained` wrote, or the newest checkpoint of a training run, with a card and samples
    if it has none.

    Args:
        folder: its weights are uploaded as they are. A `README.md` that somebody wrote or edited, and `samples.png`,
            go before new ones; those of a run lie in the run's own folder.
        repo_id: `"user/repo"`.
        samples: as `DiffusionTransformer.push_to_hub` has it.
        licence: of the weights, in place of the recipe's.
        results: measured with these weights, besides those that the folder has.
        **where: `private`, `revision`, `token` and `message`, as `push_to_hub` has them.

    Returns:
        The address of the commit.

    Raises:
        OSError, ValueError: as `from_pretrained` and `push_to_hub`: what does not load is not uploaded. Nor is what a
            link leads to outside of the folder.
    """
    run, folder = Path(folder), model_folder(folder)
    config = read_config(folder)
    model, weak_model = _load_all(config)
    details = _with_licence(replace(config.details, results=(*config.details.results, *results)), licence, folder)
    with TemporaryDirectory(prefix="ditzoo-push-") as temporary:
        staged = Path(temporary)
        travelling = {path.name: path for path in [*_travelling(folder), *_travelling(run, _WORDS)]}
        for name, path in travelling.items():
            (staged / name).symlink_to(path.resolve())
        if details != config.details:
            rewrite_details(staged, details)
            if _is_written(staged / CARD):
                _logger.warning("%s stays as it is: write the new licence and results into it.", travelling[CARD])
        subject = CardSubject(model=model, details=details, weak_model=weak_model)
        return _push(staged, subject, repo_id, samples, where)


def pull(name: str, folder: Path | str) -> Path:
    """Copy a model of the Hub into a new folder, once it is known to load.

    Args:
        name: `"hf-hub:user/repo@revision"`; prefix and revision may be left out.
        folder: a new or empty one.

    Returns:
        The folder.

    Raises:
        OSError: for what cannot be fetched or written, or a folder with something in it.
        ValueError: for a repository that holds no model of ditzoo, or a damaged one.
    """
    source = fetch_model_folder(name if name.startswith("hf-hub:") else f"hf-hub:{name}")
    _load_all(read_config(source))
    with writing_folder(Path(folder)) as temporary:
        for path in _travelling(source):
            shutil.copyfile(path, temporary / path.name)
    return Path(folder)


def _load_all(config: FolderConfig) -> tuple[DiffusionTransformer, DiffusionTransformer | None]:
    """The model of a folder, and the weaker one if there is one."""
    weak = config.weak_network
    model = load_network(config, config.network, STEM)
    return model, None if weak is None else load_network(config, weak, WEAK_STEM)


def _travelling(folder: Path, patterns: Sequence[str] = _TRAVELLING) -> list[Path]:
    """The files of a model. The folder may be a stranger's, and a link in it lead to a secret that would be uploaded.

    Raises:
        ValueError: for such a link.
    """
    found = (path for pattern in patterns for path in folder.glob(pattern))
    files = sorted(path for path in found if path.is_file() and path.name != TRAINING_STATE)
    for path in files:
        check_inside(path)
    return files


def _with_licence(details: ModelDetails, licence: str | None, folder: Path) -> ModelDetails:
    if licence is None:
        return details
    if not licence.strip():
        raise ValueError("the licence is empty; give its name, such as apache-2.0, or leave it out.")
    if details.recipe is None:
        raise ValueError(
            f"{folder} has no recipe, which is what carries the licence {licence!r}: set model.details and save again."
        )
    return replace(details, recipe=replace(details.recipe, licence=licence))


def _push(
    folder: Path, subject: CardSubject, repo_id: str, samples: Path | str | bool | None, where: Mapping[str, Any]
) -> str:
    """Add samples and a card to a folder of temporary files, and push it."""
    picture = folder / SAMPLES
    if isinstance(samples, str | Path):
        _copy_picture(Path(samples), picture)
    elif samples is not False and not picture.exists() and _is_drawn(subject, asked=samples is True):
        _draw(subject, picture)
    if not _is_written(folder / CARD):
        card = model_card(subject, repo_id, caption=caption_of(picture) if picture.exists() else None)
        (folder / CARD).unlink(missing_ok=True)  # it may be a link to the user's own
        (folder / CARD).write_text(card, encoding="utf-8")
    return push_folder(folder, repo_id, is_generated=is_generated, **where)


def _is_written(card: Path) -> bool:
    """Whether there is a card that somebody wrote or edited."""
    return card.exists() and not is_generated(card.read_text(encoding="utf-8", errors="replace"))


def _copy_picture(source: Path, target: Path) -> None:
    """A picture of any kind, as PNG."""
    try:
        with Image.open(source) as picture:
            picture.load()
            target.unlink(missing_ok=True)  # it may be a link to the user's own
            if picture.format == "PNG":
                shutil.copyfile(source, target)
            else:
                picture.convert("RGB").save(target, "PNG")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no picture {source} for the card; give another, or leave it out.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{source} cannot be read as a picture for the card; give a PNG or JPEG file.") from error


def caption_of(picture: Path) -> str:
    """What a picture says that it shows; nothing where it says nothing."""
    try:
        with Image.open(picture) as image:
            return str(image.info.get(_CAPTION, ""))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return ""


def _is_drawn(subject: CardSubject, asked: bool) -> bool:
    """Whether to draw samples: where they are asked for, or quick."""
    recipe = subject.details.recipe
    if recipe is None:
        if asked:
            raise ValueError("samples cannot be drawn without a recipe: set model.details, or leave samples out.")
        return False
    evaluations = count_evaluations(recipe) or 1000
    cost = 2 * evaluations * _ROWS * _COLUMNS * count_macs(subject.model).total
    if asked or (recipe.latent_codec is None and cost < _QUICK):
        return True
    _logger.info("No samples are drawn for the card, which would take long; samples=True draws them.")
    return False


def draw_samples(pipe: Pipeline, path: Path, *, rows: int = _ROWS, columns: int = _COLUMNS, **options: Any) -> str:
    """A grid with a column for each of some classes; of few classes, several columns each. Written with its caption.

    Args:
        pipe: draws it.
        path: of a PNG file; its folder is made where it is missing.
        rows: of the grid.
        columns: likewise, at most.
        **options: of the pipeline's call, such as `seed`.

    Returns:
        The caption; empty for an unconditional model.

    Raises:
        FloatingPointError: where a sample is not finite.
        OSError: where the picture cannot be written.
    """
    model = pipe.model
    if model.num_classes:
        labels = _columns(model.num_classes, columns)
        names = pipe.label_names
        caption = _column_names(labels, None if names is None else tuple(names))
        samples = pipe(labels * rows, **options)
    else:
        labels, caption = [0] * columns, ""
        samples = pipe(num_images=rows * columns, **options)
    facts = PngInfo()
    facts.add_itxt(_CAPTION, caption)
    with writing(path) as temporary:
        samples.grid(len(labels), scale=samples.scale).save(temporary, "PNG", pnginfo=facts)
    return caption


def _draw(subject: CardSubject, path: Path) -> None:
    """Samples of the model for its card."""
    model, details = subject.model, subject.details
    assert details.recipe is not None
    training = model.training
    try:
        pipe = Pipeline(model, details.recipe, label_names=details.label_names, weak_model=subject.weak_model)
        draw_samples(pipe, path)
    except FloatingPointError as error:
        _logger.warning("No samples are drawn for the card: %s", error)
    finally:
        model.train(training)


def _columns(num_classes: int, columns: int = _COLUMNS) -> list[int]:
    """The label of each column: classes spread over all of them."""
    count = min(num_classes, columns)
    spread = [round(i * (num_classes - 1) / max(1, count - 1)) for i in range(count)]
    return [label for label in spread for _ in range(columns // count)]


def _column_names(labels: Sequence[int], names: Sequence[str] | None) -> str:
    classes = [str(label) if names is None else names[label].partition(",")[0] for label in dict.fromkeys(labels)]
    return f"Classes, from left to right: {', '.join(classes)}."
