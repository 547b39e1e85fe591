"""What becomes of an image file: its colours, its crop, its values; and what is said of a damaged one."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ditzoo.data import UnreadableImageError, center_crop, flip_draws, random_flips, read_image, to_tensor
from ditzoo.data.images import image_size


def encoded(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_colours_are_read_as_they_are(tmp_path):
    picture = pixels(5, 7)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for file in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        image = read_image(file, name="a.png")
        assert image.mode == "RGB"
        assert np.array_equal(np.array(image), picture)


def test_grey_becomes_three_equal_channels_and_colours_become_grey():
    grey = Image.fromarray(pixels(4, 4, 1)[..., 0])
    assert np.array_equal(np.array(read_image(encoded(grey), name="a")), np.repeat(np.array(grey)[..., None], 3, -1))
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert np.array(read_image(encoded(red), name="a", channels=1)).tolist() == [[76]]  # 0.299 * 255


def test_transparent_parts_are_laid_on_white():
    picture = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    expected = [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert np.array(read_image(encoded(Image.fromarray(picture)), name="a")).tolist() == expected
    grey = Image.fromarray(np.array([[[9, 255], [9, 0]]], dtype=np.uint8))
    assert grey.mode == "LA"
    assert np.array(read_image(encoded(grey), name="a", channels=1)).tolist() == [[9, 255]]


def test_palettes_are_read_with_their_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert np.array(read_image(encoded(image), name="a")).tolist() == [[[0, 0, 0], [200, 100, 50]]]
    assert np.array(read_image(encoded(image, transparency=0), name="a")).tolist() == [[[255] * 3, [200, 100, 50]]]


def test_cmyk_becomes_colours():
    # Cyan ink takes all red away, black ink everything.
    image = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (255, 0, 0, 0)])
    assert np.array(read_image(encoded(image, "jpeg", quality=100), name="a"))[8, 8].tolist() == [0, 255, 255]
    image = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 0, 0, 255)])
    assert np.array(read_image(encoded(image, "jpeg", quality=100), name="a"))[8, 8].tolist() == [0, 0, 0]


def test_of_sixteen_bits_the_upper_eight_are_taken():
    grey = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    for kind in ("png", "tiff"):
        assert np.array(read_image(encoded(grey, kind), name="a", channels=1)).tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize(
    ("values", "reason"),
    [(np.float32(0.5), "floating-point numbers"), (np.int32(70_000), "integers of more than 16 bits")],
)
def test_numbers_without_a_range_are_refused(values, reason):
    with pytest.raises(UnreadableImageError, match=rf"map\.tiff cannot be read: its pixels are {reason}"):
        read_image(encoded(Image.fromarray(np.full((2, 2), values)), "tiff"), name="map.tiff")


def test_the_orientation_of_a_camera_is_left_out_of_account():
    picture = pixels(3, 5)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = encoded(Image.fromarray(picture), exif=exif)
    assert np.array_equal(np.array(read_image(file, name="a")), picture)
    assert image_size(file, name="a") == (3, 5)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_file_that_is_cut_off_is_unreadable_by_its_name(kind):
    file = encoded(Image.fromarray(pixels(64, 64)), kind)
    with pytest.raises(UnreadableImageError, match=r"^data/3\.img cannot be read: \S+"):
        read_image(file[: len(file) // 2], name="data/3.img")


def test_no_image_and_no_file_are_unreadable_by_their_name(tmp_path):
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        for read in (read_image, image_size):
            with pytest.raises(UnreadableImageError, match=r"^x\.png cannot be read: \S+"):
                read(content, name="x.png")
    with pytest.raises(UnreadableImageError, match=r"x\.png cannot be read: it is no image of a known format\.$"):
        read_image(b"hello", name="x.png")
    with pytest.raises(UnreadableImageError, match=r"y\.png cannot be read: No such file"):
        read_image(tmp_path / "y.png", name="y.png")


def test_images_far_too_large_are_unreadable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"bomb\.png cannot be read: .*400 pixels"):
        read_image(encoded(Image.fromarray(pixels(20, 20))), name="bomb.png")


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"3 channels \(colours\) or 1 \(grey\), got channels=4"):
        read_image(b"", name="a", channels=4)


def test_the_crop_takes_the_middle_of_the_longer_side():
    picture = pixels(8, 13)
    for image, expected in ((picture, picture[:, 2:10]), (picture.transpose(1, 0, 2), None)):
        cropped = np.array(center_crop(Image.fromarray(np.ascontiguousarray(image)), 8))
        assert np.array_equal(cropped, picture[:, 2:10].transpose(1, 0, 2) if expected is None else expected)


def test_the_crop_halves_by_boxes_as_long_as_the_result_fits():
    """Down to sizes that halving ends at, there is nothing but means of two pixels, first across, then down."""
    picture = pixels(32, 32)

    def halved(x):
        across = (x[:, 0::2].astype(int) + x[:, 1::2] + 1) // 2  # Pillow rounds to 8 bits after each direction
        return ((across[0::2] + across[1::2] + 1) // 2).astype(np.uint8)

    assert np.array_equal(np.array(center_crop(Image.fromarray(picture), 8)), halved(halved(picture)))
    # At 7 of 32 pixels: two halvings, then bicubic from 8 to 7.
    last = Image.fromarray(halved(halved(picture))).resize((7, 7), Image.Resampling.BICUBIC)
    assert np.array_equal(np.array(center_crop(Image.fromarray(picture), 7)), np.array(last))


def test_the_crop_of_an_odd_size_resizes_the_shorter_side():
    image = Image.fromarray(pixels(50, 75))
    whole = image.resize((48, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(np.array(center_crop(image, 32)), np.array(whole.crop((8, 0, 40, 32))))


def resampled(picture, size, kernel, support):
    """An (H, W, 3) picture resized to (width, height), from the definition: across, then down, each rounded to 8 bits.

    A pixel of the result is a mean of the pixels around its centre, weighted by the kernel stretched to its width.
    """
    for length in size:
        picture = picture.transpose(1, 0, 2)  # the side that is resized comes first
        scale = len(picture) / length
        centres = (np.arange(length) + 0.5) * scale
        distance = (np.arange(len(picture)) + 0.5 - centres[:, None]) / max(scale, 1)
        weights = np.where(abs(distance) <= support, kernel(abs(distance)), 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        picture = np.floor(np.tensordot(weights, picture, axes=1) + 0.5).clip(0, 255)
    return picture


def bicubic(x):
    """Keys' cubic with a = -1/2."""
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


def test_the_crop_is_that_of_its_definition():
    """103x79 pixels: halved to 51x39 and 25x19, resized to 21x16, cut to 16x16."""
    picture = pixels(79, 103)
    box = resampled(resampled(picture, (51, 39), np.ones_like, 0.5), (25, 19), np.ones_like, 0.5)
    expected = resampled(box, (21, 16), bicubic, 2.0)[:, 2:18]
    cropped = np.array(center_crop(Image.fromarray(picture), 16))
    assert np.array_equal(cropped, expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (500, 333), (64, 64), (129, 1)])
@pytest.mark.parametrize("crop", [(64, 64), (48, 80), (80, 48)])
def test_every_crop_has_the_size_asked_for(size, crop):
    assert center_crop(Image.new("RGB", size), *crop).size == crop[::-1]


def test_tensors_are_between_minus_one_and_one():
    image = Image.fromarray(np.array([[[0, 255, 51], [1, 2, 3]]], dtype=np.uint8))
    x = to_tensor(image)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    assert x.shape == (3, 1, 2)
    assert to_tensor(image.convert("L")).shape == (1, 1, 2)


def test_flips_follow_from_seed_and_number():
    numbers = range(1000)
    drawn = flip_draws(numbers, 0)
    assert 440 < drawn.sum() < 560
    assert torch.equal(flip_draws([7, 3], 0), drawn[[7, 3]])
    assert not torch.equal(flip_draws(numbers, 1), drawn)
    x = torch.arange(8.0).reshape(4, 1, 1, 2)
    flipped = random_flips(x, range(4), 0)
    for number in range(4):
        assert torch.equal(flipped[number], x[number].flip(-1) if drawn[number] else x[number])
