import runpy
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ditzoo.data import load_digits_split
from ditzoo.metrics import FeatureStatistics, digits, frechet_distance
from ditzoo.metrics.digits import DIGITS_EXTRACTOR, DigitsClassifier, load_digits_classifier

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_digits_classifier.py"


@pytest.fixture(scope="module")
def model() -> DigitsClassifier:
    return load_digits_classifier()


def accuracy(model, split):
    images, labels = load_digits_split(split)
    return (model(images).argmax(1) == labels).double().mean().item()


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_file_is_small():
    assert digits._WEIGHTS.stat().st_size < 100_000


def test_accuracy_is_what_the_file_claims(model):
    held_out = accuracy(model, "test")
    assert held_out >= 0.985
    assert held_out == pytest.approx(float(metadata(digits._WEIGHTS)["held_out_accuracy"]), abs=1e-9)
    assert accuracy(model, "train") >= 0.995


def test_metadata_says_how_the_weights_were_made():
    assert metadata(digits._WEIGHTS) == {
        "held_out_accuracy": "0.9920",
        "held_out_images": "500",
        "feature_dim": "32",
        "seed": "0",
        "command": "python benchmarks/train_digits_classifier.py --seed 0 --epochs 60",
    }


def test_features_and_head_make_the_logits(model):
    images = load_digits_split("test").images
    features = model.features(images)
    assert features.shape == (500, DigitsClassifier.feature_dim)
    assert features.isfinite().all()
    assert model(images).shape == (500, 10)
    assert torch.equal(model.head(features), model(images))


def test_it_is_frozen_and_in_eval_mode(model):
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_loading_draws_no_random_numbers():
    before = torch.get_rng_state()
    load_digits_classifier()
    assert torch.equal(torch.get_rng_state(), before)


def test_features_of_an_image_do_not_depend_on_its_batch(model):
    images = load_digits_split("test").images[:16]
    one_by_one = torch.cat([model.features(image[None]) for image in images])
    torch.testing.assert_close(model.features(images), one_by_one)


def test_frechet_distance_tells_digits_from_what_is_not_one(model):
    def statistics(images):
        return FeatureStatistics.from_features(model.features(images), extractor=DIGITS_EXTRACTOR)

    images = load_digits_split("train").images
    generator = torch.Generator().manual_seed(0)
    held_out = statistics(load_digits_split("test").images)
    noise = torch.randn(images.shape, generator=generator).clamp(-1, 1)
    noisy = (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
    shuffled_pixels = images.flatten(1)[:, torch.randperm(64, generator=generator)].view_as(images)
    blends = (images + images[torch.randperm(len(images), generator=generator)]) / 2

    assert torch.linalg.matrix_rank(torch.from_numpy(held_out.covariance)) == DigitsClassifier.feature_dim
    real = frechet_distance(statistics(images), held_out)
    assert real == pytest.approx(0.230, abs=0.002)
    assert frechet_distance(statistics(noise), held_out) > 150 * real
    assert frechet_distance(statistics(shuffled_pixels), held_out) > 150 * real
    assert frechet_distance(statistics(blends), held_out) > 40 * real
    assert frechet_distance(statistics(noisy), held_out) > 5 * real


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 3, 8, 8), (2, 1, 28, 28)])
def test_another_shape_is_refused_by_name(model, shape):
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8\), not \(" + ", ".join(map(str, shape))):
        model(torch.zeros(shape))


def test_a_missing_file_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "_WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"missing at .*none\.safetensors; reinstall ditzoo"):
        load_digits_classifier()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_a_damaged_file_is_refused(monkeypatch, tmp_path, damage):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(digits._WEIGHTS.read_bytes()))
    monkeypatch.setattr(digits, "_WEIGHTS", path)
    with pytest.raises(ValueError, match=r"damaged\.safetensors is damaged .*; reinstall ditzoo"):
        load_digits_classifier()


def test_a_single_changed_weight_is_refused(monkeypatch, tmp_path):
    weights = load_file(digits._WEIGHTS)
    weights["head.bias"][3] += 1e-6
    path = tmp_path / "changed.safetensors"
    save_file(weights, path)
    monkeypatch.setattr(digits, "_WEIGHTS", path)
    with pytest.raises(ValueError, match=r"does not hold the weights of 'ditzoo digits classifier v1'.*reinstall"):
        load_digits_classifier()


def retrain(out, *options):
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(
            runpy.run_path(str(SCRIPT))["main"], ["--out", str(out), *options], catch_exceptions=False
        )
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return result.output


def test_training_is_deterministic(tmp_path):
    first = retrain(tmp_path / "a.safetensors", "--epochs", "1")
    torch.rand(7)
    assert retrain(tmp_path / "b.safetensors", "--epochs", "1") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert digits.weights_digest(load_file(tmp_path / "a.safetensors")) in first
    assert metadata(tmp_path / "a.safetensors").keys() == metadata(digits._WEIGHTS).keys()


@pytest.mark.slow
def test_the_training_command_gives_weights_as_good_as_the_package_s(tmp_path):
    retrain(tmp_path / "again.safetensors")
    again = float(metadata(tmp_path / "again.safetensors")["held_out_accuracy"])
    assert again == pytest.approx(float(metadata(digits._WEIGHTS)["held_out_accuracy"]), abs=0.006)
