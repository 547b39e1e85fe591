"""A model that is not ditzoo's, as another package might register one."""

from __future__ import annotations

from typing import Any

from ditzoo.models import DiT


class WithOption(DiT):
    """DiT's options and one more, `extra`, of which subclasses make something."""

    def __init__(
        self,
        *,
        input_size: int = 8,
        patch_size: int = 2,
        in_channels: int = 1,
        hidden_size: int = 32,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 5,
        class_dropout_prob: float = 0.1,
        learn_sigma: bool = False,
        conditioning: Any = "adaln_zero",
        extra: Any = None,
    ) -> None:
        super().__init__(
            input_size=input_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            class_dropout_prob=class_dropout_prob,
            learn_sigma=learn_sigma,
            conditioning=conditioning,
        )
        self.config["extra"] = extra
        self.keep(extra)

    def keep(self, extra: Any) -> None:
        """The end of the constructor."""
