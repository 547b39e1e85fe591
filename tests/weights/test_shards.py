"""Weights in shards and in folders: what is written is read back, and the files that are there are the right ones."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ditzoo
from ditzoo.weights import load_state_dict, read_checkpoint, save_weights, verify
from ditzoo.weights.values import in_precision
from tests.zoo import lively

STATE = lively("dit_ti_2").state_dict()
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    equal = (torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items())
    return found.keys() == expected.keys() and all(equal)


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def in_three(folder: Path, state: dict[str, Tensor] = STATE) -> Path:
    """A folder with three shards."""
    total = sum(tensor.nbytes for tensor in state.values())
    assert names(save_weights(state, folder, max_shard_size=int(total / 2.7))) == [*SHARDS, INDEX]
    return folder


# Writing.


def test_one_file_below_the_size_of_a_shard(tmp_path):
    paths = save_weights(STATE, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / "model.safetensors"]
    assert os.listdir(tmp_path / "new" / "folder") == ["model.safetensors"]
    assert same(load_file(paths[0]), STATE)
    with safe_open(paths[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert paths[0].stat().st_mode & 0o777 == 0o644


def test_shards_and_their_index(tmp_path):
    in_three(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [*SHARDS, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in STATE.values())}
    parts = {shard: load_file(tmp_path / shard) for shard in SHARDS}
    assert index["weight_map"] == {name: shard for shard, part in parts.items() for name in part}
    assert same({name: tensor for part in parts.values() for name, tensor in part.items()}, STATE)
    with safe_open(tmp_path / SHARDS[2], "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_keep_to_their_size(tmp_path):
    state = {name: torch.ones(count) for name, count in {"a": 60, "b": 40, "c": 1, "d": 250, "e": 99}.items()}
    save_weights(state, tmp_path, max_shard_size="0.4KB")
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    # d is larger than a shard and stands alone.
    assert [
        {name for name in weight_map if weight_map[name] == shard} for shard in sorted(set(weight_map.values()))
    ] == [
        {"a", "b"},
        {"d"},
        {"c", "e"},
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_copies_in_another_precision(dtype, tmp_path):
    state = {**STATE, "double": torch.rand(7).double(), "half": torch.rand(7).half(), "steps": torch.tensor(7)}
    expected = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    whole = save_weights(state, tmp_path / "whole", dtype=dtype)
    assert same(load_state_dict(whole[0]), expected)
    size = whole[0].stat().st_size // 2
    shards = save_weights(state, tmp_path / "shards", dtype=dtype, max_shard_size=size)
    assert len(shards) in (3, 4)  # the size counts bytes as they are written
    assert all(shard.stat().st_size < size + 10_000 for shard in shards)
    assert same(load_state_dict(tmp_path / "shards"), expected)


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path):
    state = {
        "small": torch.tensor([65504.0, -65519.0]),
        "large": torch.tensor([1.0, 65520.0]),
        "low": -torch.ones(1) * 1e9,
    }
    save_weights(STATE, tmp_path)
    with pytest.raises(ValueError, match=r"large has values up to 6\.55e\+04, and float16 ends at .* bfloat16 has"):
        save_weights(state, tmp_path, dtype=torch.float16, max_shard_size=10**6)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert same(load_state_dict(tmp_path), STATE)  # what was there
    with pytest.raises(ValueError, match=r"big has values up to 1e\+300, and bfloat16 ends at 3\.39e\+38"):
        save_weights({"big": torch.tensor([1e300], dtype=torch.float64)}, tmp_path, dtype=torch.bfloat16)
    assert save_weights(state, tmp_path, dtype=torch.bfloat16)


def test_infinities_and_nan_are_kept(tmp_path):
    state = {"a": torch.tensor([float("inf"), float("-inf"), 1.0]), "b": torch.tensor([float("nan")])}
    save_weights(state, tmp_path, dtype=torch.float16)
    found = load_state_dict(tmp_path)
    assert found["a"].tolist() == [float("inf"), float("-inf"), 1.0]
    assert found["b"].isnan().all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("size", ["5GB", 100])
def test_tied_strided_and_empty_tensors(size, dtype, tmp_path):
    base = torch.arange(24.0)
    state = {
        "base": base,
        "tied": base,
        "front": base[:10],
        "behind": base[5:],
        "apart": base[20:],
        "transposed": base.view(4, 6).T,
        "expanded": torch.ones(1).expand(5),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "parameter": nn.Parameter(torch.ones(2)),
        "empty": torch.empty(0, 3),
        "other": torch.empty(0),
        "scalar": torch.tensor(2.0),
    }
    save_weights(state, tmp_path, max_shard_size=size, dtype=dtype)
    expected = {name: tensor.to(dtype) if dtype and name != "conjugated" else tensor for name, tensor in state.items()}
    assert same(load_state_dict(tmp_path), {name: tensor.resolve_conj() for name, tensor in expected.items()})


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_files_are_those_of_the_safetensors_library(dtype, tmp_path):
    state = {name: tensor.to(dtype).contiguous() for name, tensor in STATE.items()}
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = save_weights(STATE, tmp_path, dtype=dtype)[0]
    assert ours.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


DTYPES = [torch.bool, torch.complex64]
DTYPES += [getattr(torch, f"{sign}int{bits}") for sign in ("u", "") for bits in (8, 16, 32, 64)]
DTYPES += [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES += [getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")]


def test_every_precision_of_the_format(tmp_path):
    state = {f"grüße.{dtype}": torch.tensor([[1, 0, 1]]).to(dtype) for dtype in DTYPES}
    path = save_weights(state, tmp_path)[0]
    for found in (load_file(path), load_state_dict(path)):
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
            name: (tensor.dtype, tensor.shape) for name, tensor in state.items()
        }
        for name, tensor in state.items():
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_memory_holds_a_copy_of_one_tensor_at_a_time(tmp_path, monkeypatch):
    alive = weakref.WeakSet()
    most = []

    def watched(*arguments):
        copy = in_precision(*arguments)
        alive.add(copy)
        most.append(len(alive))
        return copy

    monkeypatch.setattr("ditzoo.weights.shards.in_precision", watched)
    save_weights(STATE, tmp_path, dtype=torch.bfloat16)
    assert len(most) == len(STATE)
    assert max(most) <= 2


def test_what_earlier_weights_left_is_removed(tmp_path):
    kept = [
        "config.json",
        "weak_model.safetensors",
        "model.safetensors.bak",
        "model-1.safetensors",
        "xmodel.safetensors",
    ]
    for name in kept:
        (tmp_path / name).write_text("kept")
    save_weights({"old": torch.ones(1)}, tmp_path)
    in_three(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, *SHARDS, INDEX])
    changed = {name: tensor + 1 for name, tensor in STATE.items()}
    in_three(tmp_path, changed)
    assert same(load_state_dict(tmp_path), changed)
    save_weights(STATE, tmp_path, max_shard_size=int(sum(tensor.nbytes for tensor in STATE.values()) / 1.8))
    assert len(list(tmp_path.glob("model-0*-of-00002.safetensors"))) == 2
    assert not list(tmp_path.glob("model-0*-of-00003.safetensors"))
    save_weights(STATE, tmp_path, stem="ema")
    assert names(save_weights(STATE, tmp_path)) == ["model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "ema.safetensors", "model.safetensors"])


def test_mapped_weights_can_be_written_over_themselves(tmp_path):
    in_three(tmp_path)
    save_weights(load_state_dict(tmp_path), tmp_path, dtype=torch.bfloat16, max_shard_size=50_000)
    assert same(load_state_dict(tmp_path), {name: tensor.bfloat16() for name, tensor in STATE.items()})


def test_a_folder_keeps_what_it_had_if_writing_fails(tmp_path, monkeypatch):
    in_three(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    last = list(STATE)[-1]

    def full(name, *arguments):
        if name == last:
            raise OSError(28, "No space left on device")
        return in_precision(name, *arguments)

    monkeypatch.setattr("ditzoo.weights.shards.in_precision", full)
    with pytest.raises(OSError, match=r"model-00003-of-00003\.safetensors cannot be written: No space left"):
        in_three(tmp_path, {name: tensor + 1 for name, tensor in STATE.items()})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("renamed", [1, 2, 3])
def test_an_index_never_stands_beside_shards_of_another_set(renamed, tmp_path, monkeypatch):
    """A process that is killed between two renames leaves a folder that is refused."""
    in_three(tmp_path)
    rename, done = os.replace, []

    def killed(source, goal):
        if len(done) == renamed:
            raise KeyboardInterrupt
        done.append(goal)
        rename(source, goal)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        in_three(tmp_path, {name: tensor + 1 for name, tensor in STATE.items()})
    with pytest.raises(OSError, match="is a folder without"):
        load_state_dict(tmp_path)


@pytest.mark.parametrize(
    "size", [0, -1, True, 1.5, None, "5", "GB", "5 gigabytes", "-5GB", "0GB", "nanGB", "1e3GB", ""]
)
def test_a_wrong_size_of_shards_is_named(size, tmp_path):
    with pytest.raises(ValueError, match=r"max_shard_size must be .* such as '5GB' or '200MB', got ") as raised:
        save_weights(STATE, tmp_path, max_shard_size=size)
    assert str(raised.value).endswith(f"got {size!r}.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 10**4, "1.5kb", "5 GB", ".5TB"])
def test_sizes_of_shards(size, tmp_path):
    save_weights({"a": torch.ones(1)}, tmp_path, max_shard_size=size)
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dtype": torch.float64}, r"dtype must be None or one of float16, bfloat16, float32, got torch\.float64"),
        ({"dtype": "float16"}, "dtype must be None or one of float16, bfloat16, float32, got 'float16'"),
        ({"stem": "a/b"}, "stem must be the beginning of a file's name, without a folder, got 'a/b'"),
        ({"stem": "../a"}, r"stem .* got '\.\./a'"),
        ({"stem": ""}, "stem .* got ''"),
        ({"tensors": {}}, "no tensors to write"),
        ({"tensors": {"a": 3}}, "a is a int, no tensor"),
        ({"tensors": {3: torch.ones(1)}}, "3 cannot be the name of a tensor"),
        ({"tensors": {"__metadata__": torch.ones(1)}}, "'__metadata__' cannot be the name"),
        ({"tensors": {"\ud800": torch.ones(1)}}, r"'\\ud800' cannot be the name"),
        ({"tensors": {"a": torch.ones(1, device="meta")}}, "a is without values, on the meta device"),
        ({"tensors": {"a": torch.eye(2).to_sparse()}}, "a is sparse or quantized"),
        ({"tensors": {"a": torch.ones(1), "b": torch.ones(1).cdouble()}}, "safetensors has no complex128, as b is"),
    ],
)
def test_what_cannot_be_written_says_why(arguments, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        save_weights(**{"tensors": STATE, "folder": tmp_path, **arguments})
    assert not list(tmp_path.iterdir())


def test_braces_in_a_stem(tmp_path):
    assert names(save_weights(STATE, tmp_path, stem="{0}")) == ["{0}.safetensors"]


# Reading.


@pytest.mark.parametrize("named", ["index", "folder"])
def test_shards_are_read_as_one_state_dict(named, tmp_path):
    in_three(tmp_path)
    path = tmp_path / INDEX if named == "index" else tmp_path
    file = read_checkpoint(path)
    assert same(file.tensors, STATE)
    assert (file.path, file.files) == (path, tuple(tmp_path / shard for shard in SHARDS))
    assert file.num_bytes == sum((tmp_path / shard).stat().st_size for shard in SHARDS)
    assert (file.container, file.nest, file.others) == ("safetensors", None, {})


def test_tensors_of_shards_are_mapped(tmp_path):
    """They change with the file."""
    in_three(tmp_path)
    tensors = load_state_dict(tmp_path)
    assert tensors["pos_embed"].flatten()[0] != 42
    shard = tmp_path / json.loads((tmp_path / INDEX).read_text())["weight_map"]["pos_embed"]
    place = shard.read_bytes().index(STATE["pos_embed"].numpy().tobytes())
    with shard.open("r+b") as file:
        file.seek(place)
        file.write(torch.tensor([42.0]).numpy().tobytes())
    assert tensors["pos_embed"].flatten()[0] == 42


def test_prefixes_in_shards(tmp_path):
    in_three(tmp_path, {f"module.{name}": tensor for name, tensor in STATE.items()})
    assert same(load_state_dict(tmp_path), STATE)


def single(folder: Path, name: str) -> None:
    save_weights(STATE, folder, stem=name.partition(".")[0])


def sharded(folder: Path, name: str) -> None:
    save_weights(STATE, folder, stem=name.partition(".")[0], max_shard_size=100_000)


def pickled(folder: Path, name: str) -> None:
    torch.save(STATE, folder / name)


SETS = {
    "model.safetensors": single,
    "model.safetensors.index.json": sharded,
    "diffusion_pytorch_model.safetensors": single,
    "diffusion_pytorch_model.safetensors.index.json": sharded,
    "diffusion_pytorch_model.bin": pickled,
}


@pytest.mark.parametrize("name", SETS)
def test_the_weights_in_a_folder(name, tmp_path):
    for other in ("config.json", "weak_model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"):
        (tmp_path / other).write_text("not looked at")
    SETS[name](tmp_path, name)
    assert same(load_state_dict(tmp_path), STATE)


@pytest.mark.parametrize("name", list(SETS)[:4])
def test_safetensors_go_before_a_pickle(name, tmp_path):
    (tmp_path / "diffusion_pytorch_model.bin").write_text("not looked at")
    SETS[name](tmp_path, name)
    assert same(load_state_dict(tmp_path), STATE)


@pytest.mark.parametrize(
    ("first", "second"), [(a, b) for a in list(SETS)[:4] for b in list(SETS)[:4] if a.split(".")[0] < b.split(".")[0]]
)
def test_several_sets_in_a_folder_are_refused(first, second, tmp_path):
    SETS[first](tmp_path, first)
    SETS[second](tmp_path, second)
    with pytest.raises(ValueError, match=r"holds more than one set of weights: .* Name the one to read\.") as raised:
        load_state_dict(tmp_path)
    assert f"{second}, {first}" in str(raised.value)


def test_one_file_beside_shards_is_refused(tmp_path):
    in_three(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"more than one set of weights: model\.safetensors, model\.safetensors\.index\."
    ):
        load_state_dict(tmp_path)


def test_a_folder_without_weights_says_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder without model\.safetensors, .*\.bin; it has nothing\. Name"):
        load_state_dict(tmp_path)
    torch.save(STATE, tmp_path / "last.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it has config\.json, last\.pt\. Name the file of weights itself\."):
        load_state_dict(tmp_path)
    save_weights(STATE, tmp_path / "transformer", stem="diffusion_pytorch_model")
    with pytest.raises(FileNotFoundError, match=rf"Did you mean {tmp_path}/transformer\?"):
        load_state_dict(tmp_path)


def test_the_folder_of_a_pipeline_gives_its_model(tmp_path):
    model = ditzoo.create("sit_ti_2.digits", pretrained=True)
    ditzoo.Pipeline(model, ditzoo.model_info("sit_ti_2.digits").recipe).save_pretrained(tmp_path)
    assert same(load_state_dict(tmp_path), model.state_dict())


@pytest.mark.usefixtures("no_golden")
def test_verify_takes_shards(tmp_path):
    in_three(tmp_path)
    result = verify("dit_ti_2", tmp_path)
    assert result.passed
    assert result.checkpoint == tmp_path
    container = next(check for check in result.checks if check.name == "file")
    assert container.found.startswith("safetensors, ")
    assert result.sampled_hash == verify("dit_ti_2", save_weights(STATE, tmp_path / "one")[0]).sampled_hash


# Sets that do not hold together.


def test_a_missing_shard_is_named(tmp_path):
    (in_three(tmp_path) / SHARDS[1]).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{tmp_path} lacks {SHARDS[1]}, of the 3 files that {INDEX} names; fetch"
    ):
        load_state_dict(tmp_path)
    (tmp_path / SHARDS[1]).symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=f"lacks {SHARDS[1]}"):
        load_state_dict(tmp_path / INDEX)


def change_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path):
    change_index(in_three(tmp_path), lambda weight_map: weight_map.update({"blocks.9.gate": SHARDS[0]}))
    with pytest.raises(
        ValueError, match=rf"{SHARDS[0]} lacks blocks\.9\.gate, which {INDEX} promises: .* fetch the whole"
    ):
        load_state_dict(tmp_path)


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path):
    change_index(in_three(tmp_path), lambda weight_map: weight_map.pop("pos_embed"))
    with pytest.raises(
        ValueError, match=rf"holds pos_embed, which for it {INDEX} does not name: they are not of one set"
    ):
        load_state_dict(tmp_path)


def test_shards_of_two_sets_are_refused(tmp_path):
    in_three(tmp_path / "a")
    in_three(tmp_path / "b", dict(reversed(STATE.items())))
    shutil.copy(tmp_path / "b" / SHARDS[1], tmp_path / "a" / SHARDS[1])
    with pytest.raises(ValueError, match="they are not of one set"):
        load_state_dict(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "is a web page"),
        (b"\x80\x02}q\x00.", "neither safetensors"),
    ],
)
def test_a_shard_that_is_something_else(content, text, tmp_path):
    (in_three(tmp_path) / SHARDS[2]).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{SHARDS[2]} .*{text}"):
        load_state_dict(tmp_path)


def test_a_cut_shard_is_named(tmp_path):
    shard = in_three(tmp_path) / SHARDS[1]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{SHARDS[1]} is damaged or cut off"):
        load_state_dict(tmp_path)
