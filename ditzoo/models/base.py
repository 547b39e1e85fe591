"""The contract that every model of the zoo keeps.

Letters in shape comments: B batch, C input channels, C' output channels, H and W height and width of the
input, N tokens, K kept tokens, D hidden width, p patch side.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditzoo.layers import RelativePositionBias, TokenMask, UnusedWeights
from ditzoo.models.details import ModelDetails
from ditzoo.models.inputs import check_arguments
from ditzoo.models.options import check_all_given, check_options
from ditzoo.models.state_dicts import accept_official_state
from ditzoo.models.tables import PositionTable
from ditzoo.recipe import Recipe


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
        TypeError: for a size that is not an integer, and for a constructor that lacks one of these options.
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
    #: options that change neither weights nor outputs, beyond whether there is a null label: they are for training
    training_options: ClassVar[tuple[str, ...]] = ("class_dropout_prob",)
    #: tokens in front of the patch tokens
    num_extra_tokens: int = 0
    #: the parameter with a row for every class and a last one for the null label; None: unknown to `load_weights`
    label_table: ClassVar[str | None] = None
    #: the parameter (D, C, p, p) that embeds patches; None: unknown to `load_weights`
    patch_weight: ClassVar[str | None] = None

    def __init__(self, arguments: Mapping[str, Any], **derived: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            option: value for option, value in arguments.items() if option not in ("self", "__class__")
        }
        check_all_given(type(self).__name__, self.config, derived)
        check_options(type(self).__name__, self.config)
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
        #: what is known of the model besides its network; travels with its weights
        self.details = ModelDetails()
        #: what became of the weights that were loaded, a `ditzoo.weights.LoadResult`; None for fresh ones
        self.load_result: Any = None
        self.register_load_state_dict_pre_hook(accept_official_state)

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
            TypeError: for an `x` that is no floating-point tensor, a `t` that is no tensor, labels that are not
                int64, or a mask that is no `TokenMask`.
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

    def position_tables(self) -> dict[str, PositionTable]:
        """Parameters whose rows belong to places of the token grid, for weights of another `input_size`. Here those of
        `RelativePositionBias`; a family adds its own."""
        return {
            f"{path}.relative_position_bias_table": PositionTable("relative", module.grid)
            for path, module in self.named_modules()
            if isinstance(module, RelativePositionBias)
        }

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
                f"{type(self).__name__}: input of {height}x{width} is not divisible by {what} {d}; the nearest size "
                f"that is: {max(d, round(height / d) * d)}x{max(d, round(width / d) * d)}."
            )
        return height // self.patch_size, width // self.patch_size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass rather than store its activations."""
        self.grad_checkpointing = enable

    def save_pretrained(
        self, folder: str | Path, *, max_shard_size: int | str = "5GB", dtype: torch.dtype | None = None
    ) -> None:
        """Write `config.json` (class, options and `details`) and `model.safetensors`, or shards with an index.

        Args:
            folder: a new one, or one whose model is to be replaced. It is replaced as a whole, or stays as it was.
            max_shard_size: of a file of weights, in bytes or as `"5GB"`.
            dtype: float16, bfloat16 or float32, for a copy of another precision.

        Raises:
            ValueError: for a size or precision that is none, or a model on the meta device.
            OSError: where the folder cannot be written.
        """
        from ditzoo.weights.folders import save_model

        save_model(self, folder, max_shard_size=max_shard_size, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls, folder_or_id: str | Path, *, dtype: torch.dtype | None = None, strict: bool = True, **overrides: Any
    ) -> Self:
        """The model in a folder, or a repository of the Hub, that `save_pretrained` or `push_to_hub` made.

        Args:
            folder_or_id: a folder, that of a training run, whose newest checkpoint is taken, or
                `"hf-hub:user/repo@revision"`, whose revision may be left out.
            dtype: of the weights; None keeps the precision of the file.
            strict: whether weights must have all names and shapes of the model; see `ditzoo.create`.
            **overrides: constructor options to change, likewise.

        Returns:
            The model, of whatever class it is, with its `details`, on the current default device, in train mode.

        Raises:
            OSError: for a folder or file that is not there, or cannot be fetched; the message says what to do.
            ValueError: for files that are damaged, or contradict each other.
            TypeError: for an option that the class does not have, or a model of another class than this one.
        """
        from ditzoo.weights.sources import load_pretrained

        model = load_pretrained(folder_or_id, dtype=dtype, strict=strict, **overrides)
        if not isinstance(model, cls):
            raise TypeError(
                f"{folder_or_id} holds a {type(model).__name__}, not a {cls.__name__}: call "
                f"{type(model).__name__}.from_pretrained, or that of DiffusionTransformer, which takes all."
            )
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        message: str = "Upload a model of ditzoo",
        samples: Path | str | bool | None = None,
        max_shard_size: int | str = "5GB",
        dtype: torch.dtype | None = None,
    ) -> str:
        """Upload the model to the Hugging Face Hub, in one commit: weights, configuration, model card, samples.

        Args:
            repo_id: `"user/repo"`, created where it does not exist.
            private: whether to create it private; None leaves that to the account's settings.
            revision: branch to commit to, created where it does not exist; None is the main one.
            token: of the Hub, with the right to write; None takes the one that `hf auth login` or `HF_TOKEN` gave.
            message: of the commit.
            samples: a picture for the card; True draws one, False leaves it out, and None draws it where that is quick:
                for models of pixels that cost less than a minute or so.
            max_shard_size, dtype: as `save_pretrained` has them.

        Returns:
            The address of the commit.

        Raises:
            ValueError: for a malformed id, or options as in `save_pretrained`.
            OSError: where something cannot be uploaded; the message says what to do. Nothing is half uploaded.
        """
        from ditzoo.pipeline.sharing import push_model

        return push_model(
            self,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            message=message,
            samples=samples,
            max_shard_size=max_shard_size,
            dtype=dtype,
        )

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
            TypeError: for a single block in place of a list.
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
        if isinstance(indices, int | str):
            raise TypeError(f"indices must be a list of blocks, or None for all, got {indices!r}: use [{indices!r}].")
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
        return check_arguments(self, x, t, y, mask)


if not TYPE_CHECKING:  # mypy would take every name for one that is here

    def __getattr__(name: str) -> Any:
        """Names of the API that are in `ditzoo.models.families`; until ditzoo 0.3."""
        if name not in ("Architecture", "Checkpoint", "Family"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ditzoo.models import families

        what = f"ditzoo.models.base.{name} is deprecated and goes in ditzoo 0.3; use ditzoo.models.{name}."
        warnings.warn(what, DeprecationWarning, stacklevel=2)
        return getattr(families, name)
