"""Files of weights: every wrapping gives the same state dict, and what cannot be read says why."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ditzoo.weights import load_state_dict, read_checkpoint
from tests.zoo import lively

STATE = lively("dit_ti_2").state_dict()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def training_checkpoint() -> dict[str, object]:
    """As DiT's training script writes it."""
    return {
        "model": {f"module.{key}": value + 1 for key, value in STATE.items()},
        "ema": STATE,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="DiT-XL/2", num_classes=1000),
    }


WRAPPINGS = {
    "bare": (STATE, None),
    "ema": ({"ema": STATE}, "ema"),
    "model": ({"model": STATE, "epoch": 3}, "model"),
    "state_dict": ({"state_dict": STATE}, "state_dict"),
    "ema before model": (training_checkpoint(), "ema"),
    "module.": ({f"module.{key}": value for key, value in STATE.items()}, None),
    "both prefixes": ({"ema": {f"_orig_mod.module.{key}": value for key, value in STATE.items()}}, "ema"),
    "parameters": ({key: nn.Parameter(value) for key, value in STATE.items()}, None),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_wrapping_gives_the_same_state_dict(wrapping, legacy, tmp_path):
    content, nest = WRAPPINGS[wrapping]
    torch.save(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=not legacy)
    file = read_checkpoint(tmp_path / "weights.pt")
    assert same(file.tensors, STATE)
    assert (file.container, file.nest, file.others) == ("PyTorch", nest, {})
    assert (file.path, file.files) == (tmp_path / "weights.pt", (tmp_path / "weights.pt",))
    assert file.num_bytes == (tmp_path / "weights.pt").stat().st_size
    assert not any(tensor.requires_grad or isinstance(tensor, nn.Parameter) for tensor in file.tensors.values())


def test_safetensors_are_told_by_content(tmp_path):
    save_file({f"_orig_mod.{key}": value for key, value in STATE.items()}, tmp_path / "weights.pt")
    file = read_checkpoint(tmp_path / "weights.pt")
    assert same(file.tensors, STATE)
    assert (file.container, file.nest) == ("safetensors", None)
    assert same(load_state_dict(str(tmp_path / "weights.pt")), STATE)


def test_raw_weights_are_those_of_the_last_step(tmp_path):
    torch.save(training_checkpoint(), tmp_path / "weights.pt")
    assert same(
        load_state_dict(tmp_path / "weights.pt", weights="raw"), {key: value + 1 for key, value in STATE.items()}
    )


def test_tensors_are_mapped_from_the_file(tmp_path):
    """Tensors of a mapped file change with it."""
    save_file(STATE, tmp_path / "weights.safetensors")
    torch.save(STATE, tmp_path / "weights.pt")
    for path in tmp_path.iterdir():
        before = load_state_dict(path)["pos_embed"]
        assert torch.equal(before, STATE["pos_embed"])
        content = path.read_bytes()
        needle = STATE["pos_embed"].numpy().tobytes()
        start = content.index(needle)
        with path.open("r+b") as file:
            file.seek(start)
            file.write(struct.pack("<f", 42.0))
        assert before.flatten()[0] == 42, path


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_other_entries_are_named_with_their_type(tmp_path):
    torch.save({**STATE, "step": 7, "sparse": torch.eye(2).to_sparse()}, tmp_path / "weights.pt")
    file = read_checkpoint(tmp_path / "weights.pt")
    assert same(file.tensors, STATE)
    assert file.others == {"step": "int", "sparse": "Tensor"}


# What cannot be read.


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def cut(path: Path) -> Path:
    content = path.read_bytes()
    return written(path, content[: len(content) // 2])


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


def packed_again(path: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def of_dtype(path: Path, dtype: str, num_bytes: int) -> Path:
    """Safetensors of four zeros of a type that PyTorch may not have."""
    header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, num_bytes]}}).encode()
    return written(path, struct.pack("<Q", len(header)) + header + bytes(num_bytes))


def safetensors(path: Path) -> Path:
    save_file(STATE, path)
    return path


UNREADABLE = {
    "empty": (lambda path: written(path, b""), r"is empty \(0 bytes\); fetch it again"),
    "cut .pt": (lambda path: cut(saved(path, STATE)), r"damaged or cut off .* has [\d,]+ bytes.* fetch it again"),
    "cut safetensors": (lambda path: cut(safetensors(path)), r"damaged or cut off .* has [\d,]+ bytes"),
    "cut pickle": (lambda path: written(path, b"\x80\x02}q\x00("), "damaged or cut off"),
    "web page": (lambda path: written(path, b"\n<!DOCTYPE html><html>"), "is a web page, not weights"),
    "git-lfs": (lambda path: written(path, b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "json": (lambda path: written(path, b'{"weight_map": {}}'), "has no 'weight_map'"),
    "text": (
        lambda path: written(path, b"hello"),
        r"neither safetensors, nor an .* nor a PyTorch checkpoint.*b'hello'",
    ),
    "zip": (lambda path: zipped(path, "a.txt", "b.txt"), "no PyTorch checkpoint: it holds a.txt, b.txt"),
    "empty zip": (zipped, "no PyTorch checkpoint: it holds nothing"),
    "TorchScript": (lambda path: zipped(path, "x/data.pkl", "x/constants.pkl"), "is a TorchScript program"),
    "broken pickle in a zip": (lambda path: zipped(path, "x/data.pkl", "x/version"), "damaged or cut off"),
    "model": (lambda path: saved(path, nn.Linear(1, 1)), r"would run torch\.nn\.modules\.linear\.Linear.*refused"),
    "list": (lambda path: saved(path, [torch.ones(1)]), "holds a list, not a state dict"),
    "no tensors": (lambda path: saved(path, {"epoch": 3}), r"holds no weights; its entries: 'epoch'\. .* under 'ema'"),
    "no tensors in nest": (lambda path: saved(path, {"ema": {"decay": 0.9}}), "no weights under 'ema'.*'decay'"),
    "nothing": (lambda path: saved(path, {}), "holds no weights; its entries: none"),
    "numbers for names": (lambda path: saved(path, {0: torch.ones(1)}), "0 is no name of a parameter"),
    "no values": (
        lambda path: saved(path, {"b": torch.ones(1), "a": torch.ones(1, device="meta")}),
        "cannot be read: a has no values, it was saved from PyTorch's meta device",
    ),
    "four bits": (lambda path: of_dtype(path, "F4", 2), "cannot be read: a is stored as float4_e2m1fn_x2"),
    "six bits": (lambda path: of_dtype(path, "F6_E2M3", 3), "cannot be read: a is stored as F6_E2M3"),
    "weights under another entry": (
        lambda path: saved(path, {"ema": {}, "model": STATE}),
        r"no weights under 'ema'; those of the last step are under 'model': take them with --weights raw",
    ),
    "packed again": (lambda path: packed_again(saved(path, STATE)), r"was compressed again.*`zip -0`"),
    "escape code in a zip": (lambda path: zipped(path, "\x1b[2J"), r"it holds '\\x1b\[2J'\."),
    "escape code for a name": (lambda path: saved(path, {"\x1b[2J": 7}), r"its entries: '\\x1b\[2J'\."),
    "ambiguous": (lambda path: saved(path, {"a": torch.ones(1), "module.a": torch.ones(1)}), "not clear which weights"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_says_why(kind, tmp_path):
    make, text = UNREADABLE[kind]
    path = make(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=text) as raised:
        read_checkpoint(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert message.endswith(".")


def test_wrong_paths_name_the_right_one(tmp_path):
    torch.save(STATE, tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match=rf"no file .*weight\.pt\. Did you mean {tmp_path}/weights\.pt\?"):
        read_checkpoint(tmp_path / "weight.pt")
    (tmp_path / "opt").mkdir()  # near, but no file
    with pytest.raises(FileNotFoundError, match=r"no file .*nope\.pt\. Check the path\.$"):
        read_checkpoint(tmp_path / "nope.pt")
    with pytest.raises(FileNotFoundError, match=r"Check the path\."):
        read_checkpoint(tmp_path / "other" / "zzz.ckpt")


def test_a_link_that_points_nowhere(tmp_path):
    (tmp_path / "weights.pt").symlink_to("gone.pt")
    with pytest.raises(FileNotFoundError, match=r"weights\.pt is a link that points nowhere: gone\.pt is not there\.$"):
        read_checkpoint(tmp_path / "weights.pt")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(OSError, match=r"weights\.pt is no regular file"):
        read_checkpoint(tmp_path / "weights.pt")


def test_an_empty_path():
    with pytest.raises(ValueError, match=r"^PATH is empty; name a file of weights\.$"):
        read_checkpoint("")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_damage_anywhere_in_a_pickle_is_one_line(legacy, tmp_path):
    state = {"a": torch.ones(3), "b": torch.ones(2, 2).half()}
    torch.save(state, tmp_path / "good.pt", _use_new_zipfile_serialization=not legacy)
    good = (tmp_path / "good.pt").read_bytes()
    messages = []
    for place in range(min(len(good), 600)):
        path = written(tmp_path / "weights.pt", good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        with contextlib.suppress(ValueError):  # any other error is none that a user can read
            read_checkpoint(path)
            continue  # a name or a value is another now
        messages.append(refusal(path))
    assert len(messages) > 100
    for message in messages:
        assert message.startswith(str(tmp_path / "weights.pt"))
        assert message.isprintable()


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match="weights") as raised:
        read_checkpoint(path)
    return str(raised.value)


def test_raw_weights_that_are_not_there(tmp_path):
    torch.save({"ema": STATE}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="averaged weights alone, under 'ema'"):
        read_checkpoint(tmp_path / "weights.pt", weights="raw")
    with pytest.raises(ValueError, match="must be 'ema', 'raw' or None, got 'last'"):
        read_checkpoint(tmp_path / "weights.pt", weights="last")
