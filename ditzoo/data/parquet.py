"""Latents as a data set of the Hub, which the library datasets loads, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditzoo.data.latents import LatentCache, LatentShard, read_shard, write_shard
from ditzoo.data.manifest import LatentManifest
from ditzoo.media.files import writing

_FILES = "train-*.parquet"


def write_parquet(cache: LatentCache, out: str | Path) -> None:
    """Write a cache as a folder that can be uploaded as a data set of the Hub.

    A row is an image: `mean` and `log_variance` (C, h, w), `mean_mirrored` and `log_variance_mirrored`, `label`; those
    that the cache has. The manifest comes along. Values in bfloat16, which parquet does not know, become float32; all
    come back bit for bit. Started again, it writes the files that are missing.

    Raises:
        ImportError: the library datasets is not installed.
        ValueError: the folder holds other latents.
        OSError: it cannot be written.
    """
    datasets, folder, manifest = _datasets(), Path(out), cache.manifest
    features = datasets.Features(
        {name: datasets.Array3D(manifest.latent_shape, _dtype(manifest)) for name in _columns(manifest)}
    )
    if manifest.num_classes:
        names = manifest.label_names
        features["label"] = datasets.ClassLabel(manifest.num_classes, None if names is None else list(names))
    manifest.claim(folder)
    with writing(folder / "README.md") as temporary:
        temporary.write_text(_card(manifest), encoding="utf-8")
    for number in range(manifest.num_shards):
        path = folder / _name(manifest, number)
        if not path.exists():
            rows = _rows(manifest, read_shard(cache.path, manifest, number))
            with writing(path) as temporary, _without_bars(datasets):
                datasets.Dataset.from_dict(rows, features=features).to_parquet(str(temporary))


def read_parquet(folder: str | Path, out: str | Path) -> LatentCache:
    """Make a cache of what `write_parquet` wrote; started again, it makes the files that are missing.

    Args:
        folder: on this machine, as `hf download --repo-type dataset owner/name --local-dir FOLDER` brings it.
        out: of the cache.

    Raises:
        ImportError: the library datasets is not installed.
        FileNotFoundError: the folder has no manifest, or lacks a file; the message names it.
        ValueError: a file is damaged or has other rows, or `out` holds other latents.
        OSError: it cannot be written.
    """
    folder, out = Path(folder), Path(out)
    _datasets()  # brings pyarrow
    manifest = LatentManifest.read(folder)
    manifest.claim(out)
    for number in range(manifest.num_shards):
        if not (out / manifest.shard_name(number)).exists():
            path = folder / _name(manifest, number)
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing; fetch the data set again.")
            write_shard(out, manifest, number, _shard(path, manifest, number))
    return LatentCache(out)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError('data sets of the Hub need the library datasets: pip install "ditzoo[train]"') from error
    return datasets


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """The library draws one a file."""
    was_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            datasets.enable_progress_bars()


def _columns(manifest: LatentManifest) -> list[str]:
    """Of a row, in the order of the moments in a cache."""
    kinds = ["mean", "log_variance"] if manifest.has_variance else ["mean"]
    return [f"{kind}{view}" for view in ("", "_mirrored")[: manifest.num_views] for kind in kinds]


def _dtype(manifest: LatentManifest) -> str:
    return "float32" if manifest.dtype == "bfloat16" else manifest.dtype


def _name(manifest: LatentManifest, number: int) -> str:
    return f"data/train-{number:05d}-of-{manifest.num_shards:05d}.parquet"


def _rows(manifest: LatentManifest, shard: LatentShard) -> dict[str, Any]:
    channels, height, width = manifest.latent_shape
    moments = shard.moments.to(getattr(torch, _dtype(manifest)))
    parts = moments.reshape(len(moments), -1, channels, height, width).unbind(1)
    rows: dict[str, Any] = {name: part.numpy() for name, part in zip(_columns(manifest), parts, strict=True)}
    return rows if shard.labels is None else {**rows, "label": shard.labels.tolist()}


def _shard(path: Path, manifest: LatentManifest, number: int) -> LatentShard:
    count = len(manifest.shard_range(number))
    columns: dict[str, tuple[int, ...]] = dict.fromkeys(_columns(manifest), manifest.latent_shape)
    if manifest.num_classes:
        columns["label"] = ()
    try:
        values = _read(path, list(columns))
    except Exception as error:  # pyarrow raises many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}); fetch the data set again.") from error
    if any(values[name].numel() != count * torch.Size(shape).numel() for name, shape in columns.items()):
        raise ValueError(f"{path} holds other rows than its manifest says: {count} of {manifest.latent_shape}.")
    labels = values.pop("label") if manifest.num_classes else None
    parts = [part.reshape(count, *manifest.latent_shape) for part in values.values()]
    moments = torch.stack(parts, dim=1).reshape(count, *manifest.moments_shape)
    return LatentShard(moments.to(getattr(torch, manifest.dtype)), labels)


def _read(path: Path, columns: list[str]) -> dict[str, Tensor]:
    """All values of some columns, flat. By pyarrow: datasets would write a second copy of every file."""
    import pyarrow
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=columns)
    values = {}
    for name in columns:
        column = table[name].combine_chunks()
        column = getattr(column, "storage", column)
        while pyarrow.types.is_nested(column.type):
            column = column.flatten()
        values[name] = torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
    return values


def _card(manifest: LatentManifest) -> str:
    shape = "x".join(str(side) for side in manifest.latent_shape)
    return f"""---
configs:
- config_name: default
  data_files: data/{_FILES}
---

# Latents of {manifest.source_name}

{manifest.num_samples:,} latents of {shape}, by {manifest.codec or "no autoencoder"}: mean and log-variance of
(code - {manifest.latent_shift:g}) * {manifest.latent_scale:g}. `manifest.json` says the rest. To train
on them with ditzoo: `ditzoo.data.read_parquet(FOLDER, "latents")`.
"""
