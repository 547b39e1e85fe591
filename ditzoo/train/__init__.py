"""Training: one loop for every family.

The names below are loaded when they are first used: the command line reads the settings of a run without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditzoo.train.config import RunConfig, make_config
    from ditzoo.train.loop import Training, TrainResult, train
    from ditzoo.train.options import TrainOptions
    from ditzoo.train.runs import RunResult, run

_PUBLIC = {
    "RunConfig": "ditzoo.train.config",
    "RunResult": "ditzoo.train.runs",
    "TrainOptions": "ditzoo.train.options",
    "TrainResult": "ditzoo.train.loop",
    "Training": "ditzoo.train.loop",
    "make_config": "ditzoo.train.config",
    "run": "ditzoo.train.runs",
    "train": "ditzoo.train.loop",
}

__all__ = ["RunConfig", "RunResult", "TrainOptions", "TrainResult", "Training", "make_config", "run", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
