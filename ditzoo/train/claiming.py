"""A run's folder, which is one run's at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder for this run alone; the system lets go of it when the process ends, however it ends.

    Raises:
        BlockingIOError: another process trains there.
        OSError: where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another process trains in {folder}; wait for its end, or give another name with out."
        ) from error
    except FileExistsError as error:
        raise NotADirectoryError(f"{folder} is a file; give another name with out.") from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror}. Give another name with out.") from error
    try:
        yield
    finally:
        lock.release()
        if not any(path.name != _LOCK for path in folder.iterdir()):  # nothing came of it
            remove(folder / _LOCK)
            folder.rmdir()


def remove(path: Path) -> None:
    """A file or a folder with all that is in it, if there is one; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
