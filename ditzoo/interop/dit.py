"""DiT's weights between ditzoo, whose names are the official ones, and diffusers' `DiTTransformer2DModel`.

The two networks are the same but for three things. diffusers gives every block its own copy of the embedders of time
and label; it has three projections to queries, keys and values where DiT has one; and it computes the frequencies of
the time embedding as 10000^(-k / 127) where DiT has 10000^(-k / 128), which changes the output (docs/diffusers.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ditzoo.interop.package import import_diffusers
from ditzoo.layers import sincos_position_table
from ditzoo.models import DiffusionTransformer, DiT

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

#: How far diffusers' frequencies move the output, over its largest value: timestep -> per cent. Measured with
#: diffusers 0.42.1 on the recorded DiT of tests/golden, whose weights are random; the tests repeat it.
DEVIATION = {417: 10, 999: 18}
#: what works for the others
ANY_MODEL = "ditzoo.interop.DiffusersTransformer(model) runs every model of ditzoo in diffusers' pipelines."
#: of the layer norms in the official DiT
NORM_EPS = 1e-6
#: the width of the feed-forward layer over D, which diffusers has fixed
MLP_RATIO = 4

#: Layers outside of the blocks: ditzoo's (the official) names and diffusers'.
_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
#: Layers of which diffusers has a copy in every block, in `norm1.emb`.
_EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
#: Layers of a block.
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}


class _Names(NamedTuple):
    """A tensor's name in ditzoo and its names in diffusers: one; or the three parts of a packed projection; or the
    blocks' copies."""

    ours: str
    theirs: list[str]
    packed: bool = False


def to_diffusers(model: DiT, *, patch: bool = False) -> DiTTransformer2DModel:
    """The same weights in diffusers' class, on the same device and in the same precision.

    The result is in evaluation mode: in training mode diffusers drops labels at random, where ditzoo's losses do that.
    Its weights are copies, and every block has its own of the embedders'.

    Args:
        model: a `DiT` with `conditioning="adaln_zero"`, classes and a null label, and an MLP of width 4 D.
        patch: change the result in memory, by `patch_diffusers`, so that it computes what `model` does. diffusers does
            not save this: what it loads again needs `patch_diffusers` again.

    Returns:
        The module. Its layer norms have DiT's eps, which diffusers saves with it.

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        TypeError: for another network than DiT.
        ValueError: for a DiT that diffusers' class cannot express.

    Warns:
        UserWarning: without `patch`, that the result deviates from `model`, and by how much.
    """
    diffusers = import_diffusers("to_diffusers")
    _check_expressible(model)
    with torch.device("meta"):  # draws no random numbers for weights that are about to be replaced
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=model.num_heads,
            attention_head_dim=model.hidden_size // model.num_heads,
            in_channels=model.in_channels,
            out_channels=model.out_channels,
            num_layers=model.depth,
            sample_size=model.input_size,
            patch_size=model.patch_size,
            num_embeds_ada_norm=model.num_classes,
            norm_eps=NORM_EPS,
        )
    state = {name: tensor.clone() for name, tensor in diffusers_state(model).items()}
    transformer.load_state_dict(state, assign=True)
    transformer.pos_embed.pos_embed = model.pos_embed.detach().clone()  # a buffer that is no part of the state
    if patch:
        patch_diffusers(transformer)
    else:
        warn_of_deviation("The DiTTransformer2DModel that to_diffusers() returns", "to_diffusers(model, patch=True)")
    return transformer.eval()


def from_diffusers(transformer: DiTTransformer2DModel, *, class_dropout_prob: float = 0.1) -> DiT:
    """The DiT with the weights of a `DiTTransformer2DModel`, on the same device and in the same precision.

    It has DiT's own time frequencies. That is right for the official weights, in whatever copy, and for what
    `to_diffusers` made; a network that was *trained* in diffusers has learned the other frequencies, and deviates.

    Args:
        transformer: with equal embedders in all blocks, as every copy of official weights has.
        class_dropout_prob: of the model's training; diffusers does not keep it, and always has a null label.

    Returns:
        The model, its weights copied.

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        TypeError: for another class.
        ValueError: for options that DiT does not have; for names and shapes of tensors that are not those of the
            class; for blocks whose embedders differ.
    """
    diffusers = import_diffusers("from_diffusers")
    if not isinstance(transformer, diffusers.DiTTransformer2DModel):
        raise TypeError(
            f"from_diffusers takes a diffusers.DiTTransformer2DModel, not a {type(transformer).__name__}. Weights of "
            "other architectures have no counterpart in ditzoo."
        )
    with torch.device("meta"):
        model = DiT(**_options(transformer.config), class_dropout_prob=class_dropout_prob)
    state = ditzoo_state(transformer.state_dict(), model)
    state["pos_embed"] = transformer.pos_embed.pos_embed.clone()
    model.load_state_dict(state, assign=True)
    return model.train(transformer.training)


def patch_diffusers(transformer: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Give a `DiTTransformer2DModel` the time frequencies and the eps of the official DiT, in place.

    Official weights compute with it what they compute in ditzoo and in the authors' code. diffusers does not save the
    frequencies: call it after every loading, `patch_diffusers(pipe.transformer)`.

    Returns:
        The same module.

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        TypeError: for another class.
    """
    diffusers = import_diffusers("patch_diffusers")
    if not isinstance(transformer, diffusers.DiTTransformer2DModel):
        raise TypeError(
            f"patch_diffusers takes a diffusers.DiTTransformer2DModel, not a {type(transformer).__name__}; give the "
            "transformer of the pipeline."
        )
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = NORM_EPS
    transformer.register_to_config(norm_eps=NORM_EPS)
    return transformer


def is_expressible(model: DiffusionTransformer) -> TypeGuard[DiT]:
    """Whether `to_diffusers` takes a model."""
    try:
        _check_expressible(model)
    except (TypeError, ValueError):
        return False
    return True


def diffusers_state(model: DiT) -> dict[str, Tensor]:
    """A DiT's state dict under diffusers' names; tensors are shared, not copied. The position table is not part of
    it."""
    ours = model.state_dict()
    state: dict[str, Tensor] = {}
    for name in _names(model.depth):
        tensor = ours[name.ours]
        parts = tensor.chunk(3) if name.packed else [tensor] * len(name.theirs)
        state.update(zip(name.theirs, parts, strict=True))
    return state


def ditzoo_state(theirs: Mapping[str, Tensor], model: DiT) -> dict[str, Tensor]:
    """diffusers' state dict under ditzoo's names, copied; without the position table.

    Args:
        theirs: of a `DiTTransformer2DModel`.
        model: what it should fit; may be on the meta device.

    Raises:
        ValueError: naming tensors that are missing, superfluous, of another shape, or not the same in every block.
    """
    names = list(_names(model.depth))
    known = {theirs_name for name in names for theirs_name in name.theirs}
    _check_names("lacks", known - set(theirs))
    _check_names("has, besides those of the class,", set(theirs) - known)
    state = {}
    for name in names:
        parts = [theirs[part] for part in name.theirs]
        _check_shapes(name, parts, model.get_parameter(name.ours).shape)
        if not name.packed:
            _check_copies(name, parts)
        state[name.ours] = torch.cat(parts) if name.packed else parts[0].clone()
    return state


def warn_of_deviation(what: str, remedy: str) -> None:
    """Warn, at the line that called the caller, of diffusers' time frequencies."""
    moved = " and ".join(f"{percent} % at t = {t}" for t, percent in DEVIATION.items())
    warnings.warn(
        f"{what} deviates from this model: diffusers computes the frequencies of the time embedding in another way "
        f"than DiT's authors. That moved the output by {moved} of its largest value in the case of docs/diffusers.md; "
        f"other weights, other numbers. To make it exact in memory: {remedy}.",
        UserWarning,
        stacklevel=3,
    )


def _names(depth: int) -> Iterator[_Names]:
    """Every tensor but the position table."""
    blocks = [f"transformer_blocks.{i}" for i in range(depth)]
    for ours, theirs in _ENDS.items():
        yield from (_Names(f"{ours}.{kind}", [f"{theirs}.{kind}"]) for kind in ("weight", "bias"))
    for ours, theirs in _EMBEDDERS.items():
        for kind in ("weight",) if ours == "y_embedder.embedding_table" else ("weight", "bias"):
            yield _Names(f"{ours}.{kind}", [f"{block}.norm1.emb.{theirs}.{kind}" for block in blocks])
    for i, block in enumerate(blocks):
        for kind in ("weight", "bias"):
            qkv = [f"{block}.attn1.to_{letter}.{kind}" for letter in "qkv"]
            yield _Names(f"blocks.{i}.attn.qkv.{kind}", qkv, packed=True)
            for ours, theirs in _BLOCK.items():
                yield _Names(f"blocks.{i}.{ours}.{kind}", [f"{block}.{theirs}.{kind}"])


def _check_expressible(model: DiffusionTransformer) -> None:
    if type(model) is not DiT:
        raise TypeError(
            f"diffusers has a class for DiT alone; a {type(model).__name__} cannot be converted. {ANY_MODEL}"
        )
    wanted = {
        "conditioning": (model.config["conditioning"] == "adaln_zero", "'adaln_zero'"),
        "num_classes": (model.num_classes > 0, "1 or more, a model with labels"),
        "class_dropout_prob": (model.class_dropout_prob > 0, "above 0, which adds the null label that it always has"),
        "mlp_ratio": (int(model.hidden_size * model.config["mlp_ratio"]) == MLP_RATIO * model.hidden_size, "4"),
    }
    for option, (fits, value) in wanted.items():
        if not fits:
            raise ValueError(
                f"diffusers' DiTTransformer2DModel has no DiT with {option}={model.config[option]!r}; it needs "
                f"{value}. {ANY_MODEL}"
            )
    if not model.pos_embed.is_meta:
        table = sincos_position_table(model.hidden_size, model.grid).to(model.pos_embed)
        if not torch.allclose(model.pos_embed, table, rtol=0, atol=5e-3):  # which weights kept in bfloat16 lose
            raise ValueError(
                "pos_embed is not the sin-cos table any more, and diffusers always computes that table anew: this DiT "
                f"cannot be converted. {ANY_MODEL}"
            )


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """DiT's constructor arguments for a configuration of `DiTTransformer2DModel`."""
    channels = config["in_channels"]
    out_channels = channels if config["out_channels"] is None else config["out_channels"]
    wanted = {
        "activation_fn": (config["activation_fn"] == "gelu-approximate", "'gelu-approximate'"),
        "attention_bias": (config["attention_bias"] is True, "True"),
        "norm_elementwise_affine": (config["norm_elementwise_affine"] is False, "False"),
        "norm_eps": (config["norm_eps"] in (NORM_EPS, 1e-5), "1e-6, DiT's, or 1e-5, which diffusers makes of it"),
        "dropout": (config["dropout"] == 0, "0"),
        "out_channels": (out_channels in (channels, 2 * channels), f"{channels} or, with a variance, {2 * channels}"),
    }
    for option, (fits, value) in wanted.items():
        if not fits:
            raise ValueError(f"DiT has no counterpart of {option}={config[option]!r}; what works is {value}.")
    return {
        "input_size": config["sample_size"],
        "patch_size": config["patch_size"],
        "in_channels": channels,
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "depth": config["num_layers"],
        "num_heads": config["num_attention_heads"],
        "num_classes": config["num_embeds_ada_norm"],
        "learn_sigma": out_channels == 2 * channels,
    }


def _check_names(verb: str, wrong: Iterable[str]) -> None:
    names = sorted(wrong)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"the transformer {verb} {', '.join(names[:3])}{more}. Convert it as diffusers builds it: without "
            "adapters, fused projections or quantisation."
        )


def _check_shapes(name: _Names, parts: list[Tensor], shape: torch.Size) -> None:
    wanted = (shape[0] // 3, *shape[1:]) if name.packed else tuple(shape)
    for theirs, part in zip(name.theirs, parts, strict=True):
        if tuple(part.shape) != wanted:
            raise ValueError(
                f"{theirs} has shape {tuple(part.shape)}, but the transformer's configuration makes it {wanted}; load "
                "it again with the configuration that belongs to its weights."
            )


def _check_copies(name: _Names, parts: list[Tensor]) -> None:
    for theirs, part in zip(name.theirs, parts, strict=True):
        if not torch.equal(part, parts[0]):
            raise ValueError(
                f"{theirs} differs from {name.theirs[0]}. diffusers trains the embedders of each block apart, and DiT "
                f"has one {name.ours.partition('.')[0]} for all: such weights have no counterpart in ditzoo."
            )
