"""Models to the Hub, with a card and samples."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ditzoo.diffusion import count_evaluations
from ditzoo.media.files import writing_folder
from ditzoo.metrics import count_macs
from ditzoo.models import DiffusionTransformer, EvaluationResult, ModelDetails
from ditzoo.pipeline.card import SAMPLES, model_card
from ditzoo.pipeline.pipeline import Pipeline
from ditzoo.weights.folders import (
    CONFIG,
    STEM,
    WEAK_STEM,
    FolderConfig,
    load_network,
    read_config,
    rewrite_details,
    save_model,
)
from ditzoo.weights.hub import push_folder
from ditzoo.weights.hub_errors import without_tokens
from ditzoo.weights.index import check_inside
from ditzoo.weights.sources import fetch_model_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

CARD = "README.md"
#: Multiply-adds that a picture for the card may cost without being asked for: a minute or so on a small machine.
_QUICK = 2e12
_NUM_SAMPLES, _NUM_CLASSES = 40, 10
#: Files of a model, by pattern; nothing else in a folder, such as the state of an optimiser, is uploaded.
_TRAVELLING = (CONFIG, "*.safetensors", "*.safetensors.index.json", CARD, SAMPLES, "LICENSE*")

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
        _add_card(folder, _Shown(model, details, weak_model), repo_id, samples)
        return push_folder(folder, repo_id, **where)


def push_saved(
    folder: Path | str,
    repo_id: str,
    *,
    samples: Path | str | bool | None = None,
    licence: str | None = None,
    results: Sequence[EvaluationResult] = (),
    **where: Any,
) -> str:
    """Upload a folder that `save_pretrained` wrote, with a card and samples if it has none.

    Args:
        folder: its weights are uploaded as they are. A `README.md` or `samples.png` in it goes before new ones.
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
    folder = Path(folder)
    config = read_config(folder)
    model, weak_model = _load(config)
    details = _with_licence(replace(config.details, results=(*config.details.results, *results)), licence, folder)
    with TemporaryDirectory(prefix="ditzoo-push-") as name:
        staged = Path(name)
        for path in _travelling(folder):
            (staged / path.name).symlink_to(path.resolve())
        if details != config.details:
            rewrite_details(staged, details)
        _add_card(staged, _Shown(model, details, weak_model), repo_id, samples)
        return push_folder(staged, repo_id, **where)


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
    _load(read_config(source))
    with writing_folder(Path(folder)) as temporary:
        for path in _travelling(source):
            shutil.copyfile(path, temporary / path.name)
    return Path(folder)


class _Shown(NamedTuple):
    """What card and samples are of."""

    model: DiffusionTransformer
    details: ModelDetails
    weak_model: DiffusionTransformer | None


def _load(config: FolderConfig) -> tuple[DiffusionTransformer, DiffusionTransformer | None]:
    """The model of a folder, and the weak one of autoguidance if there is one."""
    weak = config.weak_network
    return load_network(config, config.network, STEM), None if weak is None else load_network(config, weak, WEAK_STEM)


def _travelling(folder: Path) -> list[Path]:
    """The files of a model. The folder may be a stranger's, and a link in it lead to a secret that would be uploaded.

    Raises:
        ValueError: for such a link.
    """
    files = sorted(path for pattern in _TRAVELLING for path in folder.glob(pattern) if path.is_file())
    for path in files:
        check_inside(path)
    return files


def _with_licence(details: ModelDetails, licence: str | None, folder: Path) -> ModelDetails:
    if licence is None:
        return details
    if details.recipe is None:
        raise ValueError(
            f"{folder} has no recipe, which is what carries the licence {licence!r}: set model.details and save again."
        )
    return replace(details, recipe=replace(details.recipe, licence=licence))


def _add_card(folder: Path, shown: _Shown, repo_id: str, samples: Path | str | bool | None) -> None:
    picture = folder / SAMPLES
    if isinstance(samples, str | Path):
        picture.unlink(missing_ok=True)
        shutil.copyfile(samples, picture)
    elif samples is not False and not picture.exists() and _is_drawn(shown, asked=samples is True):
        _draw(shown, picture)
    if not (folder / CARD).exists():
        card = model_card(shown.model, shown.details, repo_id, has_samples=picture.exists())
        (folder / CARD).write_text(without_tokens(card), encoding="utf-8")


def _is_drawn(shown: _Shown, asked: bool) -> bool:
    """Whether to draw samples: where they are asked for, or quick."""
    recipe = shown.details.recipe
    if recipe is None:
        if asked:
            raise ValueError("samples cannot be drawn without a recipe: set model.details, or leave samples out.")
        return False
    evaluations = count_evaluations(recipe) or 1000
    cost = 2 * evaluations * _NUM_SAMPLES * count_macs(shown.model).total
    if asked or (recipe.latent_codec is None and cost < _QUICK):
        return True
    _logger.info("No samples are drawn for the card, which would take long; samples=True draws them.")
    return False


def _draw(shown: _Shown, path: Path) -> None:
    """A grid with a column for each of some classes."""
    model, details = shown.model, shown.details
    assert details.recipe is not None
    training = model.training
    try:
        pipe = Pipeline(model, details.recipe, label_names=details.label_names, weak_model=shown.weak_model)
        columns = min(model.num_classes, _NUM_CLASSES)
        if not columns:
            pipe(num_images=_NUM_SAMPLES).save(path)
            return
        spread = [round(i * (model.num_classes - 1) / max(1, columns - 1)) for i in range(columns)]
        pipe(spread * (_NUM_SAMPLES // columns)).save(path, columns=columns)
    except FloatingPointError as error:
        _logger.warning("No samples are drawn for the card: %s", error)
    finally:
        model.train(training)
