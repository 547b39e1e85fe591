"""Train the tiny models whose weights come with the package, on the digits, and say how good they are.

    python benchmarks/train_digits_weights.py                # all tiny models, some minutes each
    python benchmarks/train_digits_weights.py dit_ti_2       # one of them

Writes `ditzoo/weights/digits/<name>.safetensors`: averaged weights in float16, with recipe and training options in the
file's metadata. The same command gives the same weights on the same machine and versions; the order of the metadata,
and so the file's bytes, may differ. New weights have other hashes, which `ditzoo/weights/published.py` records.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

import ditzoo
from ditzoo.bench.suites import QUICK
from ditzoo.bench.workers import one_thread
from ditzoo.data import load_digits_split, to_uint8
from ditzoo.metrics import FeatureStatistics, FrechetDistance
from ditzoo.metrics.digits import DIGITS_EXTRACTOR, load_digits_classifier
from ditzoo.pipeline import Pipeline
from ditzoo.train import train

OPTIONS = replace(QUICK.train, num_images=96_000, ema_decay=0.995)
NUM_SAMPLES = 1_000


def train_weights(name: str, folder: Path) -> None:
    """Train one model, save its averaged weights, and judge samples drawn from the saved ones."""
    torch.manual_seed(OPTIONS.seed)
    model = ditzoo.create(name)
    recipe = QUICK.recipe_for(name, model)
    digits = load_digits_split("train")
    with one_thread():
        trained = train(model, digits.images, digits.labels, recipe, OPTIONS)
    half = {key: value.half() for key, value in trained.ema.state_dict().items()}
    metadata = {
        "format": "pt",
        "recipe": json.dumps(recipe.to_dict()),
        "train_options": json.dumps(asdict(OPTIONS)),
        "command": f"python benchmarks/train_digits_weights.py {name}",
    }
    path = folder / f"{name}.safetensors"
    save_file(half, path, metadata=metadata)
    trained.ema.load_state_dict({key: value.float() for key, value in half.items()})
    samples = Pipeline(trained.ema, recipe)(range(10), num_images=NUM_SAMPLES, batch_size=250)
    distance, accuracy = judge(samples.tensor(), samples.labels)
    click.echo(
        f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {trained.seconds:.0f} s, Frechet distance {distance:.2f}, "
        f"accuracy {100 * accuracy:.1f} %"
    )


def judge(images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Frechet distance to the held-out digits in the classifier's features, and the share of samples it recognises."""
    classifier = load_digits_classifier()

    def statistics(images: torch.Tensor) -> FeatureStatistics:
        return FeatureStatistics.from_features(classifier.features(images), extractor=DIGITS_EXTRACTOR)

    held_out = to_uint8(load_digits_split("test").images).float() / 127.5 - 1
    distance = FrechetDistance.between(statistics(images), statistics(held_out), name="held-out digits")
    return distance.value, (classifier(images).argmax(1) == labels).double().mean().item()


@click.command()
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Train NAMES, or all tiny models."""
    folder = Path(str(files("ditzoo.weights") / "digits"))
    folder.mkdir(exist_ok=True)
    for name in names or QUICK.default_models():
        train_weights(name, folder)


if __name__ == "__main__":
    main()
