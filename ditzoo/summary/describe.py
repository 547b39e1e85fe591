"""What is known about a name: sizes, cost, memory, recipe, licence, and a drawing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

import torch

from ditzoo import registry
from ditzoo.diffusion import count_evaluations
from ditzoo.metrics import MacCount, count_macs
from ditzoo.models import FAMILIES, DiffusionTransformer, Family
from ditzoo.recipe import Guidance, Recipe
from ditzoo.registry import ModelInfo
from ditzoo.summary.drawing import draw_blocks
from ditzoo.summary.words import (
    guidance_formula,
    guided_channels,
    mask_ratio,
    unused_groups,
)

_WIDTH = 100
_LABEL = 22  # columns of labels, margins included
#: label and text; an empty label goes on with the one above
_Line = tuple[str, str]

_PREDICTIONS = {
    "epsilon": "the noise",
    "v_prediction": "alpha * noise - sigma * data",
    "sample": "the data",
    "velocity": "data - noise",
    "score": "minus the noise over its standard deviation",
    "edm": "what EDM's preconditioning makes the data of",
}
_SCHEDULES = {
    "linear": "DDPM's",
    "scaled_linear": "Stable Diffusion's",
    "cosine": "of arXiv:2102.09672",
    "continuous_vp": "the variance-preserving SDE, in continuous time",
    "flow_linear": "the straight line from noise at time 0 to data at time 1",
    "flow_gvp": "a quarter circle from noise at time 0 to data at time 1",
    "flow_vp": "the variance-preserving path from noise at time 0 to data at time 1",
    "edm": "noise added to unscaled data, up to a standard deviation of 80",
}


def describe(name: str, *, ascii: bool = False) -> str:
    """All that is known about a name of the registry, as `ditzoo info` prints it.

    Args:
        name: one of `list_models()`, with or without a tag.
        ascii: draw with ASCII characters only.

    Raises:
        ValueError: for an unknown name or tag.
    """
    info = registry.model_info(name)
    with torch.device("meta"):
        model = registry.create(name)
    macs = count_macs(model)
    sections = [
        _section(info.name, _identity(info)),
        _section("Sizes", _sizes(info, model)),
        _section("Multiply-adds of one forward pass of one input", _cost(macs)),
        _cost_table(macs),
        _section("Memory (1 MB is 1,000,000 bytes)", _memory(info)),
        _section(_recipe_title(info), _recipe(info.recipe, model.in_channels)),
        _section("Weights", _weights(info, model)),
        _section("Options", ((option, repr(value)) for option, value in info.config.items())),
        "Blocks, from the input down; shapes without the batch: (tokens, width) or (channels, height, width)",
    ]
    return "\n\n".join([*sections, draw_blocks(model, ascii=ascii)])


def _section(title: str, lines: Iterable[_Line]) -> str:
    text = [title]
    for label, words in lines:
        start = f"  {label} ".ljust(_LABEL)
        text += textwrap.wrap(
            words, _WIDTH, initial_indent=start, subsequent_indent=" " * _LABEL, break_on_hyphens=False
        )
    return "\n".join(text)


def _identity(info: ModelInfo) -> Iterator[_Line]:
    family = _family(info)
    yield "family", f"{family.title} ({info.family}): {family.summary}" if family else info.family
    yield "class", info.model_cls
    yield "paper", info.paper or "none given"
    if info.ours and family:
        yield "size", "ours: no paper has it"


def _family(info: ModelInfo) -> Family | None:
    """The family that brings the name; None for a registered model, of which that family's paper says nothing."""
    bare = info.name.partition(".")[0]
    return next((family for family in FAMILIES if any(bare == known.name for known in family.architectures)), None)


def _sizes(info: ModelInfo, model: DiffusionTransformer) -> Iterator[_Line]:
    frozen = info.num_params - info.num_trainable_params
    yield "parameters", f"{info.num_params:,}: {info.num_trainable_params:,} trained, {frozen:,} frozen"
    blocks = len(model.block_names())
    counted = f", which the option depth counts as {model.depth}" if blocks != model.depth else ""
    yield "blocks", f"{blocks}{counted}"
    inner = int(model.hidden_size * model.config["mlp_ratio"])
    head = model.hidden_size // model.num_heads
    yield "width", f"{model.hidden_size}; {model.num_heads} attention heads of {head}, MLP of {inner}"
    side, patch = model.input_size, model.patch_size
    yield "input", f"{model.in_channels}x{side}x{side}, cut into patches of {patch}x{patch}"
    channels, computed = model.out_channels, model.head_channels
    meaning = ": first the prediction, then a variance" if channels > model.in_channels else ""
    dropped = f"; the last layer computes {computed} channels, of which the others are dropped"
    yield "output", f"{channels}x{side}x{side}{meaning}{dropped * (computed > channels)}"
    rows, columns = model.grid
    extra = model.num_extra_tokens
    more = f", and {extra} in front of them: {info.num_tokens + extra:,}" if extra else ""
    yield "tokens", f"{info.num_tokens:,} patches ({rows}x{columns}){more}"
    null = "no null label" if model.null_label is None else f"null label {model.null_label}"
    yield "classes", f"{model.num_classes:,}, {null}" if model.num_classes else "none: the model is unconditional"


def _cost(macs: MacCount) -> Iterator[_Line]:
    yield "total", f"{macs.gmacs:.4g} GMACs (papers print this as Gflops), {macs.gflops:.4g} GFLOPs (2 x GMACs)"
    yield "", f"{macs.gmacs_without_attention:.4g} GMACs without attention products"


def _cost_table(macs: MacCount) -> str:
    unit, scale = ("GMACs", 1e9) if macs.total >= 1e9 else ("MMACs", 1e6)
    rows = [("part", unit, "%")]
    rows += [(part, f"{count / scale:,.3f}", f"{100 * count / macs.total:.2f}") for part, count in macs.by_part.items()]
    rows.append(("total", f"{macs.total / scale:,.3f}", "100.00"))
    return "\n".join(f"  {part:<24}{count:>12}{share:>9}" for part, count, share in rows)


def _memory(info: ModelInfo) -> Iterator[_Line]:
    weights, trained = info.num_params, info.num_trainable_params
    yield "weights", f"{_megabytes(4 * weights)} in float32, {_megabytes(2 * weights)} in bfloat16 or float16"
    state = 4 * (weights + 3 * trained)
    yield "training", f"{_megabytes(state)} in float32 with AdamW: weights, gradients and two moments"
    yield "", f"{_megabytes(state + 4 * weights)} with an averaged copy of the weights"
    yield "", "Activations come on top and grow with the batch."


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _recipe_title(info: ModelInfo) -> str:
    return "Recipe" + " (of the family's published models)" * bool(_family(info) and not info.source and not info.tags)


def _recipe(recipe: Recipe | None, in_channels: int) -> Iterator[_Line]:
    if recipe is None:
        yield "", "none given"
        return
    yield "prediction", f"{recipe.prediction}: {_PREDICTIONS[recipe.prediction]}"
    steps = f"; {recipe.num_train_timesteps:,} timesteps" if recipe.is_discrete else ""
    yield "schedule", f"{recipe.schedule}: {_SCHEDULES[recipe.schedule]}{steps}"
    yield "guidance", _guidance(recipe.guidance, recipe.num_train_timesteps, in_channels)
    yield "sampler", _sampler(recipe)
    codec = f"{recipe.latent_codec}, latents times {recipe.latent_scale:g}"
    yield "autoencoder", codec if recipe.latent_codec else "none: the model sees pixels"
    if recipe.mask_ratio is not None:
        drawn = ", drawn anew each step" if recipe.mask_ratio_spread else ""
        yield "masking", f"{mask_ratio(recipe)} of the tokens{drawn}, in a second pass over each training image"
    yield "samples from", {"ema": "the moving average of the weights", "raw": "the last weights"}[recipe.weights]


def _sampler(recipe: Recipe) -> str:
    """Name, steps and cost."""
    evaluations = count_evaluations(recipe)
    if evaluations is None:
        return f"{recipe.sampler}: as many forward passes as its tolerance asks for"
    passes = evaluations * (1 if recipe.guidance.is_off else 2)
    return f"{recipe.sampler}, {recipe.num_inference_steps:,} steps: {passes:,} forward passes an image"


def _guidance(guidance: Guidance, timesteps: int, in_channels: int) -> str:
    """Formula and words."""
    if guidance.is_off:
        return "none"
    where = guided_channels(guidance, in_channels).replace("first", "the first")
    text = f"{guidance_formula(guidance)} on {where}; c with the label, u with the null label"
    if guidance.schedule == "power_cosine":
        off = 1 if guidance.convention == "dit" else 0
        rise = f"{guidance.scale - off:g} (1 - cos(pi (1 - t / {timesteps})^{guidance.power:g})) / 2"
        text += f"; s = {f'{off} + ' * bool(off)}{rise}, from {off} in noise to {guidance.scale:g} at t = 0"
    return text


def _weights(info: ModelInfo, model: DiffusionTransformer) -> Iterator[_Line]:
    if info.source:
        yield "source", info.source
        yield "licence", info.licence or "none given"
        yield "trained on", info.data or "not given"
    elif info.tags:
        yield "published", f"{', '.join(f'{info.name}.{tag}' for tag in info.tags)}"
    else:
        yield "published", "none"
    if not info.unused:
        return
    groups = unused_groups(model, info.unused)
    unused = sum(group.values for group in groups)
    yield "without effect", f"{unused:,} of {info.num_params:,} parameters; the state dict carries them"
    for group in groups:
        times = f"{len(group.names)} x " if len(group.names) > 1 else ""
        rows = f" rows {group.rows}" if group.rows else ""
        yield "", f"{times}{group.name}{rows}: {group.reason}"
