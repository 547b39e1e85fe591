"""What `ditzoo train` shows: a flag for every setting, and what a run would be. Its flags load no torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from ditzoo.train.config import RunConfig, default_of, make_config, read_yaml
from ditzoo.train.presets import get_preset, list_presets
from ditzoo.train.settings import OTHER_NAMES, field_docs, field_types

if TYPE_CHECKING:
    from ditzoo.train.estimate import Estimate, Memory

#: Flags that are called otherwise than their setting, whose name is a word of Python or no word for a flag.
_FLAG_NAMES = {"from_weights": "--from"}


@dataclass(frozen=True)
class Flag:
    """Of the command line, for one setting.

    Attributes:
        setting: name of the field of `RunConfig`.
        names: of the flag, and of the one that says no.
        text: what it is.
        choices: the words that it takes; None where it takes others.
        metavar: what stands for its value.
        repeats: whether it may be given several times.
    """

    setting: str
    names: str
    text: str
    choices: tuple[str, ...] | None
    metavar: str | None
    repeats: bool


def flags() -> list[Flag]:
    """A flag for every setting, in their order; those of what is trained first."""
    docs, types = field_docs(RunConfig), field_types(RunConfig)
    names = [f.name for f in fields(RunConfig)]
    begin = names.index("preset")
    return [_flag(name, types[name], docs[name]) for name in names[begin:] + names[:begin]]


def _flag(name: str, kind: Any, doc: str) -> Flag:
    kinds = [kind, *get_args(kind)]
    dashed = _FLAG_NAMES.get(name, f"--{name.replace('_', '-')}")
    default = default_of(name)
    text = doc.replace("`", "")
    text = text[0].upper() + text[1:]
    if default not in (None, (), {}) and kind is not bool:
        text += f" [default: {_written(default)}]"
    if kind is bool:
        return Flag(name, f"{dashed}/--no-{dashed[2:]}", text, None, None, False)
    if get_origin(kind) is Literal:
        return Flag(name, dashed, text, get_args(kind), None, False)
    if any(isinstance(get_origin(each), type) and issubclass(get_origin(each), Mapping) for each in kinds):
        return Flag(name, dashed, text, None, "ENTRY=VALUE", True)
    if get_origin(kind) is tuple:
        return Flag(name, dashed, text, None, "A,B,...", False)
    number = "INTEGER" if int in kinds else "NUMBER" if float in kinds else "TEXT"
    return Flag(name, dashed, text, None, number, False)


def usual_flag(word: str) -> str | None:
    """The flag for what other programs call otherwise, such as `--lr`."""
    setting = OTHER_NAMES.get(word.removeprefix("--").replace("-", "_"))
    return next((flag.names.partition("/")[0] for flag in flags() if flag.setting == setting), None)


def settings_rows(config: RunConfig, given: Mapping[str, Any], file: str | Path | None) -> list[tuple[str, str, str]]:
    """Each setting, its value, and where that is from."""
    written = {} if file is None else read_yaml(file)
    preset = get_preset(config.preset).values if config.preset is not None else {}
    rows = []
    for name, value in config.to_dict().items():
        origins = []
        if name in given:
            origins.append("given")
        if name in written and (not origins or isinstance(value, Mapping)):
            origins.append(f"{file}")
        if name in preset and (not origins or isinstance(value, Mapping)):
            origins.append(f"preset: {preset[name]}")
        rows.append((name, _written(value), "; ".join(origins) or "default"))
    return rows


def command_line(given: Mapping[str, Any], file: str | Path | None) -> str:
    """The command that was given, for the model's card."""
    words = ["ditzoo", "train", *([] if file is None else ["--config", str(file)])]
    names = {flag.setting: flag.names for flag in flags()}
    for setting, value in given.items():
        yes, _, no = names[setting].partition("/")
        if isinstance(value, bool):
            words.append(yes if value else no)
        else:
            words += [word for each in (value if isinstance(value, tuple) else (value,)) for word in (yes, str(each))]
    return shlex.join(words)


def row_line(row: Mapping[str, Any]) -> str:
    """A row of metrics for people."""
    text = {
        "start": "{data}, on {device}",
        "train": "loss {loss:.4f}, {images_per_second:,.0f} images/s",
        "evaluation": "Frechet distance of {num_samples:,} samples ({extractor}): {frechet_distance:.2f}",
        "event": "{event}: {message}",
    }
    known = {name: math.nan if value is None else value for name, value in row.items()}
    return f"{row['seen']:>13,}  {text[row['kind']].format(**known)}"


def dry_run_lines(config: RunConfig) -> list[tuple[str, str]]:
    """What a run would be, in topics and lines: network, cost, memory, length.

    Nothing is trained and no weights are made; the data is opened where the settings name it.

    Raises:
        ValueError, TypeError, OSError: as `make_config`, `meta_network`, `open_data` and `network_options`.
    """
    from ditzoo.data.latents import LatentCache
    from ditzoo.pipeline.jobs import process_of_launcher
    from ditzoo.train.estimate import estimate
    from ditzoo.train.finetune import add_lora, freeze
    from ditzoo.train.network import meta_network, network_options, open_data, run_recipe
    from ditzoo.train.optimizers import optimizer_arguments

    network = meta_network(config, None if config.num_classes is None else {"num_classes": config.num_classes})
    samples, data, latents = None, "not given: set data", network.details.recipe is not None
    latents = latents and network.details.recipe.latent_codec is not None  # type: ignore[union-attr]
    if config.data is not None:
        source = open_data(config, network)
        network = meta_network(config, network_options(config, network, source))
        samples, latents = len(source), isinstance(source, LatentCache)
        data = f"{source.name}: {samples:,} of {'x'.join(map(str, source.shape))}, {source.num_classes:,} classes"
    elif config.preset is not None:
        preset = get_preset(config.preset)
        samples, data = preset.num_samples, f"not given: set data; the authors': {preset.data}"
    if config.lora_rank:
        add_lora(network, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets or None)
    if config.freeze:
        freeze(network, config.freeze)
    recipe = run_recipe(config, network, latents=latents)
    processes = process_of_launcher()[1]
    optimizer_arguments(config)
    cost = estimate(config, network, num_samples=samples, processes=processes)
    masked = "" if recipe.mask_ratio is None else f", {recipe.mask_ratio:g} of the tokens masked in a second pass"
    return [
        ("network", f"{type(network).__name__}, {cost.num_params:,} parameters, {cost.num_trained:,} of which train"),
        ("recipe", f"{recipe.prediction} under {recipe.schedule}, loss {recipe.loss}{masked}"),
        ("data", data),
        ("length", _length(cost, config)),
        ("cost", _cost(cost)),
        ("memory", _memory(cost.memory, processes)),
        ("folder", str(config.folder)),
        *(("note", note) for note in _notes(config)),
    ]


def _length(cost: Estimate, config: RunConfig) -> str:
    epochs = "" if cost.num_epochs is None else f", {cost.num_epochs:,.1f} epochs"
    return f"{cost.num_images:,} images: {cost.num_steps:,} steps of {config.batch_size:,}{epochs}"


def _cost(cost: Estimate) -> str:
    return (
        f"{_short(cost.gmacs)} GMACs forward an image; {_short(cost.training_gmacs)} an image of training, backward "
        f"twice as much as forward; {cost.training_gmacs * 1e9 * cost.num_images:.2g} multiply-adds in all"
    )


def _memory(memory: Memory, processes: int) -> str:
    passing = f"gradients {_bytes(memory.gradients)}", f"activations and casts {_bytes(memory.kept)}"
    return (
        f"about {_bytes(memory.total)} in {'each process' if processes > 1 else 'the process'}: weights "
        f"{_bytes(memory.weights)} + optimiser {_bytes(memory.optimizer)} + averages {_bytes(memory.averages)} + "
        f"{' + '.join(passing) if memory.adds_up else f'the larger of {passing[0]} and {passing[1]}'}"
    )


def _notes(config: RunConfig) -> list[str]:
    notes = list(get_preset(config.preset).notes) if config.preset is not None else []
    if config.data == "digits" and f"{config.model}.digits" in list_presets():
        notes.append(f"{config.model} has its family's recipe; {config.model}.digits has one that suits the digits.")
    if config.lora_rank:
        notes.append("What loading resizes, such as the label table for other classes, trains too and is not counted.")
    return notes


def _short(number: float) -> str:
    return f"{number:,.2f}" if number >= 0.1 else f"{number:.2g}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _written(value: Any) -> str:
    """A value as one would write it in a flag."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_written(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(_written, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if value < 10_000 else f"{value:_}"
    return f"{value:g}" if isinstance(value, float) else str(value)


__all__ = ["Flag", "command_line", "dry_run_lines", "flags", "make_config", "row_line", "settings_rows", "usual_flag"]
