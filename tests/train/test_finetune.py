"""Training that starts from other weights."""

import copy
import json
import logging
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import ditzoo
from ditzoo.models import DiT
from ditzoo.pipeline import Pipeline
from ditzoo.train import finetune
from ditzoo.train.checkpoints import Checkpoints, load_state
from ditzoo.train.finetune import add_lora, freeze, has_lora, merged, start_model
from ditzoo.train.state import TrainingState
from ditzoo.weights.folders import model_folder
from tests.pipeline.pipes import QUICK
from tests.zoo import TINY, inputs, lively


def finish(checkpoint):
    """Write the file that says what a checkpoint holds, as training does at the end of it."""
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    (checkpoint / "training.json").write_text(json.dumps({"files": sizes}))


def a_run(folder, checkpoints=("000000032", "000000064"), whole=2):
    """The folder of a training run, whose checkpoints differ in the bias of the last layer."""
    for number, name in enumerate(checkpoints):
        model = lively("dit_ti_2")
        model.details = replace(model.details, recipe=QUICK)
        with torch.no_grad():
            model.final_layer.linear.bias.fill_(number)
        model.save_pretrained(folder / "checkpoints" / name)
        save_file({"exp_avg": torch.zeros(1)}, folder / "checkpoints" / name / "training.safetensors")
        if number < whole:
            finish(folder / "checkpoints" / name)
    return folder


def last_bias(model):
    return model.final_layer.linear.bias[0].item()


# A run stands for its newest checkpoint.


def test_a_run_stands_for_its_newest_checkpoint(tmp_path):
    run = a_run(tmp_path / "mine", ("000000064", "000000096", "000000128"), whole=2)
    (run / "checkpoints" / ".000000200.partial-1").mkdir()
    (run / "checkpoints" / "notes").mkdir()
    assert model_folder(run) == run / "checkpoints" / "000000096"  # the last one was not finished
    assert model_folder(str(run / "checkpoints" / "000000064")) == run / "checkpoints" / "000000064"
    assert model_folder(tmp_path / "nothing") == tmp_path / "nothing"
    assert last_bias(DiT.from_pretrained(run)) == 1
    assert last_bias(ditzoo.create("dit_ti_2", checkpoint=run)) == 1
    assert last_bias(Pipeline.from_pretrained(run).model) == 1
    assert last_bias(start_model(run)) == 1


def test_a_checkpoint_that_training_wrote_with_adapters_is_found(tmp_path):
    model = with_lora("dit_ti_2")
    state = TrainingState({f"weights/{name}": each.detach() for name, each in model.named_parameters()}, {})
    path = Checkpoints(tmp_path / "checkpoints").save(merged(model), state, seen=64, step=2)
    assert model_folder(tmp_path) == path
    with torch.no_grad():
        x = inputs(model)
        torch.testing.assert_close(start_model(tmp_path)(*x), model(*x), rtol=1e-4, atol=1e-5)
    kept = load_state(Checkpoints(tmp_path / "checkpoints").newest()).tensors
    assert all(torch.equal(kept[name], value) for name, value in state.tensors.items())


@pytest.mark.parametrize("damage", ["shorter", "missing", "torn", "no config", "no sizes"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    run = a_run(tmp_path / "mine")
    newest = run / "checkpoints" / "000000064"
    if damage == "shorter":
        (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-1])
    elif damage == "missing":
        (newest / "training.safetensors").unlink()
    elif damage == "torn":
        (newest / "training.json").write_text('{"files": {"config.js')
    else:
        files = "{}" if damage == "no config" else '["config.json"]'
        (newest / "training.json").write_text(f'{{"files": {files}}}')
    assert model_folder(run).name == "000000032"


def test_numbers_of_checkpoints_are_compared_as_numbers(tmp_path):
    run = a_run(tmp_path / "mine", ("999999999", "1000000000"))
    assert model_folder(run).name == "1000000000"


def test_a_run_without_a_whole_checkpoint_is_told(tmp_path):
    run = a_run(tmp_path / "mine", whole=0)
    for load in (DiT.from_pretrained, Pipeline.from_pretrained, start_model):
        with pytest.raises(FileNotFoundError, match=r"mine is a training run without a whole checkpoint"):
            load(run)


def test_a_run_that_has_not_come_to_a_checkpoint_is_told(tmp_path):
    (tmp_path / "run.yaml").write_text("model: dit_ti_2")
    with pytest.raises(FileNotFoundError, match="is a training run without a whole checkpoint; let it train on"):
        DiT.from_pretrained(tmp_path)


# Where fine-tuning starts.


def test_other_classes_keep_the_rows_of_the_label_table_that_there_are(caplog):
    caplog.set_level(logging.WARNING, "ditzoo")
    old = ditzoo.create("dit_ti_2.digits", pretrained=True)
    model = start_model("dit_ti_2.digits", num_classes=37)
    assert (model.num_classes, model.null_label) == (37, 37)
    table, before = model.y_embedder.embedding_table.weight, old.y_embedder.embedding_table.weight
    assert torch.equal(table[:10], before[:10])
    assert torch.equal(table[37], before[10])
    assert torch.equal(model.blocks[0].attn.qkv.weight, old.blocks[0].attn.qkv.weight)
    assert "y_embedder.embedding_table.weight" in caplog.text
    assert "27 more drawn" in caplog.text
    assert model.details.label_names is None  # those of ten digits are no names of 37 classes


def test_weights_come_from_names_folders_and_files(tmp_path):
    model = lively("dit_ti_2")
    model.save_pretrained(tmp_path / "saved")
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    wanted = model.state_dict()
    for origin, options in [
        (tmp_path / "saved", {}),
        (str(tmp_path / "saved"), {"model": "dit_ti_2"}),
        (tmp_path / "bare.safetensors", {"model": "dit_ti_2"}),
    ]:
        found = start_model(origin, **options).state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    packaged = ditzoo.create("dit_ti_2.digits", pretrained=True).state_dict()
    for options in ({}, {"model": "dit_ti_2"}):
        found = start_model("dit_ti_2", **options).state_dict()
        assert all(torch.equal(found[name], value) for name, value in packaged.items())


def test_other_options_adapt_too(tmp_path):
    lively("uvit_ti_2").save_pretrained(tmp_path)
    assert start_model(tmp_path, input_size=16, num_classes=3).config["input_size"] == 16


@pytest.mark.parametrize(
    ("origin", "options", "error", "words"),
    [
        ("dit_ti_3", {}, ValueError, r"Unknown model 'dit_ti_3'. Did you mean dit_ti_2"),
        (
            "dit_ti_2.digits",
            {"model": "uvit_ti_2"},
            ValueError,
            r"weights of dit_ti_2.digits are not those of uvit_ti_2",
        ),
        ("runs/none", {}, FileNotFoundError, r"there is no runs/none: give a registry name, the folder of a run"),
        ("https://example.org/a.pt", {}, ValueError, r"a\.pt is a file of weights.*give its model too"),
        ("dit_ti_2", {"num_clases": 3}, TypeError, r"no option 'num_clases'. Did you mean num_classes"),
    ],
)
def test_origins_that_are_wrong(origin, options, error, words):
    with pytest.raises(error, match=words):
        start_model(origin, **options)


def test_a_bare_file_needs_its_model(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"bare\.safetensors is a file of weights.*give its model too"):
        start_model(tmp_path / "bare.safetensors")


# Freezing.


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_patterns_freeze_what_they_match_and_nothing_else():
    model = lively("dit_ti_2")
    before = trained(model)
    frozen = freeze(model, ["blocks.[01].*", "x_embedder.*"])
    names = [name for name, _ in model.named_parameters()]
    assert frozen == [name for name in names if name.startswith(("blocks.0.", "blocks.1.", "x_embedder."))]
    assert trained(model) == before - set(frozen)
    model(*inputs(model)).square().mean().backward()
    assert model.blocks[0].attn.qkv.weight.grad is None
    assert model.blocks[2].attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["blocks.0"], r"no parameter is called 'blocks.0'. Did you mean blocks.0.\*\?"),
        (["bloks.*"], r"no parameter is called 'bloks.\*'. Did you mean blocks"),
        (["zzz"], r"no parameter is called 'zzz'. There are pos_embed, x_embedder.\*, t_embedder.\*"),
        (["*"], r"freeze=x_embedder.\*, \* leaves no parameter to train: freeze fewer"),
    ],
)
def test_freezing_that_cannot_be_meant(patterns, words):
    model = lively("dit_ti_2")
    before = trained(model)
    with pytest.raises(ValueError, match=words):
        freeze(model, ["x_embedder.*", *patterns])
    assert trained(model) == before


# LoRA.


def with_lora(name, **options):
    """A model whose adapters have an effect."""
    model = lively(name)
    add_lora(model, rank=2, **options)
    generator = torch.Generator().manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", TINY)
def test_adapters_change_nothing_at_first_and_merge_into_a_plain_model(name):
    base = lively(name)
    x = inputs(base)
    model = lively(name)
    layers = add_lora(model, rank=2)
    with torch.no_grad():
        assert torch.equal(model(*x), base(*x))
        assert all(".lora_" in parameter for parameter in trained(model))
        model = with_lora(name)
        plain = merged(model)
        difference = (model(*x) - base(*x)).abs().max()
        torch.testing.assert_close(plain(*x), model(*x), rtol=1e-4, atol=0.01 * difference.item())
    assert difference > 1e-3
    assert len(layers) >= 2 * len(model.block_names())
    assert type(plain) is type(base)
    assert [(k, v.shape) for k, v in plain.state_dict().items()] == [(k, v.shape) for k, v in base.state_dict().items()]
    assert trained(plain) == trained(base)
    for contract in ("config", "null_label", "num_classes"):
        assert getattr(model, contract) == getattr(base, contract)
    assert model.block_names() == base.block_names()
    assert model.no_weight_decay() == base.no_weight_decay()


def test_a_merged_model_is_saved_and_sampled_as_any_other(tmp_path):
    model = with_lora("dit_ti_2")
    model.details = replace(model.details, recipe=QUICK)
    plain = merged(model)
    plain.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in again.state_dict().items())
    assert len(Pipeline.from_pretrained(tmp_path)(num_images=1)) == 1
    assert merged(plain) is plain
    assert (has_lora(model), has_lora(plain)) == (True, False)


def test_merging_leaves_the_model_as_it_was():
    model = with_lora("dit_ti_2")
    before = copy.deepcopy(model.state_dict())
    merged(model).final_layer.linear.bias.data.fill_(9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_alpha_scales_what_the_adapters_add():
    base, x = lively("dit_ti_2"), "blocks.1.mlp.fc1.weight"
    added = [merged(with_lora("dit_ti_2", alpha=alpha)).state_dict()[x] - base.state_dict()[x] for alpha in (None, 6)]
    torch.testing.assert_close(3 * added[0], added[1], rtol=1e-3, atol=1e-6)


def test_the_first_values_of_adapters_are_those_of_the_seed_alone():
    def first(seed):
        model = lively("dit_ti_2")
        add_lora(model, rank=2, seed=seed)
        return model.blocks[0].attn.qkv.lora_A["default"].weight

    state = torch.get_rng_state()
    one = first(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(first(1), one)
    assert not torch.equal(first(2), one)


def test_targets_are_patterns_of_linear_layers():
    model = lively("dit_ti_2")
    assert add_lora(model, rank=1, targets=["blocks.*.attn.*", "final_layer.linear"]) == [
        *(f"blocks.{i}.attn.{layer}" for i in range(4) for layer in ("qkv", "proj")),
        "final_layer.linear",
    ]
    with pytest.raises(ValueError, match=r"no linear layer is called 'blocks.0.atn'. Did you mean blocks.0.attn"):
        add_lora(lively("dit_ti_2"), rank=1, targets=["blocks.0.atn"])


def test_freezing_knows_layers_with_adapters_by_their_own_names():
    model = lively("dit_ti_2")
    add_lora(model, rank=1)
    assert freeze(model, ["blocks.0.mlp.fc1.weight"]) == ["blocks.0.mlp.fc1.weight"]
    assert "blocks.0.mlp.fc1.lora_A.default.weight" in trained(model)
    freeze(model, ["blocks.0.*"])
    assert not any(name.startswith("blocks.0.") for name in trained(model))


def test_a_block_that_only_ends_like_a_target_has_no_adapter():
    """MDTv2's `en_inblocks.0` and `sideblocks.0` end as `blocks.0` does."""
    model = lively("mdt_ti_2")
    add_lora(model, rank=1, targets=["blocks.0.mlp.fc1"])
    assert [name.partition(".lora_")[0] for name in trained(model) if "lora_A" in name] == ["blocks.0.mlp.fc1"]


def test_what_the_weights_did_not_have_is_trained_as_a_whole():
    model = start_model("dit_ti_2.digits", num_classes=12)
    add_lora(model, rank=1)
    whole = {name for name in trained(model) if ".lora_" not in name}
    assert whole == {"y_embedder.embedding_table.weight"}


def test_bad_ranks_and_a_missing_peft(monkeypatch):
    with pytest.raises(ValueError, match="lora_rank must be 1 or more, got 0"):
        add_lora(lively("dit_ti_2"), rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'LoRA needs peft: pip install "ditzoo\[lora\]"'):
        finetune.add_lora(lively("dit_ti_2"), rank=1)
