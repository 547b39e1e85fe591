"""Pictures: model, recipe, sampler and codec in one object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditzoo.pipeline.denoising import NonFiniteImageError
from ditzoo.pipeline.editing import Inversion
from ditzoo.pipeline.jobs import sample_to_disk
from ditzoo.pipeline.pipeline import ClassLabels, Pipeline
from ditzoo.pipeline.samples import Samples

__all__ = ["Inversion", "NonFiniteImageError", "Pipeline", "Samples", "sample", "sample_to_disk"]


def sample(
    model: str | Path | Pipeline, class_labels: ClassLabels | None = None, *, checkpoint: Any = None, **options: Any
) -> Samples:
    """Pictures in one line: `ditzoo.sample("dit_ti_2.digits", [3, 1, 4]).grid(scale=8).show()`.

    Args:
        model: a tagged name, a folder, or a pipeline, which saves loading the weights again.
        class_labels: numbers or names; None draws classes at random.
        checkpoint: the authors' file, for names whose weights are not packaged with ditzoo.
        options: as `Pipeline.__call__` takes them: `num_images`, `guidance_scale`, `sampler`, `seed`, ...

    Raises:
        ValueError, TypeError, RuntimeError, OSError: as `Pipeline.from_pretrained` and `Pipeline.__call__`.
    """
    pipeline = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model, checkpoint=checkpoint)
    return pipeline(class_labels, **options)
