"""Signals that end a run, which is given the time to save."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

#: Seconds within which a second signal is the same one, heard on another way.
_SAME_SIGNAL = 1.0


class StopSignals:
    """Remembers SIGTERM and SIGINT, so that the step at hand can end.

    A SIGINT a second later interrupts it. Not at once: where a whole group of processes is told to end, each process
    hears it from its launcher too. Another SIGTERM never does, since clusters send it more than once.

    Attributes:
        received: the first signal, 0 before.
    """

    def __init__(self) -> None:
        self.received, self._at = 0, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # where alone Python allows it
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
            os.write(2, b"ditzoo: stopping after this step, with a checkpoint; Ctrl+C stops at once.\n")
        elif number == signal.SIGINT and time.monotonic() - self._at > _SAME_SIGNAL:
            raise KeyboardInterrupt
