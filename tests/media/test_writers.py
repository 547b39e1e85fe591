"""Files of a sampling job hold exactly the pixels they were given, and appear whole or not at all."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ditzoo.media import (
    LabelNames,
    channels_last,
    image_grid,
    to_uint8,
    write_animation,
    write_npz,
    write_png_folder,
)
from ditzoo.media.writers import stream_npz

DIGITS = LabelNames.digits()


def random_images(count: int, height: int = 5, width: int = 4, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_channels_last():
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).byte()
    array = channels_last(images)
    assert array.shape == (2, 4, 5, 3)
    assert array[1, 2, 3, 0] == images[1, 0, 2, 3]
    assert array[0, 3, 4, 2] == images[0, 2, 3, 4]
    with pytest.raises(TypeError, match="images must be uint8, got float32; to_uint8 makes them"):
        channels_last(torch.zeros(1, 3, 2, 2))
    assert channels_last(to_uint8(torch.ones(1, 1, 2, 2))).tolist() == [[[[255], [255]], [[255], [255]]]]


# Grids.


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_pixel_in_its_place(channels):
    images = random_images(5, channels=channels)
    grid = image_grid(images, columns=3, scale=2, gap=3)
    assert grid.mode == {1: "L", 3: "RGB"}[channels]
    pixels = np.asarray(grid).reshape(grid.height, grid.width, channels)
    assert pixels.shape == (2 * 10 + 3, 3 * 8 + 2 * 3, channels)
    rest = np.ones(pixels.shape[:2], bool)
    for number, image in enumerate(images):
        top, left = number // 3 * 13, number % 3 * 11
        cell = pixels[top : top + 10, left : left + 8]
        for dy in (0, 1):
            for dx in (0, 1):
                assert np.array_equal(cell[dy::2, dx::2], image)
        rest[top : top + 10, left : left + 8] = False
    assert (pixels[rest] == 255).all()


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (9, 3), (10, 4), (16, 4), (17, 5)])
def test_grids_are_about_square(count, columns):
    assert image_grid(random_images(count), gap=0).width == columns * 4


def test_fewer_images_than_columns_leave_no_empty_columns():
    assert image_grid(random_images(2), columns=10, gap=0).size == (8, 5)


def test_captions_stand_below_the_images():
    images = random_images(3, 8, 8, 1)
    plain = np.asarray(image_grid(images, columns=2, scale=8, gap=4))
    labels = [1, 7, 10]
    titled = np.asarray(image_grid(images, labels, columns=2, scale=8, gap=4))
    assert (plain.shape, titled.shape) == ((132, 132), (164, 132))
    assert np.array_equal(titled[:64], plain[:64])
    assert np.array_equal(titled[84:148], plain[68:])
    for top, left, dark in [(64, 0, True), (64, 68, True), (148, 0, True), (148, 68, False)]:
        assert (titled[top : top + 16, left : left + 64] < 128).any() == dark
    assert (titled[80:84] == 255).all()
    # The null label, 10, has no name.
    assert np.array_equal(np.asarray(image_grid(images, labels, columns=2, scale=8, gap=4, names=DIGITS)), titled)


def test_captions_are_cut_to_the_width_of_their_image():
    names = LabelNames(["black-and-tan coonhound"])
    images = np.full((2, 20, 40, 1), 255, np.uint8)
    text = np.asarray(image_grid(images, [0, 0], columns=2, gap=20, names=names)) < 128
    assert text[:, :40].any()
    assert not text[:, 40:60].any()
    short = np.asarray(image_grid(images, [0, 0], columns=2, gap=20, names=LabelNames(["bl.."]))) < 128
    assert text[:, :20].sum() > 0
    assert short.any()
    tiny = image_grid(np.full((1, 2, 2, 3), 255, np.uint8), [0], names=names)  # narrower than a letter
    assert (np.asarray(tiny) == 255).all()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: image_grid(np.zeros((2, 4, 4, 3))), TypeError, "images must be uint8, got float64; to_uint8"),
        (
            lambda: image_grid(random_images(2)[0]),
            ValueError,
            r"\(N, H, W, C\) with 1 or 3 channels, got \(5, 4, 3\)\.",
        ),
        (
            lambda: image_grid(random_images(2).transpose(0, 3, 1, 2)),
            ValueError,
            r"got \(2, 3, 5, 4\). channels_last puts",
        ),
        (lambda: image_grid(random_images(0)), ValueError, "a grid needs 1 or more images, got none"),
        (lambda: image_grid(random_images(2), [1]), ValueError, r"2 images need labels of shape \(2,\), got \(1,\)"),
        (lambda: image_grid(random_images(2), [1.0, 2.0]), TypeError, "labels must be integers, got float64"),
        (lambda: image_grid(random_images(2), columns=0), ValueError, "columns must be 1 or more, got 0"),
        (lambda: image_grid(random_images(2), scale=0), ValueError, "scale must be 1 or more, got 0"),
        (lambda: image_grid(random_images(2), gap=-1), ValueError, "gap must be 0 or more, got -1"),
    ],
)
def test_grids_refuse(call, error, text):
    with pytest.raises(error, match=text):
        call()


# Folders.


@pytest.mark.parametrize("channels", [1, 3])
def test_png_folder(tmp_path, channels):
    images = random_images(3, channels=channels)
    write_png_folder(tmp_path / "out" / "png", images, [3, 10, 0], names=DIGITS, seed=7)
    folder = tmp_path / "out" / "png"
    assert sorted(os.listdir(folder)) == ["000000.png", "000001.png", "000002.png", "labels.csv"]
    for number, image in enumerate(images):
        with Image.open(folder / f"{number:06d}.png") as picture:
            assert picture.mode == {1: "L", 3: "RGB"}[channels]
            assert np.array_equal(np.asarray(picture).reshape(image.shape), image)
    assert (folder / "labels.csv").read_text() == "index,label,name,seed\n0,3,3,7\n1,10,,7\n2,0,0,7\n"
    assert os.listdir(tmp_path / "out") == ["png"]


def test_labels_are_optional_and_quoted(tmp_path):
    write_png_folder(tmp_path / "a", random_images(1))
    assert (tmp_path / "a" / "labels.csv").read_text() == "index,label,name,seed\n0,,,\n"
    write_png_folder(tmp_path / "b", random_images(1), [0], names=LabelNames(['a "b", c']))
    assert (tmp_path / "b" / "labels.csv").read_text() == 'index,label,name,seed\n0,0,"a ""b""",\n'


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    write_png_folder(tmp_path / "empty", random_images(1))
    for target in (tmp_path / "empty", tmp_path / "empty" / "000000.png"):
        with pytest.raises(FileExistsError, match=f"{target} exists and is no empty folder; choose another name"):
            write_png_folder(target, random_images(2))
    assert len(os.listdir(tmp_path / "empty")) == 2


# Arrays.


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_is_what_numpy_would_have_saved(tmp_path, channels):
    images, labels = random_images(6, channels=channels), np.arange(6)
    write_npz(tmp_path / "new" / "samples.npz", images, labels)
    np.savez(tmp_path / "numpy.npz", images, labels)
    with np.load(tmp_path / "new" / "samples.npz") as ours, np.load(tmp_path / "numpy.npz") as theirs:
        assert ours.files == theirs.files == ["arr_0", "arr_1"]
        for name in ours.files:
            assert ours[name].dtype == theirs[name].dtype
            assert np.array_equal(ours[name], theirs[name])
    with zipfile.ZipFile(tmp_path / "new" / "samples.npz") as a, zipfile.ZipFile(tmp_path / "numpy.npz") as b:
        assert a.read("arr_0.npy") == b.read("arr_0.npy")
        assert a.read("arr_1.npy") == b.read("arr_1.npy")
        assert {member.compress_type for member in a.infolist()} == {zipfile.ZIP_STORED}


def test_npz_types_and_absent_labels(tmp_path):
    write_npz(tmp_path / "a.npz", torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([1, 2], dtype=torch.int32))
    write_npz(tmp_path / "b.npz", random_images(0))
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert (a["arr_0"].dtype, a["arr_1"].dtype, a["arr_1"].tolist()) == (np.uint8, np.int64, [1, 2])
        assert (b.files, b["arr_0"].shape) == (["arr_0"], (0, 5, 4, 3))


def test_batches_make_the_same_file_as_one_array(tmp_path):
    images, labels = random_images(7), np.arange(7)
    write_npz(tmp_path / "whole.npz", images, labels)
    stream_npz(tmp_path / "parts.npz", images.shape, [(images[i : i + 3], labels[i : i + 3]) for i in (0, 3, 6)])
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize(
    ("shape", "batches", "text"),
    [
        ((3, 5, 4, 3), [(random_images(2), None)], "was to hold 3 images, got 2"),
        ((2, 5, 4, 3), [(random_images(1), None), (random_images(1, 6), None)], r"\(6, 4, 3\) among images of \(5, 4"),
        ((2, 5, 4, 3), [(random_images(1), np.arange(1)), (random_images(1), None)], "2 images need labels of shape"),
    ],
)
def test_batches_that_do_not_add_up_leave_no_file(tmp_path, shape, batches, text):
    with pytest.raises(ValueError, match=text):
        stream_npz(tmp_path / "samples.npz", shape, batches)
    assert os.listdir(tmp_path) == []


# Animations.


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as animation:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]


@pytest.mark.parametrize(("suffix", "channels"), [(".gif", 1), (".webp", 1), (".webp", 3), (".WebP", 3)])
def test_animations_hold_every_pixel(tmp_path, suffix, channels):
    frames = [random_images(4, channels=channels, seed=seed) for seed in range(3)]
    path = tmp_path / f"steps{suffix}"
    write_animation(path, frames, [0, 1, 2, 3], columns=2, scale=2, names=DIGITS, milliseconds=70)
    expected = [np.asarray(image_grid(f, [0, 1, 2, 3], columns=2, scale=2).convert("RGB")) for f in frames]
    found = frames_of(path)
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
        animation.seek(1)
        animation.load()
        assert animation.info["duration"] == 70
    assert os.listdir(tmp_path) == [path.name]


def test_colours_of_a_gif_are_near(tmp_path):
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(1, 16, 16, 3).astype(np.uint8)
    write_animation(tmp_path / "a.gif", [smooth, smooth[:, ::-1]])
    first, second = frames_of(tmp_path / "a.gif")
    assert np.abs(first.astype(int) - smooth[0]).max() <= 8
    assert np.abs(second.astype(int) - smooth[0, ::-1]).max() <= 8


@pytest.mark.parametrize(
    ("name", "frames", "options", "text"),
    [
        ("a.mp4", [random_images(1)], {}, r"a\.mp4 is no animation by its suffix; choose one of \.gif, \.webp"),
        ("animation", [random_images(1)], {}, r"choose one of \.gif, \.webp"),
        ("a.gif", [], {}, "frames of one shape, got none"),
        ("a.gif", [random_images(1), random_images(2)], {}, r"one shape, got \(1, 5, 4, 3\), \(2, 5, 4, 3\)"),
        ("a.gif", [random_images(1)], {"milliseconds": 5}, "milliseconds must be 10 or more, got 5"),
    ],
)
def test_animations_refuse(tmp_path, name, frames, options, text):
    with pytest.raises(ValueError, match=text):
        write_animation(tmp_path / name, frames, **options)
    assert os.listdir(tmp_path) == []


# Disks.

WRITERS = [
    ("a.npz", lambda path: write_npz(path, random_images(2))),
    ("a.gif", lambda path: write_animation(path, [random_images(2), random_images(2, seed=1)])),
    ("png", lambda path: write_png_folder(path, random_images(2))),
]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_full_disk_leaves_nothing_and_is_named(tmp_path, monkeypatch, name, write):
    monkeypatch.setattr("ditzoo.media.files.os.replace", full_disk)
    text = rf"{tmp_path / name} cannot be written: No space left on device\. Free some space, or write elsewhere\."
    with pytest.raises(OSError, match=text) as caught:
        write(tmp_path / name)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_half_way(tmp_path, monkeypatch):
    path = tmp_path / "samples.npz"
    write_npz(path, random_images(2))
    before = path.read_bytes()
    monkeypatch.setattr("zipfile._ZipWriteFile.write", full_disk)
    with pytest.raises(OSError, match=r"samples\.npz cannot be written: No space left"):
        write_npz(path, random_images(3))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["samples.npz"]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_folder_that_cannot_be_made(tmp_path, name, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=rf"{tmp_path / 'file' / name} cannot be written: .*\. Check the path, or write"):
        write(tmp_path / "file" / name)
    assert (tmp_path / "file").read_text() == ""


def test_an_encoder_that_fails_without_a_number(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("encoder error -2 when writing image file")

    monkeypatch.setattr("PIL.Image.Image.save", broken)
    with pytest.raises(OSError, match=r"a\.gif cannot be written: encoder error -2 when writing image file\. Check"):
        write_animation(tmp_path / "a.gif", [random_images(1)])
    assert os.listdir(tmp_path) == []


def test_files_can_be_read_by_everyone(tmp_path):
    write_npz(tmp_path / "a.npz", random_images(1))
    write_png_folder(tmp_path / "png", random_images(1))
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "png").stat().st_mode & 0o777 == 0o755
