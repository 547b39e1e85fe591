"""What is looked at in any file of weights before it is read, and what is said of one that cannot be."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path


def read_head(path: Path) -> bytes:
    """The first 512 bytes of a file that is there, is a file, and is not empty.

    Raises:
        OSError: it is not there, or no file.
        ValueError: it is empty.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link that points nowhere: {path.readlink()} is not there.")
    if not path.exists():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*") if p.is_file()], n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else " Check the path."
        raise FileNotFoundError(f"there is no file {path}.{hint}")
    if not path.is_file():  # to open a pipe would wait for its other end
        raise OSError(f"{path} is no regular file; name a file of weights.")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty (0 bytes); fetch it again.")
    return head


def damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged or cut off ({reason}); it has {path.stat().st_size:,} bytes. Compare with the size at its "
        "source; remove it and fetch it again."
    )


def unknown_dtype(path: Path, name: str, dtype: str) -> str:
    return f"{path} cannot be read: {name} is stored as {dtype}. Take a copy in floats of 16, 32 or 64 bits."


def no_weights(path: Path, head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return f"{path} is a web page, not weights: its source asked for something first. Open the link in a browser."
    if text.startswith(b"version https://git-lfs"):
        return f"{path} is the pointer that stands for a large file in Git; fetch the file itself with `git lfs pull`."
    return (
        f"{path} is no file of weights: neither safetensors, nor an index of such files, nor a PyTorch checkpoint. It "
        f"begins with {head[:16]!r}; if it is an archive, unpack it first."
    )
