"""Folders of images in their layouts, and what happens at files that cannot be read."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ditzoo.data import ImageFolder, bucket_sizes, flip_draws
from tests.pictures import TILE


def make(folder, *names, shade=None):
    """Files of 8x8 pixels, each of a shade of its own: 10, 11, ... in the order of their names here."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 + number if shade is None else shade,) * 3).save(folder / name, "png")
    return folder


def load(source, *indices, seed=0):
    return source.load(indices, indices, seed)


def shades(x):
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_the_pictures_are_read_with_their_classes(pictures):
    source = ImageFolder(pictures, size=TILE)
    assert (len(source), source.num_classes, source.label_names) == (320, 2, ("china", "flower"))
    assert (source.shape, source.name) == ((3, TILE, TILE), "320 images of pictures in 2 classes")
    loaded = load(source, 0, 159, 160, 319)
    assert loaded.y.tolist() == [0, 0, 1, 1]
    assert loaded.y.dtype == torch.int64
    assert loaded.unreadable == ()
    expected = np.array(Image.open(pictures / "flower" / "159.png")).transpose(2, 0, 1)
    torch.testing.assert_close(loaded.x[3], torch.from_numpy(expected / 127.5 - 1).float())
    assert (loaded.x.shape, loaded.x.dtype) == ((4, 3, TILE, TILE), torch.float32)
    assert load(ImageFolder(pictures, size=16, channels=1), 5).x.shape == (1, 1, 16, 16)


def test_classes_are_the_folders_at_the_top_in_the_order_of_their_names(tmp_path):
    make(tmp_path, "b/z.png", "b/deep/er/a.PNG", "a/x.jpeg", ".hidden/y.png", "a/.y.png", "a-b/x.png")
    (tmp_path / "notes.txt").write_text("no image")
    source = ImageFolder(tmp_path, size=8)
    assert source.label_names == ("a", "a-b", "b")
    loaded = load(source, 0, 1, 2, 3)
    assert loaded.y.tolist() == [0, 1, 2, 2]
    assert shades(loaded.x) == [12, 15, 11, 10]


def test_names_tell_the_class_as_in_adm(tmp_path):
    source = ImageFolder(make(tmp_path, "dog_2.png", "cat_3_b.png", "dog_10.png"), size=8)
    assert source.label_names == ("cat", "dog")
    loaded = load(source, 0, 1, 2)
    assert (loaded.y.tolist(), shades(loaded.x)) == ([0, 1, 1], [11, 12, 10])


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("IMG_1.png", "IMG_2.png")])
def test_other_flat_names_have_no_labels(tmp_path, names):
    source = ImageFolder(make(tmp_path, *names), size=8)
    assert (source.num_classes, source.label_names, load(source, 0, 1).y) == (0, None, None)
    assert source.name == f"2 images of {tmp_path.name}"


def test_without_labels_any_layout_is_read(tmp_path):
    make(tmp_path, "a.png", "b/c.png", "train/d_e.png")
    (tmp_path / "empty").mkdir()
    source = ImageFolder(tmp_path, size=8, labels=False)
    assert (len(source), source.num_classes, load(source, 0, 1, 2).y) == (3, 0, None)


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path / "elsewhere", "x.png")
    make(tmp_path / "data", "a/y.png")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "round").symlink_to(tmp_path / "data")
    source = ImageFolder(tmp_path / "data", size=8)
    assert (len(source), source.label_names) == (2, ("a", "b"))


def test_a_missing_folder_and_a_file_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/nowhere; check the path"):
        ImageFolder(tmp_path / "nowhere", size=8)
    make(tmp_path, "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file; name the folder"):
        ImageFolder(tmp_path / "a.png", size=8)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"holds no images \(\.jpg, .*\)\. It is empty\."),
        (["notes.txt"], r"holds no images .* It holds notes\.txt\."),
        (["x-0.tar"], r"It holds x-0\.tar\. Tar files are named as '.*/\*\.tar'"),
        (["a/x.png", "b/"], r"has classes without images, 1 of 2: b\. Remove the folders"),
        (["a/x.png", "b.png"], r"beside the folders of classes \(b\.png\) and in them \(a/x\.png\)"),
        (["a_1.png", "b_1.png", "c.png"], r"with a class in their name \(a_1\.png\) and without \(c\.png\)"),
        (["train/a/x.png", "val/a/x.png"], r"holds train and val, .* no classes; name one of them: .*/train"),
    ],
)
def test_unclear_layouts_are_refused_by_name(tmp_path, files, message):
    for name in files:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        elif name.endswith(".png"):
            make(tmp_path, name)
        else:
            (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be 1 pixel or more, got 0"),
        ({"size": 8, "channels": 2}, "got channels=2"),
        ({"size": 8, "max_unreadable": -1}, "max_unreadable must be 0 or more, got -1"),
        ({"size": 8, "buckets": []}, "buckets is empty"),
    ],
)
def test_impossible_options_are_refused_before_the_folder_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder("/nowhere", **options)


def test_flips_are_those_of_the_running_numbers(pictures):
    numbers = range(50, 70)
    plain = ImageFolder(pictures, size=16).load(range(20), numbers, 3).x
    flipped = ImageFolder(pictures, size=16, flip=True).load(range(20), numbers, 3).x
    for flip, before, after in zip(flip_draws(numbers, 3), plain, flipped, strict=True):
        assert torch.equal(after, before.flip(-1) if flip else before)


def test_the_fingerprint_tells_data_and_options_but_not_the_place(tmp_path):
    def fingerprint(folder, **options):
        return ImageFolder(folder, **{"size": 8, **options}).fingerprint

    first = make(tmp_path / "one", "a/x.png", "b/y.png")
    shutil.copytree(first, tmp_path / "two")
    assert fingerprint(first) == fingerprint(tmp_path / "two")
    others = [
        fingerprint(first, size=4),
        fingerprint(first, channels=1),
        fingerprint(first, flip=True),
        fingerprint(first, labels=False),
        fingerprint(first, buckets=[(8, 8), (4, 16)]),
    ]
    (tmp_path / "two" / "b" / "y.png").rename(tmp_path / "two" / "b" / "z.png")
    others.append(fingerprint(tmp_path / "two"))
    Image.new("RGB", (800, 8)).save(first / "b" / "y.png")
    others.append(fingerprint(first))
    assert len({*others, fingerprint(make(tmp_path / "three", "a/x.png", "b/y.png"))}) == len(others) + 1


def test_an_unreadable_image_is_replaced_by_the_next_and_reported_once(tmp_path):
    make(tmp_path, *(f"{label}/{number}.png" for label in "ab" for number in range(2)))
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    (tmp_path / "b" / "1.png").write_bytes((tmp_path / "b" / "1.png").read_bytes()[:50])
    source = ImageFolder(tmp_path, size=8)
    loaded = load(source, 0, 1, 3)
    assert (shades(loaded.x), loaded.y.tolist()) == ([10, 12, 10], [0, 1, 0])  # 3 is the last: the first stands for it
    assert [message.partition(" cannot be read: ")[0] for message in loaded.unreadable] == [
        str(tmp_path / "a" / "1.png"),
        str(tmp_path / "b" / "1.png"),
    ]
    again = load(source, 1)
    assert (shades(again.x), again.unreadable) == ([12], ())


def test_a_file_that_is_gone_is_unreadable(tmp_path):
    source = ImageFolder(make(tmp_path, "a.png", "b.png"), size=8)
    (tmp_path / "a.png").unlink()
    loaded = load(source, 0)
    assert shades(loaded.x) == [11]
    assert "a.png cannot be read: No such file or directory" in loaded.unreadable[0]


def test_too_many_unreadable_images_are_an_error_that_names_the_last(tmp_path):
    make(tmp_path, "a.png", "b.png", "c.png")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    assert len(load(ImageFolder(tmp_path, size=8, max_unreadable=2), 0).unreadable) == 2
    with pytest.raises(
        ValueError, match=r"(?s)2 files of .* more than max_unreadable \(1\); the last: .*a\.png.*b\.png"
    ):
        load(ImageFolder(tmp_path, size=8, max_unreadable=1), 0)
    (tmp_path / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image of 3 images of .* can be read; the last: .*c\.png"):
        load(ImageFolder(tmp_path, size=8), 0)


def test_each_image_has_the_bucket_of_its_shape(tmp_path):
    for number, size in enumerate([(100, 50), (50, 100), (60, 60), (100, 51)]):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
    source = ImageFolder(tmp_path, size=32, buckets=bucket_sizes(32, multiple=8))
    assert source.shape == (3, 32, 32)
    assert [tuple(load(source, index).x.shape[2:]) for index in range(4)] == [(24, 48), (48, 24), (32, 32), (24, 48)]
    assert load(source, 0, 3).x.shape == (2, 3, 24, 48)
    with pytest.raises(ValueError, match=r"sizes \[\(24, 48\), \(48, 24\)\] cannot be put into one batch"):
        load(source, 0, 1)
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:45])  # its header is whole
    loaded = load(ImageFolder(tmp_path, size=32, buckets=bucket_sizes(32, multiple=8)), 0)
    assert loaded.x.shape == (1, 3, 24, 48)  # replaced by one of its size
    assert shades(loaded.x) == [3]


def test_sources_can_be_sent_to_workers(pictures):
    source = ImageFolder(pictures, size=16, flip=True)
    sent = pickle.loads(pickle.dumps(source))
    assert torch.equal(load(sent, 7, 200).x, load(source, 7, 200).x)
    assert sent.fingerprint == source.fingerprint
