"""ditzoo: diffusion transformers side by side.

One registry and one interface for DiT, SiT, U-ViT, MDT and DiffiT. The names below are loaded when they are first used,
so `import ditzoo` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ditzoo.interop.convert import convert
    from ditzoo.layers.masking import TokenMask, random_token_mask
    from ditzoo.pipeline import Pipeline, sample
    from ditzoo.recipe import Recipe
    from ditzoo.registry import (
        ModelInfo,
        create,
        list_families,
        list_models,
        model_info,
        register_model,
    )

_PUBLIC = {
    "ModelInfo": "ditzoo.registry",
    "Pipeline": "ditzoo.pipeline",
    "Recipe": "ditzoo.recipe",
    "TokenMask": "ditzoo.layers.masking",
    "convert": "ditzoo.interop.convert",
    "create": "ditzoo.registry",
    "list_families": "ditzoo.registry",
    "list_models": "ditzoo.registry",
    "model_info": "ditzoo.registry",
    "random_token_mask": "ditzoo.layers.masking",
    "register_model": "ditzoo.registry",
    "sample": "ditzoo.pipeline",
}

__all__ = [
    "ModelInfo",
    "Pipeline",
    "Recipe",
    "TokenMask",
    "__version__",
    "convert",
    "create",
    "list_families",
    "list_models",
    "model_info",
    "random_token_mask",
    "register_model",
    "sample",
]


#: Packages and modules that can be had as attributes without an import of their own, as in `ditzoo.weights.verify`.
_ROOMS = (
    *("bench", "data", "diffusion", "interop", "layers", "media", "metrics", "models", "pipeline", "recipe"),
    *("registry", "summary", "train", "weights"),
)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return import_module(f"ditzoo.{name}")
    raise AttributeError(f"module 'ditzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
