"""Jobs give the same results here and in worker processes; errors and progress come through."""

import os
from collections.abc import Callable

import pytest
import torch

from ditzoo.bench.workers import one_thread, run_jobs

Report = Callable[[str, int, int], None]


def square(number: int, progress: Report) -> tuple[int, int, int]:
    if number < 0:
        raise ValueError(f"no square root of {number}")
    progress(f"square {number}", 1, 1)
    return number**2, os.getpid(), torch.get_num_threads()


def test_without_workers_jobs_run_here_in_order() -> None:
    stages: list[str] = []
    results = list(run_jobs(square, [(2,), (3,)], 0, lambda stage, done, total: stages.append(stage)))
    assert [(job, result[0]) for job, result in results] == [((2,), 4), ((3,), 9)]
    assert {result[1] for _, result in results} == {os.getpid()}
    assert stages == ["square 2", "square 3"]


def test_workers_are_other_processes_with_one_thread_and_report() -> None:
    stages: set[str] = set()
    results = dict(run_jobs(square, [(2,), (3,), (4,)], 2, lambda stage, done, total: stages.add(stage)))
    assert {job: result[0] for job, result in results.items()} == {(2,): 4, (3,): 9, (4,): 16}
    assert os.getpid() not in {result[1] for result in results.values()}
    assert {result[2] for result in results.values()} == {1}
    assert "square 2" in stages


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="no square root of -1"):
        list(run_jobs(square, [(-1,), (2,)], 1, lambda stage, done, total: None))


def test_one_thread_restores_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
