"""Reading what `torch.save` writes, without running anything in it.

Pickle is a program. PyTorch's `weights_only=True` executes the part of it that builds tensors and containers, and
refuses the rest. It does not keep a pickle from asking for much memory or time: the plain ways to do so are refused
here, but safe in that respect is only safetensors.
"""

from __future__ import annotations

import argparse
import mmap
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ditzoo.weights.checks import message, shown
from ditzoo.weights.refusals import damaged

#: Classes that may stand in a checkpoint besides those of PyTorch's own list (tensors, `OrderedDict`, ...). The scripts
#: that train DiT, SiT and their kin keep their options as a Namespace, `{"model": ..., "ema": ..., "opt": ..., "args":
#: Namespace(...)}`: a bare record, whose making runs nothing. Published files are bare state dicts and need none. It is
#: the only one: numpy's scalars and arrays would bring numpy's own unpickling, a `defaultdict` calls what the file
#: says, and configurations of OmegaConf and the like are code of other packages.
ALLOWED_CLASSES = (argparse.Namespace,)
#: Of PyTorch's own list, what makes gigabytes of a few bytes: `bytearray(10**10)`, and `encode(..., "hex")` on itself.
#: In the pickles that PyTorch reads, a name of a class or function can be written in no other way.
_AMPLIFIERS = re.compile(rb"c(?:builtins|__builtin__)\n(bytearray)\n|c_codecs\n(encode)\n")
_CONVERT = (
    "Ask its author for a safetensors file or a bare state dict. To convert it yourself, open it with "
    "torch.load(..., weights_only=False) where it can do no harm, in a container without network, tokens and files of "
    "yours, and write its state dict with safetensors.torch.save_file."
)
#: What reading a broken pickle raises.
_DAMAGE = (
    *(RuntimeError, EOFError, KeyError, AttributeError, TypeError, IndexError),
    *(ValueError, AssertionError, OverflowError, MemoryError, struct.error),
)
_ZIP_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, RuntimeError, struct.error, ValueError)
#: A zip archive's local header of an entry, with the longest name and extra field.
_LONGEST_HEADER = 30 + 2 * 65535


def is_pytorch(head: bytes) -> bool:
    """Whether a file that begins with these bytes may be one: a zip archive, or a bare pickle as before PyTorch 1.6."""
    return head.startswith(b"PK") or head[:1] == b"\x80"


def read_pytorch(path: Path) -> Any:
    """What the file holds; tensors are mapped from it, unless it is a bare pickle.

    Raises:
        ValueError: it is damaged, no checkpoint or called otherwise, or reading it would run code.
    """
    if path.suffix.lower() == ".safetensors":  # PyTorch would go by the name
        raise ValueError(
            f"{path} is a PyTorch checkpoint, in spite of its name. Look again where it is from; if you trust that, "
            "rename it to .pt."
        )
    zipped = is_zip(path)
    start, end = _check_zip(path) if zipped else (0, path.stat().st_size)
    _check_amplifiers(path, start, end)
    with torch.serialization.safe_globals(list(ALLOWED_CLASSES)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            refused = re.findall(r"GLOBAL ([\w.]+)", str(error))
            if not refused:
                raise ValueError(damaged(path, "its pickle cannot be read, or PyTorch did not write it")) from error
            raise ValueError(_would_run(path, refused)) from error
        except _DAMAGE as error:
            raise ValueError(damaged(path, message(ValueError(str(error).strip().partition("\n")[0])))) from error


def _would_run(path: Path, names: list[str]) -> str:
    return (
        f"{path} holds more than weights: reading it would run {', '.join(dict.fromkeys(names))}, which could be any "
        f"code, and is refused. {_CONVERT}"
    )


def _check_amplifiers(path: Path, start: int, end: int) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if found := _AMPLIFIERS.search(content, start, end):
            name = (found[1] or found[2]).decode()
            raise ValueError(
                f"{path} holds more than weights: its pickle calls {name}, as Python's bytes and numpy's arrays do, "
                f"which can also fill any memory, and is refused. {_CONVERT}"
            )


def _check_zip(path: Path) -> tuple[int, int]:
    """Refuse what is no stored checkpoint; returns between which bytes its pickle stands."""
    if not zipfile.is_zipfile(path):
        raise ValueError(damaged(path, "its zip archive has no end"))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_DAMAGE as error:
        raise ValueError(damaged(path, message(error))) from error
    names = [member.filename for member in members]
    inside = {name.partition("/")[2]: member for name, member in zip(names, members, strict=True)}
    if "data.pkl" not in inside:
        some = ", ".join(shown(name) for name in names[:3]) or "nothing"
        raise ValueError(f"{path} is a zip archive, but no PyTorch checkpoint: it holds {some}. Unpack it first.")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(
            f"{path} is a PyTorch checkpoint that was compressed again, so that its tensors cannot be mapped. Unpack "
            "it and pack it with `zip -0`, or ask its author for the original."
        )
    if "constants.pkl" in inside:
        raise ValueError(f"{path} is a TorchScript program, not weights; ask its author for a state dict.")
    if len(inside) < len(members):
        raise ValueError(damaged(path, "its zip archive has entries of the same name"))
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError(damaged(path, "the entries of its zip archive claim to be larger than the file"))
    data = inside["data.pkl"]
    return data.header_offset, data.header_offset + _LONGEST_HEADER + data.file_size


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def has_checksums(path: Path) -> bool:
    """Whether a zip archive has checksums: PyTorch can be told to save without."""
    with zipfile.ZipFile(path) as archive:
        return any(member.CRC for member in archive.infolist())


def damaged_member(path: Path) -> str | None:
    """The first entry of a zip archive whose bytes do not have its checksum; None if all have. Every byte is read."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as file:
                    while file.read(2**20):
                        pass
            except _ZIP_DAMAGE:
                return member.filename
    return None
