"""What a benchmark runs: settings that are the same for every model in its table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ditzoo import registry
from ditzoo.models import DiffusionTransformer
from ditzoo.models.digits import DIGITS_EDM_RECIPE, DIGITS_FLOW_RECIPE, DIGITS_RECIPE
from ditzoo.recipe import Recipe
from ditzoo.train import TrainOptions


@dataclass(frozen=True, kw_only=True)
class QuickSuite:
    """Train tiny models on real 8x8 digits, sample with guidance, compare."""

    name: str = "quick"
    patterns: tuple[str, ...] = ("*_ti_2", "*_unet_ti")
    """names of the models that run by default"""
    train: TrainOptions = field(
        default_factory=lambda: TrainOptions(num_images=48_000, batch_size=16, learning_rate=4e-3, ema_decay=0.99)
    )
    recipe: Recipe = DIGITS_RECIPE
    """of every model that trains by diffusion; families with token masks add their own masked training pass"""
    flow_recipe: Recipe = DIGITS_FLOW_RECIPE
    """of the models whose own recipe is a flow, with as many evaluations a sample"""
    edm_recipe: Recipe = DIGITS_EDM_RECIPE
    """of the models whose own recipe is EDM's, likewise"""
    num_samples: int = 1_000
    """samples a model, in equal number of each class"""
    sample_batch_size: int = 250
    forward_batch_size: int = 64
    """of the forward throughput and memory; training's are measured at the training batch size"""
    speed_rounds: int = 7
    """interleaved measurements of each throughput"""
    speed_seconds: float = 0.1
    """least length of one such measurement"""

    def recipe_for(self, name: str, model: DiffusionTransformer) -> Recipe:
        """The suite's recipe for a model of this name, with its own masked training pass, if it has one."""
        published = registry.model_info(name).recipe
        recipe = self.recipe
        if published is not None and published.is_flow:
            recipe = self.flow_recipe
        elif published is not None and published.schedule == "edm":
            recipe = self.edm_recipe
        return replace(
            recipe,
            mask_ratio=model.config.get("mask_ratio"),
            mask_ratio_spread=model.mask_ratio_spread,
        )

    def default_models(self) -> list[str]:
        """The tiny model of every registered family."""
        return [name for pattern in self.patterns for name in registry.list_models(pattern)]

    def check_models(self, names: list[str]) -> None:
        """Raise a ValueError for names that cannot run on the digits, or that do not exist."""
        for name in names:
            config = registry.model_info(name).config
            wanted = {"input_size": 8, "in_channels": 1, "num_classes": 10}
            if any(config[option] != value for option, value in wanted.items()):
                raise ValueError(
                    f"{name} is not made for 8x8 digits of 10 classes; the quick benchmark takes "
                    f"{', '.join(self.default_models())}, or a registered model with {wanted}."
                )


QUICK = QuickSuite()
