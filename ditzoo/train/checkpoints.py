"""Checkpoints: folders that are whole or not there, of which some are kept.

checkpoints/000012800/
    config.json, model.safetensors    the model with the averaged weights, as `save_pretrained` writes it
    training.safetensors              raw weights, optimiser, other averages
    training.json                     counters, and the sizes of the files by which a damaged checkpoint is known
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditzoo import __version__
from ditzoo.media.files import remove_leftovers, writing_folder
from ditzoo.models import DiffusionTransformer
from ditzoo.train.state import AVERAGE, TrainingState
from ditzoo.weights.files import load_state_dict
from ditzoo.weights.folders import PROGRESS, TRAINING_STATE, find_weights, read_progress, save_model
from ditzoo.weights.shards import write_safetensors

SCHEMA_VERSION = 1
#: What names of the averaged weights begin with.
EMA = f"{AVERAGE}ema/"
#: Of headers and JSON, roughly, in bytes.
_SLACK = 4 * 10**6


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: of the folder.
        progress: content of `training.json`.
    """

    path: Path
    progress: Mapping[str, Any]

    @property
    def seen(self) -> int:
        """Images seen."""
        return int(self.progress["seen"])

    @property
    def step(self) -> int:
        """Steps made."""
        return int(self.progress["step"])

    @property
    def extra(self) -> Mapping[str, Any]:
        """What the loop gave to `save` besides."""
        extra: Mapping[str, Any] = self.progress["extra"]
        return extra


class Checkpoints:
    """The checkpoints of a run; one process at a time may write.

    Args:
        folder: made when it is first written to.
        keep_last: how many of the newest to keep.
        keep_every: keep for ever the first one at or after each multiple of this many images; None keeps none.

    Raises:
        ValueError: for numbers below 1.
    """

    def __init__(self, folder: Path | str, *, keep_last: int = 2, keep_every: int | None = None) -> None:
        for name, value in {"keep_last": keep_last, "keep_every": keep_every}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        self.folder, self.keep_last, self.keep_every = Path(folder), keep_last, keep_every

    def all(self) -> list[Checkpoint]:
        """The whole ones, oldest first; a warning names each that is not."""
        found = []
        for path in self.folder.glob("*"):
            if path.is_dir() and path.name.isdecimal():
                try:
                    found.append(Checkpoint(path, _read_progress(path)))
                except (OSError, ValueError) as error:
                    warnings.warn(f"{path} is no whole checkpoint and is passed over: {error}", stacklevel=2)
        return sorted(found, key=lambda checkpoint: checkpoint.seen)

    def newest(self) -> Checkpoint | None:
        """The whole one with most images seen."""
        return max(self.all(), key=lambda checkpoint: checkpoint.seen, default=None)

    def save(
        self,
        model: DiffusionTransformer,
        state: TrainingState,
        *,
        seen: int,
        step: int,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a checkpoint, then remove those that are no longer kept. One that is there and whole stays as it is.

        Args:
            model: a plain one with the averaged weights and its details.
            state: as `full_state` gives it.
            seen: images.
            step: number of steps made.
            extra: whatever else the loop needs, JSON-safe.

        Raises:
            OSError: too little space, known before anything is written, or a folder that cannot be written; checkpoints
                that were there stay.
            ValueError: where `extra` is not JSON, or the model is none that a folder can describe.
        """

        # The averaged weights are in the model's file, unless that has other ones, such as merged adapters.
        held = model.state_dict()
        shared = [name for name, tensor in state.average("ema").items() if _is_equal(held.get(name), tensor)]
        left_out = {EMA + name for name in shared}
        tensors = {name: tensor for name, tensor in state.tensors.items() if name not in left_out}

        def fill(folder: Path) -> dict[str, Any]:
            save_model(model, folder)
            write_safetensors(folder / TRAINING_STATE, tensors)
            return {"step": step, "optimizer": state.optimizer, "extra": dict(extra or {}), "ema_in_model": shared}

        return self.write(seen, fill, num_bytes=num_bytes([*held.values(), *tensors.values()]))

    def write(self, seen: int, fill: Callable[[Path], Mapping[str, Any]], *, num_bytes: int) -> Path:
        """As `save`, of whatever files.

        Args:
            seen: images.
            fill: writes files into the folder that it is given, and returns entries of `training.json`.
            num_bytes: what the files will have, at most.
        """
        path = self.folder / f"{seen:09d}"
        if path.exists():
            if any(checkpoint.seen == seen for checkpoint in self.all()):
                return path
            shutil.rmtree(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)  # before space is measured
        self.check_space(num_bytes)
        with writing_folder(path) as temporary:
            entries = fill(temporary)
            files = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
            progress = {
                "schema_version": SCHEMA_VERSION,
                "ditzoo_version": __version__,
                "seen": seen,
                **entries,
                "files": files,
            }
            (temporary / PROGRESS).write_text(json.dumps(progress, allow_nan=False) + "\n", encoding="utf-8")
            _flush([*temporary.iterdir(), temporary])
        _flush([self.folder])  # a machine that goes down later must not lose what older ones are removed for
        self._prune()
        return path

    def check_space(self, num_bytes: int) -> None:
        """That files of so many bytes, their headers not counted, can be written.

        Raises:
            OSError: there is too little space; the message names both numbers.
        """
        num_bytes += _SLACK
        # The folder may be made later.
        there = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
        if free < num_bytes:
            raise OSError(
                errno.ENOSPC,
                f"the next checkpoint needs {num_bytes:,} bytes and {self.folder} has {free:,} free, so nothing was "
                "written; free some space, or keep fewer checkpoints (keep_last, keep_every).",
            )

    def _prune(self) -> None:
        checkpoints = self.all()
        kept = {checkpoint.path for checkpoint in checkpoints[-self.keep_last :]}
        if self.keep_every is not None:
            periods: dict[int, Path] = {}
            for checkpoint in checkpoints:
                periods.setdefault(checkpoint.seen // self.keep_every, checkpoint.path)
            kept |= {path for period, path in periods.items() if period > 0}
        for checkpoint in checkpoints:
            if checkpoint.path not in kept:
                # Under a name of leftovers, so that a process killed here leaves no half checkpoint.
                doomed = checkpoint.path.with_name(f".{checkpoint.path.name}.partial-removed")
                os.replace(checkpoint.path, doomed)
        remove_leftovers(self.folder)


def load_state(checkpoint: Checkpoint) -> TrainingState:
    """The state in a checkpoint, mapped from its files: each process reads what it needs.

    Raises:
        OSError, ValueError: for files that are missing or damaged.
    """
    tensors = load_state_dict(checkpoint.path / TRAINING_STATE)
    model = load_state_dict(find_weights(checkpoint.path))
    for name in checkpoint.progress["ema_in_model"]:
        tensors[EMA + name] = model[name]
    return TrainingState(tensors, dict(checkpoint.progress["optimizer"]))


def _read_progress(path: Path) -> dict[str, Any]:
    progress = read_progress(path)
    if (version := progress.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(f"{PROGRESS} has schema_version {version}, and this version of ditzoo reads {SCHEMA_VERSION}")
    return progress


def _is_equal(held: torch.Tensor | None, tensor: torch.Tensor) -> bool:
    return held is not None and held.dtype == tensor.dtype and torch.equal(held.cpu(), tensor)


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """What tensors take in files, headers not counted."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _flush(paths: Iterable[Path]) -> None:
    """Have the system write files and folders to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems do not flush folders
                raise
        finally:
            os.close(descriptor)
