"""The optimiser of a run: PyTorch's AdamW, or any that timm has."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ditzoo.train.options import TrainOptions
from ditzoo.train.settings import did_you_mean

#: Words by which timm's optimisers of matrices know the groups that they leave to AdamW.
_MUONS = ("muon", "nmuon", "adamuon", "nadamuon")


def make_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """The optimiser of the parameters that train.

    `"adamw"` is PyTorch's fused one, any other name timm's. Adan takes three betas; optimisers with a momentum and no
    betas, such as `"sgd"`, take the first for it. Muon orthogonalises the updates of matrices, those of label tables
    and the last layer too, and treats vectors, and under weight decay the position tables, as AdamW does.

    Args:
        model: whose `no_weight_decay()`, if it has one, names what is not decayed, besides biases and norms.
        options: of these `optimizer`, `learning_rate`, `betas` and `weight_decay`.

    Raises:
        ValueError: for a name that timm does not have, an optimiser that cannot be made or used here, another number of
            betas than it takes, or a model of which nothing trains; the message names the field.
        ImportError: for an optimiser of timm where timm is not installed.
    """
    groups = parameter_groups(model, options.weight_decay)
    if not groups:
        raise ValueError("freeze leaves no parameter that trains; freeze fewer.")
    arguments = optimizer_arguments(options)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True, **arguments)
    from timm.optim import create_optimizer_v2

    if options.optimizer in _MUONS and len(groups) == 2:
        groups[1]["use_fallback"] = True
    try:
        optimizer: Optimizer = create_optimizer_v2(groups, options.optimizer, lr=options.learning_rate, **arguments)
    except (TypeError, AssertionError, ImportError) as error:  # of optimisers of bitsandbytes and apex
        raise ValueError(
            f"optimizer {options.optimizer!r} cannot be made here ({error}); install what it is from, or choose "
            'another, such as "adamw".'
        ) from error
    return optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that train, in their order: those that are decayed and those that are not, if there are any.

    Not decayed are vectors, such as biases and norms, and what `model.no_weight_decay()` names.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (others if parameter.ndim < 2 or name in spared else decayed).append(parameter)
    if not weight_decay:  # one group, in the model's order: what fused kernels do fastest
        decayed, others = [p for p in model.parameters() if p.requires_grad], []
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def optimizer_arguments(options: TrainOptions) -> dict[str, Any]:
    """The betas of the options, as the optimiser takes them; known without a model.

    Raises:
        ValueError, ImportError: as `make_optimizer`.
    """
    name = options.optimizer
    if name == "adamw":
        return {"betas": _checked_betas(options, 2, (0.9, 0.999))}
    try:
        from timm.optim import get_optimizer_info, list_optimizers
    except ImportError as error:
        raise ImportError(
            f'optimizer {name!r} is one of timm\'s: pip install "ditzoo[train]", or choose "adamw".'
        ) from error
    if name not in list_optimizers():
        raise ValueError(
            f"unknown optimizer {name!r}.{did_you_mean(name, list_optimizers())} timm.optim.list_optimizers() lists "
            "those of timm, such as adan, lion, muon and sgd."
        )
    info = get_optimizer_info(name)
    if info.second_order:
        raise ValueError(f'optimizer {name!r} needs second derivatives, which are not computed; choose "adamw", say.')
    if info.has_betas:
        is_there = callable(info.opt_class)  # of packages that timm does not bring it has the name alone
        own = inspect.signature(info.opt_class).parameters["betas"].default if is_there else None
        return {"betas": _checked_betas(options, info.num_betas, own)}
    return {"momentum": options.betas[0]} if info.has_momentum else {}


def _checked_betas(options: TrainOptions, count: int, own: tuple[float, ...] | None) -> tuple[float, ...]:
    if len(options.betas) != count:
        example = f", such as its own {own}" if own else ""
        raise ValueError(f"betas must be {count} numbers for {options.optimizer}{example}, got {options.betas}.")
    return options.betas
