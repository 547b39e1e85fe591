"""Batches of running numbers, loaded here or by other processes: the same whoever loads them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ditzoo.data.image_source import UnreadableFiles
from ditzoo.data.source import Loaded, Source

#: Micro-batches that each worker has ready.
_PREFETCH = 2


class Batch(NamedTuple):
    """One micro-batch of one process.

    Attributes:
        x: (B, C, H, W) float32, as `Loaded.x`.
        y: (B,) int64, or None.
        numbers: running numbers of the samples.
        unreadable: what could not be read and had not been reported before, one message a file.
    """

    x: Tensor
    y: Tensor | None
    numbers: range
    unreadable: tuple[str, ...] = ()


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    world: int = 1,
    accumulation: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The micro-batches of one process, in order: `accumulation` of them a step.

    A step sees the running numbers of its batch, which begins at a multiple of `batch_size`; process r of W takes the
    r-th contiguous part of it, cut again into `accumulation` contiguous parts. What is in a micro-batch depends on the
    numbers and the seed alone.

    Args:
        source: what to read.
        seed: of the run.
        batch_size: of all processes and micro-batches together.
        start: images seen before; the first batch is smaller where it is no multiple of `batch_size`.
        stop: images to have seen at the end; the last batch is smaller likewise.
        rank, world: of this process, and the number of processes.
        accumulation: micro-batches that a process cuts its part into.
        num_workers: processes that load ahead; 0 loads here, when a batch is asked for.
        pin_memory: put batches where they are copied to a GPU faster.

    Raises:
        ValueError: for numbers out of range, or batches that cannot be cut evenly, at once; while loading, where this
            process meets more than `source.max_unreadable` files that it cannot read.
    """
    plan = _Plan(batch_size, start, stop, rank, world, accumulation)
    if num_workers < 0:
        raise ValueError(f"num_workers must be 0 or more, got {num_workers}.")
    if source.max_workers is not None:
        num_workers = min(num_workers, source.max_workers)
    pin_memory = pin_memory and torch.cuda.is_available()
    return _batches(source, seed, plan, num_workers, pin_memory)


def next_step_end(seen: int, stop: int, batch_size: int) -> int:
    """Images seen after the next step: batches end at multiples of their size, and where training ends."""
    return min(seen - seen % batch_size + batch_size, stop)


@dataclass(frozen=True)
class _Plan:
    """Which running numbers a process loads."""

    batch_size: int
    start: int
    stop: int
    rank: int
    world: int
    accumulation: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "world", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"start must be from 0 to stop ({self.stop}), got {self.start}.")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be from 0 to {self.world - 1}, got {self.rank}.")
        if self.batch_size % self.num_parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of {self.num_parts}, which is {self.world} "
                f"processes times accumulation ({self.accumulation}): {self._nearest(self.batch_size)}."
            )
        among = f"cannot be cut evenly over {self.world} processes times accumulation ({self.accumulation})"
        if self.stop % self.num_parts:
            raise ValueError(
                f"the last batch {among}: set num_images to {self._nearest(self.stop)} instead of {self.stop}."
            )
        if self.start % self.num_parts:
            raise ValueError(
                f"what is left of the batch in which training stopped, at {self.start} images, {among}: go on with "
                "as many as before."
            )

    @property
    def num_parts(self) -> int:
        """Of a batch, over all processes."""
        return self.world * self.accumulation

    def __iter__(self) -> Iterator[range]:
        """The running numbers of each micro-batch."""
        first = self.start
        while first < self.stop:
            end = next_step_end(first, self.stop, self.batch_size)
            part = (end - first) // self.num_parts
            for place in range(self.rank * self.accumulation, (self.rank + 1) * self.accumulation):
                yield range(first + place * part, first + (place + 1) * part)
            first = end

    def _nearest(self, number: int) -> str:
        """Numbers that leave no rest, below and above."""
        below = number - number % self.num_parts
        above = below + self.num_parts
        return f"{below} or {above}" if below > 0 else f"{above}"


def _batches(
    source: Source, seed: int, plan: _Plan, num_workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    # Each worker counts what it could not read; here are the files of all of them.
    unreadable = UnreadableFiles(source.name, source.max_unreadable)
    load = _load_here if num_workers == 0 else _load_in_workers
    for numbers, loaded in zip(plan, load(source, seed, plan, num_workers, pin_memory), strict=True):
        new = unreadable.add(loaded.unreadable) if loaded.unreadable else ()
        yield Batch(loaded.x, loaded.y, numbers, tuple(new))


def _load_here(source: Source, seed: int, plan: _Plan, num_workers: int, pin_memory: bool) -> Iterator[Loaded]:
    order = source.order(seed, plan.batch_size)
    for numbers in plan:
        loaded = source.load([order.index(number) for number in numbers], numbers, seed)
        if pin_memory:
            y = None if loaded.y is None else loaded.y.pin_memory()
            loaded = loaded._replace(x=loaded.x.pin_memory(), y=y)
        yield loaded


def _load_in_workers(source: Source, seed: int, plan: _Plan, num_workers: int, pin_memory: bool) -> Iterator[Loaded]:
    loader: DataLoader[Loaded | Exception] = DataLoader(
        _Pieces(source, seed),
        sampler=_Places(source, seed, plan),
        batch_size=None,  # a piece is a whole micro-batch
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=_PREFETCH,
        worker_init_fn=leave_signals_to_main,
        generator=torch.Generator(),  # the one of all torch would be drawn from
    )
    for loaded in loader:
        if isinstance(loaded, Exception):
            raise loaded
        yield loaded


def leave_signals_to_main(worker: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: a worker goes on when a whole job is told to stop.

    A terminal sends SIGINT, clusters and torchrun send SIGTERM, to all processes of a job. A worker that ended by
    itself would be an error in the main process, which then could not finish its step and write a checkpoint. Only a
    SIGTERM of the main process ends a worker; where the main process dies, PyTorch ends it within seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere a process cannot tell who sends
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class _Pieces(Dataset[Loaded | Exception]):
    """Micro-batches, by indices and running numbers."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, piece: tuple[list[int], range]) -> Loaded | Exception:
        try:
            return self.source.load(*piece, self.seed)
        except (OSError, ValueError) as error:
            return error  # raised by the loader, it would lose its message in that of a traceback


class _Places(Sampler[tuple[list[int], range]]):
    """Indices and running numbers of the micro-batches, found in the main process as they are needed."""

    def __init__(self, source: Source, seed: int, plan: _Plan) -> None:
        self.source, self.seed, self.plan = source, seed, plan

    def __iter__(self) -> Iterator[tuple[list[int], range]]:
        order = self.source.order(self.seed, self.plan.batch_size)
        return (([order.index(number) for number in numbers], numbers) for numbers in self.plan)
