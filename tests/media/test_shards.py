"""A killed job goes on without a gap and without a duplicate, and no damaged or foreign sample gets into its file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditzoo.media import LabelNames, SampleStore, write_npz, write_png_folder

JOB = {"seed": 0, "model": "dit_ti_2", "recipe": {"sampler": "ddim", "guidance": {"scale": 1.5}}}


def samples(indices, side: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Image i is filled with i, label i is i % 10."""
    numbers = np.asarray(indices, np.int64)
    return np.tile(numbers.astype(np.uint8)[:, None, None, None], (1, side, side, 3)), numbers % 10


def run(store: SampleStore, *process: int, batch: int = 4, limit: int | None = None) -> list[int]:
    """Make what is missing, or the first `limit` of it, and give the indices made."""
    made: list[int] = []
    missing = islice(store.missing(*process), limit)
    while indices := list(islice(missing, batch)):
        store.add(indices, *samples(indices))
        made += indices
    return made


def finished(folder: Path, total: int, shard_size: int, job=JOB) -> SampleStore:
    store = SampleStore(folder, total, shard_size, job)
    run(store)
    return store


def content(path: Path) -> list[list]:
    with np.load(path) as file:
        assert np.array_equal(file["arr_0"], samples(range(len(file["arr_0"])))[0])
        return [file["arr_0"][:, 0, 0, 0].tolist(), file["arr_1"].tolist()]


def expected(total: int) -> list[list]:
    return [list(range(total)), [i % 10 for i in range(total)]]


# Whole jobs.


def test_shards_on_disk(tmp_path):
    store = SampleStore(tmp_path / "job", 10, 4, JOB)
    assert list(store.missing()) == list(range(10))
    run(store, batch=3)
    assert sorted(os.listdir(tmp_path / "job")) == [
        "job.json",
        *(f"shard-{number:06d}.npz" for number in range(3)),
    ]
    assert list(store.missing()) == []
    assert [store.shard_range(n) for n in range(3)] == [range(4), range(4, 8), range(8, 10)]
    last = store.read_shard(2)
    assert np.array_equal(last.images, samples([8, 9])[0])
    assert last.labels.tolist() == [8, 9]
    job = json.loads((tmp_path / "job" / "job.json").read_text())
    assert job == {"format": 1, "total": 10, "shard_size": 4, "fingerprint": JOB}


@pytest.mark.parametrize("shard_size", [1, 4, 5, 10, 100])
def test_the_file_is_that_of_write_npz_whatever_the_shards(tmp_path, shard_size):
    finished(tmp_path / "job", 10, shard_size).finalize(tmp_path / "samples.npz")
    write_npz(tmp_path / "expected.npz", *samples(range(10)))
    assert (tmp_path / "samples.npz").read_bytes() == (tmp_path / "expected.npz").read_bytes()
    assert content(tmp_path / "samples.npz") == expected(10)


def test_the_folder_is_that_of_write_png_folder(tmp_path):
    options = {"names": LabelNames.digits(), "seed": 3}
    finished(tmp_path / "job", 10, 4).finalize(tmp_path / "png", **options)
    write_png_folder(tmp_path / "expected", *samples(range(10)), **options)
    assert sorted(os.listdir(tmp_path / "png")) == sorted(os.listdir(tmp_path / "expected"))
    for path in (tmp_path / "expected").iterdir():
        assert (tmp_path / "png" / path.name).read_bytes() == path.read_bytes()


def test_samples_without_labels(tmp_path):
    store = SampleStore(tmp_path / "job", 5, 2, JOB)
    store.add(range(5), samples(range(5))[0])
    store.write_shard(2, samples([4])[0])
    store.finalize(tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_samples_come_in_any_order(tmp_path):
    store = SampleStore(tmp_path / "job", 11, 4, JOB)
    for indices in ([10, 3, 8], torch.tensor([9, 0, 5]), np.array([2, 1, 7]), [6, 4]):
        store.add(indices, *samples(indices))
    store.finalize(tmp_path / "samples.npz")
    assert content(tmp_path / "samples.npz") == expected(11)


@pytest.mark.parametrize("target", ["samples.npz", "png"])
def test_one_shard_at_a_time_is_in_memory(tmp_path, target):
    store = SampleStore(tmp_path / "job", 64, 1, JOB)
    image = np.zeros((1, 256, 256, 3), np.uint8)
    for index in range(64):
        store.write_shard(index, image, [index])
    first = SampleStore(tmp_path / "first", 1, 1, JOB)
    first.write_shard(0, image, [0])
    first.finalize(tmp_path / f"first-{target}")  # the first picture of a process loads Pillow's formats
    tracemalloc.start()
    try:
        store.finalize(tmp_path / target)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image.nbytes < most < 8 * image.nbytes


# Kills.


@settings(max_examples=50)
@given(
    total=st.integers(1, 40),
    shard_size=st.integers(1, 12),
    batch=st.integers(1, 9),
    lives=st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 30), min_size=4, max_size=4)), max_size=3),
    last_processes=st.integers(1, 4),
)
def test_work_is_exact_whenever_processes_are_killed(total, shard_size, batch, lives, last_processes):
    """Each life of the job has some processes, of which number p is killed after its limit of samples."""
    with tempfile.TemporaryDirectory() as folder:

        def processes(number: int) -> list[SampleStore]:
            return [SampleStore(folder, total, shard_size, JOB) for _ in range(number)]

        for number, limits in lives:
            before = set(processes(1)[0].missing())
            made = [run(store, p, number, batch=batch, limit=limits[p]) for p, store in enumerate(processes(number))]
            flat = [index for indices in made for index in indices]
            assert len(set(flat)) == len(flat)
            assert set(flat) <= before
            after = set(processes(1)[0].missing())
            assert after >= before - set(flat)
            assert len(set(flat) & after) <= number * (shard_size - 1) + number * (batch - 1)
        left = [list(store.missing(p, last_processes)) for p, store in enumerate(processes(last_processes))]
        flat = [index for indices in left for index in indices]
        assert sorted(flat) == sorted(processes(1)[0].missing())
        assert len(set(flat)) == len(flat)
        for p, store in enumerate(processes(last_processes)):
            assert run(store, p, last_processes, batch=batch) == left[p]
        with tempfile.TemporaryDirectory() as out:
            processes(1)[0].finalize(Path(out) / "samples.npz")
            assert content(Path(out) / "samples.npz") == expected(total)


KILLED = """
import os, signal, sys
import numpy as np
from ditzoo.media import SampleStore
from tests.media.test_shards import JOB, KILLS, folder_of, run

replace, save = os.replace, np.savez

def work(folder, where, countdown):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal countdown
            countdown -= 1
            function(countdown < 0, *args, **kwargs)
        return wrapper

    @counted
    def replacing(last, source, target):
        if last and where == "before the rename":
            die()
        replace(source, target)
        if last:
            die()

    @counted
    def saving(last, file, **content):
        save(file, **content)
        if last and where == "half written":
            file.truncate(file.tell() // 2)
            file.flush()
            die()

    if where == "half written":
        np.savez = saving
    else:
        os.replace = replacing
    run(SampleStore(folder, 23, 4, JOB), batch=3)

for kill in KILLS:
    child = os.fork()
    if child == 0:
        work(folder_of(sys.argv[1], *kill), *kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, kill
"""
#: (where a job dies, at which of its files)
KILLS = [(where, file) for where in ("before the rename", "after the rename", "half written") for file in (0, 1, 4)]


def folder_of(parent: str | Path, where: str, countdown: int) -> Path:
    return Path(parent) / f"{where} {countdown}"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with what is left of each job, made in processes that share one start of Python."""
    parent = tmp_path_factory.mktemp("killed")
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", KILLED, str(parent)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return parent


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is not known here")
@pytest.mark.parametrize(("where", "countdown"), KILLS)
def test_kill_9(tmp_path, killed, where, countdown):
    folder = folder_of(killed, where, countdown)
    leftovers = [name for name in os.listdir(folder) if ".partial-" in name]
    assert len(leftovers) == (where != "after the rename")
    store = SampleStore(folder, 23, 4, JOB)
    # The rename of job.json counts as one.
    whole = countdown + {"before the rename": -1, "after the rename": 0, "half written": 0}[where]
    assert list(store.missing()) == list(range(4 * max(whole, 0), 23))
    run(store)
    store.finalize(tmp_path / "samples.npz")
    assert content(tmp_path / "samples.npz") == expected(23)
    assert [name for name in os.listdir(folder) if ".partial-" in name] == []


def test_a_full_disk_loses_no_sample_of_the_batch(tmp_path, monkeypatch):
    store = SampleStore(tmp_path / "job", 8, 4, JOB)
    replace = os.replace

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ditzoo.media.files.os.replace", full)
    with pytest.raises(OSError, match=r"shard-000000\.npz cannot be written: No space left on device\. Free some"):
        store.add(range(5), *samples(range(5)))
    assert os.listdir(tmp_path / "job") == ["job.json"]
    monkeypatch.setattr("ditzoo.media.files.os.replace", replace)
    assert list(store.missing()) == [5, 6, 7]
    store.add([5, 6, 7], *samples([5, 6, 7]))
    assert store.missing_shards() == []


# Damage.


def test_a_damaged_shard_is_reported_and_made_again(tmp_path):
    store = finished(tmp_path / "job", 10, 4)
    path = store.shard_path(1)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(bytes([5] * 12))] ^= 1  # the image of sample 5
    path.write_bytes(damaged)
    assert store.missing_shards() == [1]
    assert len(store.problems) == 1
    assert store.problems[0].startswith(f"{path} is damaged (")
    assert store.problems[0].endswith("). It is made again.")
    assert store.missing_shards(0, 2) == []
    assert store.problems == []
    with pytest.raises(ValueError, match=r"shard-000001\.npz is damaged .* Run the job again, which makes it anew"):
        store.finalize(tmp_path / "samples.npz")
    assert not (tmp_path / "samples.npz").exists()
    assert run(SampleStore(tmp_path / "job", 10, 4, JOB)) == [4, 5, 6, 7]
    store.finalize(tmp_path / "samples.npz")
    assert content(tmp_path / "samples.npz") == expected(10)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_shards(tmp_path, part):
    store = finished(tmp_path / "job", 10, 4)
    whole = store.shard_path(2).read_bytes()
    store.shard_path(2).write_bytes(whole[: int(len(whole) * part)])
    assert list(store.missing()) == [8, 9]
    assert "shard-000002.npz is damaged" in store.problems[0]


def test_no_changed_byte_gets_through(tmp_path):
    """Any byte that changes is noticed, or means nothing to the samples."""
    store = finished(tmp_path / "job", 2, 2)
    path, whole = store.shard_path(0), store.read_shard(0)
    before, complaints = path.read_bytes(), []
    for place in range(len(before)):
        for mask in (0x01, 0x08, 0xFF):
            path.write_bytes(before[:place] + bytes([before[place] ^ mask]) + before[place + 1 :])
            with contextlib.suppress(ValueError):
                shard = store.read_shard(0)
                assert np.array_equal(shard.images, whole.images)
                assert np.array_equal(shard.labels, whole.labels)
                continue
            complaints.append((place, mask))
    members = [place for place in range(len(before)) if (place, 1) in complaints]
    assert len(members) > whole.images.nbytes + whole.labels.nbytes


def test_shards_of_other_jobs_and_places(tmp_path):
    store, other = finished(tmp_path / "a", 12, 4), finished(tmp_path / "b", 12, 4, {**JOB, "seed": 1})
    store.shard_path(0).write_bytes(other.shard_path(0).read_bytes())
    store.shard_path(2).write_bytes(store.shard_path(1).read_bytes())
    assert list(store.missing()) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert "holds other samples than 0 to 3 of this job" in store.problems[0]
    assert "holds other samples than 8 to 11 of this job" in store.problems[1]


def test_missing_shards_are_counted(tmp_path):
    store = finished(tmp_path / "job", 20, 2)
    for number in (1, 3, 5, 7):
        store.shard_path(number).unlink()
    text = r"lacks 4 of 10 shards \(shard-000001.npz, shard-000003.npz, shard-000005.npz, ...\)\. Run the job again"
    with pytest.raises(ValueError, match=text):
        store.finalize(tmp_path / "samples.npz")
    with pytest.raises(FileNotFoundError, match=r"shard-000003\.npz has not been made yet"):
        store.read_shard(3)


@pytest.mark.parametrize("target", ["samples.npz", "png"])
@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (samples([2, 3], side=3), r"shard-000001.npz: images of \(3, 3, 3\) and of \(2, 2, 3\) do not go together"),
        ((samples([2, 3])[0], None), "shard-000001.npz: some samples have labels and some have none"),
    ],
)
def test_shards_that_do_not_go_together(tmp_path, target, odd, text):
    store = finished(tmp_path / "job", 6, 2)
    store.write_shard(1, *odd)
    with pytest.raises(ValueError, match=text):
        store.finalize(tmp_path / target)
    assert os.listdir(tmp_path) == ["job"]


# Other jobs, other input.


@pytest.mark.parametrize(
    ("total", "shard_size", "job", "text"),
    [
        (10, 4, {**JOB, "seed": 1}, r"holds samples of another job: seed was 0, is 1\. Give another folder, or remove"),
        (12, 5, JOB, "another job: shard_size was 4, is 5; total was 10, is 12"),
        (
            10,
            4,
            {"seed": 0, "model": None, "recipe": {"sampler": "ddim", "guidance": {"scale": 4.0}}, "new": [1]},
            r'model was "dit_ti_2", is null; new was absent, is \[1\]; recipe\.guidance\.scale was 1\.5, is 4\.0\.',
        ),
        (10, 4, {**JOB, "recipe": "none"}, r'recipe was {"guidance": {"scale": 1.5}, "sampler": "ddim"}, is "none"'),
        (10, 4, {**JOB, "seed": False}, "seed was 0, is false"),
    ],
)
def test_a_folder_belongs_to_one_job(tmp_path, total, shard_size, job, text):
    finished(tmp_path, 10, 4)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=text):
        SampleStore(tmp_path, total, shard_size, job)
    assert sorted(os.listdir(tmp_path)) == before


def test_fingerprints_are_compared_as_json(tmp_path):
    finished(tmp_path, 10, 4, {"shape": (1, 8), "b": 1, "a": 2.0})
    assert SampleStore(tmp_path, 10, 4, {"a": 2, "b": 1, "shape": [1, 8]}).missing_shards() == []


@pytest.mark.parametrize("value", [np.zeros(1), float("nan"), {1, 2}])
def test_fingerprints_must_be_json(tmp_path, value):
    with pytest.raises(TypeError, match="the fingerprint of a job must be JSON: "):
        SampleStore(tmp_path / "job", 10, 4, {"value": value})
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("text", ["{", "[]", "", "\xff"])
def test_damaged_job_file(tmp_path, text):
    (tmp_path / "job.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"job\.json is damaged \(.*\); remove the folder, or give another one"):
        SampleStore(tmp_path, 10, 4, JOB)


def test_shards_without_a_job_file(tmp_path):
    finished(tmp_path, 10, 4)
    (tmp_path / "job.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards without a job\.json that says of what; give another folder"):
        SampleStore(tmp_path, 10, 4, JOB)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/job\.json cannot be written: .*Check the path"):
        SampleStore(tmp_path / "file", 10, 4, JOB)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s: s.add([10], *samples([1])), ValueError, "sample 10 is not among the 10 of this job, 0 to 9"),
        (lambda s: s.add([-1], *samples([1])), ValueError, "sample -1 is not among"),
        (lambda s: s.add([3, 3], *samples([3, 3])), ValueError, "sample 3 was added before"),
        (lambda s: s.add([3, 0], *samples([3, 0])), ValueError, "sample 0 was added before"),
        (lambda s: s.add([3], *samples([3, 4])), ValueError, "1 indices for 2 images"),
        (lambda s: s.add([3], samples([3])[0], [1, 2]), ValueError, r"1 images need labels of shape \(1,\)"),
        (lambda s: s.add([3], np.zeros((1, 2, 2, 3))), TypeError, "images must be uint8, got float64"),
        (lambda s: s.write_shard(3, *samples([1])), ValueError, "there is no shard 3 among 3"),
        (lambda s: s.write_shard(2, *samples([8])), ValueError, "shard 2 holds samples 8 to 9, got 1 images"),
        (lambda s: s.missing(2, 2), ValueError, "process_index must be from 0 to 1, got 2"),
        (lambda s: s.missing(-1), ValueError, "process_index must be from 0 to 0, got -1"),
    ],
)
def test_wrong_input_changes_nothing(tmp_path, call, error, text):
    store = SampleStore(tmp_path / "job", 10, 4, JOB)
    store.add([0], *samples([0]))
    with pytest.raises(error, match=text):
        call(store)
    assert list(store.missing()) == list(range(1, 10))
    run(store)
    store.finalize(tmp_path / "samples.npz")
    assert content(tmp_path / "samples.npz") == expected(10)


def test_samples_of_a_shard_go_together(tmp_path):
    store = SampleStore(tmp_path / "job", 2, 2, JOB)
    store.add([0], *samples([0]))
    with pytest.raises(ValueError, match=r"images of \(3, 3, 3\) and of \(2, 2, 3\) do not go together"):
        store.add([1], *samples([1], side=3))
    other = SampleStore(tmp_path / "other", 2, 2, JOB)
    other.add([0], *samples([0]))
    with pytest.raises(ValueError, match="some samples have labels and some have none; give them always or never"):
        other.add([1], samples([1])[0])
    other.add([1], *samples([1]))
    assert other.missing_shards() == []


@pytest.mark.parametrize(("total", "shard_size"), [(0, 1), (5, 0), (-1, 1)])
def test_sizes_below_one(tmp_path, total, shard_size):
    with pytest.raises(ValueError, match="must be 1 or more, got"):
        SampleStore(tmp_path, total, shard_size, JOB)
