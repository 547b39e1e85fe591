"""State dicts as training scripts and the official code leave them, and what of them a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ditzoo.layers import relative_position_index

if TYPE_CHECKING:
    from ditzoo.models.base import DiffusionTransformer


#: Beside every table of relative positions the originals keep which of its rows belongs to each pair of tokens.
_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"


def accept_official_state(module: DiffusionTransformer, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Take off what training scripts wrap around a state dict, and the buffers that ditzoo computes."""
    if not prefix:
        bare = unwrap_state(state_dict)
        state_dict.clear()
        state_dict.update(bare)
    for key in list(state_dict):
        if key.startswith(prefix) and is_constant_buffer(module, key):
            del state_dict[key]


def unwrap_state(state: Mapping[str, Any], nests: Sequence[str] = ("ema",)) -> dict[str, Any]:
    """A state dict without what training scripts wrap around it: the first of the `nests` that it has, and the
    prefixes `module.` (data-parallel training) and `_orig_mod.` (`torch.compile`)."""
    found = next((state[nest] for nest in nests if isinstance(state.get(nest), Mapping)), state)
    bare = {}
    for key, value in found.items():
        while key.startswith(("module.", "_orig_mod.")):
            key = key.partition(".")[2]
        bare[key] = value
    return bare


def is_constant_buffer(module: type[DiffusionTransformer] | DiffusionTransformer, key: str) -> bool:
    """Whether an official state dict's entry is a buffer that ditzoo computes."""
    return key.rpartition(".")[2] in module.constant_buffers


def official_state(model: DiffusionTransformer) -> dict[str, Tensor]:
    """The state dict as the authors' code saves it, which that code loads strictly: weights, which are shared, and the
    constant buffers that ditzoo computes, behind the tables that they belong to.

    Raises:
        ValueError: for a model of another package with constant buffers that are not known here.
    """
    if unknown := set(model.constant_buffers) - {_INDEX}:
        raise ValueError(
            f"the constant buffers {', '.join(sorted(unknown))} of {type(model).__name__} cannot be computed here; "
            f"ditzoo knows {_INDEX} alone."
        )
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        state[key] = tensor
        place, _, name = key.rpartition(".")
        if name == _TABLE and model.constant_buffers:
            state[f"{place}.{_INDEX}"] = relative_position_index(*model.grid, device=tensor.device)
    return state
