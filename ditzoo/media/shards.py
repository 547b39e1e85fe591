"""The samples of a large job on their way to one file: written in shards, so that a killed job goes on where it was.

A folder holds `job.json`, which says what the samples are of, and `shard-000000.npz`, `shard-000001.npz`, ... Shard
number k has the samples from k * shard_size on. Each is written whole or not at all, so that after a kill at any
moment exactly the missing shards are made again, by one process or several.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import math
import operator
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ditzoo.media import claims
from ditzoo.media.files import remove_leftovers, writing
from ditzoo.media.labels import LabelNames
from ditzoo.media.writers import Images, Labels, checked_images, checked_labels, stream_npz, stream_png_folder

FORMAT_VERSION = 1
_JOB = "job.json"
#: What reading a damaged archive raises.
_DAMAGE = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile),
    *(zlib.error, lzma.LZMAError),
)


class Shard(NamedTuple):
    """Samples of one file.

    Attributes:
        images: (n, H, W, C) uint8.
        labels: (n,) int64, or None.
    """

    images: Images
    labels: Labels | None


class SampleStore:
    """Samples 0 .. total - 1 of a job, in the shards of one folder.

    Args:
        folder: of this job alone; made where it is missing.
        total: number of samples.
        shard_size: samples in a file, the last of which may have fewer. It is what a kill costs each process at most.
        fingerprint: what decides the samples: seed, model, weights, recipe, labels, precision. JSON-safe.

    Attributes:
        problems: what `missing` and `missing_shards` found wrong, one sentence for each damaged shard.

    Raises:
        ValueError: the folder belongs to a job with another fingerprint, total or shard size (the message names the
            entries that differ), or holds shards that no job.json explains; total or shard size below 1.
        TypeError: a fingerprint that JSON cannot hold.
        OSError: the folder cannot be written; the message names it.
    """

    def __init__(self, folder: Path | str, total: int, shard_size: int, fingerprint: Mapping[str, Any]) -> None:
        for what, value in (("total", total), ("shard_size", shard_size)):
            if value < 1:
                raise ValueError(f"{what} must be 1 or more, got {value}.")
        self.folder, self.total, self.shard_size = Path(folder), total, shard_size
        self.num_shards = math.ceil(total / shard_size)
        self.problems: list[str] = []
        #: shape of an image, whether there are no labels; of what `add` takes
        self._kind: tuple[tuple[int, ...], bool] | None = None
        self._pending: dict[int, dict[int, tuple[Images, int | None]]] = {}
        job = {"format": FORMAT_VERSION, "total": total, "shard_size": shard_size, "fingerprint": dict(fingerprint)}
        job = claims.claim(self.folder / _JOB, job, shards="shard-*.npz", what="samples of another job")
        #: in every shard, so that one of another job is noticed
        self._job_digest = hashlib.sha256(claims.plain(job).encode()).hexdigest()

    def shard_range(self, shard: int) -> range:
        """The samples of shard number `shard`."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.total))

    def shard_path(self, shard: int) -> Path:
        """Where it is, or will be."""
        return self.folder / f"shard-{shard:06d}.npz"

    def missing_shards(self, process_index: int = 0, num_processes: int = 1) -> list[int]:
        """Numbers of the shards that this process has still to make.

        Shard k is the business of process k % `num_processes`, whatever is there already: two processes never make
        the same one, and a job may go on with another number of processes. Shards that are there are read, and those
        that are damaged count as missing; `problems` says so.

        Raises:
            ValueError: a process index that is not from 0 to `num_processes` - 1.
        """
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must be from 0 to {num_processes - 1}, got {process_index}.")
        missing = []
        self.problems = []
        for shard in range(process_index, self.num_shards, num_processes):
            try:
                self.read_shard(shard)
            except FileNotFoundError:
                missing.append(shard)
            except ValueError as error:
                self.problems.append(f"{error} It is made again.")
                missing.append(shard)
        return missing

    def missing(self, process_index: int = 0, num_processes: int = 1) -> Iterator[int]:
        """Indices of the samples that this process has still to make, ascending; see `missing_shards`.

        Those that `add` has taken are left out, though a kill would lose them until their shard is complete.
        """
        shards = self.missing_shards(process_index, num_processes)
        return (i for shard in shards for i in self.shard_range(shard) if i not in self._pending.get(shard, ()))

    def add(self, indices: Sequence[int], images: ArrayLike, labels: ArrayLike | None = None) -> None:
        """Take samples in batches of any size, in any order. A shard is written as soon as it is complete.

        Args:
            indices: (B) numbers of the samples, as `missing` gave them.
            images: (B, H, W, C) uint8.
            labels: (B,) integers; given always or never.

        Raises:
            TypeError: images that are not uint8.
            ValueError: an index out of range or taken before, another number of images or labels.
            OSError: a shard cannot be written; the message names it.
        """
        pictures = checked_images(images)
        numbers = checked_labels(labels, len(pictures))
        indices = [operator.index(index) for index in indices]  # equal tensors are not the same key of a dict
        if len(indices) != len(pictures):
            raise ValueError(f"{len(indices)} indices for {len(pictures)} images.")
        seen: set[int] = set()
        for index in indices:
            if not 0 <= index < self.total:
                raise ValueError(f"sample {index} is not among the {self.total} of this job, 0 to {self.total - 1}.")
            if index in seen or index in self._pending.get(index // self.shard_size, ()):
                raise ValueError(f"sample {index} was added before.")
            seen.add(index)
        kind = (pictures.shape[1:], numbers is None)
        _check_alike(self.folder, [self._kind or kind, kind])
        self._kind = kind
        for place, index in enumerate(indices):
            pending = self._pending.setdefault(index // self.shard_size, {})
            # A copy: a view would keep the whole batch in memory.
            pending[index] = (pictures[place].copy(), None if numbers is None else int(numbers[place]))
        for shard in [n for n, pending in self._pending.items() if len(pending) == len(self.shard_range(n))]:
            samples = [self._pending[shard][index] for index in self.shard_range(shard)]
            given = [label for _, label in samples if label is not None] or None
            self.write_shard(shard, np.stack([image for image, _ in samples]), given)
            del self._pending[shard]

    def write_shard(self, shard: int, images: ArrayLike, labels: ArrayLike | None = None) -> None:
        """Write all samples of a shard at once, in their order. One that is there already is replaced.

        Raises:
            TypeError, ValueError, OSError: as `add`.
        """
        if not 0 <= shard < self.num_shards:
            raise ValueError(f"there is no shard {shard} among {self.num_shards}.")
        samples = self.shard_range(shard)
        pictures = checked_images(images)
        if len(pictures) != len(samples):
            raise ValueError(f"shard {shard} holds samples {samples[0]} to {samples[-1]}, got {len(pictures)} images.")
        numbers = checked_labels(labels, len(pictures))
        with writing(self.shard_path(shard)) as temporary, temporary.open("wb") as file:
            # No entry is optional: an archive can be damaged so that the last one goes unseen.
            np.savez(
                file,
                job=np.str_(self._job_digest),
                start=np.int64(samples.start),
                images=pictures,
                labels=np.zeros(0, np.int64) if numbers is None else numbers,
            )

    def read_shard(self, shard: int) -> Shard:
        """The samples of a shard, every byte checked against the checksums of the archive.

        Raises:
            FileNotFoundError: it has not been made yet.
            ValueError: it is damaged, or holds other samples than it should.
        """
        path, samples = self.shard_path(shard), self.shard_range(shard)
        if not path.exists():
            raise FileNotFoundError(f"{path} has not been made yet.")
        try:
            content = _read_archive(path)
            images = checked_images(content["images"])
            labels = checked_labels(content["labels"], len(images)) if content["labels"].size else None
            found = (str(content["job"]), int(content["start"]), len(images))
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged ({str(error).strip() or type(error).__name__}).") from error
        if found != (self._job_digest, samples.start, len(samples)):
            raise ValueError(f"{path} holds other samples than {samples[0]} to {samples[-1]} of this job.")
        return Shard(images, labels)

    def finalize(self, path: Path | str, *, names: LabelNames | None = None, seed: int | None = None) -> None:
        """Put all samples into one file or folder, in order, one shard in memory at a time. The shards stay.

        Call it in one process, once all have ended.

        Args:
            path: a file for ADM's evaluation if it ends with `.npz` (see `write_npz`), else a folder of PNG files (see
                `write_png_folder`).
            names, seed: for the folder's labels.csv.

        Raises:
            ValueError: shards are missing, damaged, or do not go together; nothing is written then.
            FileExistsError: the folder holds something.
            OSError: it cannot be written; the message names it.
        """
        path = Path(path)
        gone = [n for n in range(self.num_shards) if not self.shard_path(n).exists()]
        if gone:
            some = ", ".join(self.shard_path(n).name for n in gone[:3]) + (", ..." if len(gone) > 3 else "")
            raise ValueError(
                f"{self.folder} lacks {len(gone)} of {self.num_shards} shards ({some}). Run the job again, which makes "
                "only what is missing."
            )
        first = self._whole_shard(0)
        shards = itertools.chain([first], (self._whole_shard(n, first) for n in range(1, self.num_shards)))
        if path.suffix.lower() == ".npz":
            stream_npz(path, (self.total, *first.images.shape[1:]), shards)
        else:
            stream_png_folder(path, shards, names=names, seed=seed)
        remove_leftovers(self.folder)

    def _whole_shard(self, number: int, first: Shard | None = None) -> Shard:
        try:
            shard = self.read_shard(number)
        except ValueError as error:
            raise ValueError(f"{error} Run the job again, which makes it anew.") from error
        kinds = [(some.images.shape[1:], some.labels is None) for some in (first or shard, shard)]
        _check_alike(self.shard_path(number), kinds)
        return shard


def shard_size_of(folder: Path | str) -> int | None:
    """The shard size of the job in a folder; None where there is none that can be read."""
    try:
        size = json.loads((Path(folder) / _JOB).read_text(encoding="utf-8"))["shard_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if isinstance(size, int) and size > 0 else None


def _read_archive(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        # Before anything in it is believed: a damaged header may ask for any amount of memory.
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_alike(path: Path, kinds: Sequence[tuple[tuple[int, ...], bool]]) -> None:
    """That (shape of an image, whether labels are missing) is the same for all."""
    for shape, unlabelled in kinds:
        if shape != kinds[0][0]:
            raise ValueError(f"{path}: images of {shape} and of {kinds[0][0]} do not go together.")
        if unlabelled != kinds[0][1]:
            raise ValueError(f"{path}: some samples have labels and some have none; give them always or never.")
