"""To the Hub and back: files and folders through its client, with its cache, tokens, revisions and offline mode.

The client resumes and tries again by itself. What it gives up on comes out as `DownloadError` or `UploadError`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ditzoo import __version__
from ditzoo.weights.hub_errors import DownloadError, Errand, UploadError, holds_token, plain_errors

__all__ = [
    "DownloadError",
    "HubName",
    "UploadError",
    "fetch_file",
    "fetch_folder",
    "fetch_transformer",
    "is_hub_name",
    "push_folder",
]

_logger = logging.getLogger("ditzoo")

_PREFIX = "hf-hub:"
_FORMS = "hf-hub:user/repo, hf-hub:user/repo@revision or hf-hub:user/repo/path/to/file.pt@revision"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_NAME}/{_NAME}")
#: By which the Hub's statistics know ditzoo.
_LIBRARY = "ditzoo"
#: The files by which the Hub shows a repository: the model card, and the picture in it.
CARD, SAMPLES = "README.md", "samples.png"
_COMMIT = re.compile("[0-9a-f]{40}")
#: What a folder of a model may hold. Weights in pickles are not among it.
FOLDER_PATTERNS = ("*.json", "*.md", "*.png", "*.safetensors", "*.txt", "LICENSE")
#: Never fetched, whatever is asked for.
_CODE = ("*.py", "*.pyc", "*.pyd", "*.so", "*.dll", "*.sh")
#: Names of files in the cache: sha256 of large ones, sha1 of those that lie in git.
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
#: Weights as ditzoo and diffusers name them: one file, or shards with their index.
_WEIGHTS = re.compile(r"(model|weak_model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
#: By the ends of their names; a licence has none.
_TEXTS = ("", ".json", ".md", ".txt", ".yaml", ".yml")


@dataclass(frozen=True)
class HubName:
    """A name that stands for something on the Hub.

    Attributes:
        repo_id: `user/repo`.
        revision: branch, tag or commit; None for the main branch.
        path: a file in the repository; None for all of it.
    """

    repo_id: str
    revision: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read `hf-hub:user/repo@revision` or `hf-hub:user/repo/path/to/file.pt@revision`; `@revision` is optional.

        Raises:
            ValueError: for another form.
        """
        if not is_hub_name(text):
            raise ValueError(f"{text!r} is no name on the Hub; write {_FORMS}.")
        place, at, revision = text.removeprefix(_PREFIX).partition("@")
        user, _, rest = place.partition("/")
        repository, slash, path = rest.partition("/")
        name = cls(f"{user}/{repository}", revision if at else None, path if slash else None)
        good_path = name.path is None or _is_path(name.path)
        if not (_is_repo_id(name.repo_id) and good_path and (name.revision is None or _is_revision(name.revision))):
            raise ValueError(f"{text!r} is no name on the Hub; write {_FORMS}.")
        return name

    def __str__(self) -> str:
        path = "" if self.path is None else f"/{self.path}"
        return f"{_PREFIX}{self.repo_id}{path}" + ("" if self.revision is None else f"@{self.revision}")


def is_hub_name(text: object) -> bool:
    """Whether this is meant as a name on the Hub: it begins with `hf-hub:`."""
    return isinstance(text, str) and text.startswith(_PREFIX)


def fetch_file(repo_id: str, filename: str, *, revision: str | None = None) -> Path:
    """One file of a repository, from the cache if it is there.

    It is hashed when it arrives, and removed if it is not the one that the Hub names.

    Args:
        repo_id: `user/repo`.
        filename: its path in the repository.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        The file in the cache of the Hub's client; not to be written to.

    Raises:
        DownloadError: if it cannot be had; the text says why, and what to do.
        ValueError: if `repo_id`, `filename` or `revision` is none.
    """
    from huggingface_hub import hf_hub_download

    _check_place(repo_id, revision)
    if not _is_path(filename):
        raise ValueError(f"{filename!r} is no file in a repository; give its path there, such as 'model.safetensors'.")
    errand = Errand(repo_id, filename, revision)
    with plain_errors(errand), _hashed_arrivals(errand):
        return Path(
            hf_hub_download(repo_id, filename, revision=revision, library_name=_LIBRARY, library_version=__version__)
        )


def fetch_folder(repo_id: str, *, revision: str | None = None, patterns: Sequence[str] = FOLDER_PATTERNS) -> Path:
    """The files of a repository that a model needs, from the cache as far as they are there.

    Code is never fetched, and from folders in the repository only what a pattern with a slash names: they may hold
    other models. Files are hashed as in `fetch_file`.

    Args:
        repo_id: `user/repo`.
        revision: branch, tag or commit; None for the main branch.
        patterns: which files, such as `"*.json"` or `"transformer/*.json"`.

    Returns:
        The folder in the cache of the Hub's client; not to be written to.

    Raises:
        DownloadError: if it cannot be had; the text says why, and what to do.
        ValueError: if `repo_id` or `revision` is none.
    """
    from huggingface_hub import snapshot_download

    _check_place(repo_id, revision)
    errand = Errand(repo_id, revision=revision)
    with plain_errors(errand), _hashed_arrivals(errand):
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=[*patterns],
                ignore_patterns=[*_CODE] if any("/" in pattern for pattern in patterns) else [*_CODE, "*/*"],
                library_name=_LIBRARY,
                library_version=__version__,
            )
        )
        if not folder.is_dir():
            raise errand.error(f"it holds no file {' or '.join(patterns)}. Its files: {errand.address}/tree/main.")
        return folder


def fetch_transformer(repo_id: str, folder: str = "transformer", *, revision: str | None = None) -> Path:
    """The network in a repository of diffusers' layout: its configuration and weights, without the other parts.

    Args:
        repo_id: `user/repo`.
        folder: of the network.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        That folder in the cache of the Hub's client; not to be written to. Weights in a pickle are fetched only where
        there are no others.

    Raises:
        DownloadError, ValueError: as `fetch_folder`.
    """
    safe = [f"{folder}/*.json", f"{folder}/*.safetensors"]
    found = fetch_folder(repo_id, revision=revision, patterns=safe) / folder
    if not any(found.glob("*.safetensors")):
        found = fetch_folder(repo_id, revision=revision, patterns=[*safe, f"{folder}/*.bin"]) / folder
    return found


def push_folder(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload with ditzoo",
    is_generated: Callable[[str], bool] | None = None,
) -> str:
    """Send a folder to the Hub in one commit, so that the repository is never half of it.

    The repository is created if there is none. Weights of an earlier push that the folder does not have, such as more
    shards, are deleted in the same commit; all other files that are there stay. Hidden files are not sent.

    Args:
        folder: with files and folders of files.
        repo_id: `user/repo`.
        private: whether only its owner sees the repository; None leaves that to the account's settings, or as it is.
        revision: a branch, made from the main one if there is none; None for the main branch.
        token: one that may write; None for the one that the Hub's client was given.
        message: of the commit.
        is_generated: whether the text of a model card is a program's. Such a card gives way to one on the Hub that
            somebody wrote, and the samples of such a card on the Hub go where the folder has none.

    Returns:
        The address of the commit.

    Raises:
        UploadError: if it cannot be sent; the text says why, and what to do.
        NotADirectoryError: if `folder` is none.
        ValueError: for a `repo_id` or `revision` that is none, for a folder without files, and for a file that shows
            a token.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _check_place(repo_id, revision)
    if revision is not None and _COMMIT.fullmatch(revision):
        raise ValueError(f"a push makes a commit and goes to a branch, such as 'main'; {revision!r} is a commit.")
    files = _files_of(Path(folder), token)
    errand = Errand(repo_id, revision=revision, token=token, is_push=True)
    with plain_errors(errand):
        api = HfApi(token=token, library_name=_LIBRARY, library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id)
        if private is not None and info.private != private:
            found, fix = ("private", "publish") if info.private else ("public", "hide")
            raise errand.error(f"it is {found} already. Name another, or {fix} it at {errand.address}/settings.")
        if revision is not None and revision != "main":
            if not revision.startswith("refs/"):  # a pull request, which is there or not
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            info = api.model_info(repo_id, revision=revision)
        there = [sibling.rfilename for sibling in info.siblings or ()]
        stale = _stale_weights(there, files)
        is_card_kept = False
        if is_generated is not None and CARD in there and CARD in files:
            card = api.hf_hub_download(repo_id, CARD, revision=info.sha)
            if is_generated(_text_of(Path(card))):
                stale += [SAMPLES] if SAMPLES in there and SAMPLES not in files else []
            elif is_generated(_text_of(files[CARD])):
                is_card_kept = True
                del files[CARD]
        steps: list[CommitOperationAdd | CommitOperationDelete] = []
        steps += [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        steps += [CommitOperationDelete(name) for name in stale]
        # With its parent named, a commit that came between is not undone by what was read before it.
        commit = api.create_commit(repo_id, steps, commit_message=message, revision=revision, parent_commit=info.sha)
    if is_card_kept:
        _logger.warning(
            "The %s of %s is one that somebody wrote, and stays as it is. Delete it there to have a new one.",
            CARD,
            repo_id,
        )
    return commit.commit_url


def _files_of(folder: Path, token: str | None) -> dict[str, Path]:
    """The files to send, by their names in the repository."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; save the model into one first.")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name: path for name, path in found.items() if not any(part[0] == "." for part in name.split("/"))}
    if not files:
        raise ValueError(f"{folder} holds no files to push.")
    for path in files.values():
        if path.suffix in _TEXTS and holds_token(_text_of(path), token):
            raise ValueError(f"{path} shows a token of the Hub. Take it out, and push again; nothing was sent.")
    return files


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _stale_weights(there: Sequence[str], files: dict[str, Path]) -> list[str]:
    """Weights on the Hub that would stand beside the new ones."""
    folders = {PurePosixPath(name).parent for name in files if name.endswith(".safetensors")}
    old = [PurePosixPath(name) for name in there if name not in files]
    return [str(name) for name in old if name.parent in folders and _WEIGHTS.fullmatch(name.name)]


@contextmanager
def _hashed_arrivals(errand: Errand) -> Iterator[None]:
    """Hash what comes into the cache, which names a file by the hash that the Hub gave for it.

    Where the system has no links the client keeps no such names; there only sizes are checked, by the client.
    """
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE, f"models--{errand.repo_id.replace('/', '--')}")

    def named() -> set[Path]:
        return {path for path in storage.glob("blobs/*") if _HASH.fullmatch(path.name)}

    before = named()
    try:
        yield
    finally:
        # After an error too: what has come by then counts as known the next time.
        wrong = {path: found for path in sorted(named() - before) if path.name not in (found := _hashes(path))}
        for path in wrong:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    if wrong:
        path, found = next(iter(wrong.items()))
        links = (link for link in storage.glob("snapshots/**/*") if link.is_symlink())
        name = next((link.name for link in links if link.readlink().name == path.name), "a file")
        kind = "sha256" if len(path.name) == 64 else "sha1"
        raise errand.error(
            f"the bytes that came as {name} have the {kind} {found[0]}, and the Hub names {path.name}. They are "
            "removed: run it again; if that does not help, a proxy alters files, or the repository is broken."
        )


def _hashes(path: Path) -> list[str]:
    """The hashes that the file may be named by: a large one by its sha256, a small one as git or a mirror has it."""
    with path.open("rb") as file:
        if len(path.name) == 64:
            return [hashlib.file_digest(file, "sha256").hexdigest()]
        data = file.read()
        return [hashlib.sha1(text).hexdigest() for text in (b"blob %d\0" % len(data) + data, data)]


def _check_place(repo_id: str, revision: str | None) -> None:
    if not _is_repo_id(repo_id):
        raise ValueError(f"{repo_id!r} is no repository of the Hub; their names read user/repo.")
    if revision is not None and not _is_revision(revision):
        raise ValueError(f"{revision!r} is no revision; give a branch, a tag or a commit.")


def _is_repo_id(text: object) -> bool:
    return isinstance(text, str) and bool(_REPO_ID.fullmatch(text)) and not re.search(r"--|\.\.|\.git$", text)


def _is_path(text: object) -> bool:
    """A path that stays in its repository."""
    return isinstance(text, str) and not re.search(r"[\\\x00-\x1f]", text) and not {"", ".", ".."} & {*text.split("/")}


def _is_revision(text: object) -> bool:
    """What git takes for a name, as far as it could mislead here."""
    return isinstance(text, str) and bool(re.fullmatch(r"[A-Za-z0-9][\w./+-]*", text)) and ".." not in text
