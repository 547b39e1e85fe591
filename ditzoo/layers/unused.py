"""What networks carry without using it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class UnusedWeights(NamedTuple):
    """Weights that the state dict has, as its original does, and that change no output.

    A layer tells of its own in a method `unused_weights()`; a model's `unused_weights()` collects them.

    Attributes:
        name: parameter, relative to the module that tells.
        rows: which of its rows; None for all of them.
        reason: why they have no effect.
    """

    name: str
    rows: Sequence[int] | None
    reason: str
