"""Weights in a folder: which of its files hold them, and the shards that an index names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from torch import Tensor

from ditzoo.weights.checks import shown, some
from ditzoo.weights.json_files import read_json_object
from ditzoo.weights.safetensors_files import read_safetensors

INDEX_SUFFIX = ".safetensors.index.json"
#: What files of weights are called in folders: ours and those of diffusers.
_STEMS = ("model", "diffusion_pytorch_model")
_SAFE_NAMES = tuple(f"{stem}{suffix}" for stem in _STEMS for suffix in (".safetensors", INDEX_SUFFIX))
#: Looked for only where none of the above is there.
_PICKLE_NAMES = ("diffusion_pytorch_model.bin",)
_LONGEST_FILE_NAME = 255


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder, or the index of its shards. Safetensors go before a pickle.

    Raises:
        OSError: there is none.
        ValueError: there is more than one, or it is a link that leads out of the folder.
    """
    names = sorted(path.name for path in folder.iterdir())
    found = _known(names)
    if not found:
        raise FileNotFoundError(_none_in(folder, names))
    if len(found) > 1:
        raise ValueError(f"{folder} holds more than one set of weights: {', '.join(found)}. Name the one to read.")
    check_inside(folder / found[0])
    return folder / found[0]


def _known(names: list[str]) -> list[str]:
    return [name for name in _SAFE_NAMES if name in names] or [name for name in _PICKLE_NAMES if name in names]


def _none_in(folder: Path, names: list[str]) -> str:
    text = f"{folder} is a folder without {', '.join(_SAFE_NAMES)} or {_PICKLE_NAMES[0]}; it has "
    text += f"{some([shown(name) for name in names], 5)}." if names else "nothing."
    for name in names:
        if (folder / name).is_dir() and _known([path.name for path in (folder / name).iterdir()]):
            return f"{text} Did you mean {folder / shown(name)}?"
    return f"{text} Name the file of weights itself."


def read_shards(index: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """The tensors of all shards that an index names, mapped from them, and the shards.

    Raises:
        OSError: a shard is not there.
        ValueError: the index or a shard is damaged, they do not belong together, or a shard lies elsewhere.
    """
    shards = read_index(index)
    files = {index.parent / shard: names for shard, names in shards.items()}
    for file in files:
        check_inside(file)
    if missing := [file.name for file in files if not file.exists()]:
        raise FileNotFoundError(
            f"{index.parent} lacks {some(missing)}, of the {len(files)} files that {index.name} names; fetch the whole "
            "folder."
        )
    tensors: dict[str, Tensor] = {}
    for file, names in files.items():
        found = read_safetensors(file)
        absent = [shown(name) for name in names if name not in found]
        foreign = [shown(name) for name in found.keys() - set(names)]
        if absent or foreign:
            what = f"lacks {some(absent)}, which" if absent else f"holds {some(sorted(foreign))}, which for it"
            verb = "promises" if absent else "does not name"
            raise ValueError(f"{file} {what} {index.name} {verb}: they are not of one set; fetch the whole folder.")
        tensors |= found
    return tensors, tuple(files)


def read_index(path: Path) -> dict[str, list[str]]:
    """What an index says, {"weight_map": {name of a tensor: file}}, the other way round: file -> names, in order.

    Raises:
        ValueError: it is damaged or no index, or a file's name could lead elsewhere.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{path} is JSON, not weights: it has no 'weight_map' that says in which file each tensor is. Name the "
            f"file of weights, its index (*{INDEX_SUFFIX}), or the folder."
        )
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_name(shard):
            raise ValueError(
                f"{path} is refused: it says that {shown(name)} is in {shown(repr(shard))}, which is no name of a "
                "safetensors file in the same folder. Fetch the folder from a source that you trust."
            )
        shards.setdefault(shard, []).append(name)
    return dict(sorted(shards.items()))


def is_plain_name(shard: str) -> bool:
    """Whether it is a name in a folder on every system: no path, no drive, nothing that systems read differently."""
    return (
        shard.isprintable()
        and shard.endswith(".safetensors")
        and len(shard.encode()) <= _LONGEST_FILE_NAME
        and PureWindowsPath(shard).name == shard
        and ":" not in shard
    )


def check_inside(path: Path) -> None:
    """Refuse a link that leads out of the folder in which it lies.

    Who names a file may link it from anywhere. But what a folder holds, or an index names, may be a stranger's, and
    would end up wherever the weights go. The Hub's cache consists of links into its own stores, which are let through.

    Raises:
        ValueError: it leads out.
    """
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    if not any(real.is_relative_to(place) for place in (folder, *_hub_stores(folder))):
        raise ValueError(
            f"{path} is a link that leads out of its folder, to {shown(str(real))}, and is refused. Name that file "
            "itself, or put a copy of it into the folder."
        )


def _hub_stores(folder: Path) -> Iterator[Path]:
    """Where links in the Hub's cache lead: of `CACHE/models--owner--name/snapshots/REVISION/...`, the repository's
    `blobs`, and `CACHE/blobs`, which repositories share."""
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith("models--"):
            yield from (repository / "blobs", repository.parent / "blobs")
