"""Peaks of calls whose allocations are known to the byte."""

import pytest
import torch
from torch import nn

from ditzoo.metrics import parameter_bytes, peak_memory

MB = 2**20


def megabytes(count: int) -> torch.Tensor:
    return torch.empty(count * MB // 4)


def test_peak_of_allocations_and_a_free():
    def run() -> None:
        first, second = megabytes(1), megabytes(1)
        del first
        third = megabytes(3)
        assert second.numel() < third.numel()

    assert peak_memory(run) == 4 * MB


def test_peak_before_the_end():
    def run() -> torch.Tensor:
        large = megabytes(5)
        del large
        return megabytes(2)

    assert peak_memory(run) == 5 * MB


def test_the_result_counts_while_it_is_made():
    assert peak_memory(lambda: megabytes(3)) == 3 * MB


def test_memory_held_before_is_left_out_whoever_made_it():
    held = [megabytes(4)]

    def grow() -> None:
        held.append(megabytes(1))

    def release_and_take() -> None:
        held.clear()
        held.append(megabytes(6))

    assert peak_memory(grow) == MB
    assert peak_memory(release_and_take) == 6 * MB  # the 4 MB of no profile, the 1 MB of an earlier one
    assert peak_memory(release_and_take) == 6 * MB
    assert peak_memory(held.clear) == 0


def test_backward_keeps_activations():
    # Allocations: x.exp() and y.exp() are kept for backward; then 3 gradients, of which 2 at once.
    leaf = megabytes(1).zero_().requires_grad_()

    def forward() -> torch.Tensor:
        return leaf.exp().exp().sum()

    def forward_backward() -> None:
        forward().backward()

    with torch.no_grad():
        assert peak_memory(forward) == pytest.approx(2 * MB, abs=1024)
    assert peak_memory(forward) == pytest.approx(2 * MB, abs=1024)
    both = peak_memory(forward_backward)
    assert 3 * MB <= both <= 4 * MB + 1024
    leaf.grad = None
    assert peak_memory(forward_backward) == both


def test_nothing_allocated():
    assert peak_memory(lambda: None) == 0


def test_an_error_of_the_function_surfaces_and_leaves_the_profiler_free():
    def broken() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        peak_memory(broken)
    assert peak_memory(lambda: megabytes(1)) == MB


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="'meta'"):
        peak_memory(lambda: None, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_on_cuda():
    def run() -> None:
        first, second = (torch.empty(MB, device="cuda", dtype=torch.uint8) for _ in range(2))
        del first
        torch.empty(3 * MB, device="cuda", dtype=torch.uint8)
        del second

    assert peak_memory(run, device="cuda") == 4 * MB


def test_cuda_readings_frame_the_call(monkeypatch):
    log: list[str] = []
    readings = {"memory_allocated": 1000, "max_memory_allocated": 5096}
    for name in ("synchronize", "memory_allocated", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: log.append(name) or readings.get(name))
    assert peak_memory(lambda: log.append("call"), device="cuda:1") == 4096
    first = ["synchronize", "memory_allocated", "reset_peak_memory_stats"]
    assert log == [*first, "call", "synchronize", "max_memory_allocated"]


def test_parameter_bytes():
    layer = nn.Linear(3, 5).to(torch.float64)
    assert parameter_bytes(layer) == (3 * 5 + 5) * 8
    assert parameter_bytes(nn.Sequential(layer, layer)) == (3 * 5 + 5) * 8
    assert parameter_bytes(nn.BatchNorm1d(4).half()) == 2 * 4 * 2  # running statistics are buffers
