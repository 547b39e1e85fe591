"""What a training run is told: model, data, folder and cadence, besides the `TrainOptions`.

Loads no torch, so that the command line can show every setting quickly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ditzoo.recipe import Guidance, Recipe
from ditzoo.train.options import TrainOptions
from ditzoo.train.settings import checked_mapping, coerced, did_you_mean, field_docs, field_types, load_yaml

Features = Literal["auto", "digits", "inception"]
Tracker = Literal["tensorboard", "wandb"]

#: A resumed run may have other values of these: they change how it runs, watches and keeps, not what it learns.
_FREE = {"free": True}
#: The same, of the fields of `TrainOptions`.
_FREE_OPTIONS = ("accumulation", "compile", "grad_checkpointing", "fsdp", "on_non_finite")
_DEFAULT_MODEL = "dit_ti_2.digits"
_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainOptions):
    """All settings of `ditzoo train`. The defaults train a tiny model on the digits, as the quick benchmark does; for
    larger models take a preset.

    `make_config` makes one of a preset, a file and flags.

    Raises:
        ValueError: for a value outside its range, or two that exclude each other; the message names the fields.
        TypeError: for a value of another type, likewise.
    """

    # What is trained.
    preset: str | None = None
    """name of the settings that this run began with; those given besides replace them"""
    model: str | None = None
    """name of the network in the registry, such as `"dit_b_2"`; left out, it is that of `from_weights`, or
    `"dit_ti_2.digits"`. A tag gives the configuration and recipe of published weights, never the weights"""
    model_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """constructor options that replace the model's own, such as `{"depth": 4}`"""
    num_classes: int | None = None
    """classes that the network knows; left out, as many as the data has. 0 trains without labels"""
    from_weights: str | None = None
    """weights to start from: a tagged name, a folder, a file or `hf-hub:user/repo`; left out, they are drawn"""
    freeze: tuple[str, ...] = ()
    """shell patterns of the parameters that stay as they are, such as `"blocks.0.*"`"""
    lora_rank: int = 0
    """train low-rank updates of this rank in place of the weights (LoRA, arXiv:2106.09685); 0 trains the weights"""
    lora_alpha: float | None = None
    """scale of the low-rank updates, times their rank; left out, the rank itself"""
    lora_targets: tuple[str, ...] = ()
    """patterns of the layers that have low-rank updates; left out, all linear layers of the blocks"""
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """entries of the `Recipe` that replace the model's own, such as `{"min_snr_gamma": 5.0}`"""

    # What it is trained on.
    data: str | None = "digits"
    """`"digits"`, a folder of images, tar files (`"train-*.tar"`), a data set of the Hub (`"hf:user/name"`, streamed as
    `"hf-stream:user/name"`), or a folder of cached latents that `ditzoo encode` made"""
    size: int | None = None
    """side, in pixels, to which images are cropped; left out, the network's own. Latents have theirs"""
    flip: bool = False
    """mirror half of the images, drawn anew each time"""
    buckets: tuple[str, ...] = ()
    """sizes in pixels, `"HEIGHTxWIDTH"`, to the nearest of which images are cropped rather than to a square"""
    sample_posterior: bool = True
    """draw latents from the distribution that the encoder gave; otherwise take its mean"""
    num_workers: int = field(default=0, metadata=_FREE)
    """processes that read data, for each process that trains; 0 reads in between the steps"""
    max_unreadable: int = field(default=10, metadata=_FREE)
    """files that may be unreadable and are replaced by others before the run stops"""

    # Length and optimiser: the quick benchmark's.
    num_images: int = 48_000
    """images seen in all, repeats included; the last batch may be smaller"""
    batch_size: int = 16
    """images of a step, over all processes and micro-batches"""
    learning_rate: float = 4e-3
    """peak of the learning rate, after its warm-up; the default is for tiny models"""
    ema_decay: float = 0.99
    """decay of the moving average of the weights, a step"""

    # Where it runs and what it leaves.
    out: str | None = field(default=None, metadata=_FREE)
    """folder of the run; left out, `runs/` and the name of the preset or model"""
    overwrite: bool = field(default=False, metadata=_FREE)
    """delete what the folder holds and start anew; otherwise the run goes on after its newest checkpoint"""
    device: str | None = field(default=None, metadata=_FREE)
    """such as `"cpu"` or `"cuda:0"`; left out, a GPU where there is one"""
    log_every: int = field(default=800, metadata=_FREE)
    """images between two rows of metrics"""
    sample_every: int = field(default=12_000, metadata=_FREE)
    """images between two pictures of samples, drawn with the averaged weights from the same noise; 0 draws none"""
    grid_rows: int = field(default=4, metadata=_FREE)
    """rows of such a picture"""
    grid_columns: int = field(default=10, metadata=_FREE)
    """columns of such a picture, one class each"""
    codec: str | None = field(default=None, metadata=_FREE)
    """autoencoder that decodes samples in place of the recipe's: a folder or the id of a model"""
    evaluate_every: int = field(default=0, metadata=_FREE)
    """images between two Frechet distances of samples of the averaged weights to the data; 0 computes none"""
    evaluation_samples: int = field(default=1_000, metadata=_FREE)
    """samples of such a distance, which depends on their number"""
    evaluation_features: Features = field(default="auto", metadata=_FREE)
    """what it compares: the classifier of digits that comes with ditzoo, Inception's features, or the one that fits"""
    checkpoint_every: int = field(default=12_000, metadata=_FREE)
    """images between two checkpoints; the end of the run writes one besides"""
    keep_last: int = field(default=2, metadata=_FREE)
    """newest checkpoints that are kept"""
    keep_every: int = field(default=0, metadata=_FREE)
    """also keep, for good, the first checkpoint at or after each multiple of so many images; 0 keeps none"""
    trackers: tuple[Tracker, ...] = field(default=(), metadata=_FREE)
    """where metrics are sent besides metrics.jsonl: `"tensorboard"`, `"wandb"`"""
    spike_factor: float = field(default=10.0, metadata=_FREE)
    """a loss so many times the median of the last 100 is reported as a spike"""

    def __post_init__(self) -> None:
        types = field_types(type(self))
        for f in fields(self):
            object.__setattr__(self, f.name, coerced(f.name, getattr(self, f.name), types[f.name]))
        super().__post_init__()
        if self.model is None and self.from_weights is None:
            object.__setattr__(self, "model", _DEFAULT_MODEL)
        if self.out is None:
            object.__setattr__(self, "out", _default_folder(self.preset or self.model or self.from_weights or ""))
        self._check_ranges()
        self._check_pairs()
        self.bucket_sizes()
        checked_mapping("recipe", self.recipe, Recipe, {"guidance": Guidance})

    def _check_ranges(self) -> None:
        least = {
            **dict.fromkeys(("lora_rank", "num_workers", "max_unreadable", "sample_every", "evaluate_every"), 0),
            **dict.fromkeys(("keep_every",), 0),
            **dict.fromkeys(("log_every", "checkpoint_every", "keep_last", "grid_rows", "grid_columns"), 1),
            **{"evaluation_samples": 2, "num_classes": 0, "size": 1},
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be {lowest} or more, got {value}.")
        if not self.spike_factor > 1:
            raise ValueError(f"spike_factor must be above 1, got {self.spike_factor}.")
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha must be above 0, got {self.lora_alpha}.")

        kind, colon, number = (self.device or "cpu").partition(":")
        if kind not in _DEVICES or (colon and not number.isdigit()):
            raise ValueError(
                f"device must be one of {', '.join(_DEVICES)}, with a number as in cuda:0 where there are several, got "
                f"{self.device!r}."
            )

    def _check_pairs(self) -> None:
        if not self.lora_rank and (self.lora_alpha is not None or self.lora_targets):
            name = "lora_targets" if self.lora_alpha is None else "lora_alpha"
            raise ValueError(f"{name} is of low-rank updates, and lora_rank is 0: set lora_rank, such as 8.")
        if self.lora_rank and self.from_weights is None:
            raise ValueError(
                f"lora_rank is {self.lora_rank}: low-rank updates change weights that there are, and from_weights "
                "(--from) is not given."
            )
        if len(self.buckets) > 1 and self.evaluate_every:
            raise ValueError(
                "evaluate_every compares images of one size, and buckets makes several; set one of them to 0 or none."
            )
        if self.buckets and self.size is not None:
            raise ValueError(f"size ({self.size}) and buckets both say how images are cropped; leave one out.")
        if self.precision == "float16" and (self.device or "").startswith("cpu"):
            raise ValueError(f"precision 'float16' does not train on device {self.device!r}; use 'bfloat16', or a GPU.")
        if self.num_classes is not None and self.model_options.get("num_classes", self.num_classes) != self.num_classes:
            raise ValueError(
                f"num_classes is {self.num_classes} and model_options has {self.model_options['num_classes']}; leave "
                "the latter out."
            )

    @property
    def folder(self) -> Path:
        """Of the run."""
        assert self.out is not None, "filled in above"
        return Path(self.out)

    def bucket_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each of `buckets`.

        Raises:
            ValueError: for one that is not written as two numbers.
        """
        sizes = []
        for text in self.buckets:
            height, _, width = text.partition("x")
            if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
                raise ValueError(f"buckets must be sizes such as 256x256, height before width, got {text!r}.")
            sizes.append((int(height), int(width)))
        return sizes

    def apply_recipe(self, recipe: Recipe) -> Recipe:
        """The model's recipe with the entries that `recipe` replaces.

        Raises:
            ValueError, TypeError: for values that make no recipe.
        """
        values = recipe.to_dict()
        changes = dict(self.recipe)
        values["guidance"] |= dict(changes.pop("guidance", {}))
        try:
            return Recipe.from_dict({**values, **changes})
        except (ValueError, TypeError) as error:
            raise type(error)(f"recipe: {error}") from error

    def differences(self, saved: RunConfig, *, same_data: bool = False) -> dict[str, tuple[Any, Any]]:
        """What keeps this run from going on where `saved` stopped: values here and there, by field.

        Fields that do not change what is learned may differ, and `num_images` may grow where the learning rate does not
        depend on it.

        Args:
            saved: the settings that the run began with.
            same_data: the caller knows that it is the same, wherever it lies.
        """
        found = {}
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(saved, f.name)
            if mine == theirs or f.metadata.get("free") or f.name in (*_FREE_OPTIONS, "preset"):
                continue
            if f.name == "data" and same_data:
                continue
            if f.name == "num_images" and self.lr_schedule == saved.lr_schedule == "constant" and mine > theirs:
                continue
            found[f.name] = (mine, theirs)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `RunConfig.from_dict` gives the same settings back."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The settings that `to_dict` wrote; those that are missing have their defaults.

        Raises:
            ValueError: for a setting that does not exist (the nearest are named), or a value out of range.
            TypeError: for a value of the wrong type.
        """
        check_names(values)
        return cls(**values)

    def to_yaml(self) -> str:
        """A file for `--config`: every setting, with what it is."""
        import yaml

        docs = field_docs(type(self))
        lines = []
        for name, value in self.to_dict().items():
            lines += [f"# {docs[name]}", yaml.safe_dump({name: value}, sort_keys=False)]
        return "\n".join(lines)


def make_config(given: Mapping[str, Any] | None = None, *, file: str | Path | None = None) -> RunConfig:
    """The settings of a run: those given, before those of the file, before those of the preset, before the defaults.

    `model_options` and `recipe` are joined entry by entry.

    Args:
        given: such as flags of the command line; values may be texts.
        file: YAML; `run.yaml` of another run is one.

    Raises:
        ValueError: for a setting or a preset that does not exist (the nearest are named), or a value out of range.
        TypeError: for a value of the wrong type.
        OSError: for a file that cannot be read.
    """
    from ditzoo.train.presets import get_preset

    given = _typed(dict(given or {}))
    written = {} if file is None else read_yaml(file)
    name = given.get("preset", written.get("preset"))
    merged: dict[str, Any] = {}
    for layer in ({} if name is None else _typed(get_preset(name).settings()), written, given):
        for setting, value in layer.items():
            merged[setting] = _joined(merged.get(setting, {}), value) if isinstance(value, Mapping) else value
    return RunConfig(**merged)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Settings in a YAML file.

    Raises:
        ValueError: for a file that is no YAML, or has a setting that does not exist or no value of a setting.
        TypeError: for a value of the wrong type. Both name the file.
        OSError: for a file that cannot be read.
    """
    import yaml

    try:
        values = load_yaml(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(file)} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values or {}, Mapping):
        raise ValueError(f"{os.fspath(file)} must hold lines such as `batch_size: 256`, got {values!r:.60}.")
    try:
        return _typed(dict(values or {}))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{os.fspath(file)}: {error}") from error


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Each value as the type of its setting."""
    check_names(values)
    types = field_types(RunConfig)
    return {name: coerced(name, value, types[name]) for name, value in values.items()}


def check_names(values: Mapping[str, Any]) -> None:
    """Raise a ValueError for a name that no setting has; the nearest are named."""
    known = [f.name for f in fields(RunConfig)]
    for name in values:
        if name not in known:
            raise ValueError(
                f"unknown setting {name!r}.{did_you_mean(str(name), known)} `ditzoo train --help` lists all."
            )


def default_of(name: str) -> Any:
    """What a setting is where nothing says otherwise."""
    found = next(f for f in fields(RunConfig) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both, entry by entry; the new ones win."""
    both = {**old, **new}
    for name in old.keys() & new.keys():
        if isinstance(old[name], Mapping) and isinstance(new[name], Mapping):
            both[name] = _joined(old[name], new[name])
    return both


def _default_folder(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name.removeprefix("hf-hub:")).strip("-.")
    return f"runs/{kept or 'run'}"


def _plain(value: Any) -> Any:
    """As JSON and YAML have it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
