"""A folder of 320 small PNG files: tiles of the two photographs that scikit-learn ships, in two classes."""

from pathlib import Path

import numpy as np
from PIL import Image

TILE = 40  # pixels; the photographs are 427 x 640


def write_pictures(folder: Path) -> Path:
    """Write `china/000.png` to `china/159.png` and as many of `flower` into `folder`."""
    from sklearn.datasets import load_sample_images

    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number, tile in enumerate(tiles(photograph)):
            Image.fromarray(tile).save(folder / name / f"{number:03d}.png", compress_level=1)
    return folder


def tiles(photograph: np.ndarray) -> list[np.ndarray]:
    """The whole tiles of an (H, W, 3) picture, row by row."""
    rows, columns = photograph.shape[0] // TILE, photograph.shape[1] // TILE
    places = [(row * TILE, column * TILE) for row in range(rows) for column in range(columns)]
    return [photograph[top : top + TILE, left : left + TILE] for top, left in places]
