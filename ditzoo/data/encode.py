"""Images through an autoencoder, once: into a folder that `LatentCache` reads.

The folder says of what it is in `manifest.json`, which is written first; its shards are written whole or not at all. So
a job that was killed at any moment goes on with the shards that are missing, by one process or several.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditzoo.data.image_source import UnreadableFiles
from ditzoo.data.latents import LatentCache, LatentShard, read_shard, write_shard
from ditzoo.data.loader import leave_signals_to_main
from ditzoo.data.manifest import LatentDtype, LatentManifest, has_latents
from ditzoo.data.source import Loaded, Source
from ditzoo.media.codec import Codec, PixelCodec
from ditzoo.media.files import remove_leftovers

SHARD_SIZE = 1024

#: (images of this process that are finished, images that it has to do)
Progress = Callable[[int, int], None]


class Encoded(NamedTuple):
    """What a process made of a cache in this run.

    Attributes:
        images: how many it encoded; those that were there already are not counted.
        missing: images of the cache that are still missing, for other processes to make.
        problems: what was found wrong, one sentence each: images that cannot be read, in whose place stands another
            one, and damaged files that were made again.
    """

    images: int
    missing: int
    problems: tuple[str, ...]


def encode(
    source: Source,
    codec: Codec,
    out: str | Path,
    *,
    flip: bool = True,
    dtype: LatentDtype = "float32",
    codec_name: str | None = None,
    batch_size: int = 32,
    shard_size: int | None = None,
    num_workers: int = 0,
    process: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Encoded:
    """Encode all images of a source, each once; started again, it makes what is missing.

    Args:
        source: of images, in [-1, 1], of one size, and without flips of its own.
        codec: what encodes them; its scale and shift should be those of the recipe that will be trained.
        out: a folder of these latents alone; made where it is missing.
        flip: encode the mirrored images too: an autoencoder does not give them mirrored latents.
        dtype: of the values on disk. `"float16"` takes half the space of `"float32"`, and rounds to 11 bits.
        codec_name: what recipes call the autoencoder, where it was loaded under another name, such as from a folder.
        batch_size: images at a time; mirrored ones go through separately.
        shard_size: images in a file, what a kill costs each process at most; where None, that of the cache which is
            there, or else 1024.
        num_workers: processes that read images meanwhile; with 0, this one reads them.
        process: this process's number and their count: shard k is for process k % count.
        progress: called after each batch.

    Returns:
        What this process made.

    Raises:
        ValueError: the folder holds other latents (the message names what differs), the source flips at random, has no
            fingerprint, or images that the codec cannot take, or more than `source.max_unreadable` cannot be read.
        FloatingPointError: latents that are no finite numbers, or too large for `dtype`.
        OSError: the folder cannot be written, or the disk has too little space for what is missing.
    """
    folder = Path(out)
    if shard_size is None:
        shard_size = LatentManifest.read(folder).shard_size if has_latents(folder) else SHARD_SIZE
    manifest = _manifest(source, codec, flip, dtype, codec_name, shard_size)
    rank, count = process
    if batch_size < 1 or not 0 <= rank < count:
        raise ValueError(f"batch_size ({batch_size}) must be 1 or more, and process {process} one of (0 .. n - 1, n).")
    manifest.claim(folder)
    own, problems = _missing(folder, manifest, range(rank, manifest.num_shards, count))
    _check_space(folder, manifest, own)
    done, total = 0, sum(len(manifest.shard_range(shard)) for shard in own)
    batches = _batches(source, manifest, own, batch_size, num_workers)
    for shard in own:
        parts = []
        for indices in _split(manifest.shard_range(shard), batch_size):
            parts.append(_encoded(next(batches), indices, codec, manifest))
            done += len(indices)
            if progress is not None:
                progress(done, total)
        write_shard(folder, manifest, shard, _joined(parts))
    missing, _ = _missing(folder, manifest, range(manifest.num_shards))
    if not missing:
        remove_leftovers(folder)  # nobody is writing any more
    unreadable = _unreadable(folder, manifest, missing)
    return Encoded(done, sum(len(manifest.shard_range(shard)) for shard in missing), (*problems, *unreadable))


def _manifest(
    source: Source, codec: Codec, flip: bool, dtype: LatentDtype, codec_name: str | None, shard_size: int
) -> LatentManifest:
    """What the folder will hold, checked before anything is encoded."""
    if isinstance(source, LatentCache):
        raise ValueError(f"{source.path} holds latents already; name the images that are to be encoded.")
    if getattr(source, "flip", False):
        raise ValueError(f"{source.name} flips images at random; give it flip=False, and flip=True to encode.")
    if not source.fingerprint:
        raise ValueError(
            f"{source.name} has no fingerprint, by which a cache knows what it is of; for tensors, give "
            "TensorSource(fingerprint=...) some text that changes when they do."
        )
    channels, height, width = source.shape
    if channels != codec.image_channels or height % codec.downsampling or width % codec.downsampling:
        raise ValueError(
            f"{codec.name} encodes images of {codec.image_channels} channels with sides divisible by "
            f"{codec.downsampling}, those of {source.name} are {channels}x{height}x{width}; choose another size."
        )
    is_pixels = isinstance(codec, PixelCodec)
    return LatentManifest(
        num_samples=len(source),
        shard_size=shard_size,
        source_name=source.name,
        source_fingerprint=source.fingerprint,
        num_classes=source.num_classes,
        label_names=source.label_names,
        image_shape=source.shape,
        codec=None if is_pixels else codec_name or codec.name,
        encoder_hash=codec.encoder_hash,
        latent_scale=codec.scale,
        latent_shift=codec.shift,
        latent_shape=(codec.latent_channels, height // codec.downsampling, width // codec.downsampling),
        has_variance=codec.has_posterior,
        flip=flip,
        dtype=dtype,
    )


def _missing(folder: Path, manifest: LatentManifest, shards: Sequence[int]) -> tuple[list[int], list[str]]:
    """Those that have to be made, and what is wrong with those that have to be made again."""
    missing, problems = [], []
    for shard in shards:
        try:
            read_shard(folder, manifest, shard)
        except FileNotFoundError:
            missing.append(shard)
        except ValueError as error:
            missing.append(shard)
            problems.append(f"{error} It is made again.")
    return missing, problems


def _unreadable(folder: Path, manifest: LatentManifest, missing: Sequence[int]) -> list[str]:
    """Messages of all shards that are there, whichever process and run wrote them."""
    there = sorted(set(range(manifest.num_shards)) - set(missing))
    return list(dict.fromkeys(text for shard in there for text in read_shard(folder, manifest, shard).unreadable))


def _check_space(folder: Path, manifest: LatentManifest, shards: Sequence[int]) -> None:
    values = torch.Size(manifest.moments_shape).numel() * getattr(torch, manifest.dtype).itemsize
    needed = sum(len(manifest.shard_range(shard)) for shard in shards) * values
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the latents need {needed / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free; free some space, "
            "write elsewhere, or keep fewer bytes: --dtype float16, --no-flip",
        )


def _split(indices: range, batch_size: int) -> Iterator[range]:
    return (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))


class _Batches(Dataset[Loaded]):
    """Batches of a source as a data set of PyTorch's, whose workers then load them."""

    def __init__(self, source: Source, indices: list[range]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Loaded:
        return self.load(self.indices[place])

    def load(self, indices: range) -> Loaded:
        return self.source.load(indices, indices, seed=0)


def _batches(
    source: Source, manifest: LatentManifest, shards: Sequence[int], batch_size: int, num_workers: int
) -> Iterator[Loaded]:
    indices = [part for shard in shards for part in _split(manifest.shard_range(shard), batch_size)]
    data = _Batches(source, indices)
    if source.max_workers is not None:
        num_workers = min(num_workers, source.max_workers)
    batches: Iterable[Loaded] = map(data.load, indices)
    if num_workers:
        batches = DataLoader(data, batch_size=None, num_workers=num_workers, worker_init_fn=leave_signals_to_main)
    # Each worker counts what it could not read; here are the files of all of them.
    unreadable = UnreadableFiles(source.name, source.max_unreadable)
    for batch in batches:
        yield batch._replace(unreadable=tuple(unreadable.add(batch.unreadable)) if batch.unreadable else ())


def _encoded(batch: Loaded, indices: range, codec: Codec, manifest: LatentManifest) -> LatentShard:
    """A part of a shard."""
    if tuple(batch.x.shape[1:]) != manifest.image_shape:
        raise ValueError(
            f"images {indices[0]} to {indices[-1]} of {manifest.source_name} are {tuple(batch.x.shape[1:])}, the first "
            f"{manifest.image_shape}; a cache has one size: encode without buckets."
        )
    views = [batch.x, batch.x.flip(-1)][: manifest.num_views]
    exact = torch.stack([_moments(codec, view) for view in views], dim=1)  # (B, V, C or 2C, h, w)
    moments = exact.to(getattr(torch, manifest.dtype))
    _check_finite(exact, moments, indices, manifest)
    labels = _checked_labels(batch.y, manifest) if manifest.num_classes else None
    return LatentShard(moments, labels, batch.unreadable)


def _moments(codec: Codec, images: Tensor) -> Tensor:
    mean, log_variance = codec.posterior(images)
    return (mean if log_variance is None else torch.cat([mean, log_variance], dim=1)).cpu()


def _check_finite(exact: Tensor, moments: Tensor, indices: range, manifest: LatentManifest) -> None:
    broken = ~moments.isfinite().flatten(1).all(1)
    if broken.any():
        first = int(broken.nonzero()[0])
        if exact[first].isfinite().all():
            reason = f"too large for {manifest.dtype}, up to {float(exact[first].abs().max()):.3g}; use float32"
        else:
            reason = "NaN or infinite; let the autoencoder compute in float32 or bfloat16"
        raise FloatingPointError(f"latents of image {indices[first]} of {manifest.source_name} are {reason}.")


def _checked_labels(labels: Tensor | None, manifest: LatentManifest) -> Tensor:
    if labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < manifest.num_classes:
        found = "none" if labels is None else f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels of {manifest.source_name} must be 0 to {manifest.num_classes - 1}, got {found}.")
    return labels.to(torch.int64)


def _joined(parts: Sequence[LatentShard]) -> LatentShard:
    labels = [cast(Tensor, part.labels) for part in parts]
    return LatentShard(
        torch.cat([part.moments for part in parts]),
        None if parts[0].labels is None else torch.cat(labels),
        tuple(message for part in parts for message in part.unreadable),
    )
