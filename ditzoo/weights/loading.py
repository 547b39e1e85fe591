"""Putting weights into a model: as they are, or adapted to other classes, channels and sizes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from ditzoo.models import DiffusionTransformer
from ditzoo.models.state_dicts import is_constant_buffer, unwrap_state
from ditzoo.registry import check_option_names
from ditzoo.weights.adapt import (
    ADAPTABLE,
    Adapted,
    Own,
    adapt,
    fixed_differences,
    network_of,
    options_text,
    same_labels,
    told_options,
    with_options,
)
from ditzoo.weights.checks import short, shown, some
from ditzoo.weights.files import FLOATS
from ditzoo.weights.lookalikes import common_prefix, fitting, foreign, looks_like
from ditzoo.weights.match import Shapes, shape_text, shapes_of
from ditzoo.weights.values import without_overlap

_LOG = logging.getLogger("ditzoo")


@dataclass(frozen=True)
class LoadResult:
    """What became of the weights.

    Attributes:
        kept: names of tensors that are the file's.
        resized: name -> what was done, for those that were made to fit.
        reinitialized: names of those that the model has of its own: freshly drawn, on a real device left as they were.
        dropped: names in the file that nothing uses.
        nest: the entry of the file in which the weights stood, such as `"ema"`, where the caller knows it.
    """

    kept: tuple[str, ...]
    resized: Mapping[str, str] = field(default_factory=dict)
    reinitialized: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    nest: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether all weights are the file's, and all of the file's are used."""
        return not (self.resized or self.reinitialized or self.dropped)

    def summary(self) -> str:
        """One line."""
        parts = [f"{len(self.kept)} of {len(self.kept) + len(self.resized) + len(self.reinitialized)} tensors kept"]
        if self.resized:
            parts.append(f"resized {some([f'{name} ({what})' for name, what in self.resized.items()])}")
        if self.reinitialized:
            parts.append(f"freshly drawn {some(self.reinitialized)}")
        if self.dropped:
            parts.append(f"not used {some([shown(name) for name in self.dropped])}")
        return "; ".join(parts) + "."


def load_weights(
    model: DiffusionTransformer,
    tensors: Mapping[str, Tensor],
    *,
    source: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> LoadResult:
    """Put a state dict into a model; nothing of the model changes if an error is raised.

    A model on the meta device takes the tensors themselves: no second copy is made, and it gets their precision, the
    widest where they differ. Elsewhere they are copied into the model's own device and precision.

    Names and shapes that are the model's are loaded as they are, unless `source` says that they are for other heads,
    or another option by which the same weights compute something else. Others are adapted if `source` is given and the
    two networks differ in `num_classes`, `in_channels`, `input_size` or the null label alone:

    - Row i of the label table stays that of class i, and the last one the null label's; rows that the file lacks are
      drawn, as is the whole table if it has none.
    - Frozen sin-cos tables are those of the constructor. Learned position tables are resized bicubically without their
      extra tokens' rows and relative ones bilinearly, as the forward pass does at another size. In DiffiT's U shape,
      where a window changes, offsets inside both are kept and others drawn.
    - With another `in_channels` the patch embedding's weights and the output layers are drawn anew.

    What is drawn comes from torch's global generator, as in construction: for a model on the meta device a whole
    network is built if anything is needed, and one on a real device keeps its own values there. Every change is logged
    as a warning.

    Args:
        model: on the meta device or a real one.
        tensors: name -> tensor, such as `read_checkpoint(path).tensors`. Official files' constant buffers are left out.
        source: constructor arguments of the network that the weights are for. Where they do not fit it, the shapes of
            label table, patch embedding and position table tell the options above. None: the weights must fit the
            model.
        strict: False keeps what has the model's names and shapes if nothing else helps, whatever `source` says, and
            lists the rest.

    Raises:
        ValueError: the weights do not fit, nor can they be adapted; the message says what differs and why. Or one of
            them is not in floats of 16 to 64 bits.
        TypeError: `tensors` is no mapping to tensors, or `source` has an option that the class does not have.
    """
    tensors = _checked(model, tensors)
    if source is not None:
        check_option_names(type(model).__name__, type(model), source)
    own, found = _own_values(model), _Comparison(model, tensors, source)
    if found.fits:
        taken = Adapted(dict(tensors))
    elif found.before is not None and not found.fixed:
        with torch.no_grad():
            taken = adapt(tensors, found.before, model, own)
    elif not strict and found.in_common:
        taken = Adapted({name: tensors[name] for name in found.in_common})
    else:
        raise ValueError(found.misfit())
    _put(model, taken.tensors, own, _widest(taken.tensors, tensors))
    result = LoadResult(
        kept=tuple(name for name in taken.tensors if name not in taken.resized),
        resized=taken.resized,
        reinitialized=tuple(name for name in found.wanted if name not in taken.tensors),
        dropped=tuple(name for name in tensors if name not in taken.tensors),
    )
    if found.fixed:
        _LOG.warning("%s: the weights %s.", type(model).__name__, found.fixed_text())
    if not result.is_exact:
        _LOG.warning("%s: %s", type(model).__name__, result.summary())
    return result


def _checked(model: DiffusionTransformer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights among the tensors, none of which a model could not take."""
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise TypeError(
            f"tensors must map names to tensors, got {type(tensors).__name__}; of a file it is "
            "ditzoo.weights.load_state_dict(path)."
        )
    bare = {name: value.detach() for name, value in unwrap_state(tensors, ()).items()}
    weights = {name: value for name, value in bare.items() if not is_constant_buffer(model, name)}
    wanted = model.state_dict()
    for name, value in weights.items():
        if name in wanted and value.dtype not in FLOATS:
            raise ValueError(f"{name} is in {short(value.dtype)}; give weights in floats of 16, 32 or 64 bits.")
    return weights


class _Comparison:
    """Weights beside the model that is to take them, and what explains their differences."""

    def __init__(
        self, model: DiffusionTransformer, tensors: Mapping[str, Tensor], source: Mapping[str, Any] | None
    ) -> None:
        self.model = model
        self.shapes, self.wanted = shapes_of(tensors), shapes_of(model.state_dict())
        self.in_common = [name for name, shape in self.wanted.items() if self.shapes.get(name) == shape]
        #: the network that the weights are for, if `source` tells
        self.before: DiffusionTransformer | None = None
        #: options in which it differs from the model and that cannot be adapted: with other heads, say, the same
        #: weights compute something else
        self.fixed: list[str] = []
        self.fits = self.shapes == self.wanted
        if source is None or source == model.config:
            given = None if source is None else model
        else:
            given = network_of(model, source)
        if given is None:
            return
        if shapes_of(given.state_dict()) == self.shapes:
            self.before = given
            self.fits = self.fits and same_labels(given, model)
        elif not self.fits and (told := told_options(given, self.shapes)) is not None:
            self.before = network_of(model, with_options(given, told))
        if self.before is not None:
            self.fixed = fixed_differences(self.before, model)
            self.fits = self.fits and not self.fixed

    def misfit(self) -> str:
        """What differs, and why if that can be told."""
        found = _differences(self.shapes, self.wanted) or "names and shapes are alike, but not what they stand for"
        return f"the weights do not fit this {type(self.model).__name__}: {found}. {self._cause()}"

    def fixed_text(self) -> str:
        """What the options that cannot be adapted are here and there."""
        assert self.before is not None
        here, there = (options_text(network, self.fixed) for network in (self.model, self.before))
        return f"are for {there}, the model has {here}"

    def _cause(self) -> str:
        model, name = self.model, type(self.model).__name__
        if sentence := foreign(self.shapes):
            return sentence
        if prefix := common_prefix(self.shapes, self.wanted):
            return f"Every name carries {shown(repr(prefix))} in front; save the state dict without it."
        if self.fixed:
            return f"They {self.fixed_text()}: weights adapt to another {', '.join(ADAPTABLE)} alone."
        if told := told_options(model, self.shapes):
            options = ", ".join(f"{option}={each.value!r} ({each.evidence})" for option, each in told.items())
            return (
                f"They are for {options}: build the model like that. To adapt them, give ditzoo.create the options you "
                f"want ({options_text(model, told)}), or load_weights those of their network as source."
            )
        if names := fitting(self.shapes):
            return f"They fit {some(names)}."
        if type(model) in (classes := looks_like(self.shapes)):
            return f"The names are mostly those of {name}: build the model with the options of their network."
        if classes:
            return f"They look like those of {' or '.join(each.__name__ for each in classes)}."
        return "They look like those of no network of the zoo."


def _differences(shapes: Shapes, wanted: Shapes) -> str:
    missing = [name for name in wanted if name not in shapes]
    unexpected = [shown(name) for name in shapes if name not in wanted]
    other = [
        f"{name} is {shape_text(shapes[name])} and should be {shape_text(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    parts = [
        f"{kind}{some(names)}"
        for kind, names in (("missing ", missing), ("unexpected ", unexpected), ("", other))
        if names
    ]
    return "; ".join(parts)


def _own_values(model: DiffusionTransformer) -> Own:
    """The model's own tensors by name; of one on the meta device those of a fresh network, drawn when first needed."""
    if model.device.type != "meta":
        return model.state_dict().__getitem__

    @cache
    def fresh() -> dict[str, Tensor]:
        with torch.device("cpu"):
            return type(model)(**copy.deepcopy(model.config)).state_dict()

    return lambda name: fresh()[name]


def _widest(taken: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The precision that holds all of the file's weights that are used."""
    return reduce(torch.promote_types, dict.fromkeys(tensors[name].dtype for name in taken))


def _put(model: DiffusionTransformer, taken: Mapping[str, Tensor], own: Own, dtype: torch.dtype) -> None:
    if model.device.type != "meta":
        model.load_state_dict(dict(taken), strict=False)
        return
    device = next(iter(taken.values())).device
    state = {name: taken[name] if name in taken else own(name) for name in model.state_dict()}
    # An expanded tensor could not be trained in place, and of two in one memory each would change the other.
    state = {name: value.to(device, dtype).contiguous() for name, value in state.items()}
    model.load_state_dict(without_overlap(state), assign=True)
