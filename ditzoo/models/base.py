"""The contract that every model of the zoo keeps, and the dataclasses in which a family declares itself.

Letters in shape comments: B batch, C input channels, C' output channels, H and W height and width of the
input, N tokens, K kept tokens, D hidden width, p patch side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditzoo.layers import TokenMask, UnusedWeights
from ditzoo.recipe import Guidance, Recipe

#: Constructor options that every model has; see `DiffusionTransformer`.
SHARED_OPTIONS = (
    "input_size",
    "in_channels",
    "mlp_ratio",
    "num_classes",
    "class_dropout_prob",
    "learn_sigma",
)


class Intermediates(NamedTuple):
    """What `forward_intermediates` returns.

    Attributes:
        output: what `forward` returns.
        tokens: block name -> tokens after that block, (B, N, D), in order of execution.
    """

    output: Tensor
    tokens: dict[str, Tensor]


class DiffusionTransformer(nn.Module):
    """Base class of all models: `model(x, t, y=None, *, mask=None) -> Tensor`.

    Options that all transformers have, under the same names:

    - `input_size`: side S of the square input that the model is made for; others run as well.
    - `patch_size`: side p of a patch; divides `input_size`.
    - `in_channels`: C.
    - `hidden_size`: D, divisible by `num_heads` and by 4.
    - `depth`: number of transformer blocks, as the family's paper counts them.
    - `num_heads`: attention heads.
    - `mlp_ratio`: width of the feed-forward layer over D.
    - `num_classes`: real classes; 0 makes an unconditional model, which takes no `y`.
    - `class_dropout_prob`: how often training replaces the label by the null label. Above 0 the model owns the null
      label `num_classes`; at 0 it has none, and cannot be guided.
    - `learn_sigma`: predict a variance as well: `out_channels` is 2C, prediction first.

    Args:
        arguments: the subclass's own constructor arguments, as `locals()` holds them at its first line. They
            become `config`, so that `type(model)(**model.config)` builds the same network.
        **derived: `patch_size`, `hidden_size`, `depth` and `num_heads`, where the constructor derives them from options
            of its own, such as widths of several stages, rather than takes them.

    Raises:
        ValueError: for an option outside its range; the message names option, value and remedy.
        TypeError: for a size that is not an integer.
    """

    supports_masking: ClassVar[bool] = False
    #: MDTv2's training draws its mask ratio from [mask_ratio, mask_ratio + mask_ratio_spread]
    mask_ratio_spread: ClassVar[float] = 0.0
    #: buffers of the official state dicts that ditzoo computes and therefore drops on loading
    constant_buffers: ClassVar[tuple[str, ...]] = ()
    #: False where the authors published no code: there are no official names, counts and outputs to compare with
    has_original: ClassVar[bool] = True
    #: False where the network has weights for a variance and forward drops it, as SiT's does
    returns_variance: ClassVar[bool] = True
    #: the last time that the network embeds; None where it takes the thousand timesteps, and fractions as well
    last_time: ClassVar[float | None] = None
    #: tokens in front of the patch tokens
    num_extra_tokens: int = 0

    def __init__(self, arguments: Mapping[str, Any], **derived: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            option: value for option, value in arguments.items() if option not in ("self", "__class__")
        }
        _check_config(type(self).__name__, self.config)
        options = {**self.config, **derived}
        self.input_size: int = options["input_size"]
        self.patch_size: int = options["patch_size"]
        self.in_channels: int = options["in_channels"]
        self.hidden_size: int = options["hidden_size"]
        self.depth: int = options["depth"]
        self.num_heads: int = options["num_heads"]
        self.num_classes: int = options["num_classes"]
        self.class_dropout_prob: float = options["class_dropout_prob"]
        self.learn_sigma: bool = options["learn_sigma"]
        #: channels that the last layer computes
        self.head_channels = 2 * self.in_channels if self.learn_sigma else self.in_channels
        self.out_channels = self.head_channels if self.returns_variance else self.in_channels
        self.grid = (self.input_size // self.patch_size, self.input_size // self.patch_size)
        self.grad_checkpointing = False
        self.register_load_state_dict_pre_hook(_accept_official_state)

    # What a family provides.

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, *, mask: TokenMask | None = None) -> Tensor:
        """Predict noise, velocity or whatever the recipe trains.

        Draws no random numbers, in train mode either: dropped labels and masks are arguments.

        Args:
            x: (B, C, H, W); `downsampling` divides H and W. At `input_size` the network is exactly the
                original; at other sizes its position tables are resized.
            t: (B,) in the network's own time units, integer or fractional.
            y: (B,) int64 labels in [0, num_classes); `num_classes` itself is the null label.
            mask: which tokens to see, for families with `supports_masking`.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: for inputs of the wrong shape, a label out of range, `y` missing or superfluous, a
                mask given to a family without masks.
            TypeError: for labels that are not int64.
        """
        raise TypeError(f"{type(self).__name__} does not define forward().")

    def block_names(self) -> list[str]:
        """Names of the transformer blocks in order of execution; MDT's side block, which only a masked pass
        runs, is not among them."""
        return [f"blocks.{i}" for i in range(self.depth)]

    def block_tokens(self, output: Tensor) -> Tensor:
        """The tokens (B, N, D) in what a block returns."""
        return output

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that optimisers are advised not to decay: the position tables."""
        names = ("pos_embed", "relative_position_bias_table", "mask_token")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}

    def unused_weights(self) -> list[UnusedWeights]:
        """Trained or frozen weights that the state dict has, as the original's does, and that change no output."""
        return [
            UnusedWeights(f"{path}.{name}", rows, reason)
            for path, module in self.named_modules()
            if module is not self and hasattr(module, "unused_weights")
            for name, rows, reason in module.unused_weights()
        ]

    def initialize_weights(self) -> None:
        """Draw fresh weights as the family's authors do."""
        raise TypeError(f"{type(self).__name__} does not define initialize_weights().")

    def initialize(self) -> None:
        """Draw fresh weights; on the meta device there is nothing to draw, and drawing would load the compiler."""
        if self.device.type != "meta":
            self.initialize_weights()

    # What all share.

    @property
    def downsampling(self) -> int:
        """What divides height and width of an input: the patch size, or in a U shape the side, in pixels, of a token of
        the coarsest resolution."""
        return self.patch_size

    @property
    def null_label(self) -> int | None:
        """The label of classifier-free guidance's unconditional half; None where the model has none."""
        return self.num_classes if self.num_classes and self.class_dropout_prob > 0 else None

    @property
    def num_label_rows(self) -> int:
        """Rows of the label table: the classes, and the null label if there is one."""
        return self.num_classes + (self.null_label is not None)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe that would tell the network times that it does not embed: SiT's run from 0 to 1.

        The other way round nothing is wrong: a network that takes timesteps can be trained as a flow.

        Raises:
            ValueError: naming both ranges and the remedy.
        """
        told = recipe.last_network_time
        if self.last_time is not None and told > self.last_time:
            raise ValueError(
                f"{type(self).__name__} embeds times from 0 to {self.last_time:g}, and the recipe's schedule "
                f"{recipe.schedule!r} tells it times up to {told:g}; use a flow's schedule, or a smaller "
                "time_scale."
            )

    def num_tokens(self, height: int | None = None, width: int | None = None) -> int:
        """Patch tokens of one input of the given size in pixels or latents (default: `input_size`)."""
        rows, columns = self.token_grid(
            self.input_size if height is None else height, self.input_size if width is None else width
        )
        return rows * columns

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens.

        Raises:
            ValueError: where `downsampling` does not divide the input.
        """
        d = self.downsampling
        if height < 1 or width < 1 or height % d or width % d:
            what = "patch_size" if d == self.patch_size else "the total downsampling"
            raise ValueError(
                f"input of {height}x{width} is not divisible by {what} {d}; the nearest size that is: "
                f"{max(d, round(height / d) * d)}x{max(d, round(width / d) * d)}."
            )
        return height // self.patch_size, width // self.patch_size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass rather than store its activations."""
        self.grad_checkpointing = enable

    def run_block(self, block: nn.Module, *args: Any) -> Tensor:
        """Run one transformer block, checkpointed where asked for. Every forward goes through here."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
        return block(*args)

    def forward_intermediates(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        indices: Sequence[int | str] | None = None,
        mask: TokenMask | None = None,
    ) -> Intermediates:
        """Run `forward` and keep the tokens after the blocks asked for.

        Args:
            x: (B, C, H, W), as `forward`.
            t: (B,), as `forward`.
            y: (B,) labels, as `forward`.
            mask: as `forward`.
            indices: blocks by number in order of execution (negative ones count from the end) or by name
                as `block_names()` gives it; all of them where None.

        Returns:
            The output and the tokens: (B, N, D), with the family's extra tokens in front where it has some,
            and only the kept tokens inside a masked encoder. In a U shape N and D are those of the block's stage.

        Raises:
            ValueError: for a block that does not exist.
        """
        names = self._resolve_blocks(indices)
        kept: dict[str, Tensor] = {}
        with self._kept_outputs(names, kept):
            output = self(x, t, y, mask=mask)
        return Intermediates(output, {name: kept[name] for name in names})

    def _resolve_blocks(self, indices: Sequence[int | str] | None) -> list[str]:
        names = self.block_names()
        if indices is None:
            return names
        chosen = set()
        for index in indices:
            if isinstance(index, int) and -len(names) <= index < len(names):
                chosen.add(names[index])
            elif index in names:
                chosen.add(index)
            else:
                raise ValueError(
                    f"no block {index!r}: give a number from {-len(names)} to {len(names) - 1} or one of "
                    f"{', '.join(names)}."
                )
        return [name for name in names if name in chosen]

    @contextmanager
    def _kept_outputs(self, names: Sequence[str], kept: dict[str, Tensor]) -> Iterator[None]:
        def keep(name: str) -> Any:
            return lambda module, args, output: kept.__setitem__(name, self.block_tokens(output))

        handles = [self.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check_inputs(self, x: Tensor, t: Tensor, y: Tensor | None, mask: TokenMask | None) -> tuple[int, int]:
        """Check a forward's arguments; return the token grid. Errors as documented in `forward`."""
        name = type(self).__name__
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor, got {kind}.")
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"{name} takes x of shape (B, {self.in_channels}, H, W), got {tuple(x.shape)}; build it with "
                "in_channels=... for another channel count."
            )
        batch = x.shape[0]
        if not isinstance(t, Tensor):
            raise TypeError(f"t must be a tensor of one time a sample, got {t!r}.")
        if t.ndim != 1 or t.shape[0] != batch:
            raise ValueError(f"t has shape {tuple(t.shape)}; give one time a sample: ({batch},).")
        grid = self.token_grid(x.shape[2], x.shape[3])
        self._check_labels(y, batch)
        if mask is not None:
            self._check_mask(mask, batch, grid[0] * grid[1])
        return grid

    def _check_labels(self, y: Tensor | None, batch: int) -> None:
        name = type(self).__name__
        if self.num_classes == 0:
            if y is not None:
                raise ValueError(f"this {name} is unconditional (num_classes=0) and takes no y.")
            return
        if y is None:
            raise ValueError(
                f"y is missing: this {name} is conditioned on {self.num_classes} classes; give (B,) int64 "
                "labels, or build it with num_classes=0."
            )
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be an int64 tensor, got {type(y).__name__}; use torch.tensor(y).")
        if y.dtype != torch.int64:
            raise TypeError(f"y must be int64, got {y.dtype}; use y.long().")
        if y.ndim != 1 or y.shape[0] != batch:
            raise ValueError(f"y has shape {tuple(y.shape)}; give one label a sample: ({batch},).")
        # A look at the values would synchronise an accelerator and break a trace; fake tensors have none.
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(y) is not Tensor  # type: ignore[attr-defined]
        if y.device.type == "cpu" and not tracing and batch:
            low, high = (int(v) for v in torch.aminmax(y))
            if low < 0 or high >= self.num_label_rows:
                null = f" ({self.null_label} is the null label)" if self.null_label is not None else ""
                raise ValueError(
                    f"label {low if low < 0 else high} is out of range: this {name} takes labels from 0 to "
                    f"{self.num_label_rows - 1}{null}."
                )

    def _check_mask(self, mask: TokenMask, batch: int, num_tokens: int) -> None:
        name = type(self).__name__
        if not self.supports_masking:
            raise ValueError(f"{name} does not take a mask; only MDT and MDTv2 do. Call it without mask=.")
        if not isinstance(mask, TokenMask):
            raise TypeError(f"mask is a {type(mask).__name__}; make a TokenMask with ditzoo.random_token_mask().")
        if mask.mask.shape != (batch, num_tokens):
            raise ValueError(
                f"mask covers {tuple(mask.mask.shape)} tokens, but x has ({batch}, {num_tokens}); make it with "
                f"ditzoo.random_token_mask({batch}, {num_tokens}, ratio)."
            )


def _accept_official_state(module: DiffusionTransformer, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
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


def initialize_like_dit(model: nn.Module) -> None:
    """DiT's initialisation, shared by MDT and DiffiT: Xavier uniform for every linear layer and for the patch
    projection, zero biases, and 0.02 for the embedders. Zeroed layers come after it, in the family's file."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name in ("t_embedder", "y_embedder"):
        if (embedder := getattr(model, name, None)) is not None:
            embedder.reset_parameters()


def zero_parameters(*modules: nn.Module) -> None:
    """Set weights and biases to zero."""
    for layer in modules:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def check_integer(name: str, option: str, value: object) -> None:
    """Refuse what is no whole number, True and 2.0 included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: {option} must be an integer, got {value!r}.")


def check_number(name: str, option: str, value: object) -> None:
    """Refuse what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name}: {option} must be a finite number, got {value!r}.")


def check_at_least(name: str, option: str, value: int, least: int) -> None:
    """Refuse what is no whole number or too small a one."""
    check_integer(name, option, value)
    if value < least:
        raise ValueError(f"{name}: {option} must be at least {least}, got {value}.")


def check_divisible(name: str, option: str, value: int, by: str, divisor: int) -> None:
    """Refuse what leaves a remainder, and name the next that does not."""
    if value % divisor:
        raise ValueError(
            f"{name}: {option} {value} is not divisible by {by} {divisor}; the next that is: "
            f"{(value // divisor + 1) * divisor}."
        )


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    """Refuse sizes no network can have, before any memory is asked for."""
    # A network that derives the last four from options of its own checks these.
    for option in ("input_size", "in_channels", "patch_size", "hidden_size", "depth", "num_heads"):
        if option in config or option in ("input_size", "in_channels"):
            check_at_least(name, option, config[option], 1)
    check_at_least(name, "num_classes", config["num_classes"], 0)
    for option in ("mlp_ratio", "class_dropout_prob"):
        check_number(name, option, config[option])
    for option in ("learn_sigma", "qkv_bias", "mlp_time_embed", "conv", "skip"):
        if option in config and not isinstance(config[option], bool):
            raise TypeError(f"{name}: {option} must be True or False, got {config[option]!r}.")
    if config["mlp_ratio"] <= 0:
        raise ValueError(f"{name}: mlp_ratio must be above 0, got {config['mlp_ratio']}.")
    if not 0 <= config["class_dropout_prob"] < 1:
        raise ValueError(f"{name}: class_dropout_prob must be in [0, 1), got {config['class_dropout_prob']}.")
    if "patch_size" in config:
        check_divisible(name, "input_size", config["input_size"], "patch_size", config["patch_size"])
    if "hidden_size" in config:
        width = config["hidden_size"]
        if int(width * config["mlp_ratio"]) < 1:
            raise ValueError(f"{name}: mlp_ratio {config['mlp_ratio']} leaves the MLP no width; the families use 4.")
        check_divisible(name, "hidden_size", width, "num_heads", config["num_heads"])
        if width % 4:
            raise ValueError(f"{name}: hidden_size {width} is not divisible by 4, as position tables need.")


@dataclass(frozen=True)
class Checkpoint:
    """Published weights: the tag behind the dot of `dit_xl_2.in256`.

    Attributes:
        config: what the published network changes against the bare name.
        source: where its authors put it.
        licence: of the weights, in their authors' words.
        data: what it was trained on.
        recipe: how it was trained and is sampled; the architecture's where None.
        packaged: whether the file comes with ditzoo.
    """

    config: Mapping[str, Any]
    source: str
    licence: str
    data: str
    recipe: Recipe | None = None
    packaged: bool = False


@dataclass(frozen=True)
class Architecture:
    """One named network.

    Attributes:
        name: registry name, `family_size_patch`.
        model_cls: its class.
        config: constructor arguments; what is not named keeps the class's default.
        ours: True where no paper has this size; such models are marked in every table.
        checkpoints: published weights by tag.
        recipe: how the authors train and sample weights of this size; the family's where None.
    """

    name: str
    model_cls: type[DiffusionTransformer]
    config: Mapping[str, Any]
    ours: bool = False
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Family:
    """What one model file offers the registry.

    Attributes:
        name: short name, as in `list_models(family="dit")`.
        title: name in print.
        summary: one sentence on what sets the family apart.
        paper: title and arXiv number.
        recipe: how the authors train and sample it, unless an architecture or a checkpoint says otherwise.
        architectures: its named networks.
    """

    name: str
    title: str
    summary: str
    paper: str
    recipe: Recipe
    architectures: Sequence[Architecture]


#: The tiny models of every family: digits in, for tests, teaching and the quick benchmark.
TINY: dict[str, Any] = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "num_classes": 10,
    "learn_sigma": False,
}


#: The published latent models see the latents of Stable Diffusion's fine-tuned autoencoder, scaled like this.
SD_VAE: dict[str, Any] = {"latent_codec": "stabilityai/sd-vae-ft-ema", "latent_scale": 0.18215}


def pixel_recipe(recipe: Recipe) -> Recipe:
    """The same recipe without an autoencoder and without a learned variance."""
    return replace(recipe, latent_codec=None, latent_scale=1.0, variance="fixed_large", loss="mse")


#: How the tiny models learn the digits, in the quick benchmark and for the weights that come with ditzoo.
DIGITS_RECIPE = Recipe(
    prediction="v_prediction",
    schedule="cosine",
    guidance=Guidance(scale=1.5),
    sampler="ddim",
    num_inference_steps=25,
)
#: The same for families that learn by flow matching, with as many evaluations a sample.
DIGITS_FLOW_RECIPE = Recipe(
    prediction="velocity",
    schedule="flow_linear",
    guidance=Guidance(scale=1.5),
    sampler="euler",
    num_inference_steps=25,
)
#: The same for families that learn by EDM: 25 evaluations in 13 steps.
DIGITS_EDM_RECIPE = Recipe(
    prediction="edm",
    schedule="edm",
    guidance=Guidance(scale=1.5),
    sampler="edm_heun",
    num_inference_steps=13,
)
DIGITS_DATA = "1,297 handwritten digits of 8x8 pixels, scikit-learn's load_digits"


def digits_checkpoint(recipe: Recipe = DIGITS_RECIPE) -> Checkpoint:
    """Packaged weights of a tiny model."""
    return Checkpoint(
        config={},
        source="packaged with ditzoo; benchmarks/train_digits_weights.py trains them",
        licence="Apache-2.0",
        data=DIGITS_DATA,
        recipe=recipe,
        packaged=True,
    )
