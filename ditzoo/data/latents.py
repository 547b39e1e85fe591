"""Images that went through an autoencoder once: training reads what it made of them, and needs it no more.

Shapes: V views of an image (as it is, mirrored), C channels of latents, h and w their sides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditzoo.data.manifest import LatentManifest
from ditzoo.data.source import Loaded, Source
from ditzoo.diffusion.draws import data_generator
from ditzoo.media.codec import Codec, Posterior
from ditzoo.media.files import writing
from ditzoo.recipe import Recipe

#: The one entry of a file's metadata: several would be written in another order each time.
_ABOUT = "ditzoo"


class LatentShard(NamedTuple):
    """What one file of a cache holds, mapped into memory: values are read from disk when they are used.

    Attributes:
        moments: (n, V, C or 2C, h, w), means and then log-variances, scaled and shifted as networks see latents.
        labels: (n,) int64, or None.
        unreadable: images of which another one stands in the place, one message each.
    """

    moments: Tensor
    labels: Tensor | None
    unreadable: tuple[str, ...] = ()


def write_shard(folder: Path, manifest: LatentManifest, number: int, shard: LatentShard) -> None:
    """Write a file of a cache, whole or not at all.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    labels = {} if shard.labels is None else {"labels": shard.labels}
    about = {"manifest": manifest.digest(), "number": number, "unreadable": shard.unreadable}
    with writing(folder / manifest.shard_name(number)) as temporary:
        save_file({"moments": shard.moments, **labels}, temporary, metadata={_ABOUT: json.dumps(about)})


def read_shard(folder: Path, manifest: LatentManifest, number: int) -> LatentShard:
    """A file of a cache, checked by its header: that it is whole, and of this cache.

    Raises:
        FileNotFoundError: it has not been made yet.
        ValueError: it is damaged, or of another cache.
    """
    path = folder / manifest.shard_name(number)
    if not path.exists():
        raise FileNotFoundError(f"{path} has not been made yet.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_ABOUT])
            labels = file.get_tensor("labels") if manifest.num_classes else None
            shard = LatentShard(file.get_tensor("moments"), labels, tuple(about["unreadable"]))
            found = (about["manifest"], about["number"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({str(error).strip()}).") from error
    count = len(manifest.shard_range(number))
    tensors = [(count, *manifest.moments_shape), getattr(torch, manifest.dtype), None if labels is None else (count,)]
    there = [shard.moments.shape, shard.moments.dtype, None if labels is None else labels.shape]
    if (*found, *there) != (manifest.digest(), number, *tensors):
        raise ValueError(f"{path} holds other latents than file {number} of this cache.")
    return shard


class LatentCache(Source):
    """The latents in a folder that `ditzoo encode` has filled.

    A sample is a draw from the posterior of its image, new each time it is seen: mean + std * noise, where flip and
    noise are functions of (seed, running number) alone. Files are mapped into memory, not read.

    Args:
        path: of the folder.
        flip: mirror half of the samples left to right; needs a cache with mirrored images.
        sample_posterior: draw from the posterior; False takes its mean, as it is where an autoencoder has none.

    Attributes:
        manifest: what the folder holds.
        unreadable: images of which another one stands in the place, one message each.

    Raises:
        FileNotFoundError: there are no latents.
        ValueError: files are missing, damaged, or of another cache; or there are no mirrored images. Messages name the
            file, and what to do.
    """

    def __init__(self, path: str | Path, *, flip: bool = False, sample_posterior: bool = True) -> None:
        self.path, self.flip, self.sample_posterior = Path(path), flip, sample_posterior
        manifest = self.manifest = LatentManifest.read(self.path)
        if flip and not manifest.flip:
            raise ValueError(
                f"{path} holds no mirrored images, so flip=True cannot be had; encode with --flip, or train without."
            )
        self.name = f"latents of {manifest.source_name}"
        self.num_classes, self.label_names = manifest.num_classes, manifest.label_names
        self.shape = manifest.latent_shape
        self.fingerprint = replace(manifest, shard_size=1).digest(flip=flip, sample_posterior=sample_posterior)
        self._shards = self._open()
        self.unreadable = tuple(message for shard in self._shards for message in shard.unreadable)

    def __len__(self) -> int:
        return self.manifest.num_samples

    def load(self, indices: Sequence[int], numbers: Sequence[int], seed: int) -> Loaded:
        """See `Source`."""
        is_drawn = self.sample_posterior and self.manifest.has_variance
        moments, noises = [], []
        for index, number in zip(indices, numbers, strict=True):
            generator = data_generator(seed, number)
            # First the flip, as `flip_draws` has it, so that pixels and latents are mirrored alike.
            mirrored = bool(torch.rand((), generator=generator) < 0.5) and self.flip
            shard, place = divmod(index, self.manifest.shard_size)
            moments.append(self._shards[shard].moments[place, int(mirrored)])
            if is_drawn:
                noises.append(torch.randn(self.shape, generator=generator))
        posterior = self._posterior(torch.stack(moments).float())
        x = posterior.sample(torch.stack(noises)) if is_drawn else posterior.mean  # (B, C, h, w)
        return Loaded(x, self._labels(indices))

    def _posterior(self, moments: Tensor) -> Posterior:
        return Posterior(*moments.chunk(2, dim=1)) if self.manifest.has_variance else Posterior(moments, None)

    def _labels(self, indices: Sequence[int]) -> Tensor | None:
        if not self.num_classes:
            return None
        places = (divmod(index, self.manifest.shard_size) for index in indices)
        return torch.stack([self._shards[shard].labels[place] for shard, place in places])  # type: ignore[index]

    def _open(self) -> list[LatentShard]:
        shards, gone = [], []
        for number in range(self.manifest.num_shards):
            try:
                shards.append(read_shard(self.path, self.manifest, number))
            except FileNotFoundError:
                gone.append(self.manifest.shard_name(number))
            except ValueError as error:
                raise ValueError(f"{error} Run `ditzoo encode` again as before, which makes it anew.") from error
        if len(gone) == self.manifest.num_shards and any(self.path.glob("data/*.parquet")):
            raise ValueError(
                f"{self.path} holds latents as a data set of the Hub; make a folder of them to train on: "
                f"ditzoo.data.read_parquet({str(self.path)!r}, OUT)."
            )
        if gone:
            some = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
            raise ValueError(
                f"{self.path} lacks {len(gone)} of {self.manifest.num_shards} files ({some}). Run `ditzoo encode` "
                "again as before, which makes only what is missing."
            )
        return shards

    def check_fits(self, recipe: Recipe, *, codec: Codec | None = None) -> None:
        """See `LatentManifest.check_fits`."""
        self.manifest.check_fits(recipe, codec=codec)

    def __getstate__(self) -> dict[str, Any]:
        # Maps are opened anew in another process; pickled, they would be copied there.
        return {**self.__dict__, "_shards": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = self._open()
