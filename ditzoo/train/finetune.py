"""Training that starts from other weights: where they come from, which of them stay, and low-rank adapters."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditzoo import registry
from ditzoo.models import DiffusionTransformer
from ditzoo.weights.folders import construct, is_own, model_folder
from ditzoo.weights.hub import is_hub_name

_ADAPTER = "default"


def start_model(
    origin: str | Path, *, model: str | None = None, num_classes: int | None = None, **options: Any
) -> DiffusionTransformer:
    """The model that fine-tuning starts from, with its weights.

    What the weights are for other classes, channels or sizes than is adapted as `ditzoo.create` does it, and logged as
    a warning; `model.load_result` lists it.

    Args:
        origin: a registry name with weights, such as `"dit_xl_2"`; the folder of a run, a checkpoint or a saved model;
            `"hf-hub:user/repo"`; or, where `model` is given, a file of weights or its address.
        model: registry name of the network. Needed for a bare file; elsewhere it must be what the origin holds.
        num_classes: of the data; None keeps those of the weights.
        **options: other constructor options that change, such as `input_size=64`.

    Raises:
        ValueError: for an unknown name, a file without `model`, or weights of another network.
        TypeError: for an option that the network does not have.
        OSError: for what is not there or cannot be fetched.
    """
    text = str(origin)
    if num_classes is not None:
        options["num_classes"] = num_classes
    is_name = _is_name(text)
    if is_name and (model is None or text.partition(".")[0] == model.partition(".")[0]):
        return registry.create(text, pretrained=True, **options)
    if is_name:
        raise ValueError(
            f"the weights of {text} are not those of {model}: leave out the model, or give weights of {model}."
        )
    if model is not None:
        return registry.create(model, checkpoint=origin, **options)
    check_origin(text)
    if is_hub_name(text):
        return registry.create(text, **options)
    return DiffusionTransformer.from_pretrained(model_folder(origin), **options)


def check_origin(origin: str) -> None:
    """That weights say of which network they are.

    Raises:
        ValueError: for a file or an address, which do not.
        FileNotFoundError: for a folder that is not there.
    """
    if _is_name(origin) or is_hub_name(origin) or Path(origin).is_dir():
        return
    if Path(origin).is_file() or "://" in origin:
        raise ValueError(f"{origin} is a file of weights, which does not say of which network: give its model too.")
    raise FileNotFoundError(
        f"there is no {origin}: give a registry name, the folder of a run or of a saved model, or hf-hub:user/repo."
    )


def _is_name(origin: str) -> bool:
    """Whether it can be one of the registry."""
    return not is_hub_name(origin) and not Path(origin).exists() and not re.search(r"[/\\]", origin)


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Keep parameters as they are.

    Args:
        model: whose parameters of these names need no gradient afterwards.
        patterns: of names, with shell wildcards, such as `"blocks.*"`. A layer with an adapter keeps its names.

    Returns:
        The names that the patterns match.

    Raises:
        ValueError: for a pattern that matches no parameter (near names are given), or if nothing is left to train.
    """
    parameters = {_plain_name(name): parameter for name, parameter in model.named_parameters()}
    frozen = {name for pattern in patterns for name in _matching(pattern, list(parameters))}
    if not any(parameter.requires_grad and name not in frozen for name, parameter in parameters.items()):
        raise ValueError(f"freeze={', '.join(patterns) or 'none'} leaves no parameter to train: freeze fewer.")
    for name in frozen:
        parameters[name].requires_grad_(False)
    return [name for name in parameters if name in frozen]


def _plain_name(name: str) -> str:
    """Of a parameter in the model without adapters."""
    return name.replace(".base_layer.", ".")


def _matching(pattern: str, names: Sequence[str], what: str = "parameter") -> list[str]:
    found = fnmatch.filter(names, pattern)
    if not found:
        parts = dict.fromkeys(
            ".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)
        )
        if pattern in parts:
            advice = f"Did you mean {pattern}.*?"
        else:
            near = get_close_matches(pattern.rstrip(".*"), parts, n=3)
            advice = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(_tops(names))}."
        raise ValueError(f"no {what} is called {pattern!r}. {advice}")
    return found


def _tops(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(f"{name.partition('.')[0]}.*" if "." in name else name for name in names))


def add_lora(
    model: DiffusionTransformer,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Put low-rank adapters (arXiv:2106.09685) beside linear layers and freeze all else, through peft.

    The model stays of its class, computes at first what it did, and is changed in place. Weights that loading had to
    draw or resize, such as the label table for other classes, are still trained, as a whole.

    Args:
        model: whose weights are loaded.
        rank: of the adapters.
        alpha: what they are scaled by, over the rank; None is the rank, a scale of 1.
        targets: names of linear layers, with shell wildcards; None or none of them takes all those in blocks.
        seed: of the adapters' first values.

    Returns:
        Names of the layers that have an adapter.

    Raises:
        ImportError: where peft is missing.
        ValueError: for a rank below 1, or a target that is no linear layer.
    """
    if rank < 1:
        raise ValueError(f"lora_rank must be 1 or more, got {rank}; 0 in a run's config means no adapters.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "ditzoo[lora]"') from error
    layers = _lora_layers(model, targets)
    adapted = _adapted_parameters(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules="|".join(map(re.escape, layers)),
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), torch.device(model.device):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for name, parameter in model.named_parameters():
        if name in adapted:
            parameter.requires_grad_(True)
    return layers


def has_lora(model: nn.Module) -> bool:
    """Whether `add_lora` has changed the model."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def merged(model: DiffusionTransformer) -> DiffusionTransformer:
    """A model without adapters that computes the same: theirs are added to its weights. One without is returned as it
    is. In evaluation mode, with the `details` of the model."""
    if not has_lora(model):
        return model
    cls = type(model)
    plain = construct(cls, model.config, meta=is_own(registry.class_path(cls)))
    plain.load_state_dict(merged_state(model), assign=True)
    plain.details, plain.load_result = model.details, model.load_result
    return plain.eval()


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model without adapters, theirs added to its weights; copies."""
    deltas = {
        f"{name}.base_layer.weight": module.get_delta_weight(_ADAPTER)
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    state = {}
    for name, value in model.state_dict().items():
        if ".lora_" in name:
            continue
        value = value.detach() + deltas[name].detach().to(value) if name in deltas else value.detach().clone()
        state[_plain_name(name)] = value
    return state


def _lora_layers(model: DiffusionTransformer, targets: Sequence[str] | None) -> list[str]:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not targets:
        return [name for name in linear if any(name.startswith(f"{block}.") for block in model.block_names())]
    chosen = {name for pattern in targets for name in _matching(pattern, linear, "linear layer")}
    return [name for name in linear if name in chosen]


def _adapted_parameters(model: DiffusionTransformer) -> set[str]:
    """Those that loading could not take from the weights as they are, of those that are trained."""
    if model.load_result is None:
        return set()
    changed = {*model.load_result.resized, *model.load_result.reinitialized}
    return {name for name, parameter in model.named_parameters() if name in changed and parameter.requires_grad}
