"""Trains the feature extractor of the digits benchmark, `ditzoo.metrics.digits.DigitsClassifier`.

The weights in the package come from

    python benchmarks/train_digits_classifier.py --out ditzoo/metrics/digits_classifier.safetensors

It trains on the training split only and keeps the last step's weights: none are chosen on the held-out
split. On one machine it gives the same weights each time, bit for bit, in ten seconds. Another processor
may round differently; its weights are another extractor, which needs a new version in `DIGITS_EXTRACTOR` and
its digest beside it.
"""

import math
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Generator, Tensor

from ditzoo.data import DigitsSplit, load_digits_split
from ditzoo.metrics.digits import DigitsClassifier, weights_digest

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05


def augment(x: Tensor, generator: Generator) -> Tensor:
    """Images (B, 1, 8, 8) turned by up to 10 degrees, scaled by 10 %, shifted by 0.7 pixels, with noise."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(x), generator=generator) - 1) * limit

    angle, scale = uniform(math.radians(10)), 1 + uniform(0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    # Shifts are in half-widths of the image: 0.7 pixels of 4.
    rows = [torch.stack([cos, -sin, uniform(0.175)], 1), torch.stack([sin, cos, uniform(0.175)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    # Padding is 0, and paper is -1.
    moved = F.grid_sample(x + 1, grid, align_corners=False) - 1
    return (moved + 0.1 * torch.randn(moved.shape, generator=generator)).clamp(-1, 1)


def train(data: DigitsSplit, seed: int, epochs: int) -> DigitsClassifier:
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    model = DigitsClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(data.images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps, pct_start=0.1)
    for _ in range(epochs):
        order = torch.randperm(len(data.images), generator=generator)
        for chosen in order[: steps * BATCH_SIZE].split(BATCH_SIZE):
            features = model.features(augment(data.images[chosen], generator))
            logits = model.head(F.dropout(features, 0.1))
            # Without smoothing the loss would reward features that grow as long as training goes on.
            loss = F.cross_entropy(logits, data.labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: DigitsClassifier, data: DigitsSplit) -> float:
    return (model(data.images).argmax(1) == data.labels).double().mean().item()


@click.command(help="Train the feature extractor of the digits benchmark.")
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(min=1))
@click.option("--out", default="digits_classifier.safetensors", show_default=True, type=click.Path(path_type=Path))
def main(seed: int, epochs: int, out: Path) -> None:
    torch.set_num_threads(1)  # sums over another number of threads round differently
    held_out = load_digits_split("test")
    model = train(load_digits_split("train"), seed, epochs)
    metadata = {
        "held_out_accuracy": f"{accuracy(model, held_out):.4f}",
        "held_out_images": str(len(held_out.images)),
        "feature_dim": str(model.feature_dim),
        "seed": str(seed),
        "command": f"python benchmarks/train_digits_classifier.py --seed {seed} --epochs {epochs}",
    }
    unfinished = out.with_name(out.name + ".unfinished")
    unfinished.write_bytes(save(model.state_dict(), metadata))
    unfinished.replace(out)
    click.echo(f"held-out accuracy {metadata['held_out_accuracy']}")
    click.echo(f"digest {weights_digest(model.state_dict())}")


if __name__ == "__main__":
    main()
