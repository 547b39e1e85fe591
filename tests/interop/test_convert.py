"""Weights from layout to layout: bit for bit, whole or not at all, and refused where they do not belong."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

import ditzoo
from ditzoo.cli import cli, main
from ditzoo.interop import load_diffusers, patch_diffusers
from ditzoo.interop.dit import is_expressible
from ditzoo.models.details import EvaluationResult
from ditzoo.models.state_dicts import official_state
from ditzoo.weights import load_state_dict
from ditzoo.weights.diffusers_names import read_diffusers_transformer
from ditzoo.weights.published import official_count
from tests.golden_cases import CASES, golden_case, relative_error
from tests.zoo import EVERY_NAME, TINY, inputs, lively, on_meta

State = dict[str, Tensor]
#: that diffusers' class takes
EXPRESSIBLE = [name for name in TINY if is_expressible(on_meta(name))]
SUFFIXES = [".pt", ".pth", ".safetensors"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deviates from this model:UserWarning"),
    # Bits are compared, those of NaN among them.
    pytest.mark.filterwarnings("ignore:.*has NaN or infinite values:UserWarning"),
]


def assert_same(found: State, expected: State) -> None:
    """Equal names, types, shapes and bytes."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(*(each.detach().flatten().view(torch.uint8) for each in (found[name], tensor))), name


def file_of(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def saved(path: Path) -> State:
    """What the authors' code would read from a file."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def odd(state: State) -> State:
    """With values that a detour through arithmetic would lose."""
    values = torch.tensor([-0.0, 1e-42, torch.inf, torch.nan])
    name = next(name for name in reversed(state) if state[name].numel() >= 4 and state[name].is_floating_point())
    state[name].flatten()[:4] = values
    return state


# Round trips.


@pytest.mark.parametrize("name", TINY)
def test_official_to_ditzoo_and_back(name, tmp_path):
    state = odd(official_state(lively(name)))
    src = file_of(state, tmp_path / "official.pt")
    folder = ditzoo.convert(src, tmp_path / "folder", to="ditzoo", name=name)
    for suffix in SUFFIXES:
        back = ditzoo.convert(folder, tmp_path / f"back{suffix}", to="official")
        assert back == tmp_path / f"back{suffix}"
        assert_same(saved(back), state)
    again = ditzoo.convert(back, tmp_path / "again", to="ditzoo", name=name)
    assert_same(load_state_dict(again), load_state_dict(folder))


@pytest.mark.parametrize("case", CASES)
def test_official_state_dicts_come_back_as_they_were_recorded(case, registry_sandbox, tmp_path):
    case = golden_case(case)
    ditzoo.register_model("recorded", case.model_cls, case.options, family="tests")
    src = file_of({"ema": case.state, "model": {}, "args": {"lr": 1e-4}}, tmp_path / "recorded.pt")
    folder = ditzoo.convert(src, tmp_path / "folder", to="ditzoo", name="recorded")
    back = saved(ditzoo.convert(folder, tmp_path / "back.pt", to="official"))
    assert_same(back, case.state)


@pytest.mark.parametrize("name", [name for name in EVERY_NAME if official_count(name)])
def test_official_state_has_as_many_entries_as_the_original(name):
    state = official_state(on_meta(name))
    assert len(state) == official_count(name).keys
    kinds = {name.rpartition(".")[2]: tensor.dtype for name, tensor in state.items()}
    assert {kind for kind, dtype in kinds.items() if dtype != torch.float32} <= {"relative_position_index"}
    assert kinds.get("relative_position_index", torch.int64) == torch.int64


def test_tables_and_their_buffers_stand_together():
    names = list(official_state(on_meta("mdt_ti_2")))
    places = [place for place, name in enumerate(names) if name.endswith("relative_position_bias_table")]
    assert places
    for place in places:
        assert names[place + 1] == names[place].replace("bias_table", "index")


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_official_to_diffusers_and_back(name, tmp_path):
    state = odd(official_state(lively(name)))
    src = file_of(state, tmp_path / "official.pth")
    folder = ditzoo.convert(src, tmp_path / "folder", to="diffusers", name=name)
    for place in (folder, folder / "transformer", folder / "transformer" / "diffusion_pytorch_model.safetensors"):
        back = ditzoo.convert(place, tmp_path / f"{place.name}.pt", to="official")
        assert_same(saved(back), state)


def test_diffusers_is_tested_with_a_model():
    assert EXPRESSIBLE == ["dit_ti_2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ditzoo_to_diffusers_and_back(dtype, tmp_path):
    model = lively("dit_ti_2", class_dropout_prob=0.2, in_channels=4, learn_sigma=True).to(dtype)
    recipe = ditzoo.model_info("dit_xl_2.in256").recipe
    ditzoo.Pipeline(model, recipe, name="mine", label_names=[*"abcdefghij"]).save_pretrained(tmp_path / "mine")
    there = ditzoo.convert(tmp_path / "mine", tmp_path / "there", to="diffusers")
    back = ditzoo.convert(there, tmp_path / "back", to="ditzoo")
    assert_same(load_state_dict(back), model.state_dict())
    pipe = ditzoo.Pipeline.from_pretrained(back, dtype=dtype)
    assert (pipe.name, pipe.recipe, list(pipe.label_names)) == ("mine", recipe, [*"abcdefghij"])
    assert pipe.model.config == model.config


#: all that can be known of a model of ten classes
DETAILS = ditzoo.models.ModelDetails(
    name="mine",
    recipe=replace(ditzoo.model_info("dit_xl_2.in256").recipe, licence="MIT", source="a shed"),
    label_names=("tench, Tinca tinca", *"bcdefghij"),
    data="my photographs",
    results=(EvaluationResult(metric="FID", value=3.5, dataset="theirs", settings="50 steps", source="me"),),
    training_command="ditzoo train my-photographs",
)


@pytest.fixture
def mine(tmp_path):
    """A folder of ditzoo with a model of which everything is known."""
    model = lively("dit_ti_2", in_channels=4, learn_sigma=True, class_dropout_prob=0.25)
    model.details = DETAILS
    model.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("by_way_of", [[], ["ditzoo"], ["diffusers"], ["ditzoo", "diffusers", "diffusers"]])
def test_details_survive(mine, by_way_of, dtype, tmp_path):
    place = mine
    for number, to in enumerate(by_way_of):
        place = ditzoo.convert(place, tmp_path / str(number), to=to, dtype=dtype)
    place = ditzoo.convert(place, tmp_path / "end", to="ditzoo", dtype=dtype)
    model = ditzoo.models.DiffusionTransformer.from_pretrained(place)
    assert model.details == DETAILS
    assert model.config["class_dropout_prob"] == 0.25
    assert model.dtype == (dtype or torch.float32)


def test_details_in_a_folder_of_diffusers_are_read_everywhere(diffusers, vae, mine, tmp_path):
    folder = ditzoo.convert(mine, tmp_path / "dit", to="diffusers")
    assert load_diffusers(folder)[0].details == DETAILS
    for checkpoint in (folder, folder / "transformer"):
        model = ditzoo.create("dit_ti_2", checkpoint=checkpoint, in_channels=4, learn_sigma=True)
        assert model.details == DETAILS
    labels = diffusers.DiTPipeline.from_pretrained(folder, vae=vae).labels
    assert (labels["tench"], labels["Tinca tinca"], labels["j"]) == (0, 0, 9)


def test_weaker_models_travel_where_there_is_a_place_for_them(tmp_path):
    model, weak = lively("dit_ti_2"), lively("dit_ti_2", depth=1)
    recipe = ditzoo.model_info("dit_ti_2").recipe
    ditzoo.Pipeline(model, recipe, weak_model=weak).save_pretrained(tmp_path / "both")
    both = ditzoo.convert(
        tmp_path / "both", tmp_path / "half", to="ditzoo", dtype=torch.bfloat16, max_shard_size="150KB"
    )
    assert (both / "weak_model.safetensors.index.json").is_file()
    again = ditzoo.Pipeline.from_pretrained(both, dtype=torch.bfloat16)
    for found, expected in ((again.model, model), (again.weak_model, weak)):
        assert_same(found.state_dict(), expected.bfloat16().state_dict())
    for to, dst in (("official", "dst.pt"), ("diffusers", "dst")):
        message = f"the weaker model of autoguidance in {both} has no place in {tmp_path / dst}."
        with pytest.warns(UserWarning, match=re.escape(message)):
            ditzoo.convert(both, tmp_path / dst, to=to)


def test_a_rounded_position_table_comes_back_as_it_was(diffusers, tmp_path):
    model = lively("dit_ti_2").half().float()
    src = file_of(model.state_dict(), tmp_path / "official.pt")
    folder = ditzoo.convert(src, tmp_path / "folder", to="diffusers", name="dit_ti_2")
    assert_same(saved(ditzoo.convert(folder, tmp_path / "back.pt", to="official")), model.state_dict())
    assert_same(load_diffusers(folder)[0].state_dict(), {**model.state_dict(), "pos_embed": computed_table()})


def computed_table() -> Tensor:
    return ditzoo.create("dit_ti_2").pos_embed.detach()


# diffusers itself.


def test_pipeline_loads_a_converted_folder_and_runs(diffusers, vae, tmp_path):
    model = lively("dit_ti_2", in_channels=4, learn_sigma=True, num_classes=1000)
    recipe = ditzoo.model_info("dit_xl_2.in256").recipe
    ditzoo.Pipeline(model, recipe).save_pretrained(tmp_path / "mine")
    folder = ditzoo.convert(tmp_path / "mine", tmp_path / "folder", to="diffusers", max_shard_size="200KB")
    assert len(list((folder / "transformer").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 2
    pipe = diffusers.DiTPipeline.from_pretrained(folder, vae=vae)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(class_labels=[1], num_inference_steps=2).images[0].size == (8, 8)
    x, t, y = inputs(model)
    with torch.no_grad():
        expected = model(x, t, y)
        assert relative_error(pipe.transformer(x, t, y).sample, expected) > 1e-3
        assert relative_error(patch_diffusers(pipe.transformer)(x, t, y).sample, expected) < 1e-5
    assert_same(load_state_dict(ditzoo.convert(folder, tmp_path / "back", to="ditzoo")), model.state_dict())


def random_transformer(diffusers: Any, **options: Any) -> Any:
    """diffusers' own network with random weights, and equal embedders in all blocks."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 4, "out_channels": 8}
    theirs = diffusers.DiTTransformer2DModel(**sizes, num_embeds_ada_norm=3, **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    first, *others = theirs.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("saving", [{}, {"safe_serialization": False}, {"max_shard_size": "10KB"}])
def test_what_diffusers_saves_computes_the_same(diffusers, saving, tmp_path):
    theirs = random_transformer(diffusers)
    theirs.save_pretrained(tmp_path / "transformer", **saving)
    back = ditzoo.convert(tmp_path / "transformer", tmp_path / "back.pt", to="official")
    model = ditzoo.models.DiT(**read_diffusers_transformer(tmp_path / "transformer")[0]).eval()
    model.load_state_dict(saved(back))
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift, block.norm3.eps = 0, 1e-6
    x, t, y = inputs(model, batch=3)
    with torch.no_grad():
        assert relative_error(model(x, t, y), theirs(x, t, y).sample) < 1e-5


def test_recipe_of_a_folder_by_diffusers_alone(diffusers, vae, tmp_path):
    theirs = random_transformer(diffusers)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2")
    diffusers.DiTPipeline(theirs, vae, scheduler).save_pretrained(tmp_path / "pipe")
    config = ditzoo.convert(tmp_path / "pipe", tmp_path / "mine", to="ditzoo") / "config.json"
    recipe = ditzoo.Recipe.from_dict(json.loads(config.read_text())["recipe"])
    assert recipe == load_diffusers(tmp_path / "pipe")[1]
    assert (recipe.schedule, recipe.sampler) == ("cosine", "ddim")


def test_names_of_classes_of_a_folder_by_diffusers_alone(diffusers, vae, tmp_path):
    labels = {0: "tench, Tinca tinca", 1: "hen", 2: "crane"}
    theirs = random_transformer(diffusers)
    diffusers.DiTPipeline(theirs, vae, diffusers.DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    for written, expected in ((labels, tuple(labels.values())), ({0: "hen"}, None), ({**labels, 2: " "}, None)):
        (tmp_path / "pipe" / "model_index.json").write_text(json.dumps({**index, "id2label": written}))
        back = ditzoo.convert(tmp_path / "pipe", tmp_path / f"back{written}", to="ditzoo")
        assert ditzoo.models.DiffusionTransformer.from_pretrained(back).details.label_names == expected
        assert load_diffusers(tmp_path / "pipe")[0].details.label_names == expected


def test_a_name_says_what_a_folder_does_not(diffusers, vae, registry_sandbox, tmp_path):
    options = {"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 10, "in_channels": 4}
    recipe = ditzoo.model_info("dit_xl_2.in256").recipe
    ditzoo.register_model("dit_shed", ditzoo.models.DiT, {**options, "patch_size": 2}, family="tests", recipe=recipe)
    model = lively("dit_shed")
    model.details = ditzoo.models.ModelDetails(data="my photographs")
    model.save_pretrained(tmp_path / "mine")
    refused(ValueError, "give --name", tmp_path / "mine", tmp_path / "theirs", to="diffusers")
    theirs = ditzoo.convert(tmp_path / "mine", tmp_path / "theirs", to="diffusers", name="dit_shed")
    (theirs / "ditzoo.json").unlink()
    for src, data in ((tmp_path / "mine", "my photographs"), (theirs, None), (theirs / "transformer", None)):
        back = ditzoo.convert(src, tmp_path / f"{src.name} back", to="ditzoo", name="dit_shed")
        details = ditzoo.models.DiffusionTransformer.from_pretrained(back).details
        assert details == ditzoo.models.ModelDetails(name="dit_shed", recipe=recipe, data=data)


def test_a_transformer_without_a_pipeline_needs_a_recipe_for_diffusers(diffusers, tmp_path):
    random_transformer(diffusers).save_pretrained(tmp_path / "theirs")
    with pytest.raises(
        ValueError, match=r"nothing in .*/theirs says how the network is sampled.*; give --name dit_xl_2"
    ):
        ditzoo.convert(tmp_path / "theirs", tmp_path / "again", to="diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_warning_says_by_how_much_and_where(tmp_path):
    src = file_of(lively("dit_ti_2").state_dict(), tmp_path / "official.pt")
    with pytest.warns(UserWarning, match="deviates from this model") as caught:
        ditzoo.convert(src, tmp_path / "dit", to="diffusers", name="dit_ti_2")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert message.startswith(f"What diffusers loads from {tmp_path}/dit deviates from this model")
    assert "10 % at t = 417 and 18 % at t = 999" in message
    assert message.endswith("in memory: ditzoo.interop.patch_diffusers(pipe.transformer) after loading.")


def test_the_other_targets_do_not_need_diffusers_and_do_not_warn(diffusers, monkeypatch, tmp_path):
    random_transformer(diffusers).save_pretrained(tmp_path / "transformer")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ditzoo.convert(tmp_path / "transformer", tmp_path / "a.pt", to="official")
    with pytest.raises(
        ImportError, match=r'converting to diffusers needs diffusers: pip install "ditzoo\[diffusers\]"'
    ):
        ditzoo.convert(tmp_path / "transformer", tmp_path / "b", to="diffusers")


# Precision and shards.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("to", ["ditzoo", "official", "diffusers"])
def test_copies_of_another_precision(to, dtype, tmp_path):
    name = "dit_ti_2" if to == "diffusers" else "mdt_ti_2"
    state = official_state(lively(name))
    if dtype == torch.float32:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    src = file_of(state, tmp_path / "official.pt")
    dst = tmp_path / ("copy.safetensors" if to == "official" else "copy")
    ditzoo.convert(src, dst, to=to, name=name, dtype=dtype)
    back = saved(ditzoo.convert(dst, tmp_path / "back.pt", to="official", name=name))
    assert_same(back, {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()})


def test_values_beyond_half_precision_are_refused(tmp_path):
    model = lively("dit_ti_2")
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[3] = -7e4
    src = file_of(model.state_dict(), tmp_path / "official.pt")
    message = "blocks.1.mlp.fc1.bias has values up to 7e+04, and float16 ends at 6.55e+04: they would be written as"
    with pytest.raises(ValueError, match=re.escape(message)):
        ditzoo.convert(src, tmp_path / "half.pt", to="official", name="dit_ti_2", dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["official.pt"]
    ditzoo.convert(src, tmp_path / "half.pt", to="official", name="dit_ti_2", dtype=torch.bfloat16)


def test_shards_there_and_back(tmp_path):
    state = official_state(lively("mdt_ti_2"))
    src = file_of(state, tmp_path / "official.pt")
    folder = ditzoo.convert(src, tmp_path / "folder", to="ditzoo", name="mdt_ti_2", max_shard_size=300_000)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert_same(saved(ditzoo.convert(folder, tmp_path / "back.pt", to="official")), state)


def test_shards_of_the_authors_layout(tmp_path):
    state = official_state(lively("sit_ti_2"))
    names = list(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: state[key].clone() for key in keys}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for place, src in enumerate((tmp_path, tmp_path / "model.safetensors.index.json")):
        back = ditzoo.convert(src, tmp_path / f"{place}.pt", to="official", name="sit_ti_2")
        assert_same(saved(back), state)


# Averaged and raw weights.


@pytest.fixture
def checkpoints(tmp_path):
    """Files of a training script: name -> path."""
    ema = lively("sit_ti_2").state_dict()
    raw = {key: value + 1 for key, value in ema.items()}
    nests = {"both": {"model": raw, "ema": ema}, "raw": {"model": raw}, "ema": {"ema": ema}}
    return {name: file_of(nest, tmp_path / f"{name}.pt") for name, nest in nests.items()}


def test_averaged_or_raw_weights_and_the_recipe_says_which(checkpoints, tmp_path):
    both = torch.load(checkpoints["both"])
    for weights, nest in (("ema", "ema"), ("raw", "model")):
        folder = ditzoo.convert(checkpoints["both"], tmp_path / weights, to="ditzoo", name="sit_ti_2", weights=weights)
        assert_same(load_state_dict(folder), both[nest])
        assert ditzoo.Pipeline.from_pretrained(folder).recipe.weights == weights
    bare = file_of(both["ema"], tmp_path / "bare.pt")
    folder = ditzoo.convert(bare, tmp_path / "bare", to="ditzoo", name="sit_ti_2", weights="raw")
    assert ditzoo.Pipeline.from_pretrained(folder).recipe == ditzoo.model_info("sit_ti_2").recipe


@pytest.mark.parametrize(
    ("file", "weights", "message"),
    [
        (
            "raw",
            "ema",
            "holds no averaged weights; those of the last step are under 'model': take them with --weights raw",
        ),
        ("ema", "raw", "holds averaged weights alone, under 'ema'; ask for those"),
    ],
)
def test_weights_that_are_not_there(checkpoints, file, weights, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ditzoo.convert(checkpoints[file], tmp_path / "dst.pt", to="official", name="sit_ti_2", weights=weights)


# Refused.


@pytest.fixture
def official(tmp_path):
    return file_of(official_state(lively("mdt_ti_2")), tmp_path / "official.pt")


def refused(kind: type[Exception], message: str, src: Path, dst: Path, **arguments: Any) -> None:
    before = sorted(src.parent.iterdir())
    with pytest.raises(kind, match=re.escape(message)):
        ditzoo.convert(src, dst, **arguments)
    assert sorted(src.parent.iterdir()) == before


@pytest.mark.parametrize("name", [name for name in TINY if name not in EXPRESSIBLE])
def test_other_networks_do_not_go_to_diffusers(name, tmp_path):
    src = file_of(official_state(lively(name)), tmp_path / "official.pt")
    kind = ValueError if name.startswith("dit_") else TypeError
    for message in ("diffusers", "ditzoo.interop.DiffusersTransformer(model) runs every model of ditzoo in"):
        refused(kind, message, src, tmp_path / "dst", to="diffusers", name=name)


def test_a_missing_name_is_suggested(official, tmp_path):
    message = f"{official} does not say what network it is for. Its names and shapes are those of mdt_ti_2: give --name"
    refused(ValueError, message, official, tmp_path / "dst", to="ditzoo")


def test_a_wrong_name_and_the_right_one(official, tmp_path):
    message = f"{official} does not fit mdtv2_ti_2: it lacks "
    refused(ValueError, message, official, tmp_path / "dst", to="ditzoo", name="mdtv2_ti_2")
    message = "Its names and shapes are those of mdt_ti_2: give --name mdt_ti_2 (name='mdt_ti_2')."
    refused(ValueError, message, official, tmp_path / "dst", to="ditzoo", name="mdtv2_ti_2")
    refused(ValueError, "Unknown model 'mdt_ti_3'", official, tmp_path / "dst", to="ditzoo", name="mdt_ti_3")


def test_a_layout_of_no_network(tmp_path):
    src = file_of(lively("dit_ti_2", depth=1).state_dict(), tmp_path / "small.pt")
    message = "No network of the zoo at its named size and options has its names and shapes: build the one"
    refused(ValueError, message, src, tmp_path / "dst", to="ditzoo")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pos_embed", lambda table: table[:, :9], "of another shape is pos_embed"),
        ("pos_embed", lambda table: table.int(), "not in floats is pos_embed"),
        ("more", lambda _: torch.zeros(1), "it has, besides those of the network, more"),
        (
            "blocks.1.attn.rel_pos_bias.relative_position_index",
            lambda index: index.T,
            "has other values in blocks.1.attn.rel_pos_bias.relative_position_index than the authors' code",
        ),
    ],
)
def test_weights_that_are_not_the_networks(key, value, message, tmp_path):
    state = official_state(lively("mdt_ti_2"))
    src = file_of({**state, key: value(state.get(key))}, tmp_path / "wrong.pt")
    refused(ValueError, message, src, tmp_path / "dst", to="ditzoo", name="mdt_ti_2")


def test_names_of_another_network_than_the_folder_describes(official, tmp_path):
    folder = ditzoo.convert(official, tmp_path / "folder", to="ditzoo", name="mdt_ti_2")
    message = f"{folder} holds a MDT, and dit_ti_2 is a DiT; leave --name out"
    refused(ValueError, message, folder, tmp_path / "dst", to="ditzoo", name="dit_ti_2")
    message = f"{folder} is not of mdt_s_2: it has input_size=8, not 32, in_channels=1, not 4, "
    refused(ValueError, message, folder, tmp_path / "dst", to="ditzoo", name="mdt_s_2")
    ditzoo.convert(folder, tmp_path / "dst", to="ditzoo", name="mdt_ti_2")


def test_targets_that_exist_are_left_alone(official, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "mine.pt").write_text("mine")
    (tmp_path / "link.pt").symlink_to("nowhere")
    (tmp_path / "folder.pt").mkdir()
    for dst, to in (("full", "ditzoo"), ("mine.pt", "official"), ("link.pt", "official"), ("folder.pt", "official")):
        message = f"{tmp_path / dst} exists, and nothing is overwritten; name another target, or remove it first"
        refused(FileExistsError, message, official, tmp_path / dst, to=to, name="mdt_ti_2")
    refused(FileExistsError, f"{official} exists", official, official, to="official", name="mdt_ti_2")
    assert (tmp_path / "mine.pt").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"
    ditzoo.convert(official, tmp_path / "empty", to="ditzoo", name="mdt_ti_2")


@contextmanager
def files_end_at(num_bytes: int) -> Iterator[None]:
    """The system refuses to write more into any file, as on a disk that is full there."""
    resource = pytest.importorskip("resource", reason="limits of files are set by it, which Windows does not have")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("to", "dst"),
    [("ditzoo", "dst"), ("official", "dst.pt"), ("official", "dst.safetensors"), ("diffusers", "dst")],
)
def test_weights_that_the_disk_does_not_take_leave_nothing_behind(to, dst, tmp_path):
    src = file_of(lively("dit_ti_2").state_dict(), tmp_path / "official.pt")
    with files_end_at(500_000):
        message = f"{tmp_path / dst} cannot be written: File too large. Check the path, or write elsewhere."
        refused(OSError, message, src, tmp_path / dst, to=to, name="dit_ti_2")
    ditzoo.convert(src, tmp_path / dst, to=to, name="dit_ti_2")


def test_tied_weights_and_views_are_written_out(tmp_path):
    state = {name: tensor.detach() for name, tensor in lively("dit_ti_2").state_dict().items()}
    state["blocks.1.attn.qkv.bias"] = state["blocks.0.attn.qkv.bias"]
    buffer = torch.zeros(2_000_000)  # of which the weights are a part, as in sharded training
    state["pos_embed"] = buffer[: state["pos_embed"].numel()].view_as(state["pos_embed"]).copy_(state["pos_embed"])
    src = file_of(state, tmp_path / "official.pt")
    assert src.stat().st_size > 8_000_000
    for suffix in SUFFIXES:
        back = ditzoo.convert(src, tmp_path / f"back{suffix}", to="official", name="dit_ti_2")
        assert_same(saved(back), state)
        assert back.stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("src", "message"),
    [
        ("", "SRC is empty; name a file or a folder of weights"),
        ("hf-hub:me/mine", "hf-hub:me/mine is not on this machine: fetch it first, by `ditzoo pull`"),
        ("https://example.com/a.pt", "https://example.com/a.pt is not on this machine: fetch it first"),
    ],
)
def test_sources_that_are_not_here(src, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        ditzoo.convert(src, tmp_path / "dst", to="ditzoo", name="dit_ti_2")


def test_a_file_beside_its_config(mine, tmp_path):
    message = f"model.safetensors does not say what network it is for, but config.json beside it does: give {mine}."
    refused(ValueError, message, mine / "model.safetensors", tmp_path / "dst", to="ditzoo")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model": 3}, "it has no recipe, or no model with class_dropout_prob"),
        ({"model": {"class_dropout_prob": "0.1"}}, "it has no recipe, or no model with class_dropout_prob"),
        ({"model": {"class_dropout_prob": 0}}, "class_dropout_prob=0 is not between 0 and 1"),
        ({"recipe": None}, "it has no recipe, or no model with class_dropout_prob"),
        ({"recipe": {"schedule": "linear"}}, "recipe: a recipe needs prediction"),
        ({"label_names": ["hen"]}, "it has 1 label_names, and the transformer 10 classes"),
        ({"label_names": 3}, "label_names must be a list of strings, got 3"),
        ({"results": [{"metric": "FID"}]}, "results: a result lacks dataset, value"),
    ],
)
def test_damaged_details_in_a_folder_of_diffusers(mine, entries, message, tmp_path):
    folder = ditzoo.convert(mine, tmp_path / "dit", to="diffusers")
    path = folder / "ditzoo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    message = f"{path} is not what ditzoo writes: {message}. Remove it to load the rest."
    refused(ValueError, message, folder, tmp_path / "dst", to="ditzoo")
    with pytest.raises(ValueError, match=r"ditzoo\.json of .*dit is not what ditzoo writes"):
        load_diffusers(folder)
    path.unlink()
    ditzoo.convert(folder, tmp_path / "dst", to="ditzoo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "onnx"}, "to must be one of 'ditzoo', 'official', 'diffusers', got 'onnx'"),
        ({"to": "ditzoo", "weights": "best"}, "weights must be one of 'ema', 'raw', got 'best'"),
        (
            {"to": "ditzoo", "dtype": torch.int8},
            "dtype must be None or one of float16, bfloat16, float32, got torch.int8",
        ),
        (
            {"to": "official", "dst": "x.pt", "dtype": torch.float64},
            "or one of float16, bfloat16, float32, got torch.fl",
        ),
        ({"to": "ditzoo", "max_shard_size": -1}, "max_shard_size must be a positive number of bytes, or a text such"),
        (
            {"to": "ditzoo", "dst": "x.pt"},
            "x.pt looks like a file, and ditzoo is written as a folder; name one, such as x.",
        ),
        (
            {"to": "official", "dst": "x.bin"},
            "x.bin should be a file for the authors' code, which ends with .pt or .pth",
        ),
    ],
)
def test_arguments_that_are_none(official, arguments, message, tmp_path):
    refused(
        ValueError, message, official, **{"name": "mdt_ti_2", **arguments, "dst": tmp_path / arguments.get("dst", "x")}
    )


def test_a_folder_with_a_config_of_something_else(tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    message = f"{folder}/config.json lacks model, model_cls: it is not what save_pretrained() writes"
    refused(ValueError, message, folder, tmp_path / "dst", to="ditzoo")


def test_diffusers_weights_without_their_config(diffusers, tmp_path):
    random_transformer(diffusers).save_pretrained(tmp_path / "theirs")
    src = (tmp_path / "theirs" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "theirs.safetensors")
    refused(ValueError, "has the names of diffusers, and no config.json beside it", src, tmp_path / "dst", to="ditzoo")


def test_blocks_with_embedders_of_their_own_are_refused(diffusers, tmp_path):
    theirs = random_transformer(diffusers)
    with torch.no_grad():
        theirs.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight[0, 0] += 1
    theirs.save_pretrained(tmp_path / "theirs")
    message = "diffusers trains the embedders of each block apart, and DiT has one y_embedder for all"
    refused(ValueError, message, tmp_path / "theirs", tmp_path / "dst.pt", to="official")


def test_constant_buffers_of_other_packages_are_not_guessed():
    model = on_meta("dit_ti_2")
    model.constant_buffers = ("rope",)
    with pytest.raises(ValueError, match="the constant buffers rope of DiT cannot be computed here"):
        official_state(model)


# The command.


def test_command(official, tmp_path):
    dst = str(tmp_path / "dst")
    arguments = ["--name", "mdt_ti_2", "--dtype", "bfloat16", "--max-shard-size", "300KB"]
    result = CliRunner().invoke(cli, ["convert", str(official), dst, "--to", "ditzoo", *arguments])
    assert (result.exit_code, result.output) == (0, f"Wrote {dst}.\n")
    assert {tensor.dtype for tensor in load_state_dict(dst).values()} == {torch.bfloat16}
    assert len(list((tmp_path / "dst").glob("*.safetensors"))) > 1


def test_errors_and_warnings_of_the_command_are_one_line(tmp_path, capsys):
    src = file_of(lively("dit_ti_2").state_dict(), tmp_path / "official.pt")
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(src), str(tmp_path / "dst"), "--to", "ditzoo"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"ditzoo: {src} does not say what network it is for. Its names and shapes are those of ")
    assert message.count("\n") == 1
