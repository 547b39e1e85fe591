"""Batches of running numbers: the same whoever loads them, wherever loading starts."""

import multiprocessing
import subprocess
import sys
import time

import pytest
import torch

from ditzoo.data import Digits, ImageFolder, TensorSource, batches, bucket_sizes
from ditzoo.data.loader import leave_signals_to_main


def numbered(num_samples=23):
    """Samples whose only value is their index."""
    return TensorSource(torch.arange(num_samples).float().reshape(-1, 1, 1, 1), torch.arange(num_samples))


def load(source=None, *, start=0, stop=64, batch_size=8, seed=0, **options):
    source = numbered() if source is None else source
    return list(batches(source, seed=seed, batch_size=batch_size, start=start, stop=stop, **options))


def same(first, second):
    return len(first) == len(second) and all(
        a.numbers == b.numbers and torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
        for a, b in zip(first, second, strict=True)
    )


def test_batches_are_those_of_the_order():
    found = load(stop=50)
    assert [batch.numbers for batch in found[:2]] == [range(8), range(8, 16)]
    assert found[-1].numbers == range(48, 50)  # the last is smaller
    order = numbered().order(0, 8)
    assert [int(y) for batch in found for y in batch.y] == [order.index(number) for number in range(50)]
    assert sorted(int(y) for batch in found[:6] for y in batch.y)[:2] == [0, 0]  # 48 numbers are two epochs of 23
    assert torch.equal(found[3].x.flatten(), found[3].y.float())


def test_loading_goes_on_where_it_stopped():
    assert same(load(start=24), load()[3:])
    assert load(start=64) == []
    # After an end between two batches, the rest of that batch comes first.
    assert [batch.numbers for batch in load(start=20, stop=36)] == [range(20, 24), range(24, 32), range(32, 36)]
    assert same(load(start=20)[1:], load()[3:])
    assert not same(load(seed=1), load())


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 4), (2, 2), (4, 2)])
def test_processes_and_micro_batches_share_each_batch(world, accumulation):
    stop = 72 if world * accumulation == 8 else 60  # a last batch of 4, where it can be cut
    parts = [load(stop=stop, rank=rank, world=world, accumulation=accumulation) for rank in range(world)]
    for step, whole in enumerate(load(stop=stop)):
        pieces = [part[step * accumulation + micro] for part in parts for micro in range(accumulation)]
        assert [number for piece in pieces for number in piece.numbers] == list(whole.numbers)
        assert torch.equal(torch.cat([piece.x for piece in pieces]), whole.x)
        assert len({len(piece.numbers) for piece in pieces}) == 1


def test_workers_change_nothing(pictures):
    source = ImageFolder(pictures, size=16, flip=True)
    options = {"start": 8, "stop": 92, "accumulation": 2, "rank": 1, "world": 2, "batch_size": 16}
    here = load(source, pin_memory=True, **options)
    state = torch.random.get_rng_state()
    for num_workers in (1, 2):
        assert same(load(source, num_workers=num_workers, **options), here)
    assert torch.equal(torch.random.get_rng_state(), state)  # nor the random numbers of the caller


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot tell who sends a signal")
def test_workers_go_on_when_a_whole_job_is_told_to_stop():
    """As torchrun tells it, which sends SIGTERM to the group of a process; Ctrl-C is SIGINT to the group."""
    found = batches(numbered(), seed=0, batch_size=8, start=0, stop=640, num_workers=2)
    first = [next(found), next(found)]  # one of each worker
    workers = multiprocessing.active_children()
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert same([*first, *found], load(stop=640))
    for worker in workers:
        worker.join(10)
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot tell who sends a signal")
def test_the_main_process_can_end_its_workers():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=wait_as_a_worker, args=(ready,))
    worker.start()
    assert ready.wait(10)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_workers_end_with_the_batches():
    found = batches(numbered(), seed=0, batch_size=8, start=0, stop=640, num_workers=1)
    next(found)
    assert len(multiprocessing.active_children()) == 1
    found.close()
    assert multiprocessing.active_children() == []


def wait_as_a_worker(ready):
    leave_signals_to_main(0)
    ready.set()
    time.sleep(60)


def test_batches_of_buckets_have_one_size_each(pictures):
    source = ImageFolder(pictures, size=32, buckets=bucket_sizes(32, multiple=8))
    source._bucket_of[::3] = 1  # the pictures are square
    found = load(source, stop=60)
    assert {tuple(batch.x.shape[2:]) for batch in found} == set(source.buckets[:2])
    assert same(load(source, start=16, stop=60), found[2:])
    assert same(load(source, start=20, stop=60)[1:], found[3:])
    message = r"samples of the sizes \[.*\] cannot be put into one batch; .* order\(seed, batch_size\) gives for"
    with pytest.raises(ValueError, match=message):
        source.load([0, 1], [0, 1], 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_files_are_counted_over_all_workers(tmp_path, pictures, num_workers):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes((pictures / "china" / f"{number:03d}.png").read_bytes())
    for number in (2, 5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    found = load(ImageFolder(tmp_path, size=8), num_workers=num_workers, batch_size=4)
    messages = [message for batch in found for message in batch.unreadable]
    assert len(messages) == 2
    assert {message.partition(" cannot")[0] for message in messages} == {
        str(tmp_path / "2.png"),
        str(tmp_path / "5.png"),
    }
    with pytest.raises(ValueError, match=r"^2 files of 8 images of .* more than max_unreadable \(1\)"):
        load(ImageFolder(tmp_path, size=8, max_unreadable=1), num_workers=num_workers, batch_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world": 3}, r"batch_size \(8\) must be a multiple of 3, which is 3 processes times .* \(1\): 6 or 9"),
        ({"world": 8, "accumulation": 2}, r"must be a multiple of 16, .*: 16\."),
        ({"world": 4, "stop": 62}, r"last batch .* over 4 processes .* set num_images to 60 or 64 instead of 62"),
        (
            {"world": 4, "start": 6},
            r"what is left of the batch in which training stopped, at 6 images, cannot be cut evenly over 4 processes "
            r"times accumulation \(1\): go on with as many as before",
        ),
        ({"start": 65}, r"start must be from 0 to stop \(64\), got 65"),
        ({"start": -1}, r"got -1"),
        ({"rank": 1}, "rank must be from 0 to 0, got 1"),
        ({"world": 0}, "world must be 1 or more, got 0"),
        ({"num_workers": -1}, "num_workers must be 0 or more, got -1"),
    ],
)
def test_impossible_numbers_are_refused_at_once(options, message):
    options = {"seed": 0, "batch_size": 8, "start": 0, "stop": 64, **options}
    with pytest.raises(ValueError, match=message):
        batches(numbered(), **options)


def test_digits_are_a_source_of_their_own():
    source = Digits("train")
    assert (len(source), source.num_classes, source.shape) == (1297, 10, (1, 8, 8))
    assert source.label_names == tuple("0123456789")
    x = load(source, stop=8)[0].x
    flipped = load(Digits("train", flip=True), stop=8)[0].x
    assert [torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(x, flipped, strict=True)] == [True] * 8
    assert not torch.equal(x, flipped)
    assert len({Digits("train").fingerprint, Digits("test").fingerprint, Digits("train", flip=True).fingerprint}) == 3
