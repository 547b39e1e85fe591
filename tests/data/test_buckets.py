"""Which sizes images are cropped to, and which batches they come in."""

from collections import Counter

import numpy as np
import pytest

from ditzoo.data import BucketOrder, bucket_sizes
from ditzoo.data.buckets import check_buckets, nearest_bucket


def test_sizes_have_about_as_many_pixels_as_the_square():
    sizes = bucket_sizes(256, multiple=16)
    assert sizes[0] == (256, 256)
    assert len(set(sizes)) == len(sizes)
    assert {(192, 336), (336, 192)} <= set(sizes)
    for height, width in sizes:
        assert height % 16 == width % 16 == 0
        assert max(height, width) <= 2 * min(height, width)
        assert height * width == pytest.approx(256 * 256, rel=0.06)
    assert {(width, height) for height, width in sizes} == set(sizes)
    assert bucket_sizes(32, multiple=8) == [(32, 32), (24, 48), (24, 40), (40, 24), (48, 24)]
    assert bucket_sizes(32, multiple=16, max_ratio=1) == [(32, 32)]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (100, {"multiple": 16}, "size must be a multiple of 16 pixels, got 100"),
        (64, {"multiple": 16, "max_ratio": 0.5}, "max_ratio must be 1 or more, got 0.5"),
    ],
)
def test_impossible_sizes_are_refused(size, options, message):
    with pytest.raises(ValueError, match=message):
        bucket_sizes(size, **options)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [([], "buckets is empty"), ([(8, 0)], r"got \(8, 0\)"), ([(8, 8), (8, 8)], r"\(8, 8\) is there twice")],
)
def test_impossible_buckets_are_refused(buckets, message):
    with pytest.raises(ValueError, match=message):
        check_buckets(buckets)


def test_an_image_gets_the_bucket_of_the_nearest_shape():
    buckets = [(256, 256), (192, 336), (336, 192)]
    assert [nearest_bucket(size, buckets) for size in [(500, 480), (480, 854), (10, 1), (75, 100)]] == [0, 1, 2, 1]


def order_of(sizes, seed=0, batch_size=4):
    bucket_of = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(0).shuffle(bucket_of)
    return bucket_of, BucketOrder(bucket_of, seed, batch_size)


@pytest.mark.parametrize("sizes", [(10, 7, 1), (3, 1, 0), (40,), (1,)])
def test_batches_are_of_one_bucket_and_samples_come_equally_often(sizes):
    bucket_of, order = order_of(sizes)
    num_batches = 100 * sum(sizes)
    indices = np.array([order.index(number) for number in range(4 * num_batches)])
    assert (np.ptp(bucket_of[indices].reshape(-1, 4), axis=1) == 0).all()
    counts = Counter(indices.tolist())
    assert set(counts) == set(range(sum(sizes)))
    # 400 epochs; a bucket lags by less than a batch and an epoch, so a sample by few.
    assert all(abs(count - 400) <= 5 for count in counts.values())


def test_any_batch_is_found_without_those_before_it():
    _, order = order_of((10, 7, 3))
    indices = [order.index(number) for number in range(400)]
    _, other = order_of((10, 7, 3))
    places = np.random.default_rng(1).permutation(400).tolist()
    assert [other.index(place) for place in places] == [indices[place] for place in places]
    assert [order_of((10, 7, 3), seed=1)[1].index(number) for number in range(400)] != indices
    assert order.index(10**9) in range(20)


def test_buckets_come_mixed():
    bucket_of, order = order_of((400, 400))
    batches = [int(bucket_of[order.index(4 * batch)]) for batch in range(200)]
    assert sum(batches) == 100
    assert 70 < np.abs(np.diff(batches)).sum() < 130  # changes between neighbours: half of 199
