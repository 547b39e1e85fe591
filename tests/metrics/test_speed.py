"""Timing code under clocks whose every tick is known."""

import itertools

import pytest
import torch

from ditzoo.metrics import Roof, Timing, matmul_roof, square_product, time_interleaved

ORIGIN = 1.7e9  # what a wall clock reads: no duration may come anywhere near it


class FakeMachine:
    """A clock that only moves while work is done; work grows dearer by `drift` a second."""

    def __init__(self, drift: float = 0.0) -> None:
        self.elapsed = 0.0
        self.drift = drift
        self.calls: list[str] = []

    def clock(self) -> float:
        return ORIGIN + self.elapsed

    def task(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.elapsed += seconds * (1 + self.drift * self.elapsed)

        return run


def test_durations_are_differences_per_call():
    machine = FakeMachine()
    functions = {"long": machine.task("long", 0.5), "short": machine.task("short", 1e-4)}
    timings = time_interleaved(functions, rounds=3, min_seconds=0.005, clock=machine.clock)
    assert list(timings) == ["long", "short"]
    assert timings["long"].seconds == pytest.approx([0.5] * 3)
    assert timings["short"].seconds == pytest.approx([1e-4] * 3, rel=1e-2)  # float64 near 1.7e9: 2e-7 s
    assert timings["long"].repeats == 1
    assert 50 <= timings["short"].repeats <= 100


def test_rounds_take_turns_after_the_warm_up():
    machine = FakeMachine()
    functions = {name: machine.task(name, 1.0) for name in "ABC"}
    time_interleaved(functions, rounds=2, warmup=2, clock=machine.clock)
    assert "".join(machine.calls) == "AABBCC" + "ABC" + "ABC" * 2  # warm-up, calibration, rounds


def test_without_warm_up():
    machine = FakeMachine()
    time_interleaved({"A": machine.task("A", 1.0)}, rounds=1, warmup=0, clock=machine.clock)
    assert machine.calls == ["A", "A"]


def test_a_slowing_machine_slows_all_alike():
    machine = FakeMachine(drift=0.02)
    functions = {"A": machine.task("A", 0.01), "B": machine.task("B", 0.02)}
    timings = time_interleaved(functions, rounds=41, min_seconds=0.005, clock=machine.clock)
    assert timings["A"].seconds[-1] > 1.02 * timings["A"].seconds[0]
    assert timings["B"].median / timings["A"].median == pytest.approx(2, rel=2e-3)
    assert timings["A"].low < timings["A"].median < timings["A"].high


def test_slow_calls_during_calibration_do_not_shorten_the_rounds():
    machine = FakeMachine()
    costs = itertools.chain([1.0, 1.0], itertools.repeat(1e-3))

    def run() -> None:
        machine.elapsed += next(costs)

    timing = time_interleaved({"f": run}, warmup=1, rounds=4, min_seconds=0.05, clock=machine.clock)["f"]
    assert timing.repeats >= 50
    assert timing.seconds == pytest.approx([1e-3] * 4, rel=1e-4)


def test_standing_and_backward_clocks_are_refused():
    with pytest.raises(RuntimeError, match="stands still or runs backwards"):
        time_interleaved({"f": lambda: None}, clock=lambda: ORIGIN)
    machine = FakeMachine()
    with pytest.raises(RuntimeError, match="stands still or runs backwards"):
        time_interleaved({"f": machine.task("f", -1.0)}, clock=machine.clock)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"functions": {}}, "at least one function"),
        ({"rounds": 0}, "rounds must be 1 or more, not 0"),
        ({"warmup": -1}, "warmup must be 0 or more, not -1"),
        ({"min_seconds": 0.0}, r"min_seconds must be positive, not 0\.0"),
        ({"min_seconds": float("nan")}, "min_seconds must be positive, not nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        time_interleaved(**{"functions": {"f": lambda: None}, **options})


def test_accelerators_are_synchronised_around_every_measurement(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(str(device)))
    machine = FakeMachine()

    def clock() -> float:
        log.append("clock")
        return machine.clock()

    time_interleaved({"f": machine.task("f", 1.0)}, rounds=2, device="cuda:1", clock=clock)
    assert log == ["cuda:1", "clock"] * 6  # start and end of one calibration and two rounds
    log.clear()
    time_interleaved({"f": machine.task("f", 1.0)}, rounds=2, device="cpu", clock=clock)
    assert set(log) == {"clock"}


def test_timing_statistics():
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.low, timing.median, timing.high) == (2.0, 3.0, 4.0)
    assert Timing((2.0,)).low == Timing((2.0,)).median == Timing((2.0,)).high == 2.0
    assert str(Timing((0.0012,))) == "1.2 ms (1.2 to 1.2)"
    for wrong in ((), (0.0,), (-1.0,), (float("nan"),)):
        with pytest.raises(ValueError, match="positive durations"):
            Timing(wrong)


def test_roof_rate():
    roof = Roof("cpu", "float32", size=1000, timing=Timing((0.5,)))
    assert roof.gmacs_per_second == pytest.approx(2)
    assert roof.gflops_per_second == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matmul_roof_runs_here(dtype):
    roof = matmul_roof("cpu", dtype, 64, rounds=2)
    assert (roof.device, roof.dtype, roof.size) == ("cpu", str(dtype).removeprefix("torch."), 64)
    assert roof.gflops_per_second > 0
    assert len(roof.timing.seconds) == 2


def test_square_product_multiplies():
    out = square_product("cpu", torch.float64, 8)()
    assert out.shape == (8, 8)
    assert out.abs().sum() > 0
    with pytest.raises(ValueError, match="size must be 1 or more, not 0"):
        matmul_roof(size=0)
