"""Names to networks: `create`, `list_models`, `list_families`, `model_info`, `register_model`.

A name is `family_size_patch` (`dit_xl_2`); a tag behind a dot names published weights with their own
configuration (`dit_xl_2.in512`). Other packages add models through the entry point group `ditzoo.models`.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from threading import Condition, Lock, get_ident
from typing import Any, Literal

import torch

from ditzoo.layers import UnusedWeights
from ditzoo.models import FAMILIES, Architecture, Checkpoint, DiffusionTransformer, ModelDetails, PublishedFile
from ditzoo.models.rebuild import check_rebuilds
from ditzoo.recipe import Recipe


class MissingWeightsError(RuntimeError, ValueError):
    """Weights were asked for that ditzoo has not; the message says where they are, or which there are."""


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
        tags: weights of this architecture, published by the authors or packaged with ditzoo.
        source: where the authors put the weights of this tag; None for a bare name.
        files: where each copy of these weights lies, the one to fetch first; empty for a bare name, and for weights
            that come with ditzoo.
        ema: whether they are a moving average; None for a bare name, and where the authors do not say.
        licence: of those weights; None for a bare name.
        is_non_commercial: whether that licence is known to allow no commercial use.
        data: what they were trained on; None for a bare name.
        recipe: how these weights are trained and sampled, with their licence and source. For a bare name, how the
            authors do it with those published weights of its size that see the same kind of input, latents or pixels;
            where there are none, with others of its family, without an autoencoder and a learned variance if the name
            sees pixels; DiffiT's image-space networks have that of the paper. None for a model registered without one.
        packaged: whether the weights come with ditzoo, so that `create(name, pretrained=True)` loads them.
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
    files: tuple[PublishedFile, ...]
    ema: bool | None
    licence: str | None
    is_non_commercial: bool
    data: str | None
    recipe: Recipe | None
    packaged: bool
    unused: tuple[UnusedWeights, ...]


@dataclass(frozen=True)
class _Entry:
    architecture: Architecture
    family: str
    paper: str
    recipe: Recipe | None = None


# Replaced by a longer copy, never changed: whoever reads it, in any thread, has one that stays as it is.
_ENTRIES: dict[str, _Entry] = {
    architecture.name: _Entry(architecture, family.name, family.paper, architecture.recipe or family.recipe)
    for family in FAMILIES
    for architecture in family.architectures
}


#: of names that are repositories of the Hub
_HUB_PREFIX = "hf-hub:"
_registering = Lock()  # held while it is replaced


class _Plugins:
    """Packages that register models of their own when their entry point of the group `ditzoo.models` is loaded.

    One thread loads them and others wait. No lock is held meanwhile: a package may start threads that ask the
    registry, and wait for them. Since that cannot be told from here, nobody waits longer than `patience`.
    """

    patience = 10.0
    """seconds"""

    def __init__(self) -> None:
        self._turn = Condition()  # guards the next two
        self._loader: int | None = None
        self._patient = True
        self._pending: list[EntryPoint] | None = None  # None until somebody has looked
        self._failures: list[str] = []
        self._registered: set[str] = set()  # by the package that is being loaded
        self._interrupted: set[str] = set()  # by the same package, when its loading was interrupted

    def load(self) -> None:
        """Load those that are not loaded yet; warn of those that fail, and go on without them.

        An interrupt ends it. The next call goes on with the package that was being loaded.
        """
        if not self._take_turn():
            return
        try:
            # As an import at the top of a file would run, though the first use may be inside such a context.
            with torch.device("cpu"), torch.inference_mode(False):
                self._load_pending()
        finally:
            self._end_turn()
        failures, self._failures = self._failures, []
        for failure in failures:
            warnings.warn(failure, RuntimeWarning, stacklevel=3)

    def repeats(self, name: str) -> bool:
        """Whether the package that this thread loads had registered the name before an interrupt."""
        return self._loader == get_ident() and name in self._interrupted

    def note(self, name: str) -> None:
        """Remember a name that has been registered, if it was by a package that this thread loads."""
        if self._loader == get_ident():
            self._registered.add(name)
            self._interrupted.discard(name)

    def _take_turn(self) -> bool:
        """Whether it is for this thread to load packages; returns when that is known, or patience is at an end."""
        with self._turn:
            if self._loader == get_ident():  # a package asks while it is loaded
                return False
            if self._loader is not None and self._patient:
                self._patient = self._turn.wait_for(lambda: self._loader is None, self.patience)
            if self._loader is not None or self._pending == []:
                return False
            self._loader, self._patient = get_ident(), True
            return True

    def _end_turn(self) -> None:
        with self._turn:
            self._loader = None
            self._turn.notify_all()

    def _load_pending(self) -> None:
        if self._pending is None:
            self._pending = sorted(entry_points(group="ditzoo.models"), key=lambda entry_point: entry_point.name)
        while self._pending:
            self._interrupted, self._registered = self._interrupted | self._registered, set()
            if failure := self._failure(self._pending[0]):
                self._failures.append(failure)
            del self._pending[0]
            self._interrupted, self._registered = set(), set()

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


def create(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint: str | Path | None = None,
    weights: Literal["ema", "raw"] | None = None,
    strict: bool = True,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> DiffusionTransformer:
    """Build a model of the zoo.

    Args:
        name: one of `list_models()`; one with a tag of published weights, whose configuration it then has; or
            `"hf-hub:user/repo@revision"`, a model that was pushed to the Hugging Face Hub, with its weights (the
            revision, a branch, tag or commit, may be left out).
        pretrained: load the weights of the name: those that come with ditzoo, or else the authors', which are fetched
            once and kept in a cache. A bare name has those of its tag that builds the same network.
        checkpoint: load these weights instead: a file (safetensors or PyTorch, official names), a folder (of
            `save_pretrained`, of diffusers, or with an index of shards), the address of a file, `"https://..."`, or a
            repository or file of the Hub, `"hf-hub:user/repo/file.pt@revision"`.
        weights: of a training checkpoint, the moving average (`"ema"`) or the last step (`"raw"`); None takes the
            average where there is one.
        strict: whether weights must have all names and shapes of the model. Where the overrides are another
            `num_classes`, `in_channels`, `input_size` or `class_dropout_prob` than the weights are for, what fits is
            kept all the same: see `ditzoo.weights.load_weights`, whose result is `model.load_result`.
        dtype: of the weights; None keeps the precision that they are stored in, and float32 for fresh ones and those
            that come with ditzoo.
        **overrides: constructor options that replace the name's own, such as `num_classes=10`.

    Returns:
        The model on the current default device, in train mode; freshly initialised unless weights were asked for. What
        is known of it, such as its recipe, is in `model.details`.

    Raises:
        ValueError: for an unknown name or tag (the nearest are named), an option outside its range, or weights that are
            damaged or another network's.
        TypeError: for an option that the family does not have (the nearest are named).
        MissingWeightsError: where there are no weights of this name, or none that a program can fetch; the message
            says where they are.
        OSError: for a file that is not there, or cannot be fetched; the message says what to do.
    """
    check_dtype(dtype)
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, got {pretrained!r}; a tag belongs to the name.")
    if isinstance(name, str) and name.startswith(_HUB_PREFIX):
        if checkpoint is not None:
            raise ValueError(
                f"{name} has weights of its own, so that checkpoint {str(checkpoint)!r} has no place; leave it "
                "out, or give a registry name instead of the repository."
            )
        from ditzoo.weights.sources import load_pretrained

        return load_pretrained(name, weights=weights, dtype=dtype, strict=strict, **overrides)
    _plugins.load()
    if pretrained and checkpoint is None:
        name = _with_weights(name)
    entry, published = _resolve(name)
    model_cls, config = entry.architecture.model_cls, _config(entry.architecture, published)
    check_option_names(name, model_cls, overrides)
    if not pretrained and checkpoint is None:
        if weights is not None:
            raise ValueError(f"weights={weights!r} says which to load, and none were asked for: add pretrained=True.")
        model = model_cls(**{**config, **overrides})
        if dtype is not None:
            model.to(dtype)
        model.details = ModelDetails(name=name, recipe=_recipe(entry, published))
        return model
    from ditzoo.weights.sources import create_pretrained

    return create_pretrained(
        name, model_cls, config, overrides, checkpoint=checkpoint, weights=weights, strict=strict, dtype=dtype
    )


def _with_weights(name: str) -> str:
    """The tagged name whose weights `pretrained=True` means.

    Raises:
        MissingWeightsError: where there is none; the message says which there are.
    """
    entry, published = _resolve(name)
    if published is not None:
        return name
    architecture = entry.architecture
    if not architecture.checkpoints:
        raise MissingWeightsError(_no_weights(name))
    tagged = [f"{name}.{tag}" for tag in architecture.checkpoints]
    for each in tagged:
        if same_network(name, each):
            return each
    raise MissingWeightsError(
        f"{name} has no weights at its own input and classes; those that there are: {', '.join(tagged)}."
    )


def same_network(name: str, other: str) -> bool:
    """Whether two names have weights of the same names and shapes and compute the same of them. What is for training
    alone is no part of that, such as how often it drops labels, but whether there is a null label is."""
    one, two = _resolve(name), _resolve(other)
    return one[0].architecture.model_cls is two[0].architecture.model_cls and _essential(*one) == _essential(*two)


def _essential(entry: _Entry, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Constructor arguments, defaults included, without what is for training alone."""
    model_cls = entry.architecture.model_cls
    options = {parameter.name: parameter.default for parameter in inspect.signature(model_cls).parameters.values()}
    options |= _config(entry.architecture, checkpoint)
    has_null_label = options["class_dropout_prob"] > 0
    kept = {option: value for option, value in options.items() if option not in model_cls.training_options}
    return {**kept, "class_dropout_prob": has_null_label}


def list_models(pattern: str | None = None, *, family: str | None = None, pretrained: bool | None = None) -> list[str]:
    """Names in the registry, in natural order.

    Args:
        pattern: shell wildcards, such as `"dit_*_2"`. One with a dot matches tagged names, `"*.in512"`.
        family: only this family, one of `list_families()`.
        pretrained: True gives the tagged names of weights, published by the authors or packaged with ditzoo, False
            the bare names without any. Where published weights are, `model_info` says.

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
    return replace(info, config=copy.deepcopy(info.config))  # the caller's own: the facts behind it are remembered


@cache  # not stale: a name is registered once, or else `_publish` clears this; what raises is not remembered
def _model_info(name: str) -> ModelInfo:
    entry, checkpoint = _resolve(name)
    architecture = entry.architecture
    with torch.device("meta"):
        model = architecture.model_cls(**_config(architecture, checkpoint))
    recipe = _recipe(entry, checkpoint)
    if recipe is not None and checkpoint is not None:
        recipe = replace(recipe, licence=checkpoint.licence, source=checkpoint.source)
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
        files=checkpoint.files if checkpoint else (),
        ema=checkpoint.ema if checkpoint else None,
        licence=checkpoint.licence if checkpoint else None,
        is_non_commercial=bool(checkpoint and checkpoint.is_non_commercial),
        data=checkpoint.data if checkpoint else None,
        recipe=recipe,
        packaged=bool(checkpoint and checkpoint.packaged),
        unused=tuple(model.unused_weights()),
    )


def class_path(model_cls: type[DiffusionTransformer]) -> str:
    """What files call a class, unlike every class of another package: `ditzoo.models.DiT`, `my_zoo.MyDiT`."""
    is_own = model_cls.__module__.partition(".")[0] == "ditzoo"  # whose modules may be arranged anew
    return f"{'ditzoo.models' if is_own else model_cls.__module__}.{model_cls.__qualname__}"


def model_classes() -> dict[str, type[DiffusionTransformer]]:
    """The classes of all models, ditzoo's and registered ones, by `class_path`.

    A file's class is looked up here rather than imported: what a file names cannot run code.
    """
    _plugins.load()
    classes = [entry.architecture.model_cls for entry in _ENTRIES.values()]
    # Of two with one path, as when the cell of a notebook is run again, the last.
    return {class_path(model_cls): model_cls for model_cls in classes}


def register_model(
    name: str,
    model_cls: type[DiffusionTransformer],
    config: Mapping[str, Any] | None = None,
    *,
    family: str,
    paper: str = "",
    recipe: Recipe | None = None,
    ours: bool = True,
) -> None:
    """Add a model of your own to the zoo, under a new name.

    A package does so in a module that its entry point of the group `ditzoo.models` names: `package.module`, or
    `package.module:function` for a function without arguments that is then called. The registry loads these once,
    when it is first asked for something.

    The model is built twice on the meta device, the second time from the `config` of the first.

    Args:
        name: letters, digits and underscores, such as `"my_dit_s_2"`.
        model_cls: a subclass of `ditzoo.models.DiffusionTransformer`.
        config: constructor arguments of this name.
        family: an existing family or a new one; letters, digits and underscores.
        paper: title and arXiv number.
        recipe: how the model is trained and sampled. The quick benchmark has a recipe of its own for each objective,
            and goes by this one's schedule: a flow's trains by flow matching, `"edm"` by EDM's loss, all others, and
            models without a recipe, by diffusion.
        ours: False where `paper` has a model of exactly this size. Tables mark the others "ours".

    Raises:
        ValueError: if `name` or `family` is malformed, or the name is taken.
        TypeError: if an argument is of another type; if `model_cls` is no such subclass, has no such options, or
            cannot be built with them on the meta device; if the model's `config` lacks an option, holds what JSON
            does not keep, or builds another network.
    """
    _check_word("model name", name)
    _check_word("family", family)
    _check_type("config", config, Mapping, "a mapping of constructor arguments", optional=True)
    _check_type("paper", paper, str, "a string, title and arXiv number")
    _check_type("recipe", recipe, Recipe, "a ditzoo.Recipe (Recipe.from_dict() makes one of a dict)", optional=True)
    _check_type("ours", ours, bool, "True or False")
    _check_free(name)
    if isinstance(model_cls, torch.nn.Module):  # whose repr is the whole network
        cls = type(model_cls).__name__
        raise TypeError(f"model_cls must be a class, got an instance of {cls}; give {cls} itself.")
    concrete = isinstance(model_cls, type) and model_cls is not DiffusionTransformer
    if not (concrete and issubclass(model_cls, DiffusionTransformer)):
        raise TypeError(f"{model_cls!r} is no subclass of ditzoo.models.DiffusionTransformer.")
    config = dict(config or {})
    check_option_names(name, model_cls, config)
    check_rebuilds(name, model_cls, config)
    architecture = Architecture(name, model_cls, copy.deepcopy(config), ours=ours, recipe=recipe)
    _publish(_Entry(architecture, family, paper, recipe))


def _publish(entry: _Entry) -> None:
    global _ENTRIES  # noqa: PLW0603 - see there: it is replaced and never changed
    name = entry.architecture.name
    with _registering:
        _check_free(name)  # again: another thread may have been faster
        if name in _ENTRIES:
            _model_info.cache_clear()
        _ENTRIES = {**_ENTRIES, name: entry}
        _plugins.note(name)


def _check_word(what: str, word: object) -> None:
    if not isinstance(word, str):
        raise TypeError(f"a {what} is a string, got {word!r}.")
    if not re.fullmatch(r"[a-z0-9_]+", word):
        raise ValueError(f"{word!r} is no {what}: use lower-case letters, digits and underscores.")


def _check_type(what: str, value: object, kind: type, wanted: str, optional: bool = False) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        raise TypeError(f"{what} must be {wanted}{', or None' if optional else ''}, got {value!r}.")


def _check_free(name: str) -> None:
    if name in _ENTRIES and not _plugins.repeats(name):
        raise ValueError(
            f"{name!r} is already registered, as {_ENTRIES[name].architecture.model_cls.__name__}; choose another name."
        )


def _resolve(name: str) -> tuple[_Entry, Checkpoint | None]:
    """The entry and, where the name carries a tag, its checkpoint."""
    if not isinstance(name, str):
        raise TypeError(f"a model name is a string, got {name!r}.")
    bare, dot, tag = name.partition(".")
    entries = _ENTRIES
    if bare not in entries:
        near = _did_you_mean(bare, entries)
        if "/" in name and not near:
            raise ValueError(
                f"Unknown model {name!r}. A repository of the Hub is {_HUB_PREFIX + name!r}, and a folder is loaded by "
                f"ditzoo.models.DiffusionTransformer.from_pretrained({name!r})."
            )
        raise ValueError(f"Unknown model {bare!r}.{near} ditzoo.list_models() or `ditzoo list` gives all names.")
    entry = entries[bare]
    if not dot:
        return entry, None
    checkpoints = entry.architecture.checkpoints
    if tag not in checkpoints:
        known = ", ".join(f"{bare}.{t}" for t in checkpoints) or f"none; {bare} has no published weights"
        raise ValueError(f"Unknown tag {tag!r} of {bare}; its tags are: {known}.")
    return entry, checkpoints[tag]


def _recipe(entry: _Entry, checkpoint: Checkpoint | None) -> Recipe | None:
    return (checkpoint.recipe if checkpoint else None) or entry.recipe


def _config(architecture: Architecture, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Arguments for the constructor, which may keep and change them."""
    return copy.deepcopy({**architecture.config, **(checkpoint.config if checkpoint else {})})


def check_dtype(dtype: object) -> None:
    """Refuse a precision that no network computes in: integers, and floats of 8 bits."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        return
    kind = TypeError if not isinstance(dtype, torch.dtype) else ValueError
    raise kind(f"dtype must be None, or torch's float16, bfloat16, float32 or float64, got {dtype!r}.")


def check_option_names(name: str, model_cls: type[DiffusionTransformer], options: Iterable[str]) -> None:
    """Raise a TypeError for an option that the class does not have; the nearest are named."""
    known = list(inspect.signature(model_cls).parameters)
    for option in options:
        if option not in known:
            raise TypeError(
                f"{name} has no option {option!r}.{_did_you_mean(option, known)} Its options: {', '.join(known)}."
            )


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word.lower(), list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _no_weights(name: str) -> str:
    known: dict[bool, list[str]] = {True: [], False: []}
    for tagged in list_models(pretrained=True):
        known[model_info(tagged).packaged].append(tagged)
    return (
        f"No weights are published for {name}. Those of {', '.join(known[True])} come with ditzoo; published by their "
        f"authors are those of {', '.join(known[False])}. Weights of your own are loaded by ditzoo.create({name!r}, "
        "checkpoint=path)."
    )


def _natural(name: str) -> list[int | str]:
    """Sort key that puts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
