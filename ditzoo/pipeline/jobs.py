"""Many samples: streamed to disk, resumable, and split over processes with the images that one process makes."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ditzoo.diffusion import SamplingStep
from ditzoo.media import LatentCodec, SampleStore, shard_size_of
from ditzoo.pipeline.denoising import RunOptions
from ditzoo.pipeline.progress import Report, progress_bar
from ditzoo.pipeline.samples import Samples
from ditzoo.pipeline.settings import SETTINGS, check_whole
from ditzoo.recipe import Recipe
from ditzoo.weights import sampled_hash

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import ClassLabels, Pipeline

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_OF_PATIENCE = 10
_LOG = logging.getLogger(__name__)


class Made(NamedTuple):
    """What a process made of a job in this run.

    Attributes:
        images: how many; those that were there already are not counted.
        evaluations: of the network, for each image; a guided one counts once.
        forward_passes: rows that went through the network for each image, both halves of guidance counted.
    """

    images: int = 0
    evaluations: int = 0
    forward_passes: float = 0.0

    def and_these(self, samples: Samples) -> Made:
        """The sum with the samples of one more batch."""
        images = self.images + len(samples)
        passes = self.forward_passes * self.images + samples.forward_passes * len(samples)
        return Made(images, max(self.evaluations, samples.evaluations), passes / images)


def process_of_launcher(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's number and the number of processes, as `torchrun` and `accelerate launch` tell them; 0 of 1
    without a launcher.

    Raises:
        ValueError: where they are no numbers, or contradict each other.
    """
    rank, world_size = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    try:
        index, count = int(rank), int(world_size)
    except ValueError as error:
        raise ValueError(
            f"RANK={rank!r} and WORLD_SIZE={world_size!r} in the environment are to be numbers; unset them unless a "
            "launcher such as torchrun sets them."
        ) from error
    if not 0 <= index < count:
        raise ValueError(f"RANK={index} and WORLD_SIZE={count} in the environment contradict each other.")
    return index, count


def device_of_launcher(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """`"cuda"` as the GPU that a launcher means for this process, by its number on the machine; others as they are."""
    return f"cuda:{environment['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in environment else device


def parts_of(path: Path) -> Path:
    """The folder of the shards of a job, beside what it makes."""
    return path.with_name(path.name + ".parts")


def sample_to_disk(
    pipeline: Pipeline,
    path: str | Path,
    num_images: int,
    *,
    class_labels: ClassLabels | None = None,
    seed: int = 0,
    batch_size: int = 64,
    shard_size: int | None = None,
    size: tuple[int, int] | None = None,
    process: tuple[int, int] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Made:
    """Sample `num_images` images into one file or folder.

    Finished shards lie beside it, in `<path>.parts`, until all are there; a job that was killed goes on with what is
    missing when it is started again. Sample i is the same for every number of processes and in every run (by `dopri5`,
    up to its tolerances).

    Args:
        pipeline: the model.
        path: a file for ADM's evaluation if it ends with `.npz`, else a folder of PNG files with `labels.csv`.
        num_images: in all.
        class_labels: sample i gets number i of them, in turn; None draws classes at random. Balanced labels, as ADM
            has them, are `range(num_classes)`.
        seed: of the samples.
        batch_size: samples at a time.
        shard_size: images in a shard: what a kill costs each process at most. Where None, that of the job which is
            there, or else a batch.
        size: height and width of the images in pixels; the trained one where None.
        process: this process's number and their count; what the launcher says where None. Process 0 puts the shards
            together when all are there.
        progress: show a bar in process 0; where None, on a terminal.
        options: settings of a call: `sampler`, `num_inference_steps`, `guidance_scale`, `guidance`, `sampler_options`.

    Returns:
        What this process made of them in this run, and at what cost.

    Raises:
        ValueError: for another suffix, a folder of shards with other settings (the message names what differs), more
            labels than images, and as a call.
        TypeError: for an option that is no setting, and as a call.
        FileExistsError: where `path` is there already.
        OSError: where it cannot be written.
        NonFiniteSampleError, NonFiniteImageError: finished shards are kept.
    """
    path = Path(path)
    if path.suffix.lower() not in ("", ".npz"):
        raise ValueError(f"{path.name} must end with .npz, or have no suffix to become a folder.")
    index, count = _checked(process)
    if unknown := set(options) - set(SETTINGS):
        raise TypeError(f"a job has no option {sorted(unknown)[0]!r}; its settings are {', '.join(SETTINGS)}.")
    running = RunOptions(batch_size=batch_size, progress=False)
    settings = pipeline.settings(options)
    pipeline.latent_shape(size)
    labels = _labels(pipeline, class_labels, num_images, seed)
    fingerprint = _fingerprint(pipeline, settings, class_labels, seed, size)
    parts = parts_of(path)
    if _was_finished(path, parts, index):
        return Made()
    if shard_size is None:
        shard_size = shard_size_of(parts) or batch_size
    store = SampleStore(parts, num_images, check_whole("shard_size", shard_size, least=1), fingerprint)
    shards = store.missing_shards(index, count)
    if _is_there(path):
        if index > 0:  # process 0 has ended the job meanwhile
            return Made()
        if store.missing_shards():
            raise FileExistsError(f"{path} is there already, and {parts} is not finished; move one of them away.")
        _clear(parts)  # a run was killed before it did
        return Made()
    for shard in shards:  # damaged ones: so that process 0 does not take them for finished
        store.shard_path(shard).unlink(missing_ok=True)
    made = Made()
    todo = _batches(map(store.shard_range, shards), batch_size)
    with progress_bar(progress if index == 0 else False, sum(map(len, todo)), settings.num_inference_steps) as report:
        for indices in todo:
            watched = replace(running, callback=partial(_report, report, made.images + len(indices)))
            batch = None if labels is None else labels[indices.start : indices.stop]
            samples = pipeline.draw(settings, batch, indices, seed, watched, size=size)
            assert samples.pixels is not None
            store.add(indices, samples.pixels, samples.labels)
            made = made.and_these(samples)
    if index == 0 and count > 1:
        _wait_for_others(store)
    if index == 0:
        store.finalize(path, names=pipeline.label_names, seed=seed)
        _clear(parts)
    return made


def _checked(process: tuple[int, int] | None) -> tuple[int, int]:
    if process is None:
        return process_of_launcher()
    if not isinstance(process, Sequence) or len(process) != 2:
        raise TypeError(f"process must be a process's number and their count, such as (0, 8), got {process!r}.")
    count = check_whole("the number of processes", process[1], least=1)
    index = check_whole("a process's number", process[0], least=0)
    if index >= count:
        raise ValueError(f"process must be from (0, {count}) to ({count - 1}, {count}), got {process!r}.")
    return index, count


def _was_finished(path: Path, parts: Path, index: int) -> bool:
    """Whether process 0 has ended the job already.

    Raises:
        FileExistsError: where `path` is of no job that goes on.
    """
    _remove(_cleared(parts))
    if index == 0 and _is_there(path) and not parts.exists():
        raise FileExistsError(f"{path} is there already; give another path, or remove it.")
    return index > 0 and _is_there(path)


def _wait_for_others(store: SampleStore) -> None:
    """Until every shard can be read. The launcher ends all processes if one fails."""
    started, told = time.monotonic(), False
    waiting = list(range(store.num_shards))
    while waiting := [shard for shard in waiting if not _is_readable(store, shard)]:
        if not told and time.monotonic() - started > _SECONDS_OF_PATIENCE:
            _LOG.warning("Waiting for %d shards of the other processes, in %s.", len(waiting), store.folder)
            told = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _is_readable(store: SampleStore, shard: int) -> bool:
    try:
        store.read_shard(shard)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _cleared(parts: Path) -> Path:
    return parts.with_name(f"{parts.name}.done")


def _clear(parts: Path) -> None:
    """Remove the shards, at once: half a folder of them would look like an unfinished job."""
    cleared = _cleared(parts)
    parts.rename(cleared)
    _remove(cleared)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _is_there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _labels(pipeline: Pipeline, class_labels: ClassLabels | None, num_images: int, seed: int) -> Tensor | None:
    if class_labels is not None and (given := pipeline.labels(class_labels, None)[1]) > num_images:
        raise ValueError(
            f"{num_images} images are too few for {given} class_labels; make {given} or more, or name fewer classes."
        )
    return pipeline.labels(class_labels, num_images, seed)[0]


def _batches(shards: Iterable[range], batch_size: int) -> list[range]:
    return [shard[start : start + batch_size] for shard in shards for start in range(0, len(shard), batch_size)]


def _report(report: Report, finished: int, step: SamplingStep, indices: Sequence[int]) -> None:
    report(finished, len(indices), step)


def _fingerprint(
    pipeline: Pipeline, settings: Recipe, class_labels: ClassLabels | None, seed: int, size: tuple[int, int] | None
) -> dict[str, Any]:
    """All that decides the samples. Batch size and device do not, up to rounding or the tolerances of `dopri5`."""
    labels = None if class_labels is None else pipeline.labels(class_labels, None)[0]
    return {
        "model": pipeline.name,
        "weights": sampled_hash(pipeline.model.state_dict()),
        "dtype": str(pipeline.model.dtype),
        "recipe": settings.to_dict(),
        "weak_weights": None if pipeline.weak_model is None else sampled_hash(pipeline.weak_model.state_dict()),
        "codec": _codec_fingerprint(pipeline),
        "labels": "random" if labels is None else labels.tolist(),
        "seed": seed,
        "size": None if size is None else list(size),
    }


def _codec_fingerprint(pipeline: Pipeline) -> dict[str, Any]:
    codec = pipeline.codec
    if not isinstance(codec, LatentCodec):
        return {"name": codec.name}
    weights = sampled_hash(codec.autoencoder.state_dict())
    return {"scale": codec.scale, "shift": codec.shift, "tiling": codec.tiling, "weights": weights}
