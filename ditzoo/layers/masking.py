"""Random token masks, drawn outside the model."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor


class TokenMask(NamedTuple):
    """Which tokens of each sample a model sees. Made by `random_token_mask`.

    Attributes:
        ids_keep: (B, K) int64, the kept tokens in shuffled order.
        ids_restore: (B, N) int64; entry n says where token n stands among the shuffled ones, of which the
            first K are kept.
        mask: (B, N) float32, 1 where the token is masked, in the original order.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor

    def keep(self, tokens: Tensor) -> Tensor:
        """The kept tokens of (B, N, D), shuffled: (B, K, D)."""
        return tokens.gather(1, repeat(self.ids_keep, "b k -> b k d", d=tokens.shape[-1]))

    def keep_pairs(self, index: Tensor) -> Tensor:
        """Rows and columns of the kept tokens in an (N, N) table of token pairs: (B, K, K)."""
        return index[self.ids_keep[:, :, None], self.ids_keep[:, None, :]]

    def restore(self, kept: Tensor, fill: Tensor) -> Tensor:
        """Put (B, K, D) kept tokens back in place and `fill` (1, 1, D) everywhere else: (B, N, D)."""
        batch, num_kept, width = kept.shape
        filled = fill.to(kept.dtype).expand(batch, self.ids_restore.shape[1] - num_kept, width)
        shuffled = torch.cat([kept, filled], dim=1)
        return shuffled.gather(1, repeat(self.ids_restore, "b n -> b n d", d=width))


def random_token_mask(
    batch_size: int,
    num_tokens: int,
    mask_ratio: float | Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> TokenMask:
    """Mask a random part of the tokens, another one for each sample (MDT, arXiv:2303.14389, section 3.2).

    Args:
        batch_size: B.
        num_tokens: N, the tokens of one sample.
        mask_ratio: part of the tokens to mask, in [0, 1); int(N * (1 - mask_ratio)) are kept. A float32
            tensor of one element is computed with in float32, as MDTv2 does.
        noise: (B, N) numbers whose order decides: the lowest are kept. Drawn uniformly where None.
        generator: where the noise comes from.
        device: of the mask; that of `noise` where given.

    Raises:
        ValueError: for a ratio that leaves no token, is negative or no finite number, or noise of another shape.
    """
    if not math.isfinite(mask_ratio):
        raise ValueError(f"mask_ratio must be a number from 0 to below 1, got {float(mask_ratio)}.")
    num_keep = int(num_tokens * (1 - mask_ratio))
    if mask_ratio < 0 or num_keep < 1:
        raise ValueError(
            f"mask_ratio {float(mask_ratio)} keeps {num_keep} of {num_tokens} tokens; it must be at least 0 "
            "and leave one token or more."
        )
    if noise is None:
        noise = torch.rand(batch_size, num_tokens, generator=generator, device=device)
    if noise.shape != (batch_size, num_tokens):
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected ({batch_size}, {num_tokens}).")
    shuffle = noise.argsort(dim=1)
    ids_restore = shuffle.argsort(dim=1)
    return TokenMask(shuffle[:, :num_keep], ids_restore, (ids_restore >= num_keep).float())
