"""What a pipeline returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ditzoo.media import LabelNames, image_grid, write_animation, write_npz, write_png_folder
from ditzoo.media.files import writing
from ditzoo.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Samples:
    """Samples with all that is needed to make them again.

    Attributes:
        latents: (N, C, H, W) float32 on the CPU, what the sampler ended with.
        pixels: (N, H, W, C) uint8; None where only latents were asked for.
        labels: (N,) int64; None for an unconditional model.
        seed: of the noise.
        indices: number of each sample: sample i of a seed is the same in every batch.
        recipe: the settings they were made with.
        evaluations: of the network, for each sample; a guided one counts once.
        forward_passes: rows that went through the network for each sample, both halves of guidance counted.
        frames: (N, H, W, C) uint8 after each step, where they were asked for.
        label_names: of all classes, if known.
    """

    latents: Tensor
    pixels: np.ndarray | None
    labels: Tensor | None
    seed: int
    indices: list[int]
    recipe: Recipe
    evaluations: int
    forward_passes: float
    frames: list[np.ndarray] = field(default_factory=list)
    label_names: LabelNames | None = None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def images(self) -> list[Image]:
        """PIL images.

        Raises:
            ValueError: where only latents were asked for.
        """
        from ditzoo.media.writers import to_pil

        return [to_pil(image) for image in self._decoded()]

    def tensor(self) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1], of the 8-bit images."""
        return torch.from_numpy(self._decoded()).permute(0, 3, 1, 2).float() / 127.5 - 1

    def grid(self, columns: int | None = None, **options: Any) -> Image:
        """All images in one, in rows of `columns`; options as `ditzoo.media.image_grid` takes them."""
        return image_grid(self._decoded(), columns=columns, **options)

    @property
    def scale(self) -> int:
        """How many times pixels are enlarged to be seen, until an image has 64."""
        return max(1, math.ceil(64 / self._decoded().shape[1]))

    def save(self, path: str | Path, *, columns: int | None = None, scale: int | None = None) -> Path:
        """Write all images: one picture (`.png`), an animation of the steps (`.gif` or `.webp`, needs `frames`), a file
        for ADM's evaluation (`.npz`), or else a folder of PNG files with `labels.csv`.

        Args:
            path: file or folder, which must be empty or not there.
            columns: of a picture or animation; as many as make it about square where None.
            scale: enlarge their pixels so many times; where None, until an image has 64.

        Raises:
            ValueError: for another suffix, or an animation without frames.
            OSError: where it cannot be written; what was there is left as it was.
        """
        path, pixels, scale = Path(path), self._decoded(), scale or self.scale
        suffix = path.suffix.lower()
        if suffix == ".npz":
            write_npz(path, pixels, self.labels)
        elif suffix in (".gif", ".webp"):
            if not self.frames:
                raise ValueError(
                    f"{path.name} animates the steps, which were not kept: ask the pipeline for frames='x0'."
                )
            write_animation(path, self.frames, columns=columns, scale=scale)
        elif suffix == ".png":
            with writing(path) as temporary:
                self.grid(columns, scale=scale).save(temporary, "PNG")
        elif suffix:
            raise ValueError(f"{path.name} has none of the suffixes .png, .gif, .webp and .npz; a folder has none.")
        else:
            write_png_folder(path, pixels, self.labels, names=self.label_names, seed=self.seed)
        return path

    def _decoded(self) -> np.ndarray:
        if self.pixels is None:
            raise ValueError("these samples are latents only: ask the pipeline for output='images'.")
        return self.pixels


def joined(parts: list[Samples]) -> Samples:
    """The samples of several batches as one."""
    first = parts[0]
    frames = [np.concatenate(step) for step in zip(*(part.frames for part in parts), strict=True)]
    count = sum(len(part) for part in parts)
    return Samples(
        latents=torch.cat([part.latents for part in parts]),
        pixels=None if first.pixels is None else np.concatenate([part._decoded() for part in parts]),
        labels=None if first.labels is None else torch.cat([part.labels for part in parts if part.labels is not None]),
        seed=first.seed,
        indices=[index for part in parts for index in part.indices],
        recipe=first.recipe,
        evaluations=max(part.evaluations for part in parts),
        forward_passes=sum(part.forward_passes * len(part) for part in parts) / count,
        frames=frames,
        label_names=first.label_names,
    )
