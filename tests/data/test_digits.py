import sys
import zlib

import pytest
import torch

from ditzoo.data import load_digits_split, to_uint8


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Back to scikit-learn's whole numbers 0..16."""
    return ((images + 1) * 8).to(torch.uint8)


@pytest.mark.parametrize(("split", "size"), [("train", 1297), ("test", 500)])
def test_shapes_types_and_range(split, size):
    images, labels = load_digits_split(split)
    assert images.shape == (size, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.shape == (size,)
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("split", "total", "images_crc", "labels_crc"),
    [("train", 405553, 3954027627, 2217338827), ("test", 156165, 3697616452, 2548578748)],
)
def test_the_split_never_changes(split, total, images_crc, labels_crc):
    images, labels = load_digits_split(split)
    assert pixels(images).sum() == total
    assert zlib.crc32(pixels(images).numpy().tobytes()) == images_crc
    assert zlib.crc32(labels.to(torch.uint8).numpy().tobytes()) == labels_crc


def test_classes_are_balanced():
    assert load_digits_split("test").labels.bincount().tolist() == [50] * 10
    counts = load_digits_split("train").labels.bincount()
    assert counts.min() >= 124
    assert counts.max() <= 133


def test_every_image_is_in_exactly_one_split():
    from sklearn.datasets import load_digits

    everything = load_digits()
    parts = [load_digits_split("train"), load_digits_split("test")]
    found = [
        (image.numpy().tobytes(), int(label))
        for part in parts
        for image, label in zip(pixels(part.images), part.labels, strict=True)
    ]
    expected = [
        (image.tobytes(), int(label))
        for image, label in zip(everything.images.astype("uint8"), everything.target, strict=True)
    ]
    # No two images of the data set are equal, so that the bytes name an image.
    assert len(set(expected)) == 1797
    assert sorted(found) == sorted(expected)


def test_unknown_split_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"Unknown split 'validation' .* 'train' and 'test'"):
        load_digits_split("validation")


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "ditzoo\[bench\]"'):
        load_digits_split("train")


def test_to_uint8_rounds_and_clamps():
    values = torch.tensor([-3.0, -1.0, 0.0, 1 / 255, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 128, 255, 255]
    assert to_uint8(values).dtype == torch.uint8


def test_to_uint8_undoes_the_usual_scaling():
    grey = torch.arange(256)
    assert torch.equal(to_uint8(grey / 127.5 - 1), grey.to(torch.uint8))
