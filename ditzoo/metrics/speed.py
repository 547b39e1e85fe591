"""Time per call, measured interleaved, and the matrix-product roof of the machine.

A clock reading means nothing by itself: every duration here is the difference of two readings of one clock.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Time of one function, measured several times."""

    seconds: tuple[float, ...]
    """Seconds per call, one value for each round, in the order of the rounds."""
    repeats: int = 1
    """Least number of calls that a value is the mean of."""

    def __post_init__(self) -> None:
        if not self.seconds or not all(math.isfinite(value) and value > 0 for value in self.seconds):
            raise ValueError(f"a Timing needs one or more positive durations, not {self.seconds!r}")

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """First quartile of the seconds per call, interpolated linearly between rounds."""
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """Third quartile of the seconds per call."""
        return self._quartiles()[1]

    def _quartiles(self) -> tuple[float, float]:
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def __str__(self) -> str:
        return f"{self.median * 1e3:.4g} ms ({self.low * 1e3:.4g} to {self.high * 1e3:.4g})"


@dataclass(frozen=True)
class Roof:
    """Rate of a square matrix product: what this machine can do at best in this dtype, measured."""

    device: str
    dtype: str
    size: int
    """Side of the three square matrices."""
    timing: Timing

    @property
    def gmacs_per_second(self) -> float:
        """1e9 multiply-adds a second, at the median time."""
        return self.size**3 / self.timing.median / 1e9

    @property
    def gflops_per_second(self) -> float:
        """1e9 floating-point operations a second (GFLOP/s), two for each multiply-add."""
        return 2 * self.gmacs_per_second


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 2,
    min_seconds: float = 0.1,
    device: torch.device | str | None = None,
    clock: Clock = time.perf_counter,
    callback: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time functions in turn (A B C, A B C, ...), so that a machine that slows down slows all alike.

    On a CPU that runs other work too, call `torch.set_num_threads` with the number of idle cores: with one
    thread more, a call of microseconds waits for a time slice of milliseconds, in every round alike.

    Args:
        functions: name -> function without arguments; its result is thrown away.
        rounds: measurements of each function.
        warmup: calls of each function before anything is timed.
        min_seconds: least length of one measurement; a shorter function is called several times in it. The
            default spans several time slices of an operating system.
        device: where the functions compute; an accelerator is synchronised before every clock reading.
        clock: seconds from any fixed origin.
        callback: called between measurements with how many are done and how many there are.

    Returns:
        name -> `Timing`, in the order of `functions`.

    Raises:
        ValueError: no functions, `rounds` below 1, `warmup` below 0 or `min_seconds` not positive.
        RuntimeError: the clock stands still or runs backwards.
    """
    if not functions:
        raise ValueError(f"functions must name at least one function to time, not {dict(functions)!r}")
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, not {rounds!r}")
    if warmup < 0:
        raise ValueError(f"warmup must be 0 or more, not {warmup!r}")
    if not 0 < min_seconds < math.inf:
        raise ValueError(f"min_seconds must be positive, not {min_seconds!r}")
    synchronize = _synchronizer(device)

    def measure(function: Callable[[], object], calls: int) -> float:
        synchronize()
        start = clock()
        for _ in range(calls):
            function()
        synchronize()
        return clock() - start

    for function in functions.values():
        for _ in range(warmup):
            function()
    calls = {name: _measure_long(measure, f, 1, min_seconds)[0] for name, f in functions.items()}
    rounds_done: dict[str, list[tuple[int, float]]] = {name: [] for name in functions}
    for turn in range(rounds):
        for place, (name, function) in enumerate(functions.items(), start=1):
            done = _measure_long(measure, function, calls[name], min_seconds)
            calls[name] = done[0]
            rounds_done[name].append(done)
            if callback is not None:
                callback(turn * len(functions) + place, rounds * len(functions))
    return {
        name: Timing(tuple(elapsed / count for count, elapsed in done), min(count for count, _ in done))
        for name, done in rounds_done.items()
    }


MAX_CALLS = 2**22  # some 0.2 s of calls that do nothing: a clock that has not moved by then never will


def _measure_long(
    measure: Callable[[Callable[[], object], int], float],
    function: Callable[[], object],
    calls: int,
    min_seconds: float,
) -> tuple[int, float]:
    """Measure `calls` calls or, where they end too soon, more: (calls, seconds they took together)."""
    while (elapsed := measure(function, calls)) < min_seconds:
        if calls >= MAX_CALLS:
            raise RuntimeError(
                f"{calls} calls took {elapsed!r} s by the clock, less than min_seconds={min_seconds!r}: "
                "the clock stands still or runs backwards, or the function does nothing"
            )
        # One reading may be far from typical, so the number of calls grows by 2 to 10 at a time.
        wanted = 1.2 * min_seconds / elapsed if elapsed > 0 else 10.0
        calls = min(math.ceil(calls * min(10.0, max(2.0, wanted))), MAX_CALLS)
    return calls, elapsed


def _synchronizer(device: torch.device | str | None) -> Callable[[], None]:
    if device is None or torch.device(device).type == "cpu":
        return lambda: None
    where = torch.device(device)
    if where.type == "cuda":
        return lambda: torch.cuda.synchronize(where)
    return lambda: torch.accelerator.synchronize(where)


def square_product(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None
) -> Callable[[], object]:
    """A function that multiplies two (size, size) matrices: the roof, to be timed beside models.

    `size` defaults to 1024 on the CPU and 8192 elsewhere. float32 on CUDA follows
    `torch.set_float32_matmul_precision`.
    """
    size = _roof_size(device, size)
    generator = torch.Generator(device=device).manual_seed(0)
    # Random numbers, not zeros: a GPU draws less power on constant data and so runs faster than on real.
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def matmul_roof(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
    *,
    rounds: int = 7,
    clock: Clock = time.perf_counter,
) -> Roof:
    """Measure the rate of a square matrix product on this machine, now.

    To have it in the same interleaved run as models, time `square_product` among them and build the
    `Roof` from its `Timing`.

    Raises:
        ValueError: `size` or `rounds` below 1.
    """
    size = _roof_size(device, size)
    product = square_product(device, dtype, size)
    timing = time_interleaved({"roof": product}, rounds=rounds, device=device, clock=clock)["roof"]
    return Roof(str(torch.device(device)), str(dtype).removeprefix("torch."), size, timing)


def _roof_size(device: torch.device | str, size: int | None) -> int:
    if size is None:
        return 1024 if torch.device(device).type == "cpu" else 8192
    if size < 1:
        raise ValueError(f"size must be 1 or more, not {size!r}")
    return size
