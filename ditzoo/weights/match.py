"""A file of weights beside the network that it should be for: what of it may be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ditzoo import registry
from ditzoo.models import DiffusionTransformer
from ditzoo.models.state_dicts import is_constant_buffer
from ditzoo.weights.files import FLOATS, WeightsFile
from ditzoo.weights.values import sampled_hash

#: Name -> shape.
Shapes = dict[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Name -> shape."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def shape_text(shape: Sequence[int]) -> str:
    """`3x4` for (3, 4)."""
    return "x".join(str(side) for side in shape) or "scalar"


@dataclass(frozen=True)
class FileForNetwork:
    """A file beside the network that it should be for.

    Attributes:
        name: registry name of the network.
        model: the network, on the meta device.
        file: the file.
        weights: its tensors, without the originals' constant buffers, which ditzoo computes.
        buffers: those buffers.
        values: the weights whose name, shape and dtype are the network's. Of others no value is read: a tensor of a
            few bytes can claim any shape.
    """

    name: str
    model: DiffusionTransformer
    file: WeightsFile
    weights: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    @classmethod
    def match(cls, name: str, model: DiffusionTransformer, file: WeightsFile) -> FileForNetwork:
        wanted = shapes_of(model.state_dict())
        buffers = {key: tensor for key, tensor in file.tensors.items() if _is_expected_buffer(model, key, wanted)}
        weights = {key: tensor for key, tensor in file.tensors.items() if key not in buffers}
        values = {
            key: tensor
            for key, tensor in weights.items()
            if wanted.get(key) == tuple(tensor.shape) and tensor.dtype in FLOATS
        }
        return cls(name, model, file, weights, buffers, values)

    @cached_property
    def shapes(self) -> Shapes:
        return shapes_of(self.weights)

    @cached_property
    def wanted(self) -> Shapes:
        return shapes_of(self.model.state_dict())

    @property
    def is_published(self) -> bool:
        """Whether the name is that of trained weights. A bare name is a fresh network's too."""
        return registry.model_info(self.name).source is not None

    @cached_property
    def misfit(self) -> str:
        """Why the weights are not the network's; empty if they are."""
        if self.shapes != self.wanted or self.file.others:
            return "names or shapes differ"
        return "" if len(self.values) == len(self.weights) else "dtypes differ"

    @cached_property
    def digest(self) -> str | None:
        """The sampled hash, where the weights are the network's."""
        return None if self.misfit else sampled_hash(self.weights)


def _is_expected_buffer(model: DiffusionTransformer, key: str, wanted: Shapes) -> bool:
    """The originals keep an index beside every relative-position table."""
    return is_constant_buffer(model, key) and f"{key.rpartition('.')[0]}.relative_position_bias_table" in wanted
