"""A DiT under diffusers' names, read without diffusers; `tests/interop` compares with diffusers itself."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditzoo.layers import sincos_position_table
from ditzoo.models import DiT
from ditzoo.weights.diffusers_names import (
    diffusers_state,
    dit_options,
    ditzoo_state,
    is_diffusers_state,
    read_diffusers_transformer,
    transformer_folder,
)
from tests.zoo import lively, on_meta

#: as diffusers saves them for the model below
CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    **{"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 1, "out_channels": 1, "num_layers": 2},
    **{"sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10, "norm_eps": 1e-6},
    **{"activation_fn": "gelu-approximate", "attention_bias": True, "norm_type": "ada_norm_zero"},
    **{"norm_elementwise_affine": False, "dropout": 0.0},
}
#: `_class_name` of the copies that diffusers' first releases wrote, which have no `norm_eps`
EARLIER = {**{key: value for key, value in CONFIG.items() if key != "norm_eps"}, "_class_name": "Transformer2DModel"}
EMBEDDER = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model() -> DiT:
    return lively("dit_ti_2", depth=2)


def write(folder: Path, state: dict[str, Tensor], config: object = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.detach().clone() for name, tensor in state.items()}, folder / WEIGHTS)
    return folder


def assert_state_of(model: DiT, state: dict[str, Tensor]) -> None:
    expected = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


# Read.


@pytest.mark.parametrize("linked", ["transformer", "transformer/config.json"])
def test_links_out_of_the_folder_are_refused(model, linked, tmp_path):
    write(tmp_path / "pipe" / "transformer", diffusers_state(model))
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "pipe" / linked).rename(tmp_path / "elsewhere")
    (tmp_path / "pipe" / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{linked} is a link that leads out of its folder, to {tmp_path}/elsewhere"):
        read_diffusers_transformer(tmp_path / "pipe")


@pytest.mark.parametrize("config", [CONFIG, EARLIER], ids=["current", "earlier class"])
def test_a_folder_is_read_without_diffusers(model, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    folder = write(tmp_path / "transformer", diffusers_state(model), config)
    options, state = read_diffusers_transformer(folder)
    assert DiT(**options).config == model.config
    assert_state_of(model, state)


def test_every_way_to_name_a_folder(model, tmp_path):
    folder = write(tmp_path / "pipe" / "transformer", diffusers_state(model))
    for path in (tmp_path / "pipe", str(folder), folder / WEIGHTS):
        assert transformer_folder(path) == folder
        assert_state_of(model, read_diffusers_transformer(path)[1])
    (tmp_path / "mine.safetensors").touch()
    (folder / "mine.safetensors").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "mine.safetensors", folder / "mine.safetensors"):
        assert transformer_folder(path) is None
    (tmp_path / "config.json").write_text('{"model_cls": "ditzoo.models.DiT"}')
    assert transformer_folder(tmp_path) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_is_that_of_the_file(model, dtype, tmp_path):
    model = model.to(dtype)
    assert_state_of(model, read_diffusers_transformer(write(tmp_path, diffusers_state(model)))[1])


def test_what_both_have_alike_is_shared(model):
    theirs = diffusers_state(model)
    state = ditzoo_state(theirs, model)
    ours = model.state_dict()
    memory = {name: tensor.untyped_storage().data_ptr() for name, tensor in state.items()}
    copied = [name for name in state if memory[name] != ours[name].untyped_storage().data_ptr()]
    assert copied == [f"blocks.{i}.attn.qkv.{kind}" for i in range(2) for kind in ("weight", "bias")]


def test_the_buffer_of_older_copies(model, tmp_path):
    state = diffusers_state(model)
    rounded = sincos_position_table(64, (4, 4)).half().float()
    options, read = read_diffusers_transformer(write(tmp_path, {**state, "pos_embed.pos_embed": rounded}))
    assert torch.equal(read["pos_embed"], rounded)
    assert not torch.equal(read["pos_embed"], model.pos_embed)
    assert DiT(**options).config == model.config


def test_names_tell_diffusers_from_official(model):
    assert is_diffusers_state(diffusers_state(model))
    assert not is_diffusers_state(model.state_dict())
    assert not is_diffusers_state([])


def test_what_a_configuration_leaves_out_is_diffusers_default():
    assert dit_options({}) == {
        **{"input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16},
        **{"num_classes": 1000, "learn_sigma": False},
    }
    xl = dit_options({"out_channels": 8})
    assert {**on_meta("dit_xl_2.in256").config, **xl} == on_meta("dit_xl_2.in256").config


# Refused.


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"_class_name": "PixArtTransformer2DModel"}, "describes a PixArtTransformer2DModel; of diffusers' networks"),
        ({"_class_name": "Transformer2DModel", "norm_type": "layer_norm"}, "describes a Transformer2DModel; of"),
        ({"num_layers": 3}, "num_layers=3, but the weights have 2 blocks; fetch both again"),
        ({"num_layers": 0}, "num_layers=0 is no size of a DiT; it is a whole number from 1 to 65,536"),
        ({"num_layers": 10**12}, "num_layers=1000000000000 is no size of a DiT"),
        ({"num_attention_heads": True}, "num_attention_heads=True is no size"),
        ({"patch_size": "2"}, "patch_size='2' is no size"),
        ({"attention_head_dim": 60000}, "makes tokens 240000 wide, but pos_embed.proj.weight has shape (64, 1, 2, 2)"),
        ({"sample_size": 65536}, "sample_size=65536, whose position table would have 68,719,476,736 values; for"),
        (
            {"sample_size": 1024},
            "would have 16,777,216 values; for weights of this size at most 8,388,608 are computed",
        ),
        ({"sample_size": 9}, "input_size 9 is not divisible by patch_size 2"),
        ({"num_embeds_ada_norm": 9}, "embedding_table.weight has shape (11, 64), but the transformer's configuration"),
        ({"norm_type": "layer_norm"}, "no counterpart of norm_type='layer_norm'; what works is 'ada_norm_zero'"),
        ({"dropout": [1]}, "no counterpart of dropout=[1]; what works is 0"),
    ],
)
def test_configurations_that_are_refused(model, entries, message, tmp_path):
    folder = write(tmp_path, diffusers_state(model), {**CONFIG, **entries})
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_diffusers_transformer(folder)
    assert str(folder) in str(error.value)


def changed(name: str, change) -> dict[str, Tensor]:
    state = {key: tensor.detach().clone() for key, tensor in diffusers_state(lively("dit_ti_2", depth=2)).items()}
    state[name] = change(state.get(name))
    return state


BIAS = "transformer_blocks.1.attn1.to_k.bias"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            EMBEDDER,
            lambda bias: bias.nextafter(torch.ones(1)),
            f"{EMBEDDER} differs from {EMBEDDER.replace('1', '0', 1)}",
        ),
        (BIAS, lambda bias: bias.half(), f"{BIAS} is in float16 and transformer_blocks.1.attn1.to_q.bias in float32"),
        (BIAS, lambda bias: bias.int(), f"{BIAS} is in int32 and transformer_blocks.1.attn1.to_q.bias in float32"),
        ("proj_out_2.bias", lambda bias: bias.int(), "proj_out_2.bias is in int32 and proj_out_2.bias in int32"),
        (BIAS, lambda bias: bias[:-1], f"{BIAS} has shape (63,), but the transformer's configuration makes it (64,)"),
        ("adapter", lambda _: torch.zeros(1), "the transformer has, besides those of the class, adapter. Convert it"),
        (
            "pos_embed.pos_embed",
            lambda _: sincos_position_table(64, (4, 4)) + 0.01,
            "pos_embed.pos_embed is not the sin-cos table that diffusers computes in its place",
        ),
        (
            "pos_embed.pos_embed",
            lambda _: sincos_position_table(64, (4, 5)),
            "pos_embed.pos_embed has shape (1, 20, 64) in float32, but the configuration makes it (1, 16, 64)",
        ),
    ],
)
def test_weights_that_are_refused(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_diffusers_transformer(write(tmp_path, changed(name, change)))


def test_copies_are_compared_to_the_last_bit():
    state = changed(EMBEDDER, torch.zeros_like)
    other = EMBEDDER.replace("1", "0", 1)
    state[other] = torch.zeros_like(state[other])
    model = on_meta("dit_ti_2", depth=2)
    assert torch.equal(ditzoo_state(state, model)["t_embedder.mlp.2.bias"], state[other])
    state[other] = -state[other]
    with pytest.raises(ValueError, match="differs from"):
        ditzoo_state(state, model)
    state[other] = state[EMBEDDER] = torch.full_like(state[other], torch.nan)
    assert ditzoo_state(state, model)["t_embedder.mlp.2.bias"].isnan().all()


def test_missing_parts_are_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no folder of diffusers: there is no config.json"):
        read_diffusers_transformer(tmp_path)
    folder = write(tmp_path / "transformer", diffusers_state(model))
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        read_diffusers_transformer(folder)
    (folder / "config.json").unlink()
    (tmp_path / "model_index.json").touch()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no folder of diffusers"):
        read_diffusers_transformer(tmp_path)
    state = load_file(folder / WEIGHTS)
    del state[BIAS]
    with pytest.raises(ValueError, match=f"the transformer lacks {BIAS}"):
        read_diffusers_transformer(write(folder, state))
