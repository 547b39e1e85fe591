"""Memory: bytes of a model's parameters and the peak of a call."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters as they are stored, shared ones once, buffers left out."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def peak_memory(function: Callable[[], object], *, device: torch.device | str | None = None) -> int:
    """Bytes held at once at the worst moment of `function()`, above what was held before it.

    Counted is what torch's allocator hands out on `device` (default: the CPU), so weights and inputs made
    before the call are left out, and memory of other libraries and of the Python process is never seen.

    On the CPU the allocations are read from torch's profiler: the figure is exact and repeatable, the call
    slower than usual, and another profiler must not be running. Memory from before the call is taken to
    stay, so a call that releases some (old gradients, say) gets no credit for it.

    On CUDA it is the allocator's own peak, in blocks rounded up to 512 bytes, less what was held before;
    there a release of earlier memory does make room. The device's peak statistics are reset.

    Raises:
        ValueError: `device` is neither a CPU nor a CUDA device.
    """
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda":
        return _cuda_peak(function, device)
    if device.type == "cpu":
        return _cpu_peak(function)
    raise ValueError(f"peak_memory() measures 'cpu' and 'cuda' devices, not {str(device)!r}")


def _cuda_peak(function: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before)


@contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    """The profiler's library logs each start, and the lack of a GPU as an error, past Python's `sys.stderr`."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def _cpu_peak(function: Callable[[], object]) -> int:
    with _native_stderr_silenced(), torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profiler:
        function()
    results = profiler.kineto_results
    assert results is not None, "the profiler has results once its block has ended"
    events = results.experimental_event_tree()
    for event in events:
        events.extend(event.children)  # the list grows under the loop: a walk through the whole tree
    blocks: dict[int, int] = {}  # address -> bytes of what the call holds
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_time_ns):
        fields: Any = event.extra_fields
        if event.name != "[memory]" or fields.device.type != "cpu":
            continue
        if fields.alloc_size > 0:
            blocks[fields.ptr] = fields.alloc_size
            held += fields.alloc_size
            peak = max(peak, held)
        else:
            # An address the call never got is earlier memory. The profiler reports the release of some of
            # it only (blocks that an earlier profile saw), so that counting it would depend on the past.
            held -= blocks.pop(fields.ptr, 0)
    return peak
