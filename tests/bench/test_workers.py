"""Jobs give the same results here and in worker processes; errors and progress come through."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ditzoo.bench import prepare_quick, run_quick
from ditzoo.bench.runner import UNTRAINED
from ditzoo.bench.workers import one_thread, run_jobs
from tests.bench.test_runner import QUALITY, SMALL

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


def test_the_benchmark_gives_the_same_quality_with_and_without_workers(tmp_path: Path) -> None:
    runs = []
    for workers in (0, 2):
        run = prepare_quick(tmp_path / str(workers), models=["mdtv2_ti_2"], suite=replace(SMALL, speed_rounds=1))
        run_quick(run, num_workers=workers)
        runs.append(run)
    for name in (UNTRAINED, "mdtv2_ti_2"):
        for column in QUALITY:
            one, two = (run.rows[name].values.get(column) for run in runs)
            assert (one is None) == (two is None) == (name == UNTRAINED and column == "final_loss")
            assert one is None or one.value == two.value
