"""DiT's weights between ditzoo, whose names are the official ones, and diffusers' `DiTTransformer2DModel`.

The two networks are the same but for three things. diffusers gives every block its own copy of the embedders of time
and label; it has three projections to queries, keys and values where DiT has one; and it computes the frequencies of
the time embedding as 10000^(-k / 127) where DiT has 10000^(-k / 128), which changes the output (docs/diffusers.md).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeGuard

import torch

from ditzoo.interop.package import import_diffusers
from ditzoo.models import DiffusionTransformer, DiT
from ditzoo.weights.diffusers_names import (
    MLP_RATIO,
    NORM_EPS,
    diffusers_state,
    dit_options,
    ditzoo_state,
    is_position_table,
)

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

#: How far diffusers' frequencies move the output, over its largest value: timestep -> per cent. Measured with
#: diffusers 0.42.1 on the recorded DiT of tests/golden, whose weights are random; the tests repeat it.
DEVIATION = {417: 10, 999: 18}
#: what works for the others
ANY_MODEL = "ditzoo.interop.DiffusersTransformer(model) runs every model of ditzoo in diffusers' pipelines."


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
    import_diffusers("to_diffusers")
    check_expressible(model)
    transformer = empty_transformer(model)
    state = {name: tensor.clone() for name, tensor in diffusers_state(model).items()}
    transformer.load_state_dict(state, assign=True)
    transformer.pos_embed.pos_embed = model.pos_embed.detach().clone()  # a buffer that is no part of the state
    if patch:
        patch_diffusers(transformer)
    else:
        warn_of_deviation("The DiTTransformer2DModel that to_diffusers() returns", "to_diffusers(model, patch=True)")
    return transformer.eval()


def empty_transformer(model: DiT) -> DiTTransformer2DModel:
    """diffusers' class for a DiT that it can express, on the meta device: no random numbers are drawn for weights that
    are about to be replaced."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        return DiTTransformer2DModel(
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
        model = DiT(**dit_options(transformer.config), class_dropout_prob=class_dropout_prob)
    state = {name: tensor.clone() for name, tensor in ditzoo_state(transformer.state_dict(), model).items()}
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
        check_expressible(model)
    except (TypeError, ValueError):
        return False
    return True


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


def check_expressible(model: DiffusionTransformer) -> None:
    """Raise a TypeError or a ValueError for a model that `to_diffusers` does not take."""
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
    if not (model.pos_embed.is_meta or is_position_table(model.pos_embed, model)):
        raise ValueError(
            "pos_embed is not the sin-cos table any more, and diffusers always computes that table anew: this DiT "
            f"cannot be converted. {ANY_MODEL}"
        )
