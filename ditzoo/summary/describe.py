"""What is known about a name: sizes, cost, memory, recipe, licence, and a drawing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from ditzoo import registry
from ditzoo.diffusion import count_evaluations
from ditzoo.metrics import MacCount, count_macs
from ditzoo.models import FAMILIES, DiffusionTransformer, Family
from ditzoo.models.families import pixel_recipe
from ditzoo.recipe import Recipe
from ditzoo.registry import ModelInfo
from ditzoo.summary.drawing import draw_blocks
from ditzoo.summary.words import (
    file_facts,
    guidance_in_words,
    mask_ratio,
    result_settings,
    score,
    unused_groups,
    unusual,
)
from ditzoo.weights.published import headline_results, published_results
from ditzoo.weights.records import load_records

_WIDTH = 100
_LABEL = 22  # columns of labels, margins included
#: label and text; an empty label goes on with the one above
_Line = tuple[str, str]

_PREDICTIONS = {
    "epsilon": "the noise",
    "v_prediction": "alpha * noise - sigma * data",
    "sample": "the data",
    "velocity": "alpha' * data + sigma' * noise, where ' is the derivative in time",
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
_WEIGHTS = {"ema": "the moving average of the weights", "raw": "the last weights"}
_GUIDED = {
    "classifier_free": "c with the label, u with the null label",
    "autoguidance": "c from the model, u from a weaker model for the same label",
}
#: of a recipe, told in sentences; what a recipe has besides is listed where it differs from its default
_TOLD = {
    *("prediction", "schedule", "num_train_timesteps", "guidance", "sampler", "num_inference_steps", "weights"),
    *("latent_codec", "latent_scale", "mask_ratio", "mask_ratio_spread", "licence", "source"),
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
    family = _family(info)
    sections = [
        _section(info.name, _identity(info, family)),
        _section("Sizes", _sizes(info, model)),
        _section("Multiply-adds of one forward pass of one input", _cost(macs)),
        _cost_table(macs),
        _section("Memory (1 MB is 1,000,000 bytes)", _memory(info)),
        _section(_recipe_title(info, family), recipe_lines(info.recipe, model.in_channels)),
        _section("Weights", _weights(info, model)),
        _section("Options", ((option, repr(value)) for option, value in info.config.items())),
        "Blocks, from the input down; shapes without the batch: (tokens, width) or (channels, height, width)",
        draw_blocks(model, ascii=ascii),
    ]
    return "\n\n".join(sections)


def _section(title: str, lines: Iterable[_Line]) -> str:
    text = [title]
    for label, words in lines:
        start = f"  {label} ".ljust(_LABEL)
        text += textwrap.wrap(
            words, _WIDTH, initial_indent=start, subsequent_indent=" " * _LABEL, break_on_hyphens=False
        )
    return "\n".join(text)


def _family(info: ModelInfo) -> Family | None:
    """The family that brings the name; None for a registered model, of which that family's paper says nothing."""
    bare = info.name.partition(".")[0]
    return next((family for family in FAMILIES if any(bare == known.name for known in family.architectures)), None)


def _identity(info: ModelInfo, family: Family | None) -> Iterator[_Line]:
    yield "family", f"{family.title} ({info.family}): {family.summary}" if family else info.family
    yield "class", info.model_cls
    yield "paper", info.paper or "none given"
    if info.ours and family:
        yield "size", "ours: no paper has it"


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
    lines = [f"  {'part':<24}{unit:>12}{'%':>9}"]
    for part, count in [*macs.by_part.items(), ("total", macs.total)]:
        lines.append(f"  {part:<24}{count / scale:>12,.3f}{100 * count / macs.total:>9.2f}")
    return "\n".join(lines)


def _memory(info: ModelInfo) -> Iterator[_Line]:
    weights, gradients = 4e-6 * info.num_params, 4e-6 * info.num_trainable_params
    training = weights + 3 * gradients
    yield "weights", f"{weights:,.1f} MB in float32, {weights / 2:,.1f} MB in bfloat16 or float16"
    yield "training", f"{training:,.1f} MB in float32 with AdamW: weights, gradients and two moments"
    yield "", f"{training + weights:,.1f} MB with an averaged copy of the weights"
    yield "", "Activations come on top and grow with the batch."


def _recipe_title(info: ModelInfo, family: Family | None) -> str:
    """`Recipe`, and of a bare name where it comes from: the published weights that have it."""
    if family is None or info.source is not None:
        return "Recipe"
    recipes = _published_recipes(family)
    same = [name for name, recipe in recipes.items() if recipe == info.recipe]
    own = [name for name in recipes if name.partition(".")[0] == info.name]
    if both := [name for name in own if name in same]:
        return f"Recipe (of the published {' and '.join(both)})"
    adapted = [name for name, recipe in recipes.items() if pixel_recipe(recipe) == info.recipe]
    origin = "of the paper; no weights of it are published"
    if same or adapted:
        origin = f"of the family's published {' and '.join(same or adapted)}" + ", adapted to pixels" * (not same)
    return f"Recipe ({origin}{'; ' * bool(own)}{' and '.join(own)}{' has another' * bool(own)})"


def _published_recipes(family: Family) -> dict[str, Recipe]:
    """Recipes of the weights that the family's authors published, without licence and source, by name."""
    infos = map(registry.model_info, registry.list_models(family=family.name, pretrained=True))
    return {
        info.name: replace(info.recipe, licence=None, source=None)
        for info in infos
        if info.recipe is not None and not info.packaged
    }


def recipe_lines(recipe: Recipe | None, in_channels: int) -> Iterator[_Line]:
    """Label and words of what a recipe says."""
    if recipe is None:
        yield "", "none given"
        return
    timesteps = f"; {recipe.num_train_timesteps:,} timesteps" if recipe.is_discrete else ""
    yield "prediction", _prediction(recipe)
    yield "schedule", _explained(recipe.schedule, _SCHEDULES) + timesteps
    guidance = guidance_in_words(recipe.guidance, recipe.num_train_timesteps, in_channels)
    yield "guidance", guidance if recipe.guidance.is_off else f"{guidance}; {_GUIDED[recipe.guidance.kind]}"
    yield "sampler", _sampler(recipe)
    codec = f"{recipe.latent_codec}, latents times {recipe.latent_scale:g}"
    yield "autoencoder", codec if recipe.latent_codec else "none: the model sees pixels"
    if recipe.mask_ratio is not None:
        drawn = ", drawn anew each step" if recipe.mask_ratio_spread else ""
        yield "masking", f"{mask_ratio(recipe)} of the tokens{drawn}, in a second pass over each training image"
    yield "samples from", _WEIGHTS[recipe.weights]
    yield from unusual(recipe, _TOLD)


def _prediction(recipe: Recipe) -> str:
    if recipe.prediction == "velocity" and recipe.schedule == "flow_linear":
        return "velocity: data - noise"  # alpha' = 1, sigma' = -1
    return _explained(recipe.prediction, _PREDICTIONS)


def _sampler(recipe: Recipe) -> str:
    """Name, steps and cost."""
    evaluations = count_evaluations(recipe)
    if evaluations is None:
        return f"{recipe.sampler}: as many forward passes as its tolerance asks for"
    steps = f"{recipe.sampler}, {recipe.num_inference_steps:,} steps"
    if recipe.guidance.kind == "autoguidance" and not recipe.guidance.is_off:
        return f"{steps}: {evaluations:,} forward passes an image, and as many of the weaker model"
    passes = evaluations * (1 if recipe.guidance.is_off else 2)
    return f"{steps}: {passes:,} forward passes an image"


def _explained(choice: str, words: Mapping[str, str]) -> str:
    return f"{choice}: {words[choice]}" if choice in words else choice


def _sources(info: ModelInfo) -> Iterator[_Line]:
    """Where each copy lies, and what is known of the file."""
    yield "source", info.source or ""
    for place, file in enumerate(info.files):
        if place:
            yield "source", file.source
        layout = {"official": "the authors' layout", "diffusers": "diffusers' layout"}[file.layout]
        yield "", f"{layout}{', fetched by hand' * (file.fetched == 'by hand')}; {file_facts(file)}"


def _results(info: ModelInfo) -> Iterator[_Line]:
    """The authors' best printed results, without and with guidance."""
    shown = headline_results(info.name)
    for place, result in enumerate(shown):
        scores = f"FID {score(result.fid)}"
        if result.inception_score is not None:
            scores += f", IS {score(result.inception_score)}"
        second_hand = ", second-hand" * (result.confidence == "secondary")
        yield "published" * (place == 0), f"{scores} ({result_settings(result)}): {result.source}{second_hand}"
    if rest := len(published_results(info.name)) - len(shown):
        yield "", f"{rest} more: ditzoo.weights.published_results({info.name!r})"


def _records(info: ModelInfo) -> Iterator[_Line]:
    """Files that passed `ditzoo verify` on this machine."""
    try:
        records = load_records(info.name)
    except (OSError, ValueError) as error:
        yield "recorded", str(error)
        return
    for record in records:
        hashes = {"sha256": record.sha256, "sampled hash": record.sampled_hash, "revision": record.revision}
        facts = [f"{record.num_bytes:,} bytes", *(f"{key} {value}" for key, value in hashes.items() if value)]
        yield "recorded", f"on this machine on {record.date}: {record.file}, {', '.join(facts)}"


def _weights(info: ModelInfo, model: DiffusionTransformer) -> Iterator[_Line]:
    if info.source:
        yield from _sources(info)
        yield "licence", (info.licence or "none given") + ": no commercial use" * info.is_non_commercial
        yield "trained on", info.data or "not given"
        yield "moving average", {True: "yes", False: "no, the last weights", None: "not stated"}[info.ema]
        yield from _results(info)
        yield from _records(info)
    else:
        names = [f"{info.name}.{tag}" for tag in info.tags]
        packaged = [name for name in names if registry.model_info(name).packaged]
        yield "published", ", ".join(name for name in names if name not in packaged) or "none"
        if packaged:
            yield "packaged", f"{', '.join(packaged)}: ours, which create(name, pretrained=True) loads"
    groups = unused_groups(model, info.unused)
    unused = sum(group.values for group in groups)
    if groups:
        yield "without effect", f"{unused:,} of {info.num_params:,} parameters; the state dict carries them"
    for group in groups:
        times = f"{len(group.names)} x " if len(group.names) > 1 else ""
        rows = f" rows {group.rows}" if group.rows else ""
        yield "", f"{times}{group.name}{rows}: {group.reason}"
