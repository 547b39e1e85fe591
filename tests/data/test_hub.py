"""Data sets that the library datasets loads, whole and as a stream; never from the network."""

import pickle
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from ditzoo.data import HubImages, HubStream, batches
from ditzoo.data.hub import BlockShuffle, HubPlace


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def table(num_samples=20, *, label=None, **columns):
    """A data set whose picture number i is of shade i, and of class i % 3."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": label or datasets.ClassLabel(names=["cat", "dog", "owl"]),
            **{name: feature for name, (feature, _) in columns.items()},
        }
    )
    data = {
        "image": [Image.new("RGB", (8, 8), (number,) * 3) for number in range(num_samples)],
        "label": [number % 3 for number in range(num_samples)],
        **{name: values for name, (_, values) in columns.items()},
    }
    return datasets.Dataset.from_dict(data, features=features)


def write_parquet(folder, dataset):
    """In two files and with a card that tells the number of samples, as the Hub has them."""
    folder.mkdir(exist_ok=True)
    half = len(dataset) // 2
    for number, part in enumerate((range(half), range(half, len(dataset)))):
        dataset.select(part).to_parquet(folder / f"train-{number:05d}-of-00002.parquet")
    splits = f"splits:\n  - name: train\n    num_bytes: 1\n    num_examples: {len(dataset)}"
    (folder / "README.md").write_text(f"---\ndataset_info:\n  {splits}\n---\n")
    return str(folder)


@pytest.fixture
def place(tmp_path):
    return write_parquet(tmp_path / "cats", table())


def shades(x):
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def load(source, *indices):
    return source.load(indices, indices, 0)


def numbers_seen(source, **options):
    options = {"seed": 0, "batch_size": 4, "start": 0, "stop": 60, **options}
    return [shade for batch in batches(source, **options) for shade in shades(batch.x)]


def test_a_data_set_is_read_at_random_places(place):
    source = HubImages(place, size=8)
    assert (len(source), source.num_classes, source.label_names) == (20, 3, ("cat", "dog", "owl"))
    assert source.name == "20 images of cats (train) in 3 classes"
    loaded = load(source, 19, 0, 4)
    assert (shades(loaded.x), loaded.y.tolist()) == ([19, 0, 4], [1, 0, 1])
    assert load(HubImages(place, size=8, labels=False), 3).y is None
    assert shades(load(pickle.loads(pickle.dumps(source)), 5).x) == [5]


def test_the_same_data_in_other_forms_load_the_same(tmp_path, place):
    expected = numbers_seen(HubImages(place, size=8))
    table().save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=table()).save_to_disk(str(tmp_path / "both"))
    table().to_parquet(tmp_path / "one.parquet")
    for name in ("saved", "both", "one.parquet"):
        assert numbers_seen(HubImages(str(tmp_path / name), size=8)) == expected
    assert numbers_seen(HubImages(place, size=8), num_workers=2) == expected


def test_folders_of_images_load_by_their_paths(pictures):
    source = HubImages(str(pictures), size=16)
    assert (len(source), source.label_names) == (320, ("china", "flower"))
    x = load(source, 200).x
    expected = np.array(Image.open(source.image_file(200)).resize((20, 20), Image.Resampling.BOX))
    expected = Image.fromarray(expected).resize((16, 16), Image.Resampling.BICUBIC)
    torch.testing.assert_close(x[0], torch.from_numpy(np.array(expected).transpose(2, 0, 1) / 127.5 - 1).float())


def test_the_fingerprint_tells_images_and_labels(tmp_path, place):
    other_labels = table().map(lambda row: {"label": 2 - row["label"]})
    longer = table().to_dict() | {"image": [Image.new("RGB", (9, 900), (n, 0, n)) for n in range(20)]}
    fingerprint = HubImages(place, size=8).fingerprint
    others = {
        fingerprint,
        HubImages(place, size=4).fingerprint,
        HubImages(write_parquet(tmp_path / "labels", other_labels), size=8).fingerprint,
        HubImages(
            write_parquet(tmp_path / "images", datasets.Dataset.from_dict(longer, features=table().features)), size=8
        ).fingerprint,
    }
    assert len(others) == 4
    assert HubImages(write_parquet(tmp_path / "again", table()), size=8).fingerprint == fingerprint


def test_the_fingerprint_leaves_the_images_unread():
    """Two of 1.2 GiB, of memory that is never touched; pyarrow joins no more than 2 GiB."""
    num_bytes = 1200 << 20
    offsets = pyarrow.py_buffer(np.array([0, num_bytes], dtype=np.int32))
    content = pyarrow.Array.from_buffers(
        pyarrow.binary(), 1, [None, offsets, pyarrow.py_buffer(np.zeros(num_bytes, dtype=np.uint8))]
    )
    image = pyarrow.StructArray.from_arrays([content, pyarrow.array(["a/1.png"])], ["bytes", "path"])
    source = object.__new__(HubImages)
    source._image = "image"
    source._dataset = datasets.Dataset(
        datasets.table.InMemoryTable(pyarrow.table({"image": pyarrow.chunked_array([image, image])})), fingerprint="two"
    )
    assert list(source._identity()) == [f"{num_bytes} 1.png".encode()] * 2


def test_an_unreadable_image_is_named_by_its_number(tmp_path):
    rows = table(4).cast_column("image", datasets.Image(decode=False)).to_dict()
    rows["image"][1] = {"bytes": b"no image", "path": None}
    rows["image"][2] = None
    broken = write_parquet(tmp_path / "broken", datasets.Dataset.from_dict(rows, features=table().features))
    for source in (HubImages(broken, size=8), HubStream(broken, size=8)):
        loaded = load(source, 1)
        assert (shades(loaded.x), loaded.y.tolist()) == ([3], [0])
        assert loaded.unreadable == (
            f"image 1 of {broken} cannot be read: it is no image of a known format.",
            f"image 2 of {broken} cannot be read: there is none.",
        )


def test_a_stream_shuffles_block_by_block(place):
    source = HubStream(place, size=8, block_size=8)
    assert (len(source), source.num_classes, source.label_names) == (20, 3, ("cat", "dog", "owl"))
    seen = numbers_seen(source)
    for epoch in range(3):
        blocks = [seen[20 * epoch + start : 20 * epoch + min(start + 8, 20)] for start in (0, 8, 16)]
        assert [sorted(block) for block in blocks] == [[*range(8)], [*range(8, 16)], [*range(16, 20)]]
    assert seen[:20] != seen[20:40]
    assert seen[:8] != sorted(seen[:8])
    assert numbers_seen(HubStream(place, size=8, block_size=8), seed=1) != seen


def test_a_stream_goes_on_where_it_stopped(place):
    seen = numbers_seen(HubStream(place, size=8, block_size=8))
    for start in (4, 16, 20, 44):
        assert numbers_seen(HubStream(place, size=8, block_size=8), start=start) == seen[start:]
    assert numbers_seen(HubStream(place, size=8, block_size=8), num_workers=2) == seen
    source = HubStream(place, size=8, block_size=8)
    numbers_seen(source, stop=12)
    assert numbers_seen(pickle.loads(pickle.dumps(source)), start=12) == seen[12:]
    parts = [
        numbers_seen(HubStream(place, size=8, block_size=8), rank=rank, world=2, accumulation=2) for rank in range(2)
    ]
    halves = [np.array(part).reshape(-1, 2) for part in parts]
    assert np.concatenate(halves, axis=1).flatten().tolist() == seen


def test_a_stream_is_read_once_an_epoch(place, monkeypatch):
    skips = []
    skip = datasets.IterableDataset.skip
    monkeypatch.setattr(datasets.IterableDataset, "skip", lambda self, n: skips.append(n) or skip(self, n))
    numbers_seen(HubStream(place, size=8, block_size=8), batch_size=12, start=12)  # batches cross the blocks
    assert skips == [8, 0, 0]


def test_some_samples_of_a_stream_are_its_first(place):
    assert HubStream(place, size=8, block_size=8).some_indices(3) == [0, 1, 2]
    assert HubImages(place, size=8).some_indices(3) == [0, 6, 13]


def test_labels_of_a_stream_are_those_of_its_images(place):
    source = HubStream(place, size=8, block_size=8)
    for batch in batches(source, seed=0, batch_size=6, start=0, stop=20):
        assert batch.y.tolist() == [shade % 3 for shade in shades(batch.x)]
    assert load(HubStream(place, size=8, labels=False), 3).y is None


def test_a_stream_that_ends_early_says_where(place):
    with pytest.raises(ValueError, match=r"cats ended after 20 samples of 30; give num_samples=20 if these are all"):
        numbers_seen(HubStream(place, size=8, num_samples=30))
    assert len(HubStream(place, size=8, num_samples=7)) == 7
    (Path(place) / "README.md").unlink()
    with pytest.raises(
        ValueError, match=r"does not tell how many samples its split train has.*give num_samples=\.\.\."
    ):
        HubStream(place, size=8)


def test_a_stream_that_breaks_off_is_no_unreadable_image(place, monkeypatch):
    def broken(self):
        yield from [{"image": None, "label": 0}] * 3
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", broken)
    with pytest.raises(ValueError, match=r"cats broke off after 0 samples \(the line is dead\); check the network and"):
        numbers_seen(HubStream(place, size=8, block_size=8))


def test_block_shuffles_find_any_number():
    order = BlockShuffle(20, 3, 8)
    indices = [order.index(number) for number in range(60)]
    assert [BlockShuffle(20, 3, 8).index(number) for number in (59, 0, 17)] == [indices[place] for place in (59, 0, 17)]
    assert sorted(indices) == sorted([*range(20)] * 3)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("owner/name", ("owner/name", "train", None, None, None)),
        ("owner/name:test", ("owner/name", "test", None, None, None)),
        ("owner/name/sub@v1:train[:10%]:fine", ("owner/name", "train[:10%]", "fine", "sub", "v1")),
        ("mnist", ("mnist", "train", None, None, None)),
    ],
)
def test_places_are_read(spec, expected):
    place = HubPlace.parse(spec)
    assert (place.name, place.split, place.label_column, place.subset, place.revision) == (
        *expected[:3],
        expected[3],
        "v1" if "@" in spec else None,
    )


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("", ValueError, "'' is not of the form PLACE"),
        ("a/b:c:d:e", ValueError, "'a/b:c:d:e' is not of the form PLACE"),
        ("/nowhere/x", FileNotFoundError, "there is no data set /nowhere/x on this machine"),
        ("a/b/c/d", FileNotFoundError, "there is no data set a/b/c/d"),
        ("x.parquet", FileNotFoundError, r"there is no data set x\.parquet"),
    ],
)
def test_impossible_places_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        HubPlace.parse(spec)


@pytest.mark.parametrize("kind", [HubImages, HubStream])
def test_without_a_network_the_error_says_what_to_do(kind, monkeypatch):
    advice = (
        r"or give a local folder in its place \(hf:FOLDER\).*`hf download owner/name --repo-type dataset --local-dir"
    )
    with pytest.raises(
        OSError, match=rf"owner/name is not on this machine\. HF_HUB_OFFLINE is set.*unset it, {advice}"
    ):
        kind("owner/name", size=8)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # for the message; datasets stays offline
    with pytest.raises(OSError, match=rf"could not be fetched \(Couldn't reach.*\): check its name and .*, {advice}"):
        kind("owner/name", size=8)


def test_the_extra_is_named_where_the_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "ditzoo\[train\]"'):
        HubImages("owner/name", size=8)


def test_unknown_splits_and_columns_are_refused(tmp_path, place):
    with pytest.raises(
        ValueError, match=r"cats cannot be loaded: Unknown split \"valid\"\. Should be one of \['train'\]"
    ):
        HubImages(f"{place}:valid", size=8)
    with pytest.raises(ValueError, match=r"cats cannot be loaded: Bad split: valid\. Available splits: \['train'\]"):
        HubStream(f"{place}:valid", size=8)
    with pytest.raises(ValueError, match="has no column 'species' of classes; it has label"):
        HubImages(f"{place}:train:species", size=8)
    datasets.DatasetDict(test=table()).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ValueError, match="unknown split 'train'; it has test"):
        HubImages(str(tmp_path / "both"), size=8)
    with pytest.raises(ValueError, match=r"save_to_disk wrote it, .* name it by hf: in place of hf-stream:"):
        HubStream(str(tmp_path / "both"), size=8)


def test_columns_are_found_or_named(tmp_path):
    fine = (datasets.ClassLabel(names=[*"abcdef"]), [number % 6 for number in range(20)])
    several = table().rename_column("label", "coarse")
    several = several.add_column("fine", fine[1]).cast_column("fine", fine[0])
    folder = write_parquet(tmp_path / "several", several)
    with pytest.raises(ValueError, match=r"several columns of classes \(coarse, fine\); name one: hf:.*:train:coarse"):
        HubImages(folder, size=8)
    assert HubImages(f"{folder}:train:fine", size=8).num_classes == 6
    assert HubImages(folder, size=8, labels=False).num_classes == 0
    none = write_parquet(tmp_path / "none", table().remove_columns("image"))
    with pytest.raises(ValueError, match=r"no column of images; it needs one\. Its columns: label"):
        HubImages(none, size=8)
    two = write_parquet(tmp_path / "two", table(other=(datasets.Image(), table()["image"][:])))
    with pytest.raises(ValueError, match=r"several columns of images \(image, other\)"):
        HubImages(two, size=8)


def test_whole_numbers_may_be_classes(tmp_path):
    folder = write_parquet(tmp_path / "whole", table(label=datasets.Value("int64")))
    source = HubImages(folder, size=8)
    assert (source.num_classes, source.label_names, load(source, 5).y.tolist()) == (3, None, [2])
    with pytest.raises(ValueError, match=r"column label of .* does not tell how many classes .* num_classes=\.\.\."):
        HubStream(folder, size=8)
    assert load(HubStream(folder, size=8, num_classes=5), 5).y.tolist() == [2]
    with pytest.raises(ValueError, match=r"there is a class 2 in .*, which should have 2 classes"):
        load(HubStream(folder, size=8, num_classes=2), 5)


def test_classes_beyond_the_known_ones_are_refused(tmp_path):
    rows = {**table().cast_column("image", datasets.Image(decode=False)).to_dict(), "label": [3] * 20}
    whole = table(label=datasets.Value("int64")).features
    wrong = datasets.Dataset.from_dict(rows, features=whole)
    datasets.Dataset(wrong.data, info=table().info).save_to_disk(str(tmp_path / "wrong"))
    with pytest.raises(ValueError, match=r"there is a class 3 in .*wrong, which should have 3 classes"):
        HubImages(str(tmp_path / "wrong"), size=8)


def test_samples_without_a_class_are_refused(tmp_path):
    folder = write_parquet(tmp_path / "test", table(label=datasets.Value("int64")).map(lambda row: {"label": -1}))
    with pytest.raises(ValueError, match=r"split train of .* have no class \(column label\)"):
        HubImages(folder, size=8)
    assert HubImages(folder, size=8, labels=False).num_classes == 0
