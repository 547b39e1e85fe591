"""Optimisers: which parameters they decay, whose they are, and what they refuse."""

import sys
from dataclasses import replace

import pytest
import torch

import ditzoo
from ditzoo.train.optimizers import make_optimizer, parameter_groups
from ditzoo.train.options import TrainOptions

OPTIONS = TrainOptions(num_images=1, learning_rate=0.1)
ADAN = replace(OPTIONS, optimizer="adan", betas=(0.98, 0.92, 0.99))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return ditzoo.create("mdtv2_ti_2")


def test_without_decay_all_parameters_are_one_group(model: torch.nn.Module) -> None:
    optimizer = make_optimizer(model, OPTIONS)
    (group,) = optimizer.param_groups
    assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["weight_decay"], group["fused"]) == (0.1, (0.9, 0.99), 0.0, True)


@pytest.mark.parametrize("options", [OPTIONS, ADAN], ids=["adamw", "adan"])
def test_vectors_and_position_tables_are_not_decayed(model: torch.nn.Module, options: TrainOptions) -> None:
    decayed, others = make_optimizer(model, replace(options, weight_decay=0.2)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(parameter)] for parameter in others["params"]}
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert spared == vectors | model.no_weight_decay()
    assert {"pos_embed", "mask_token", "x_embedder.proj.bias"} <= spared
    assert names[id(decayed["params"][0])] == "x_embedder.proj.weight"
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_frozen_parameters_are_left_out() -> None:
    model = ditzoo.create("dit_ti_2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("final_layer"))
    assert [len(group["params"]) for group in parameter_groups(model, 0.0)] == [4]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="freeze leaves no parameter that trains"):
        make_optimizer(model, OPTIONS)


@pytest.mark.parametrize(
    ("options", "name", "entries"),
    [
        (ADAN, "Adan", {"betas": (0.98, 0.92, 0.99)}),
        (replace(OPTIONS, optimizer="muon"), "Muon", {"betas": (0.9, 0.99)}),
        (replace(OPTIONS, optimizer="lion"), "Lion", {"betas": (0.9, 0.99)}),
        (replace(OPTIONS, optimizer="sgd", betas=(0.8, 0.9)), "SGD", {"momentum": 0.8}),
    ],
)
def test_optimisers_of_timm_step(options: TrainOptions, name: str, entries: dict) -> None:
    model = torch.nn.Linear(3, 3)
    before = model.weight.clone()
    optimizer = make_optimizer(model, options)
    assert type(optimizer).__name__ == name
    assert {entry: optimizer.param_groups[0][entry] for entry in (*entries, "lr")} == {**entries, "lr": 0.1}
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_muon_treats_position_tables_as_adamw_does(model: torch.nn.Module) -> None:
    groups = make_optimizer(model, replace(OPTIONS, optimizer="muon", weight_decay=0.1)).param_groups
    assert [group.get("use_fallback", False) for group in groups] == [False, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'. Did you mean adam"),
        ({"optimizer": "adan"}, r"betas must be 3 numbers for adan, such as its own \(0.98, 0.92, 0.99\), got \(0.9"),
        (
            {"optimizer": "adahessian"},
            "optimizer 'adahessian' needs second derivatives, which are not computed; choose",
        ),
        ({"optimizer": "bnbadam"}, r"optimizer 'bnbadam' cannot be made here \(.*bitsandbytes.*\); install what it is"),
        ({"optimizer": "fusedsgd"}, r"optimizer 'fusedsgd' cannot be made here \(.*\); install what it is from, or"),
        ({"betas": (0.9,)}, r"betas must be 2 numbers for adamw, such as its own \(0.9, 0.999\), got \(0.9,\)"),
    ],
)
def test_what_no_optimiser_takes_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_optimizer(torch.nn.Linear(2, 2), replace(OPTIONS, **options))


def test_without_timm_its_optimisers_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(ImportError, match=r"optimizer 'adan' is one of timm's: pip install \"ditzoo\[train\]\""):
        make_optimizer(torch.nn.Linear(2, 2), ADAN)
    assert isinstance(make_optimizer(torch.nn.Linear(2, 2), OPTIONS), torch.optim.AdamW)
