"""Run jobs in this process or side by side in worker processes, with progress from all of them."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

#: (stage, done, total): called often; a stage ends with done == total
Progress = Callable[[str, int, int], None]

_messages: Any = None  # in a worker: the queue to the main process
_SECONDS_BETWEEN_MESSAGES = 0.1


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with a single thread: networks this small gain little from more, and lose much to a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], num_workers: int, progress: Progress
) -> Generator[tuple[tuple[Any, ...], Any]]:
    """Yield (job, function(*job, progress)) as the jobs finish.

    Args:
        function: importable by name, as its arguments and results must be by pickle.
        jobs: argument tuples, started in this order.
        num_workers: processes; 0 runs the jobs here, one after the other.
        progress: called in this process, whatever runs where.

    Raises:
        ChildProcessError: where a worker was killed.
    """
    if num_workers == 0:
        for job in jobs:
            yield job, function(*job, progress)
        return
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(num_workers, len(jobs)), context, _start_worker, (messages,)) as executor:
        try:
            running = {executor.submit(_run_job, function, job): job for job in jobs}
            while running:
                finished, _ = wait(running, timeout=_SECONDS_BETWEEN_MESSAGES, return_when=FIRST_COMPLETED)
                _deliver(messages, progress)
                for future in finished:
                    yield running.pop(future), future.result()
            _deliver(messages, progress)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was killed, perhaps for want of memory; finished rows are kept, run again to go on"
            ) from error
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


def _deliver(messages: Any, progress: Progress) -> None:
    while True:
        try:
            progress(*messages.get_nowait())
        except queue.Empty:
            return


def _start_worker(messages: Any) -> None:
    global _messages  # noqa: PLW0603 - a queue can reach a worker only when it starts
    _messages = messages
    # Ctrl-C reaches every process of the terminal; the main one ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _run_job(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    last = 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > _SECONDS_BETWEEN_MESSAGES:
            last = now
            _messages.put((stage, done, total))

    return function(*job, progress)
