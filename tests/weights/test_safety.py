"""Files of weights from strangers: nothing in them runs, leads elsewhere, or takes memory that it only claims."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import resource
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ditzoo.weights import WeightsFile, load_state_dict, read_checkpoint, save_weights

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4).half(), "c": torch.tensor(1.5)}
INDEX = "model.safetensors.index.json"


def refusal(path: Path, kind: type[Exception] = ValueError) -> str:
    """The text of the error that reading a file raises."""
    with pytest.raises(kind) as raised:
        load_state_dict(path)
    text = str(raised.value)
    assert text.startswith(str(path.parent))
    assert text.isprintable()
    assert text.endswith((".", "?"))
    return text


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """Fails if the process's largest memory use grew by more."""
    before = peak_memory()
    yield
    assert peak_memory() - before <= num_bytes


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Pickles.


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: object):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


PAYLOADS = {
    "function": lambda: Calls(Path.touch, Path("mischief")),
    "os.system": lambda: Calls(os.system, "touch mischief"),
    "eval": lambda: Calls(eval, "open('mischief', 'w')"),
    "inside the options": lambda: argparse.Namespace(model=Calls(os.system, "touch mischief")),
    "a defaultdict's factory": lambda: collections.defaultdict(Path("mischief").touch),
    "a class that looks like one of ours": lambda: Calls(os.mkdir, "mischief"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_does_not_run(payload, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    torch.save({**STATE, "x": PAYLOADS[payload]()}, path, _use_new_zipfile_serialization=not legacy)
    text = refusal(path)
    assert "reading it would run " in text
    assert "To convert it yourself, open it with torch.load(..., weights_only=False) where it can do no harm" in text
    assert "safetensors.torch.save_file" in text
    assert os.listdir(tmp_path) == ["weights.pt"]
    # It is not the test that is harmless.
    if payload != "a defaultdict's factory":
        torch.load(path, weights_only=False)
        assert sorted(os.listdir(tmp_path)) == ["mischief", "weights.pt"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_of_another_program_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4, 5):
        Path("weights.pt").write_bytes(pickle.dumps(Calls(os.system, "touch mischief"), protocol))
        refusal(tmp_path / "weights.pt")
        Path("weights.pt").write_bytes(pickle.dumps({"a": np.ones(3)}, protocol))
        refusal(tmp_path / "weights.pt")
    assert os.listdir(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize("name", ["model.safetensors", "MODEL.SAFETENSORS"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_under_the_name_of_safetensors_is_refused(name, legacy, tmp_path):
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert f"{name} is a PyTorch checkpoint, in spite of its name" in refusal(tmp_path / name)


def test_a_pickle_in_a_folder_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "x": Calls(os.system, "touch mischief")}, "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"would run posix\.system"):
        load_state_dict(tmp_path)
    assert os.listdir(tmp_path) == ["diffusion_pytorch_model.bin"]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_checkpoints_hold_is_read(legacy, tmp_path):
    content = {
        "model": collections.OrderedDict(STATE),
        "ema": STATE,
        "opt": torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]).state_dict(),
        "args": argparse.Namespace(model="DiT-XL/2", lr=1e-4, nested={"vae": ["ema", None, True]}),
        "train_steps": 7,
    }
    torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=not legacy)
    assert load_state_dict(tmp_path / "weights.pt").keys() == STATE.keys()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float64(1.5), "calls encode, as Python's bytes and numpy's arrays do"),
        (np.ones(3), "calls encode, as Python's bytes and numpy's arrays do"),
        (Path("/data"), "would run pathlib."),
        (collections.defaultdict(list), "would run collections.defaultdict"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_classes_are_refused_by_name(value, name, tmp_path):
    torch.save({"ema": STATE, "best": value}, tmp_path / "weights.pt")
    assert name in refusal(tmp_path / "weights.pt")


def test_the_allowed_classes_do_not_stay_allowed(tmp_path):
    torch.save({**STATE, "args": argparse.Namespace()}, tmp_path / "weights.pt")
    load_state_dict(tmp_path / "weights.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "weights.pt", weights_only=True)


# Memory that a pickle or an archive claims.


CLAIMS = {
    "bytearray": (lambda: Calls(bytearray, 3 * 10**9), "its pickle calls bytearray, as Python's bytes"),
    "encode": (lambda: b"bytes of Python", "its pickle calls encode, as Python's bytes"),
    "one value for all": (lambda: torch.ones(1).expand(10**11), r"x claims 400,000,000,000 bytes, more than there are"),
    "a tensor without values": (lambda: Calls(torch.FloatTensor, 10**9), "x claims 4,000,000,000 bytes"),
    "terabytes without values": (lambda: Calls(torch.FloatTensor, 10**13), "damaged or cut off"),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("legacy", [False, True])
def test_memory_that_a_pickle_asks_for(claim, legacy, tmp_path):
    make, text = CLAIMS[claim]
    path = tmp_path / "weights.pt"
    torch.save({**STATE, "x": make()}, path, _use_new_zipfile_serialization=not legacy)
    with memory_limit(10**8):
        assert text in refusal(path)


def claims_more(path: Path, count: int) -> bytes:
    """The bytes of a file whose storage of 77 values claims to have another number of them."""
    content = path.read_bytes()
    place = content.index(b"KM", content.index(b"cpu"))
    return content[:place] + b"\x8a\x06" + count.to_bytes(6, "little") + content[place + 2 :]


def with_pickle(path: Path, content: bytes) -> None:
    """Put another pickle into a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in members.items():
            archive.writestr(name, content if name == "weights/data.pkl" else old)


def test_names_nested_deep_are_not_printed(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(STATE, path)
    with_pickle(path, b"\x80\x02}K\x01" + b"\x85" * 5_000 + b"K\x01s.")  # {((((1,),),),): 1}
    assert "holds no state dict: a tuple is no name of a parameter" in refusal(path)


@pytest.mark.parametrize("count", [10**9, 10**13])
def test_memory_that_a_storage_of_a_bare_pickle_claims(count, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"x": torch.ones(77)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(claims_more(path, count))
    with memory_limit(10**8):
        assert "damaged or cut off" in refusal(path)


@pytest.mark.parametrize("count", [10**9, 10**13])
def test_memory_that_a_storage_of_an_archive_claims(count, tmp_path):
    """The storage is a part of the mapped file, so that it ends where the file does."""
    path = tmp_path / "weights.pt"
    torch.save({"x": torch.ones(77)}, path)
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "data.pkl").write_bytes(archive.read("weights/data.pkl"))
    with_pickle(path, claims_more(tmp_path / "data.pkl", count))
    with memory_limit(10**8):
        found = load_state_dict(path)["x"]
    assert torch.equal(found, torch.ones(77))
    assert found.untyped_storage().nbytes() <= path.stat().st_size


def test_entries_of_an_archive_that_claim_more_than_the_file(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    entry = content.index(b"PK\x01\x02")  # the first one of the directory; sizes stand at 20 and 24
    for size in (2**31, 2**32 - 2):
        path.write_bytes(content[: entry + 20] + struct.pack("<II", size, size) + content[entry + 28 :])
        with memory_limit(10**8):
            assert "claim to be larger than the file" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_of_the_same_name(tmp_path):
    """Of two, readers differ in which they take."""
    torch.save(STATE, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "weights.pt", "a") as archive:
        archive.writestr("weights/data.pkl", b"")
    assert "entries of the same name" in refusal(tmp_path / "weights.pt")


# Headers of safetensors that lie.


def entry(dtype: object = "F32", shape: object = (4,), start: object = 0, end: object = 16) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def with_header(path: Path, header: bytes, data: bytes = bytes(16), length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


LIES = {
    "data cut off": {"a": entry(shape=[8], end=32)},
    "data left over": {"a": entry(shape=[2], end=8)},
    "overlap": {"a": entry(), "b": entry()},
    "partial overlap": {"a": entry(shape=[3], end=12), "b": entry(shape=[3], start=4)},
    "gap": {"a": entry(shape=[1], end=4), "b": entry(shape=[2], start=8)},
    "backwards": {"a": entry(start=16, end=0)},
    "negative offset": {"a": entry(start=-16, end=0)},
    "shape too large": {"a": entry(shape=[5])},
    "shape too small": {"a": entry(shape=[3])},
    "another precision": {"a": entry("F64")},
    "unknown precision": {"a": entry("F33")},
    "terabytes": {"a": entry(shape=[2**40], end=2**42)},
    "terabytes in 16 bytes": {"a": entry(shape=[2**40])},
    "sides that overflow": {"a": entry(shape=[2**33, 2**33])},
    "sides of no values": {"a": entry(shape=[0, 2**63], end=0), "b": entry()},
    "negative side": {"a": entry(shape=[-4])},
    "fraction": {"a": entry(shape=[4.0])},
    "text": {"a": entry(shape="4")},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    "list": [],
    "number for a tensor": {"a": 3},
    "metadata that is no text": {"__metadata__": {"a": 1}, "a": entry()},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(lie, tmp_path):
    path = with_header(tmp_path / "weights.safetensors", json.dumps(LIES[lie]).encode())
    with memory_limit(10**8):
        refusal(path)


def test_the_same_name_twice_in_a_header(tmp_path):
    one, other = json.dumps(entry()), json.dumps(entry("I32"))
    path = with_header(tmp_path / "weights.safetensors", f'{{"a": {one}, "a": {other}}}'.encode())
    assert "is damaged or cut off ('a' stands there twice)" in refusal(path)
    path = with_header(tmp_path / "weights.safetensors", f'{{"a": {one}, "\\u0061": {one}}}'.encode())
    assert "'a' stands there twice" in refusal(path)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (10**7 + 1, "has a header of 10,000,001 bytes, more than the 10,000,000 that"),
        (10**6, "is damaged or cut off"),
        (10**12, "is no file of weights"),
        (2**64 - 1, "is no file of weights"),
    ],
)
def test_a_header_longer_than_the_file(length, text, tmp_path):
    with memory_limit(10**8):
        assert text in refusal(with_header(tmp_path / "weights.safetensors", b'{"a":', length=length))


def test_a_header_nested_deep(tmp_path):
    refusal(with_header(tmp_path / "weights.safetensors", b'{"a":' + b"[" * 10**6))


@pytest.mark.parametrize("kept", range(0, 200, 7))
def test_cut_safetensors(kept, tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    size = (tmp_path / "weights.safetensors").stat().st_size
    assert size > 203
    os.truncate(tmp_path / "weights.safetensors", kept)
    refusal(tmp_path / "weights.safetensors")
    save_file(STATE, tmp_path / "weights.safetensors")
    os.truncate(tmp_path / "weights.safetensors", size - 1 - kept % 5)
    assert "is damaged or cut off" in refusal(tmp_path / "weights.safetensors")


# What an index says.


def folder_with_index(folder: Path, index: object) -> Path:
    save_file(STATE, folder / "x.safetensors")
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / INDEX).write_text(text)
    return folder / INDEX


ELSEWHERE = [
    "../x.safetensors",
    "../inside/x.safetensors",
    "./x.safetensors",
    "inside/../x.safetensors",
    "sub/x.safetensors",
    "..\\x.safetensors",
    "sub\\x.safetensors",
    "\\\\server\\share\\x.safetensors",
    "C:\\x.safetensors",
    "C:x.safetensors",
    "x.safetensors:stream.safetensors",
    "x.safetensors\0.safetensors",
    "\0.safetensors",
    "x\n.safetensors",
    "\u202ex.safetensors",
    "\ud800.safetensors",
    "x.safetensors/",
    "x.pt",
    "..",
    ".",
    "",
    "~",
    "x" * 250 + ".safetensors",
]


@pytest.mark.parametrize("name", ELSEWHERE, ids=ascii)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_shard_elsewhere_is_refused(name, absolute, tmp_path):
    (tmp_path / "inside" / "sub").mkdir(parents=True)
    for place in ("", "inside", "inside/sub"):
        save_file(STATE, tmp_path / place / "x.safetensors")
    name = f"{tmp_path}/inside/{name}" if absolute else name
    index = folder_with_index(tmp_path / "inside", {"weight_map": {"a": "x.safetensors", "b": name, "c": name}})
    text = refusal(index)
    assert f"{index} is refused: it says that b is in " in text
    assert "which is no name of a safetensors file in the same folder" in text


@pytest.mark.parametrize("value", [3, None, True, ["x.safetensors"], {"x": 1}, 1.5])
def test_a_shard_that_is_no_text(value, tmp_path):
    assert "it says that b is in " in refusal(
        folder_with_index(tmp_path, {"weight_map": {"a": "x.safetensors", "b": value}})
    )


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}, {"weight_map": "x"}, {"metadata": {}}]
)
def test_json_that_is_no_index(index, tmp_path):
    assert "has no 'weight_map' that says in which file each tensor is" in refusal(folder_with_index(tmp_path, index))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}', "'a' stands there twice"),
        ('{"weight_map": {}, "weight_map": {}}', "'weight_map' stands there twice"),
        ('{"weight_map": ', "Expecting value"),
        ('{"weight_map": {"a": "x.safetensors"}} {}', "Extra data"),
        ('{"weight_map": ' + "[" * 10**5, "nested too deep"),
        ('{"weight_map": ' + '{"a":' * 10**5, "nested too deep"),
        ('{"a": ' + "1" * 10**4 + "}", "integer string conversion"),
        ("{\\x1b[2J", "Expecting property name"),
    ],
)
def test_an_index_that_is_no_json(text, reason, tmp_path):
    found = refusal(folder_with_index(tmp_path, text))
    assert f"{INDEX} is no JSON (" in found
    assert reason in found


def test_an_index_in_another_encoding(tmp_path):
    index = folder_with_index(tmp_path, "")
    index.write_bytes(b'{"weight_map": {"\xff": "x.safetensors"}}')
    assert "is no JSON ('utf-8' codec" in refusal(index)


def test_a_vast_index_is_not_read(tmp_path):
    index = folder_with_index(tmp_path, "{")
    os.truncate(index, 10**12)
    with memory_limit(10**8):
        assert "has 1,000,000,000,000 bytes; JSON of at most 10,000,000 is read" in refusal(index)


def test_an_index_that_names_an_index(tmp_path):
    index = folder_with_index(tmp_path, {"weight_map": {"a": "y.safetensors"}})
    (tmp_path / "y.safetensors").write_text(index.read_text())
    assert "y.safetensors is no file of weights" in refusal(index)


def test_a_shard_that_is_a_pipe_is_not_waited_for(tmp_path):
    index = folder_with_index(tmp_path, {"weight_map": {"a": "y.safetensors"}})
    os.mkfifo(tmp_path / "y.safetensors")
    assert "y.safetensors is no regular file" in refusal(index, OSError)


def test_a_shard_that_is_a_folder(tmp_path):
    index = folder_with_index(tmp_path, {"weight_map": {"a": "y.safetensors"}})
    (tmp_path / "y.safetensors").mkdir()
    assert "y.safetensors is no regular file" in refusal(index, OSError)


# Links.


def in_shards(folder: Path) -> list[Path]:
    """Shards and an index, the index last."""
    paths = save_weights(STATE, folder, max_shard_size=8)
    assert len(paths) == 4
    return paths


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_the_folder_is_refused(which, relative, tmp_path):
    path = in_shards(tmp_path / "mine")[which]
    (tmp_path / "secret").mkdir()
    path.rename(tmp_path / "secret" / path.name)
    path.symlink_to(Path("..", "secret", path.name) if relative else tmp_path / "secret" / path.name)
    with pytest.raises(ValueError, match=rf"{path} is a link that leads out of its folder, to {tmp_path}/secret/"):
        load_state_dict(tmp_path / "mine")


def test_a_chain_of_links_and_a_folder_of_similar_name(tmp_path):
    path = in_shards(tmp_path / "mine")[0]
    (tmp_path / "mine2").mkdir()
    path.rename(tmp_path / "mine2" / path.name)
    (tmp_path / "mine" / "step").symlink_to(tmp_path / "mine2")
    path.symlink_to(Path("step", path.name))
    with pytest.raises(ValueError, match="leads out of its folder"):
        load_state_dict(tmp_path / "mine")


def test_a_link_to_itself(tmp_path):
    path = in_shards(tmp_path)[0]
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(OSError, match=r"lacks model-00001-of-00003\.safetensors"):
        load_state_dict(tmp_path)


def test_links_that_stay_are_followed(tmp_path):
    """Inside of the folder, to the folder, and to a single file that the user names."""
    for path in in_shards(tmp_path / "mine"):
        path.rename(path.with_name(f"real {path.name}"))
        path.symlink_to(f"real {path.name}")
    (tmp_path / "yours").symlink_to("mine")
    (tmp_path / INDEX).symlink_to(tmp_path / "mine" / INDEX)
    (tmp_path / "one.safetensors").symlink_to(tmp_path / "mine" / "model-00001-of-00003.safetensors")
    for path in (tmp_path / "mine", tmp_path / "yours", tmp_path / "yours" / INDEX):
        assert load_state_dict(path).keys() == STATE.keys()
    assert load_state_dict(tmp_path / "one.safetensors").keys() == {"a"}


def hub_cache(cache: Path, *, shared: bool, subfolder: str = "") -> Path:
    """Shards as the Hub's client keeps them: links to blobs of the repository, which may be links to shared ones."""
    snapshot = cache / "models--me--mine" / "snapshots" / "0123abc" / subfolder
    blobs = cache / "models--me--mine" / "blobs"
    blobs.mkdir(parents=True)
    for path in in_shards(snapshot):
        blob = blobs / f"etag of {path.name}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
        if shared:
            (cache / "blobs" / "ab").mkdir(parents=True, exist_ok=True)
            common = cache / "blobs" / "ab" / path.name
            blob.rename(common)
            blob.symlink_to(os.path.relpath(common, blobs))
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("subfolder", ["", "transformer", "a/b"])
def test_the_cache_of_the_hub_is_read(shared, subfolder, tmp_path):
    snapshot = hub_cache(tmp_path / "hub", shared=shared, subfolder=subfolder)
    for path in (snapshot, snapshot / INDEX):
        assert load_state_dict(path).keys() == STATE.keys()
    (tmp_path / "link").symlink_to(snapshot)
    assert load_state_dict(tmp_path / "link").keys() == STATE.keys()


@pytest.mark.parametrize("place", ["models--you--yours/blobs", "models--me--mine", ".", ".."])
def test_links_out_of_a_repository_of_the_cache_are_refused(place, tmp_path):
    snapshot = hub_cache(tmp_path / "hub", shared=False)
    goal = tmp_path / "hub" / place / "token"
    goal.parent.mkdir(parents=True, exist_ok=True)
    shard = snapshot / "model-00001-of-00003.safetensors"
    Path(os.path.realpath(shard)).rename(goal)
    shard.unlink()
    shard.symlink_to(os.path.relpath(goal, snapshot))
    with pytest.raises(ValueError, match="leads out of its folder"):
        load_state_dict(snapshot)


# Fuzzing.

FUZZ = settings(
    max_examples=300,
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)


def check_reading(path: Path) -> None:
    """That it is read without more memory than there are bytes, or refused with an error of ours."""
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    file, error, peak = read_or_refused(path)
    assert peak < 500_000 + 50 * size  # Python objects for short texts
    if file is None:
        assert not isinstance(error, UnicodeError)
        assert str(error).isprintable()
        assert str(path.parent) in str(error)
    else:
        assert {Path(os.path.realpath(used)).parent for used in file.files} == {path.parent}
        assert sum(tensor.nbytes for tensor in file.tensors.values()) <= file.num_bytes <= size
        assert all(tensor.clone().shape == tensor.shape for tensor in file.tensors.values())


def read_or_refused(path: Path) -> tuple[WeightsFile | None, Exception | None, int]:
    """What is read, or the error; and how much memory Python took at most."""
    tracemalloc.start()
    try:
        return read_checkpoint(path), None, tracemalloc.get_traced_memory()[1]
    except (ValueError, OSError) as error:
        return None, error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def nearly(good: bytes) -> st.SearchStrategy[bytes]:
    """A text in which a few pieces are replaced."""
    pieces = st.one_of(
        st.binary(max_size=8), st.sampled_from([b"", b"0", b"-", b"9" * 20, b'"', b"{", b"]", b",", b"\0"])
    )
    places = st.integers(0, len(good))
    changes = st.lists(st.tuples(places, st.integers(0, 12), pieces), min_size=1, max_size=4)

    def change(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = good
        for place, length, piece in edits:
            content = content[:place] + piece + content[place + length :]
        return content

    return changes.map(change)


NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 10**30]),
    st.floats(),
    st.booleans(),
    st.none(),
)
JSON = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=10,
)
NAMES = st.one_of(st.sampled_from(["a", "b", "__metadata__", "module.a", ""]), st.text(max_size=5))
ENTRIES = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X"]),
            "shape": st.lists(NUMBERS, max_size=4),
            "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
        }
    ),
)


@st.composite
def packed_tensors(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Header and data of tensors that lie as they should; their precision may be another."""
    header: dict[str, object] = {}
    place = 0
    for name in draw(st.lists(st.text(max_size=5), max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype, size = draw(st.sampled_from([("F32", 4), ("F16", 2), ("U8", 1), ("F64", 4)]))
        end = place + size * int(np.prod(shape))
        header[name] = entry(dtype, shape, place, end)
        place = end
    return json.dumps(header).encode(), bytes(place)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A folder whose memory use is looked at when all examples have run."""
    folder = tmp_path_factory.mktemp("fuzz")
    with memory_limit(2 * 10**8):
        yield folder


def good_header() -> bytes:
    return json.dumps(
        {"a": entry(shape=[2, 2]), "b": entry("F16", [2], 16, 20), "__metadata__": {"format": "pt"}}
    ).encode()


HEADERS = st.one_of(
    st.dictionaries(NAMES, ENTRIES, max_size=4).map(lambda header: json.dumps(header).encode()),
    nearly(good_header()),
    st.binary(max_size=40).map(lambda rest: b"{" + rest),
)
DATA = st.one_of(st.just(bytes(20)), st.binary(max_size=64))
LENGTHS = st.one_of(st.integers(0, 200), st.sampled_from([2**24, 10**8, 2**40, 2**63, 2**64 - 1]))


@FUZZ
@given(file=st.one_of(packed_tensors(), st.tuples(HEADERS, DATA), st.tuples(HEADERS, DATA, LENGTHS)))
@example(file=(good_header(), bytes(20)))
def test_any_header_of_safetensors(file, fuzzed):
    (fuzzed / "header").mkdir(exist_ok=True)
    check_reading(with_header(fuzzed / "header" / "weights.safetensors", *file))


SHARDS = st.one_of(
    st.sampled_from(
        ["one.safetensors", "two.safetensors", "../secret.safetensors", "/etc/passwd", INDEX, "three.safetensors"]
    ),
    st.text(max_size=5).map(lambda text: f"{text}.safetensors"),
    JSON,
)


def good_index() -> bytes:
    return json.dumps(
        {"metadata": {"total_size": 12}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    ).encode()


@FUZZ
@given(
    index=st.one_of(
        st.dictionaries(NAMES, SHARDS, max_size=4).map(
            lambda weight_map: json.dumps({"weight_map": weight_map}).encode()
        ),
        JSON.map(lambda value: json.dumps(value).encode()),
        JSON.map(lambda value: json.dumps({"weight_map": value}).encode()),
        nearly(good_index()),
        st.binary(max_size=40).map(lambda rest: b"{" + rest),
    )
)
@example(index=good_index())
def test_any_index(index, fuzzed):
    folder = fuzzed / "index"
    if not folder.exists():
        folder.mkdir()
        save_file({"a": torch.ones(2)}, folder / "one.safetensors")
        save_file({"b": torch.ones(1)}, folder / "two.safetensors")
        save_file({"a": torch.ones(1)}, fuzzed / "secret.safetensors")
    (folder / INDEX).write_bytes(index)
    check_reading(folder / INDEX)


def test_the_fuzzed_files_are_good_where_nothing_is_changed(tmp_path):
    assert load_state_dict(with_header(tmp_path / "x", good_header(), bytes(20)))["a"].shape == (2, 2)
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    (tmp_path / INDEX).write_bytes(good_index())
    assert load_state_dict(tmp_path / INDEX).keys() == {"a", "b"}
