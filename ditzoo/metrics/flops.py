"""Multiply-adds of one forward pass, counted exactly on the meta device, and split by kind of work.

The "Gflops" of the DiT and U-ViT papers are multiply-adds (MACs), attention products included; DiffiT's
paper leaves the attention products out. `MacCount` gives both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

Part = Literal[
    "attention products",
    "attention projections",
    "mlp",
    "modulation",
    "convolutions",
    "long skips",
    "embeddings",
    "head",
    "other",
]

#: What makes a layer part of something, where no layer on the way to it says so in `mac_part`: an attribute on the way,
#: or a class there, of one of these names. The first row that fits decides, so that an embedder's own `mlp` is an
#: embedding and a head's modulation is modulation.
_SIGNS: dict[Part, str] = {
    "embeddings": "x_embedder t_embedder y_embedder patch_embed time_embed label_emb "
    "PatchEmbed TimestepEmbedder LabelEmbedder",
    "modulation": "adaLN_modulation qkv_temb",
    "long skips": "skip_linear",
    "attention projections": "attn cross_attn Attention CrossAttention MultiheadAttention",
    "mlp": "mlp Mlp",
    "head": "final_layer decoder_pred AdaLNFinalLayer FinalLayer",
}


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of one forward pass for ONE sample."""

    total: int
    """All multiply-adds: linear maps, convolutions and attention products."""
    attention: int
    """Those of the two products inside attention alone, q k^T and the weights times v."""
    by_module: Mapping[str, int]
    """Child of the model -> its multiply-adds; products made by the model itself stand under `""`, the
    name PyTorch gives the root. The values add up to `total`."""
    by_part: Mapping[Part, int]
    """Kind of work -> its multiply-adds, without those that have none. The values add up to `total`.

    - `"attention products"`: q k^T and the weights times v, the same as `attention`.
    - `"attention projections"`: to queries, keys and values, and the one behind the heads.
    - `"mlp"`: the feed-forward layers of the blocks.
    - `"modulation"`: what time and class pass through in every block: adaptive layer norm's layers, those of
      the last layer included, and the condition's own projection in DiffiT's attention.
    - `"convolutions"`: those of feature maps, inside blocks and from one resolution to the next.
    - `"long skips"`: the layers that merge a long skip.
    - `"embeddings"`: of patches or pixels, time and class.
    - `"head"`: from the last tokens to the image.
    - `"other"`: layers of somebody else's model that are neither of ditzoo's classes nor named like them.

    A layer of any class can name its part, and that of the layers in it, in an attribute `mac_part`.
    """
    input_shape: tuple[int, ...]
    """Shape (1, C, H, W) of the input that was counted."""

    @property
    def gmacs(self) -> float:
        """`total` in 1e9 multiply-adds: what the DiT and U-ViT papers print as "Gflops"."""
        return self.total / 1e9

    @property
    def gflops(self) -> float:
        """1e9 floating-point operations, two for each multiply-add."""
        return 2 * self.gmacs

    @property
    def gmacs_without_attention(self) -> float:
        """1e9 multiply-adds without the two attention products: DiffiT's paper counts like this."""
        return (self.total - self.attention) / 1e9

    def __float__(self) -> float:
        return float(self.total)

    def __str__(self) -> str:
        return f"{self.gmacs:.2f} GMACs ({self.gflops:.2f} GFLOPs), attention {self.attention / 1e9:.2f}"

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)


def count_macs(
    model: str | nn.Module,
    *,
    input_size: int | tuple[int, int] | None = None,
    mask: Any = None,
    **overrides: Any,
) -> MacCount:
    """Count the multiply-adds of `model(x, t, y)` for one sample, without computing anything.

    Args:
        model: a name of the registry, built on the meta device, or a model, whose weights are neither
            copied nor moved and which is left as it was.
        input_size: side, or (height, width), of the input in the model's own units (latent pixels for a
            latent model); default: the model's `input_size`. With a name, a side is also the
            `input_size` the model is built for.
        mask: a token mask; only its shapes count, and only the first sample of it.
        **overrides: options for `ditzoo.create`, with a name only.

    Raises:
        TypeError: `model` is neither a name nor such a model, or an override is unknown.
        ValueError: the name is unknown, a side is not positive, or a layer's `mac_part` is no part.
    """
    _check_input_size(input_size)
    if isinstance(model, str):
        from ditzoo import registry

        if isinstance(input_size, int):
            overrides = {"input_size": input_size, **overrides}
        with torch.device("meta"):
            twin: nn.Module = registry.create(model, **overrides).eval()
    elif not isinstance(model, nn.Module):
        raise TypeError(
            f"count_macs() takes a model name or a torch.nn.Module, not {model!r} of type "
            f"{type(model).__name__}; pass for example 'dit_xl_2' or ditzoo.create('dit_xl_2')"
        )
    elif overrides:
        raise TypeError(
            f"count_macs() got the options {sorted(overrides)} with a model that is already built; "
            "pass them to ditzoo.create(), or pass the model's name here"
        )
    else:
        twin = meta_twin(model)
    shape = _input_shape(twin, input_size)
    x = torch.empty(shape, device="meta", dtype=torch.float32)
    t = torch.zeros(1, device="meta")
    y = torch.zeros(1, device="meta", dtype=torch.int64) if getattr(twin, "num_classes", 0) else None
    # A model without `mask` in its signature is counted too, so it is passed only where there is one.
    options = {} if mask is None else {"mask": _meta_mask(mask)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _PartFlops(twin, counter) as parts:
        twin(x, t, y, **options)
    total, by_part = counter.get_total_flops() // 2, parts.macs()
    return MacCount(total, by_part.get("attention products", 0), _by_module(twin, counter, total), by_part, shape)


class _PartFlops(TorchFunctionMode):
    """Books what `counter` counts to the part of the module that is running, or to the attention products while
    inside `scaled_dot_product_attention`.

    On the meta device attention is decomposed into plain matrix products, which by their name alone could
    not be told from others.
    """

    def __init__(self, model: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.flops: dict[Part, int] = dict.fromkeys(get_args(Part), 0)
        self.booked = 0
        self.running: list[Part] = ["other"]
        for name, module in model.named_modules():
            part = _part_of(model, name)
            module.register_forward_pre_hook(lambda *_, part=part: self.enter(part))
            module.register_forward_hook(lambda *_: self.leave())

    def enter(self, part: Part) -> None:
        self.book()
        self.running.append(part)

    def leave(self) -> None:
        self.book()
        self.running.pop()

    def book(self) -> None:
        total = self.counter.get_total_flops()
        self.flops[self.running[-1]] += total - self.booked
        self.booked = total

    def macs(self) -> dict[Part, int]:
        self.book()
        return {part: flops // 2 for part, flops in self.flops.items() if flops}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.enter("attention products")
        out = func(*args, **(kwargs or {}))
        self.leave()
        return out


def _part_of(model: nn.Module, name: str) -> Part:
    """Which part the layer of that name belongs to: what it or the nearest layer around it declares, or else by the
    attributes and classes on the way to it."""
    signs = set()
    while name:
        layer = model.get_submodule(name)
        declared: Any = getattr(layer, "mac_part", None)
        if declared in get_args(Part):
            return declared
        if declared is not None:
            parts = ", ".join(map(repr, get_args(Part)))
            raise ValueError(f"{type(layer).__name__}.mac_part is {declared!r}; choose one of {parts}.")
        signs |= {name.rpartition(".")[2], *(cls.__name__ for cls in type(layer).__mro__)}
        name = name.rpartition(".")[0]
    return next((part for part, known in _SIGNS.items() if signs & set(known.split())), "other")


def _check_input_size(input_size: Any) -> None:
    if input_size is None:
        return
    sides = input_size if isinstance(input_size, tuple) else (input_size, input_size)
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise TypeError(f"input_size must be a whole number or (height, width), not {input_size!r}")
    if min(sides) < 1:
        raise ValueError(f"input_size must be positive, not {input_size!r}")


def _input_shape(model: nn.Module, input_size: int | tuple[int, int] | None) -> tuple[int, ...]:
    missing = [name for name in ("in_channels", "input_size") if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"count_macs() needs a model with the attributes in_channels and input_size; "
            f"{type(model).__name__} lacks {' and '.join(missing)}"
        )
    size: Any = model.input_size if input_size is None else input_size
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    return (1, int(model.in_channels), *sides)  # type: ignore[arg-type]


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device.

    Every tensor is entered in deepcopy's memo as already copied, so that no weight is ever duplicated. A
    copy, rather than functional_call, keeps whatever a forward caches out of the caller's model.
    """
    model = getattr(model, "_orig_mod", model)  # the plain module inside torch.compile's
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = _on_meta(tensor)
    return copy.deepcopy(model, memo).eval()


def _on_meta(tensor: Tensor) -> Tensor:
    # One floating dtype throughout: counts do not depend on it, and the input then fits every model.
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _meta_mask(mask: Any) -> Any:
    names = ("ids_keep", "ids_restore", "mask")
    if not all(isinstance(getattr(mask, name, None), Tensor) for name in names):
        raise TypeError(f"mask must hold the tensors {', '.join(names)}, as a ditzoo.TokenMask, not {mask!r}")
    return type(mask)(**{name: getattr(mask, name)[:1].to("meta") for name in names})


def _by_module(model: nn.Module, counter: FlopCounterMode, total: int) -> dict[str, int]:
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}

    def below(module: nn.Module, name: str) -> int:
        # A container such as ModuleList is never called itself: its parts stand in the count for it.
        if name in flops:
            return flops[name]
        return sum(below(child, f"{name}.{key}") for key, child in module.named_children())

    root = type(model).__name__
    parts = {key: below(child, f"{root}.{key}") // 2 for key, child in model.named_children()}
    rest = total - sum(parts.values())
    return {key: macs for key, macs in {**parts, "": rest}.items() if macs}
