"""Published weights by name: fetching them, and what their licence says."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from threading import Lock

from ditzoo import registry
from ditzoo.models import PublishedFile
from ditzoo.models.families import NON_COMMERCIAL_LICENCES
from ditzoo.registry import MissingWeightsError
from ditzoo.weights.download import fetch_url
from ditzoo.weights.hub import DownloadError, HubName, fetch_file, fetch_transformer
from ditzoo.weights.records import load_records

_logger = logging.getLogger("ditzoo")
_noted: set[str] = set()
_noting = Lock()


def fetch_published(name: str, file: PublishedFile | None = None) -> Path:
    """The weights of a tagged name, from the cache or from where their authors put them.

    Args:
        name: a tagged name, such as `"dit_xl_2.in256"`.
        file: one of `model_info(name).files`; default: the first.

    Returns:
        The file, or the folder where the layout is diffusers'.

    Raises:
        ValueError: unknown name or tag.
        MissingWeightsError: the name has no published files, or no program can fetch this one; the message says how
            to load it.
        DownloadError: it could not be fetched, or has another size than the authors' file; the message names the other
            places where these weights are.
    """
    files = registry.model_info(name).files
    if file is None:
        if not files:
            raise MissingWeightsError(_no_files(name))
        file = files[0]
    if file.fetched == "by hand":
        raise MissingWeightsError(
            f"Google Drive cannot be downloaded by program. Open {file.page}, save {file.name}, then "
            f'ditzoo.create("{name}", checkpoint="path/to/{file.name}").'
        )
    try:
        path = _fetch(file)
    except DownloadError as error:
        others = [other for other in files if other != file]
        if not others:
            raise
        raise DownloadError(f"{error} {_elsewhere(name, others)}") from error
    _compare_with_records(name, file, path)
    return path


def note_licence(name: str) -> None:
    """Log, once in a process, that the weights of a name allow no commercial use; nothing where they may.

    Raises:
        ValueError: unknown name or tag.
    """
    note_licence_of(name, registry.model_info(name).licence)


def note_licence_of(what: str, licence: str | None) -> None:
    """`note_licence` of weights that may have no name in the registry; `what` they are called."""
    if licence not in NON_COMMERCIAL_LICENCES:
        return
    with _noting:
        if what in _noted:
            return
        _noted.add(what)
    _logger.warning("The weights of %s are under %s, which allows no commercial use.", what, licence)


def _fetch(file: PublishedFile) -> Path:
    if file.url is not None:
        return fetch_url(file.url, filename=file.name, sha256=file.sha256, num_bytes=file.num_bytes)
    assert file.repo_id is not None, "a PublishedFile has one place"
    if file.layout == "diffusers":
        return fetch_transformer(file.repo_id, file.name, revision=file.revision)
    path = fetch_file(file.repo_id, file.name, revision=file.revision)
    found = path.stat().st_size
    if file.num_bytes not in (None, found):
        raise DownloadError(
            f"{path} has {found:,} bytes, where {file.num_bytes:,} were expected of {file.source}: its authors have "
            "put another file there, or it is damaged. Remove it and call again; if you want this file, load it with "
            f"checkpoint={str(path)!r}."
        )
    return path


def _no_files(name: str) -> str:
    info = registry.model_info(name)
    if info.packaged:
        return f"The weights of {name} come with ditzoo; ditzoo.create({name!r}, pretrained=True) loads them."
    tags = ", ".join(f"{info.name}.{tag}" for tag in info.tags)
    if tags and info.source is None:
        return f"{name} names no weights; give one of its tags: {tags}."
    return f"No files are known of the weights of {name}; ditzoo.list_models(pretrained=True) gives names that have."


def _elsewhere(name: str, others: list[PublishedFile]) -> str:
    calls = {other.source: f"ditzoo.create({name!r}, checkpoint={_checkpoint(other)!r})" for other in others}
    places = ", or ".join(f"at {source}: {call}" for source, call in calls.items())
    return f"The same weights are {places}."


def _checkpoint(file: PublishedFile) -> str:
    """What `create` takes for it."""
    if file.repo_id is None:
        return file.url or f"path/to/{file.name}"
    name = HubName(file.repo_id, file.revision, None if file.layout == "diffusers" else file.name)
    return str(name)


def _compare_with_records(name: str, file: PublishedFile, path: Path) -> None:
    """Warn if a file of this name was verified that had another size."""
    if not path.is_file():
        return
    try:
        sizes = {record.num_bytes: record.date for record in load_records(name) if record.file == file.name}
    except (OSError, ValueError):
        return  # `ditzoo verify` and `ditzoo info` tell what is the matter with them
    found = path.stat().st_size
    if sizes and found not in sizes:
        size, date = next(iter(sizes.items()))
        warnings.warn(
            f"{path} has {found:,} bytes; the {file.name} that passed `ditzoo verify {name}` on {date} had {size:,}. "
            f"Check it: `ditzoo verify {name} --checkpoint {path}`.",
            stacklevel=3,
        )
