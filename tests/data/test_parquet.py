"""Latents go to a data set of the Hub and come back bit for bit."""

from __future__ import annotations

import pytest
import torch

from ditzoo.data import LatentCache, encode, read_parquet, write_parquet
from ditzoo.media import PixelCodec
from tests.data.latents import Squares, ToyCodec, made

datasets = pytest.importorskip("datasets", reason="writes with datasets; pip install 'ditzoo[train]'")


@pytest.fixture(autouse=True)
def _own_cache_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache of datasets")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_there_and_back(tmp_path, dtype):
    cache = made(tmp_path / "cache", flip=True, dtype=dtype)
    write_parquet(cache, tmp_path / "hub")
    back = read_parquet(tmp_path / "hub", tmp_path / "back")
    assert back.manifest == cache.manifest
    assert not (tmp_path / "cache of datasets").exists()
    for number in range(3):
        name = cache.manifest.shard_name(number)
        assert (back.path / name).read_bytes() == (cache.path / name).read_bytes()


def test_pixels_without_labels(tmp_path):
    squares = Squares()
    squares.num_classes, squares.label_names = 0, None
    encode(squares, PixelCodec(1), tmp_path / "cache", flip=False, shard_size=4)
    write_parquet(LatentCache(tmp_path / "cache"), tmp_path / "hub")
    loaded = read_parquet(tmp_path / "hub", tmp_path / "back").load([9, 0], [0, 1], 0)
    assert torch.equal(loaded.x, squares.x[[9, 0]])
    assert loaded.y is None


def test_the_library_loads_it(tmp_path):
    write_parquet(made(tmp_path / "cache", flip=True), tmp_path / "hub")
    loaded = datasets.load_dataset(str(tmp_path / "hub"), split="train").with_format("torch")
    assert len(loaded) == 10
    assert loaded.features["label"].names == ["a", "b", "c"]
    assert loaded["label"][:].tolist() == [number % 3 for number in range(10)]
    images = Squares().x
    assert torch.equal(loaded["mean"][:], ToyCodec().posterior(images).mean)
    assert torch.equal(loaded["mean_mirrored"][:], ToyCodec().posterior(images.flip(-1)).mean)
    assert torch.equal(loaded["log_variance_mirrored"][:], torch.zeros(10, 2, 4, 4))
    assert "by toys/toy: mean and log-variance of\n(code - 0.25) * 0.5." in (tmp_path / "hub" / "README.md").read_text()


def test_no_bars_of_progress_are_drawn(tmp_path, capfd):
    write_parquet(made(tmp_path / "cache"), tmp_path / "hub")
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()


def test_training_says_how_to_read_it(tmp_path):
    write_parquet(made(tmp_path / "cache"), tmp_path / "hub")
    with pytest.raises(ValueError, match=r"as a data set of the Hub; make a folder .*read_parquet\('.*/hub', OUT\)"):
        LatentCache(tmp_path / "hub")


def test_missing_files_are_written_again(tmp_path):
    cache = made(tmp_path / "cache")
    write_parquet(cache, tmp_path / "hub")
    paths = sorted((tmp_path / "hub" / "data").iterdir())
    assert [path.name for path in paths] == [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001-of-00003\.parquet is missing; fetch the data set again"):
        read_parquet(tmp_path / "hub", tmp_path / "back")
    times = [path.stat().st_mtime_ns for path in (paths[0], paths[2])]
    write_parquet(cache, tmp_path / "hub")
    assert [path.stat().st_mtime_ns for path in (paths[0], paths[2])] == times
    assert len(read_parquet(tmp_path / "hub", tmp_path / "back")) == 10  # goes on after the first file


def test_damaged_and_foreign_files(tmp_path):
    write_parquet(made(tmp_path / "cache"), tmp_path / "hub")
    first, second, last = sorted((tmp_path / "hub" / "data").iterdir())
    second.write_bytes(last.read_bytes())
    with pytest.raises(ValueError, match=r"holds other rows than its manifest says: 4 of \(2, 4, 4\)"):
        read_parquet(tmp_path / "hub", tmp_path / "back")
    second.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.parquet is damaged \(.*\); fetch the data set again"):
        read_parquet(tmp_path / "hub", tmp_path / "back")
    encode(Squares(fingerprint="others"), ToyCodec(), tmp_path / "others", flip=False, shard_size=4)
    with pytest.raises(ValueError, match='holds other latents: source_fingerprint was "squares", is "others"'):
        write_parquet(LatentCache(tmp_path / "others"), tmp_path / "hub")
