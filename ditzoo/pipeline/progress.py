"""A bar with the time left, where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ditzoo.diffusion import SamplingStep

#: (samples finished once the batch is, samples in the batch, step)
Report = Callable[[int, int, SamplingStep], None]


@contextmanager
def progress_bar(show: bool | None, num_images: int, num_steps: int) -> Iterator[Report]:
    """A bar over all steps of all samples; where `show` is None, on a terminal only.

    Args:
        show: whether there is one.
        num_images: in all.
        num_steps: of each; reports may tell another number, as where sampling begins in the middle.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda finished, batch, step: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("sampling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps,"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("sampling", total=num_images * num_steps)

        def report(finished: int, batch: int, step: SamplingStep) -> None:
            steps = (finished - batch) * step.num_steps + batch * step.number
            bars.update(task, total=num_images * step.num_steps, completed=steps)

        yield report
