"""Tar files of webdataset: where their images are, their classes, and what is said of damaged ones."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ditzoo.data import ImageFolder, TarFiles, batches
from ditzoo.data.tars import expand

HEAD = 512  # bytes before the content of a member


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(file, "png")
    return file.getvalue()


def write_tar(path, members):
    """A tar file of (name, bytes)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(*labels, first=0):
    """Members `000.png`, `000.cls`, ... of shades 10, 11, ..."""
    numbered = enumerate(labels, start=first)
    return [
        member
        for number, label in numbered
        for member in ((f"{number:03d}.png", picture(10 + number)), (f"{number:03d}.cls", str(label).encode()))
    ]


def shades(x):
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def load(source, *indices):
    return source.load(indices, indices, 0)


def test_tars_hold_what_the_folder_holds(pictures, tmp_path):
    files = sorted(pictures.rglob("*.png"))
    for tar in range(4):
        chosen = range(80 * tar, 80 * (tar + 1))
        members = [
            member
            for number in chosen
            for member in (
                (f"{number:05d}.cls", b"%d" % (number >= 160)),
                (f"{number:05d}.PNG", files[number].read_bytes()),
            )
        ]
        write_tar(tmp_path / f"train-{tar:04d}.tar", members)
    source = TarFiles(f"{tmp_path}/train-{{0000..0003}}.tar", size=24, flip=True)
    assert (len(source), source.num_classes, source.shape) == (320, 2, (3, 24, 24))
    assert source.name == "320 images of 4 tar files in 2 classes"
    options = {"seed": 0, "batch_size": 64, "start": 0, "stop": 320}
    folder = ImageFolder(pictures, size=24, flip=True)
    for ours, theirs in zip(batches(source, **options), batches(folder, **options), strict=True):
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.y, theirs.y)
    sent = pickle.loads(pickle.dumps(TarFiles(f"{tmp_path}/*.tar", size=24, flip=True)))
    assert sent.fingerprint == source.fingerprint
    assert torch.equal(load(sent, 250).x, load(source, 250).x)


def test_classes_come_from_cls_or_json(tmp_path):
    members = [
        ("a/0.jpg.json", b"[]"),  # of another kind: it is no "json"
        ("a/0.jpg", picture(10)),
        ("a/0.json", json.dumps({"label": 3, "caption": "three"}).encode()),
        ("a/0.txt", b"three"),
        ("b/0.png", picture(11)),  # another sample of the same name
        ("b/0.cls", b" 1\n"),
        ("README", b"no sample"),
        (".note.png", b"hidden"),
    ]
    source = TarFiles(write_tar(tmp_path / "x.tar", members), size=8)
    loaded = load(source, 0, 1)
    assert (shades(loaded.x), loaded.y.tolist(), source.num_classes) == ([10, 11], [3, 1], 4)
    assert TarFiles(tmp_path / "x.tar", size=8, num_classes=10).num_classes == 10
    with pytest.raises(ValueError, match="there is a class 3, so that num_classes cannot be 3"):
        TarFiles(tmp_path / "x.tar", size=8, num_classes=3)


def test_labels_are_left_out_where_there_are_none_or_none_are_wanted(tmp_path):
    write_tar(tmp_path / "x.tar", [("0.png", picture(10)), ("0.json", b'{"caption": "x"}')])
    assert load(TarFiles(tmp_path / "x.tar", size=8), 0).y is None
    write_tar(tmp_path / "y.tar", [("0.png", picture(10)), ("0.cls", b"cat")])
    source = TarFiles(tmp_path / "y.tar", size=8, labels=False)
    assert (source.num_classes, load(source, 0).y) == (0, None)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], r"x\.tar holds no images \(jpg, jpeg, png, webp\)"),
        ([("0.txt", b"x")], r"x\.tar holds no images"),
        ([("0.png", b""), ("0.jpg", b"")], r"x\.tar has two images of one sample: 0\.png and 0\.jpg"),
        ([("0.png", b""), ("1.cls", b"1")], r"x\.tar has the class of a sample without its image: 1\.cls"),
        ([("0.png", b""), ("0.cls", b"cat")], r"0\.cls of .*x\.tar has no class in it: b'cat'"),
        ([("0.png", b""), ("0.cls", b"-1")], r"0\.cls of .*x\.tar has -1 for a class; classes are numbers from 0 on"),
        ([("0.png", b""), ("0.json", b'{"label": "cat"}')], r"0\.json of .*x\.tar has 'cat' for a class"),
        ([("0.png", b""), ("0.json", b"{")], r"0\.json of .*x\.tar has no class in it: b'\{'"),
        ([*samples(1), ("1.png", b"")], r"1 of 2 samples have no class, such as 1\.png of .*x\.tar"),
    ],
)
def test_unclear_samples_are_refused_by_file_and_member(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        TarFiles(write_tar(tmp_path / "x.tar", members), size=8)


def damaged(content, kind):
    ends = [2 * HEAD * number for number in range(1, 5)]  # each member has a block of head and one of content
    if kind == "empty":
        return b""
    if kind == "no tar":
        return b"x" * 4096
    if kind == "cut in a member":
        return content[: ends[2] + HEAD + 10]
    if kind == "cut between members":
        return content[: ends[2]]
    if kind == "broken head":
        return content[: ends[1]] + b"\xff" * HEAD + content[ends[1] + HEAD :]
    assert kind == "head of zeros"
    return content[: ends[1]] + bytes(HEAD) + content[ends[1] + HEAD :]


@pytest.mark.parametrize(
    ("kind", "place", "reason"),
    [
        ("empty", "at its start", "empty file"),
        ("no tar", "at its start", ""),
        ("cut in a member", r"after 001\.\w+", ""),
        ("cut between members", r"after 001\.png", "cut off: the zeros at the end are missing"),
        ("broken head", r"after 000\.cls", "what follows is no member"),
        ("head of zeros", r"after 000\.cls", "what follows is no member"),
    ],
)
def test_damaged_tars_are_refused_by_file_and_member(tmp_path, kind, place, reason):
    path = write_tar(tmp_path / "x.tar", samples(0, 1))
    assert len(TarFiles(path, size=8)) == 2
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(ValueError, match=rf"x\.tar is damaged {place} \(.*{reason}.*\)\. Fetch or make it again"):
        TarFiles(path, size=8)


def test_compressed_tars_are_refused(tmp_path):
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"x.tar.{kind}", f"w:{kind}") as archive:
            archive.addfile(tarfile.TarInfo("0.png"))
        with pytest.raises(ValueError, match=rf"x\.tar\.{kind} is compressed, .* unpack it first"):
            TarFiles(tmp_path / f"x.tar.{kind}", size=8)


def test_an_unreadable_image_is_named_by_file_and_member(tmp_path):
    members = samples(0, 1, 2)
    members[2] = ("001.png", picture(0)[:40])
    source = TarFiles(write_tar(tmp_path / "x.tar", members), size=8)
    loaded = load(source, 1)
    assert (shades(loaded.x), loaded.y.tolist()) == ([12], [2])
    assert loaded.unreadable[0].startswith(f"001.png of {tmp_path / 'x.tar'} cannot be read: ")


def test_patterns_stand_for_files_in_order(tmp_path):
    names = [f"{part}-{number:02d}.tar" for part in ("a", "b") for number in range(9, 12)]
    for name in names:
        (tmp_path / name).touch()
    paths = [str(tmp_path / name) for name in names]
    assert expand(f"{tmp_path}/*.tar") == paths
    assert expand(f"{tmp_path}/{{a,b}}-{{09..11}}.tar") == [paths[index] for index in (0, 3, 1, 4, 2, 5)]
    assert expand(f"{tmp_path}/b-{{09..10}}.tar") == paths[3:5]
    (tmp_path / "{1..2}.tar").touch()
    assert expand(f"{tmp_path}/{{1..2}}.tar") == [f"{tmp_path}/{{1..2}}.tar"]


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("{0..2}.tar", FileNotFoundError, r"there is no tar file .*1\.tar, which .*\{0\.\.2\}\.tar names"),
        ("x.tar", FileNotFoundError, r"there is no tar file .*/x\.tar\."),
        ("y*.tar", FileNotFoundError, r"there is no tar file .*/y\*\.tar\."),
        ("{3..1}.tar", ValueError, r"range \{3\.\.1\} .* ends before it starts"),
    ],
)
def test_missing_files_are_named(tmp_path, pattern, error, message):
    (tmp_path / "0.tar").touch()
    with pytest.raises(error, match=message):
        expand(f"{tmp_path}/{pattern}")


def test_addresses_are_not_local():
    with pytest.raises(ValueError, match=r"https://x\.org/a\.tar is not local; download"):
        expand("https://x.org/a.tar")


def test_members_larger_than_a_block_are_found(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    long_name = "long/" * 40 + "0.png"  # its name is in a member of its own
    path = write_tar(tmp_path / "x.tar", [("0.png", picture(10)), (long_name, file.getvalue()), ("2.png", picture(12))])
    x = load(TarFiles(path, size=64), 0, 1, 2).x
    assert shades(x[[0, 2]]) == [10, 12]
    torch.testing.assert_close(x[1], torch.from_numpy(noise.transpose(2, 0, 1) / 127.5 - 1).float())
