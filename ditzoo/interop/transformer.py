"""Any model of the zoo as the `transformer` of a diffusers pipeline.

Letters in shape comments: B batch, C input channels, C' output channels, H and W height and width of the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ditzoo.diffusion import GaussianDiffusion, make_process
from ditzoo.interop.package import import_diffusers
from ditzoo.interop.schedulers import check_drivable
from ditzoo.models import DiffusionTransformer
from ditzoo.recipe import Recipe

#: What diffusers' DiTPipeline takes for the label of no class, whatever the model.
PIPELINE_NULL_LABEL = 1000


class DiffusersTransformer(nn.Module):
    """A model of the zoo with the interface that diffusers' `DiTPipeline` and its like expect of a `transformer`.

    Without a recipe the network is told the scheduler's timesteps as they are, which is right for DiT, MDT and DiffiT.
    With one, they are first translated into the network's own time:

    | recipe's schedule | scheduler | the network is told time_offset + time_scale * t, where t is |
    |---|---|---|
    | `"linear"`, `"scaled_linear"`, `"cosine"` | of the same betas | the timestep: both count the noise levels from 0 |
    | `"continuous_vp"` | of `"linear"` betas | the continuous time at which the noise level is the timestep's |
    | `"flow_linear"`, velocity | `FlowMatchEulerDiscreteScheduler` | 1 - timestep / T: see below |

    diffusers' flows run from sigma = 1 (noise) to 0 (data), their timesteps are T sigma, and their networks predict
    noise - data. SiT's time is 1 - sigma, and it predicts data - noise; so the output changes its sign too.
    `make_scheduler(recipe)` gives the scheduler that belongs to a recipe.

    Three habits of `DiTPipeline` are met: it takes 1000 for the null label, which becomes the model's own where the
    model has fewer classes; it gives labels to unconditional models too, which are left out; and it takes off a learned
    variance where `config.out_channels` is 2C. A model with more than 1000 classes cannot be guided by it.

    The weights stay those of `model`, which is held as it is, without a copy.

    Args:
        model: any model of the zoo.
        recipe: of its weights, such as `ditzoo.model_info(name).recipe`; None leaves times and output as they are.

    Attributes:
        model: the model.
        recipe: the recipe, or None.
        config: read by key, by `get` and as an attribute: `sample_size`, `in_channels`, `out_channels`, `patch_size`,
            `num_layers`, `num_attention_heads`, `attention_head_dim`, `num_embeds_ada_norm` (the number of classes).

    Raises:
        ImportError: where diffusers is missing, naming the extra to install.
        TypeError: for something that is no model or recipe of ditzoo.
        ValueError: for a recipe whose network no scheduler of diffusers can drive.
    """

    def __init__(self, model: DiffusionTransformer, recipe: Recipe | None = None) -> None:
        super().__init__()
        if not isinstance(model, DiffusionTransformer):
            raise TypeError(f"DiffusersTransformer takes a model, such as ditzoo.create('dit_s_2'), not {model!r:.60}.")
        if recipe is not None:
            if not isinstance(recipe, Recipe):
                raise TypeError(f"recipe must be a ditzoo.Recipe or None, got {recipe!r:.60}.")
            check_drivable(recipe)
        import_diffusers("DiffusersTransformer")
        from diffusers.configuration_utils import FrozenDict
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        self._output_class = Transformer2DModelOutput
        self.model = model
        self.recipe = recipe
        self.config: Any = FrozenDict(_config(model))
        #: not a buffer: `to(bfloat16)` would round it
        self._continuous_times = _continuous_times(recipe) if recipe and recipe.schedule == "continuous_vp" else None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """What the model predicts at a scheduler's timestep.

        Args:
            hidden_states: (B, C, H, W).
            timestep: of the scheduler: a number, or a tensor of one or of B of them.
            class_labels: (B,) int64; left out of the call of an unconditional model.
            cross_attention_kwargs: there for the sake of pipelines that pass it; must be empty.
            return_dict: False returns a tuple.

        Returns:
            diffusers' `Transformer2DModelOutput`, whose `sample` is (B, C', H, W), or a tuple of that tensor alone.

        Raises:
            ValueError: for a missing timestep, another number of timesteps than 1 or B, attention arguments, and what
                the model itself refuses.
        """
        if cross_attention_kwargs:
            raise ValueError(
                f"ditzoo's models take no cross_attention_kwargs, got {', '.join(map(str, cross_attention_kwargs))}; "
                "leave them out."
            )
        sample = self.model(hidden_states, self._times(timestep, hidden_states), self._labels(class_labels))
        if self.recipe is not None and self.recipe.is_flow:
            sample = -sample
        return self._output_class(sample=sample) if return_dict else (sample,)

    def network_time(self, timestep: Tensor) -> Tensor:
        """A scheduler's timesteps in the network's own units, in the same shape."""
        if self.recipe is None:
            return timestep
        t = timestep
        if self.recipe.is_flow:
            t = 1 - timestep / self.recipe.num_train_timesteps
        elif self._continuous_times is not None:
            t = _interpolated(self._continuous_times, timestep)
        if self.recipe.time_scale == 1 and self.recipe.time_offset == 0:
            return t
        return self.recipe.time_offset + self.recipe.time_scale * t

    def _times(self, timestep: Tensor | float | None, x: Tensor) -> Tensor:
        """(B,) in the network's units."""
        if timestep is None:
            raise ValueError("timestep is missing: give one of the scheduler's timesteps.")
        t = torch.as_tensor(timestep, device=x.device)
        if t.numel() not in (1, x.shape[0]):
            raise ValueError(
                f"timestep has shape {tuple(t.shape)}; give one for all {x.shape[0]} samples, or each one."
            )
        return self.network_time(t.reshape(-1).expand(x.shape[0]))

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        if self.model.num_classes == 0:
            return None
        if labels is None or self.model.null_label is None or self.model.num_classes >= PIPELINE_NULL_LABEL:
            return labels
        return labels.masked_fill(labels == PIPELINE_NULL_LABEL, self.model.null_label)


def _config(model: DiffusionTransformer) -> dict[str, Any]:
    """Under the names that `DiTTransformer2DModel` has for them."""
    return {
        "sample_size": model.input_size,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "patch_size": model.patch_size,
        "num_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.hidden_size // model.num_heads,
        "num_embeds_ada_norm": model.num_classes,
    }


def _continuous_times(recipe: Recipe) -> Tensor:
    """The continuous time at which the noise level is that of each timestep of the `linear` betas, (T,) float64."""
    steps = recipe.num_train_timesteps
    table = GaussianDiffusion(Recipe(prediction="epsilon", schedule="linear", num_train_timesteps=steps))
    process = make_process(recipe)
    return torch.tensor([process.time_at(table.log_snr(t)) for t in range(steps)], dtype=torch.float64)


def _interpolated(table: Tensor, timestep: Tensor) -> Tensor:
    """Entries of a float64 table (T,) at timesteps, float32; between whole timesteps linearly."""
    table = table.float().to(timestep.device)
    lower = timestep.floor().long() if timestep.is_floating_point() else timestep.long()
    return torch.lerp(table[lower], table[(lower + 1).clamp(max=len(table) - 1)], (timestep - lower).float())
