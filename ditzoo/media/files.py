"""Files that are whole or not there: written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

#: In the name of whatever a killed process may have left behind.
_PARTIAL = ".partial-"
#: Seconds after which nobody can be writing any more.
_ABANDONED = 24 * 3600


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write: it replaces `path` at the end of the block, and is removed if the block raises."""
    temporary = path.with_name(_temporary(path.name))
    temporary.touch(exist_ok=False)
    mode = _mode(temporary)
    try:
        yield temporary
        os.chmod(temporary, mode)  # safetensors makes its files for their owner alone
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `replacing`, for files that users ask for: makes the folder where it is missing.

    Raises:
        OSError: the file cannot be written; the message names `path` and the reason.
    """
    with _named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary


def check_writable(path: Path) -> None:
    """That `writing(path)` will work, as far as one can tell before hours of sampling.

    Raises:
        OSError: as `writing`.
    """
    with _named_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        there = next(parent for parent in path.absolute().parents if parent.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill: it becomes `path` at the end of the block, and is removed if the block raises.

    Raises:
        FileExistsError: `path` is a file, or holds something that new files would mix with.
        OSError: the folder cannot be written; the message names `path` and the reason.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is no empty folder; choose another name, or remove it first.")
    with _named_errors(path, holds_others=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(_temporary(path.name))
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                path.rmdir()  # it is empty, and not every system renames onto a folder
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def writing_into(folder: Path, *, replaces: Sequence[str], last: str) -> Iterator[Path]:
    """A temporary folder to fill: at the end of the block its files move into `folder`, which may have others.

    A block that raises leaves `folder` as it was. Moving needs no space, so that a full disk cannot stop it halfway;
    whatever else does leaves `folder` without the file `last`, rather than with old and new files that look whole.
    Temporary folders that are a day old are of processes that were killed, and are removed.

    Args:
        folder: made where it is missing.
        replaces: patterns of names; files in `folder` that match one, and are not among the new ones, are removed.
        last: the file among the new ones without which the others are nothing.

    Raises:
        OSError: the folder cannot be written; the message names it and the reason.
    """
    is_new = not folder.exists()
    with _named_errors(folder, holds_others=True):
        folder.mkdir(parents=True, exist_ok=True)
        _remove(path for path in folder.glob(f".new{_PARTIAL}*") if _is_abandoned(path))
        temporary = folder / _temporary("new")
        temporary.mkdir()
        try:
            yield temporary
            names = sorted({path.name for path in temporary.iterdir()} - {last})
            old = {path for pattern in replaces for path in folder.glob(pattern)}
            for path in [folder / last, *(path for path in old if path.name not in names)]:
                path.unlink(missing_ok=True)
            for name in [*names, last]:
                os.chmod(temporary / name, _mode(temporary) & 0o666)
                os.replace(temporary / name, folder / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # another process may have written there
                    folder.rmdir()
            raise
        temporary.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove the files that killed processes left half written. Only where nobody is writing any more."""
    _remove(folder.glob(f".*{_PARTIAL}*"))


def _temporary(name: str) -> str:
    return f".{name}{_PARTIAL}{secrets.token_hex(8)}"


def _mode(path: Path) -> int:
    """Of a new file or folder, which has it from the umask of the process."""
    return stat.S_IMODE(path.stat().st_mode)


def _is_abandoned(path: Path) -> bool:
    """Whether the process that was writing it has been killed."""
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except OSError:  # it has just got its name
        return False


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _named_errors(path: Path, *, holds_others: bool = False) -> Iterator[None]:
    """Errors of the system then tell which file could not be written, not under which temporary name.

    Args:
        path: of a file, or of a folder.
        holds_others: whether what is written inside the block is written for `path`, under temporary names: then the
            errors that name those name `path` instead.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, _NamedError) and not holds_others:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "Free some space, or write elsewhere." if full else "Check the path, or write elsewhere."
        reason = error.reason if isinstance(error, _NamedError) else error.strerror or str(error)
        raise _NamedError(error.errno, reason, f"{path} cannot be written: {reason}. {hint}") from error


class _NamedError(OSError):
    """An error of the system that tells which file it is about, and why."""

    def __init__(self, number: int | None, reason: str, message: str) -> None:
        super().__init__(*([message] if number is None else [number, message]))
        self.reason = reason
