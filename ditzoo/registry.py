"""Names to networks: `create`, `list_models`, `list_families`, `model_info`, `register_model`.

A name is `family_size_patch` (`dit_xl_2`); a tag behind a dot names published weights with their own
configuration (`dit_xl_2.in512`). Other packages add models through the entry point group `ditzoo.models`.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import Any

import torch

from ditzoo.layers import UnusedWeights
from ditzoo.models import FAMILIES, Architecture, Checkpoint, DiffusionTransformer
from ditzoo.recipe import Recipe


@dataclass(frozen=True)
class ModelInfo:
    """What `model_info` tells about a name.

    Attributes:
        name: as asked for, with the tag if it had one.
        family: short name of the family.
        model_cls: name of the class.
        config: every constructor argument with its value.
        num_params: parameters, frozen position tables included, as the papers count them.
        num_trainable_params: those that training changes.
        num_tokens: patch tokens of one input.
        patch_size: side of a patch; 1 where every pixel is a token.
        hidden_size: width of the tokens; in a U shape that of its widest stage.
        depth: transformer blocks, as the family's paper counts them.
        num_heads: attention heads; in a U shape those of its widest stage.
        paper: title and arXiv number; empty for a model registered without one.
        ours: True where no paper has this size.
        tags: published weights of this architecture.
        source: where the weights of this tag are; None for a bare name.
        licence: of those weights; None for a bare name.
        data: what they were trained on; None for a bare name.
        recipe: how the authors train and sample these weights; for a bare name, the published weights of its size or
            else of its family. None for a model registered without one. It may name a sampler that this release does
            not have.
        unused: weights that the state dict has, as the original's does, and that change no output.
    """

    name: str
    family: str
    model_cls: str
    config: Mapping[str, Any]
    num_params: int
    num_trainable_params: int
    num_tokens: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    paper: str
    ours: bool
    tags: tuple[str, ...]
    source: str | None
    licence: str | None
    data: str | None
    recipe: Recipe | None
    unused: tuple[UnusedWeights, ...]


@dataclass(frozen=True)
class _Entry:
    architecture: Architecture
    family: str
    paper: str
    recipe: Recipe | None = None


_ENTRIES: dict[str, _Entry] = {
    architecture.name: _Entry(architecture, family.name, family.paper, architecture.recipe or family.recipe)
    for family in FAMILIES
    for architecture in family.architectures
}


class _Plugins:
    """Packages that register models of their own when their entry point of the group `ditzoo.models` is loaded."""

    def __init__(self) -> None:
        self._lock = RLock()  # another thread waits for the names; a plugin that asks for some does not
        self._loaded = False

    def load(self) -> None:
        """Load them if nobody has yet; warn of those that fail, and go on without them."""
        with self._lock:
            if self._loaded:
                return
            self._loaded = True
            found = sorted(entry_points(group="ditzoo.models"), key=lambda entry_point: entry_point.name)
            # As an import at the top of a file would run, though the first use may be inside such a context.
            with torch.device("cpu"), torch.inference_mode(False):
                failures = [failure for entry_point in found if (failure := self._failure(entry_point))]
        for failure in failures:
            warnings.warn(failure, RuntimeWarning, stacklevel=3)

    @staticmethod
    def _failure(entry_point: EntryPoint) -> str | None:
        """Load one; what went wrong, if something did."""
        try:
            loaded = entry_point.load()
            if entry_point.attr:
                loaded()
        except (Exception, SystemExit) as error:  # whatever is wrong with it, the zoo's own models work
            package = entry_point.dist.name if entry_point.dist else "(unknown)"
            return (
                f"The package {package!r} could not add its models: its entry point {entry_point.name!r} "
                f"({entry_point.value}, group ditzoo.models) failed. All other models work. Mend or update the "
                f"package, or remove it with `pip uninstall {package}`. {type(error).__name__}: {error}"
            )
        return None


_plugins = _Plugins()


def create(name: str, pretrained: bool = False, **overrides: Any) -> DiffusionTransformer:
    """Build a model of the zoo.

    Args:
        name: one of `list_models()`, or one with a tag of published weights, whose configuration it then has.
        pretrained: load published weights. Not in this release; the error says how to load the official file.
        **overrides: constructor options that replace the name's own, such as `num_classes=10`.

    Returns:
        The model on the current default device, freshly initialised, in train mode.

    Raises:
        ValueError: for an unknown name or tag (the nearest are named), or an option outside its range.
        TypeError: for an option that the family does not have (the nearest are named).
        RuntimeError: for `pretrained=True`.
    """
    _plugins.load()
    entry, checkpoint = _resolve(name)
    architecture = entry.architecture
    _check_options(name, architecture.model_cls, overrides)
    if pretrained:
        raise RuntimeError(_no_weights(name, architecture, checkpoint))
    return architecture.model_cls(**{**_config(architecture, checkpoint), **overrides})


def list_models(pattern: str | None = None, *, family: str | None = None, pretrained: bool | None = None) -> list[str]:
    """Names in the registry, in natural order.

    Args:
        pattern: shell wildcards, such as `"dit_*_2"`. One with a dot matches tagged names, `"*.in512"`.
        family: only this family, one of `list_families()`.
        pretrained: True gives the tagged names of published weights, False the bare names without any. Where
            published weights are, `model_info` says; this release does not fetch them.

    Raises:
        ValueError: for an unknown family.
    """
    _plugins.load()
    if family is not None and family not in list_families():
        raise ValueError(f"Unknown family {family!r}; the families are {', '.join(list_families())}.")
    entries = [entry.architecture for entry in _ENTRIES.values() if family in (None, entry.family)]
    if pretrained or (pretrained is None and pattern is not None and "." in pattern):
        names = [f"{a.name}.{tag}" for a in entries for tag in a.checkpoints]
    else:
        names = [a.name for a in entries if not (pretrained is False and a.checkpoints)]
    if pattern is not None:
        names = fnmatch.filter(names, pattern)
    return sorted(names, key=_natural)


def list_families() -> list[str]:
    """Short names of the families, in the order of their papers; registered ones last."""
    _plugins.load()
    return list(dict.fromkeys(entry.family for entry in _ENTRIES.values()))


def model_info(name: str) -> ModelInfo:
    """Facts about a name: configuration, size, paper, and licence and source of its weights.

    Raises:
        ValueError: for an unknown name or tag.
    """
    _plugins.load()
    info = _model_info(name)
    return replace(info, config=deepcopy(info.config))  # the caller's own: the facts behind it are remembered


@cache  # never stale: a registered name does not change, and what raises is not remembered
def _model_info(name: str) -> ModelInfo:
    entry, checkpoint = _resolve(name)
    architecture = entry.architecture
    with torch.device("meta"):
        model = architecture.model_cls(**_config(architecture, checkpoint))
    return ModelInfo(
        name=name,
        family=entry.family,
        model_cls=architecture.model_cls.__name__,
        config=model.config,
        num_params=sum(p.numel() for p in model.parameters()),
        num_trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_tokens=model.num_tokens(),
        patch_size=model.patch_size,
        hidden_size=model.hidden_size,
        depth=model.depth,
        num_heads=model.num_heads,
        paper=entry.paper,
        ours=architecture.ours,
        tags=tuple(architecture.checkpoints),
        source=checkpoint.source if checkpoint else None,
        licence=checkpoint.licence if checkpoint else None,
        data=checkpoint.data if checkpoint else None,
        recipe=(checkpoint.recipe if checkpoint else None) or entry.recipe,
        unused=tuple(model.unused_weights()),
    )


def register_model(
    name: str,
    model_cls: type[DiffusionTransformer],
    config: Mapping[str, Any] | None = None,
    *,
    family: str,
    paper: str = "",
    recipe: Recipe | None = None,
) -> None:
    """Add a model of your own to the zoo, under a new name.

    A package does so in a module that its entry point of the group `ditzoo.models` names: `package.module`, or
    `package.module:function` for a function without arguments that is then called. The registry loads these once,
    when it is first asked for something.

    Args:
        name: letters, digits and underscores, such as `"my_dit_s_2"`.
        model_cls: a subclass of `ditzoo.models.DiffusionTransformer`.
        config: constructor arguments of this name.
        family: an existing family or a new one.
        paper: title and arXiv number.
        recipe: how the model is trained and sampled. The quick benchmark trains a model whose recipe is a flow by
            flow matching.

    Raises:
        ValueError: if the name is taken or malformed.
        TypeError: if `model_cls` is no such subclass, has no such options, or cannot be built with them on the meta
            device.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"{name!r} is no model name: use lower-case letters, digits and underscores.")
    if name in _ENTRIES:
        raise ValueError(
            f"{name!r} is already registered, as {_ENTRIES[name].architecture.model_cls.__name__}; choose another name."
        )
    concrete = isinstance(model_cls, type) and model_cls is not DiffusionTransformer
    if not (concrete and issubclass(model_cls, DiffusionTransformer)):
        raise TypeError(f"{model_cls!r} is no subclass of ditzoo.models.DiffusionTransformer.")
    config = dict(config or {})
    _check_options(name, model_cls, config)
    try:
        with torch.device("meta"):
            model_cls(**config).unused_weights()
    except Exception as error:  # said here, where the culprit is known, rather than in the middle of `ditzoo list`
        raise TypeError(
            f"{name!r} cannot be registered: {model_cls.__name__}(**{config}) on the meta device raised "
            f"{type(error).__name__}: {error}"
        ) from error
    _ENTRIES[name] = _Entry(Architecture(name, model_cls, config, ours=True, recipe=recipe), family, paper, recipe)


def _resolve(name: str) -> tuple[_Entry, Checkpoint | None]:
    """The entry and, where the name carries a tag, its checkpoint."""
    if not isinstance(name, str):
        raise TypeError(f"a model name is a string, got {name!r}.")
    bare, dot, tag = name.partition(".")
    if bare not in _ENTRIES:
        raise ValueError(
            f"Unknown model {bare!r}.{_did_you_mean(bare, _ENTRIES)} ditzoo.list_models() or `ditzoo list` gives all "
            "names."
        )
    entry = _ENTRIES[bare]
    if not dot:
        return entry, None
    checkpoints = entry.architecture.checkpoints
    if tag not in checkpoints:
        known = ", ".join(f"{bare}.{t}" for t in checkpoints) or f"none; {bare} has no published weights"
        raise ValueError(f"Unknown tag {tag!r} of {bare}; its tags are: {known}.")
    return entry, checkpoints[tag]


def _config(architecture: Architecture, checkpoint: Checkpoint | None) -> dict[str, Any]:
    return {**architecture.config, **(checkpoint.config if checkpoint else {})}


def _check_options(name: str, model_cls: type[DiffusionTransformer], options: Iterable[str]) -> None:
    known = list(inspect.signature(model_cls).parameters)
    for option in options:
        if option not in known:
            raise TypeError(
                f"{name} has no option {option!r}.{_did_you_mean(option, known)} Its options: {', '.join(known)}."
            )


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word.lower(), list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _no_weights(name: str, architecture: Architecture, checkpoint: Checkpoint | None) -> str:
    if checkpoint is not None:
        return (
            f"This release of ditzoo does not fetch weights. Those of {name} are at {checkpoint.source} (licence: "
            f"{checkpoint.licence}); load the official state dict with "
            f"ditzoo.create({name!r}).load_state_dict(state)."
        )
    tags = ", ".join(f"{architecture.name}.{tag}" for tag in architecture.checkpoints)
    if tags:
        return f"{name} names no weights. Published ones: {tags}. This release of ditzoo does not fetch them yet."
    return (
        f"No weights are published for {name}. Models that have some: "
        f"{', '.join(list_models(pretrained=True))}. This release of ditzoo does not fetch them yet."
    )


def _natural(name: str) -> list[int | str]:
    """Sort key that puts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
