"""Many samples: streamed to disk, resumable, and split over processes with the images that one process makes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditzoo.diffusion import SamplingStep
from ditzoo.media import LatentCodec, SampleStore
from ditzoo.pipeline.progress import Report, progress_bar
from ditzoo.weights import sampled_hash

if TYPE_CHECKING:
    from ditzoo.pipeline.pipeline import ClassLabels, Pipeline

_SECONDS_BETWEEN_LOOKS = 0.5


def process_of_launcher(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's number and the number of processes, as `torchrun` and `accelerate launch` tell them; 0 of 1
    without a launcher.

    Raises:
        ValueError: where the two contradict each other.
    """
    index, count = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    if not 0 <= index < count:
        raise ValueError(f"RANK={index} and WORLD_SIZE={count} in the environment contradict each other.")
    return index, count


def device_of_launcher(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """`"cuda"` as the GPU that a launcher means for this process, by its number on the machine; others as they are."""
    return f"cuda:{environment['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in environment else device


def sample_to_disk(
    pipeline: Pipeline,
    path: str | Path,
    num_images: int,
    *,
    class_labels: ClassLabels | None = None,
    seed: int = 0,
    shard_size: int = 500,
    process: tuple[int, int] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> None:
    """Sample `num_images` images into one file or folder.

    Finished shards lie beside it, in `<path>.parts`, until all are there; a job that was killed goes on with what is
    missing when it is started again. Sample i is the same for every number of processes and in every run.

    Args:
        pipeline: the model.
        path: a file for ADM's evaluation if it ends with `.npz`, else a folder of PNG files with `labels.csv`.
        num_images: in all.
        class_labels: sample i gets number i of them, in turn; None draws classes at random. Balanced labels, as ADM
            has them, are `range(num_classes)`.
        seed: of the samples.
        shard_size: images in a shard: what a kill costs each process at most.
        process: this process's number and their count; what the launcher says where None. Process 0 puts the shards
            together when all are there.
        progress: show a bar; where None, on a terminal.
        options: as in a call of the pipeline: `sampler`, `guidance_scale`, `batch_size`, ...

    Raises:
        ValueError: for a folder of shards with other settings (the message names what differs), and as a call.
        FileExistsError: where `path` is there already.
        OSError: where it cannot be written.
        NonFiniteSampleError: finished shards are kept.
    """
    path = Path(path)
    index, count = process_of_launcher() if process is None else process
    if unknown := set(options) & {"output", "frames", "latents", "callback", "first_index", "num_images"}:
        raise TypeError(f"a job of many samples has no option {sorted(unknown)[0]!r}.")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        if index > 0:  # process 0 has finished what was left
            return
        raise FileExistsError(f"{path} is there already; give another path, or remove it.")
    parts = path.with_name(path.name + ".parts")
    store = SampleStore(parts, num_images, shard_size, _fingerprint(pipeline, class_labels, seed, options))
    shards = store.missing_shards(index, count)
    todo = sum(len(store.shard_range(shard)) for shard in shards)
    done = 0
    steps = pipeline.settings(options).num_inference_steps
    with progress_bar(progress and index == 0 if progress is not None else None, max(todo, 1), steps) as report:
        for shard in shards:
            samples = store.shard_range(shard)
            made = pipeline(
                class_labels,
                num_images=len(samples),
                first_index=samples.start,
                seed=seed,
                progress=False,
                callback=partial(_report, report, done - samples.start),
                **options,
            )
            assert made.pixels is not None
            store.write_shard(shard, made.pixels, made.labels)
            done += len(samples)
    if index == 0:
        while count > 1 and any(not store.shard_path(shard).exists() for shard in range(store.num_shards)):
            time.sleep(_SECONDS_BETWEEN_LOOKS)  # for the other processes; the launcher ends all if one fails
        store.finalize(path, names=pipeline.label_names, seed=seed)
        shutil.rmtree(parts)


def _report(report: Report, before: int, step: SamplingStep, indices: Sequence[int]) -> None:
    report(before + indices[-1] + 1, len(indices), step)


def _fingerprint(
    pipeline: Pipeline, class_labels: ClassLabels | None, seed: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """All that decides the samples. Batch size and device do not, up to rounding."""
    labels, _ = pipeline.labels(class_labels, None, seed)
    return {
        "model": pipeline.name,
        "weights": sampled_hash(pipeline.model.state_dict()),
        "dtype": str(pipeline.model.dtype),
        "recipe": pipeline.settings(options).to_dict(),
        "weak_weights": None if pipeline.weak_model is None else sampled_hash(pipeline.weak_model.state_dict()),
        "codec": _codec_fingerprint(pipeline),
        "labels": "random" if class_labels is None or labels is None else labels.tolist(),
        "seed": seed,
        "size": list(options["size"]) if options.get("size") else None,
    }


def _codec_fingerprint(pipeline: Pipeline) -> dict[str, Any]:
    codec = pipeline.codec
    if not isinstance(codec, LatentCodec):
        return {"name": codec.name}
    weights = sampled_hash(codec.autoencoder.state_dict())
    return {"scale": codec.scale, "shift": codec.shift, "tiling": codec.tiling, "weights": weights}
