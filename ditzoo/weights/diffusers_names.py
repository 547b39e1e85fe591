"""DiT's weights and options under the names of diffusers' `DiTTransformer2DModel`, and back. diffusers is not needed.

ditzoo's names are the official ones. diffusers has three projections to queries, keys and values where DiT has one, and
in every block its own copy of the embedders of time and label. Its position table is no part of its state dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditzoo.layers import sincos_position_table
from ditzoo.models import DiT
from ditzoo.weights.checks import short, shown, some
from ditzoo.weights.files import FLOATS, read_checkpoint
from ditzoo.weights.index import check_inside
from ditzoo.weights.json_files import read_json_object

#: of the layer norms in the official DiT
NORM_EPS = 1e-6
#: the width of the feed-forward layer over D, which diffusers has fixed
MLP_RATIO = 4
#: How far a position table may be from its formula: what weights kept in bfloat16 lose.
POSITION_TOLERANCE = 5e-3
#: Of a pipeline's folder: where the transformer is, and what else tells it from other folders.
TRANSFORMER, PIPELINE_INDEX = "transformer", "model_index.json"
#: The buffer that diffusers computes. Some copies of weights have it.
POSITIONS = "pos_embed.pos_embed"

#: What the names of its files of weights begin with.
WEIGHTS_STEM = "diffusion_pytorch_model"

_CONFIG = "config.json"
_CLASS = "DiTTransformer2DModel"
#: diffusers' first releases had one class for several networks; the official copies on the Hub are of it.
_EARLIER_CLASS = "Transformer2DModel"
_BLOCKS = "transformer_blocks"
#: What diffusers assumes for an entry that a configuration leaves out.
_DEFAULTS: dict[str, Any] = {
    **{"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28},
    **{"dropout": 0.0, "attention_bias": True, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000},
    **{"activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False},
    "norm_eps": 1e-5,
}
_SIZES = (
    *("num_attention_heads", "attention_head_dim", "in_channels", "num_layers"),
    *("sample_size", "patch_size", "num_embeds_ada_norm"),
)
#: Larger sizes are taken for damage.
_LARGEST = 2**16
#: Values of a position table that may be computed whatever the weights are; DiT-XL/2 at 1024 x 1024 has 4.7 million.
_SMALL_TABLE = 2**23

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


def is_diffusers_state(names: Iterable[str]) -> bool:
    """Whether the names of a state dict are those that diffusers gives to transformers, DiT's among them."""
    return any(name.startswith(f"{_BLOCKS}.") for name in names)


def transformer_folder(path: Path | str) -> Path | None:
    """The folder of a transformer of diffusers that a path means; None where it means none.

    Args:
        path: a pipeline's folder, its `transformer` inside, or the file or index of weights in that.

    Raises:
        ValueError: for a `config.json` that is none.
    """
    path = Path(path)
    if (path / PIPELINE_INDEX).is_file() or (path / TRANSFORMER / _CONFIG).is_file():
        return path / TRANSFORMER
    if path.is_file() and not path.name.startswith(WEIGHTS_STEM):
        return None
    folder = path if path.is_dir() else path.parent
    config = folder / _CONFIG
    return folder if config.is_file() and "_class_name" in read_json_object(config) else None


def read_diffusers_transformer(folder: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The DiT in a folder that diffusers saved, or in a copy of one from the Hub.

    Args:
        folder: a pipeline's folder, its `transformer` inside, or the file or index of weights in that, with
            `config.json` beside it.

    Returns:
        Constructor arguments of `DiT`, but for `class_dropout_prob`, which diffusers does not keep; and the state dict
        under the official names. Tensors are mapped from the file where the two have them alike. The position table is
        that of the file, if it has one, and else in the precision of the other weights.

    Raises:
        FileNotFoundError: where the configuration or the weights are missing.
        ValueError: for another network than DiT, a configuration that DiT has no counterpart of or that its weights
            contradict, blocks whose embedders differ, and what `read_checkpoint` refuses.
    """
    folder = Path(folder)
    found = transformer_folder(folder)
    if found is None or not (found / _CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} is no folder of diffusers: there is no {_CONFIG} that names a class. Give the folder that "
            f"DiTPipeline.save_pretrained() wrote, or `{TRANSFORMER}` in it."
        )
    config = found / _CONFIG
    for place in (config,) if found == folder else (found, config):
        check_inside(place)
    options = _read_options(config)
    theirs = read_checkpoint(folder if folder.is_file() else found).tensors
    try:
        _check_blocks(options, theirs)
        with torch.device("meta"):
            model = DiT(**options)
        state = dit_state(theirs, model)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error
    return options, state


def dit_state(theirs: Mapping[str, Tensor], model: DiT) -> dict[str, Tensor]:
    """As `ditzoo_state`, with the position table: that of the file, if it has one, and else in the precision of the
    other weights."""
    rest = {name: tensor for name, tensor in theirs.items() if name != POSITIONS}
    state = ditzoo_state(rest, model)
    state["pos_embed"] = _position_table(model, state["x_embedder.proj.weight"].dtype, theirs.get(POSITIONS))
    return state


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
    """diffusers' state dict under ditzoo's names, without the position table. Tensors are shared where both have them
    alike; only the packed projections are new.

    Args:
        theirs: of a `DiTTransformer2DModel`.
        model: what it should fit; may be on the meta device.

    Raises:
        ValueError: naming tensors that are missing, superfluous, of another shape, no floats, or not the same in every
            block.
    """
    names = list(_names(model.depth))
    known = {theirs_name for name in names for theirs_name in name.theirs}
    _check_names("lacks", known - set(theirs))
    _check_names("has, besides those of the class,", set(theirs) - known)
    state = {}
    for name in names:
        parts = [theirs[part] for part in name.theirs]
        _check_parts(name, parts, model.get_parameter(name.ours).shape)
        if not name.packed:
            _check_copies(name, parts)
        state[name.ours] = torch.cat(parts) if name.packed else parts[0]
    return state


def dit_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """DiT's constructor arguments for a configuration of `DiTTransformer2DModel`.

    Raises:
        ValueError: for sizes that are none, and for what DiT has no counterpart of.
    """
    config = {**_DEFAULTS, **config}
    for entry in _SIZES:
        value = config[entry]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise ValueError(f"{entry}={value!r:.60} is no size of a DiT; it is a whole number from 1 to {_LARGEST:,}.")
    channels = config["in_channels"]
    out_channels = channels if config["out_channels"] is None else config["out_channels"]
    wanted = {
        "activation_fn": (config["activation_fn"] == "gelu-approximate", "'gelu-approximate'"),
        "attention_bias": (config["attention_bias"] is True, "True"),
        "norm_type": (config["norm_type"] == "ada_norm_zero", "'ada_norm_zero'"),
        "norm_elementwise_affine": (config["norm_elementwise_affine"] is False, "False"),
        "norm_eps": (config["norm_eps"] in (NORM_EPS, 1e-5), "1e-6, DiT's, or 1e-5, which diffusers makes of it"),
        "dropout": (config["dropout"] == 0, "0"),
        "out_channels": (out_channels in (channels, 2 * channels), f"{channels} or, with a variance, {2 * channels}"),
    }
    for option, (fits, value) in wanted.items():
        if not fits:
            raise ValueError(f"DiT has no counterpart of {option}={config[option]!r:.60}; what works is {value}.")
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


def is_position_table(table: Tensor, model: DiT) -> bool:
    """Whether a table (1, N, D) is the sin-cos one of a DiT, up to what half precision loses."""
    return torch.allclose(table, _sincos(model, table.dtype).to(table.device), rtol=0, atol=POSITION_TOLERANCE)


def is_computed_table(table: Tensor, model: DiT) -> bool:
    """Whether a table is, bit for bit, what ditzoo computes in its precision."""
    return _same_bytes(table.cpu(), _sincos(model, table.dtype))


def _names(depth: int) -> Iterator[_Names]:
    """Every tensor but the position table."""
    blocks = [f"{_BLOCKS}.{i}" for i in range(depth)]
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


def _read_options(path: Path) -> dict[str, Any]:
    config = read_json_object(path)
    kind = config.get("_class_name")
    earlier = kind == _EARLIER_CLASS and config.get("norm_type") == "ada_norm_zero"
    if kind != _CLASS and not earlier:
        raise ValueError(
            f"{path} describes a {shown(str(kind))}; of diffusers' networks ditzoo takes DiT's alone, {_CLASS}."
        )
    try:
        return dit_options(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_blocks(options: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> None:
    """Before anything is built, since a configuration can claim any size: what the file of weights has."""
    depth = len({name.split(".")[1] for name in theirs if is_diffusers_state([name])})
    if options["depth"] != depth:
        raise ValueError(
            f"{_CONFIG} has num_layers={options['depth']}, but the weights have {depth} blocks; fetch both again."
        )
    patches = theirs.get("pos_embed.proj.weight")
    width = options["hidden_size"]
    if patches is not None and (patches.ndim == 0 or patches.shape[0] != width):
        raise ValueError(
            f"{_CONFIG} makes tokens {width} wide, but pos_embed.proj.weight has shape {tuple(patches.shape)}; fetch "
            "both again."
        )
    side = options["input_size"] // options["patch_size"]
    most = max(_SMALL_TABLE, sum(tensor.numel() for tensor in theirs.values()))
    if side**2 * width > most:  # the one tensor that is computed, so that no file tells its size
        raise ValueError(
            f"{_CONFIG} has sample_size={options['input_size']}, whose position table would have {side**2 * width:,} "
            f"values; for weights of this size at most {most:,} are computed."
        )


def _position_table(model: DiT, dtype: torch.dtype, stored: Tensor | None) -> Tensor:
    if stored is None:
        return _sincos(model, dtype)
    if tuple(stored.shape) != tuple(model.pos_embed.shape) or stored.dtype not in FLOATS:
        raise ValueError(
            f"{POSITIONS} has shape {tuple(stored.shape)} in {short(stored.dtype)}, but the configuration makes it "
            f"{tuple(model.pos_embed.shape)} in floats; fetch both again."
        )
    if not is_position_table(stored, model):
        raise ValueError(
            f"{POSITIONS} is not the sin-cos table that diffusers computes in its place, so that it is not clear which "
            "of the two the weights belong to. Remove it, or take the weights from where they were trained."
        )
    return stored


def _sincos(model: DiT, dtype: torch.dtype) -> Tensor:
    return sincos_position_table(model.hidden_size, model.grid).to(dtype)


def _check_names(verb: str, wrong: Iterable[str]) -> None:
    if names := sorted(map(shown, wrong)):
        raise ValueError(
            f"the transformer {verb} {some(names)}. Convert it as diffusers builds it: without adapters, fused "
            "projections or quantisation."
        )


def _check_parts(name: _Names, parts: list[Tensor], shape: torch.Size) -> None:
    wanted = (shape[0] // 3, *shape[1:]) if name.packed else tuple(shape)
    for theirs, part in zip(name.theirs, parts, strict=True):
        if tuple(part.shape) != wanted:
            raise ValueError(
                f"{theirs} has shape {tuple(part.shape)}, but the transformer's configuration makes it {wanted}; load "
                "it again with the configuration that belongs to its weights."
            )
        if part.dtype not in FLOATS or part.dtype != parts[0].dtype:
            others = "" if part.dtype in FLOATS else " of 16 to 64 bits"
            raise ValueError(
                f"{theirs} is in {short(part.dtype)} and {name.theirs[0]} in {short(parts[0].dtype)}: weights that "
                f"become one tensor are floats{others} of one precision. Save the transformer in one."
            )


def _check_copies(name: _Names, parts: list[Tensor]) -> None:
    for theirs, part in zip(name.theirs, parts, strict=True):
        if not _same_bytes(part, parts[0]):
            raise ValueError(
                f"{theirs} differs from {name.theirs[0]}. diffusers trains the embedders of each block apart, and DiT "
                f"has one {name.ours.partition('.')[0]} for all: such weights have no counterpart in ditzoo."
            )


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bit: -0.0 is not 0.0, and NaN is NaN."""
    if one is other:
        return True
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.detach().contiguous().view(torch.uint8) for tensor in (one, other)))
