"""Benchmarks: suites, the runner, result rows and reports."""

from ditzoo.bench.results import ResultRow, Value, read_rows, write_row
from ditzoo.bench.runner import QuickRun, prepare_quick, run_quick
from ditzoo.bench.suites import QUICK, QuickSuite

__all__ = [
    "QUICK",
    "QuickRun",
    "QuickSuite",
    "ResultRow",
    "Value",
    "prepare_quick",
    "read_rows",
    "run_quick",
    "write_row",
]
