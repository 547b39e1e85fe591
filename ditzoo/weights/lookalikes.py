"""Whose weights are these? What names and shapes in a file tell."""

from __future__ import annotations

import math
import re

import torch

from ditzoo import registry
from ditzoo.models import DiffusionTransformer
from ditzoo.weights.match import Shapes, shapes_of

#: How names of other libraries and networks begin, and what to tell of them.
FOREIGN = (
    (
        r"transformer_blocks\.",
        "The names are those of the diffusers library, whose files have another layout. Take the authors' own "
        "file, or the whole folder, which ditzoo.create(name, checkpoint=folder) and `ditzoo convert` read.",
    ),
    (
        r"model\.diffusion_model\.|input_blocks\.|down_blocks\.",
        "The names are those of a convolutional U-Net, such as Stable Diffusion's, which is no network of the zoo.",
    ),
    (
        r"first_stage_model\.|(en|de)coder\.(conv_in|down|up|mid)|(post_)?quant_conv\.",
        "The names are those of an autoencoder: they make images of latents, and are no diffusion transformer.",
    ),
    (
        r"(.+\.)?cls_token$",
        "The names are those of a vision transformer that classifies images, such as timm's, which is no network of "
        "the zoo.",
    ),
)
#: How alike names must be: the part of all name patterns that two state dicts share.
_ALIKE = 0.7


def foreign(shapes: Shapes) -> str:
    """A sentence on weights that are not in the zoo's layout; empty if nothing in their names says so."""
    found = (sentence for start, sentence in FOREIGN if any(re.match(start, name) for name in shapes))
    return next(found, "")


def common_prefix(shapes: Shapes, wanted: Shapes) -> str:
    """What stands in front of every wanted name in the file; empty if nothing does."""
    first = next(iter(wanted))
    for key in shapes:
        prefix = key.removesuffix(first)
        if prefix not in ("", key) and all(prefix + other in shapes for other in wanted):
            return prefix
    return ""


def fitting(shapes: Shapes) -> list[str]:
    """Registry names whose state dict has just these names and shapes; a tag only where its bare name has not."""
    count = sum(math.prod(shape) for shape in shapes.values())
    names = registry.list_models() + registry.list_models(pretrained=True)
    # Few have as many parameters, and only those are built.
    found = [name for name in names if registry.model_info(name).num_params == count and _layout(name) == shapes]
    return [name for name in found if "." not in name or name.partition(".")[0] not in found]


def looks_like(shapes: Shapes) -> list[type[DiffusionTransformer]]:
    """Classes of the zoo whose names are most like these, at any size; none where no class's are."""
    patterns = _patterns(shapes)
    alike: dict[type[DiffusionTransformer], float] = {}
    for name in _one_of_each_kind():
        with torch.device("meta"):
            model = registry.create(name)
        own = _patterns(shapes_of(model.state_dict()))
        share = len(own & patterns) / len(own | patterns)
        alike[type(model)] = max(share, alike.get(type(model), 0.0))
    best = max(alike.values())
    return [model_cls for model_cls, share in alike.items() if share == best >= _ALIKE]


def _one_of_each_kind() -> list[str]:
    """Registry names that differ in more than their size: in class, or in an option that is no number. The smallest of
    each, which is built fastest."""
    kinds: dict[object, str] = {}
    for name in sorted(registry.list_models(), key=lambda name: registry.model_info(name).num_params):
        info = registry.model_info(name)
        switches = [repr(value) for value in info.config.values() if isinstance(value, bool | str)]
        kinds.setdefault((info.family, info.model_cls, *switches), name)
    return list(kinds.values())


def _patterns(shapes: Shapes) -> frozenset[str]:
    """Names without the numbers of blocks and layers."""
    return frozenset(re.sub(r"\d+", "*", name) for name in shapes)


def _layout(name: str) -> Shapes:
    with torch.device("meta"):
        return shapes_of(registry.create(name).state_dict())
