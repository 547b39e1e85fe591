"""Training objectives over any callable model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditzoo.diffusion.draws import TrainingDraws
from ditzoo.diffusion.process import FlowMatching, GaussianDiffusion, Process
from ditzoo.recipe import LossWeighting


class LossTerms(NamedTuple):
    """A loss and what it is made of, (B,) float32 each.

    Attributes:
        loss: what training averages over the batch.
        mse: mean squared error of the prediction, weighted as the recipe asks; None under `loss="vlb"`.
        vb: the variational bound's term of this timestep in bits per dimension, weighted as in the loss; None for a
            fixed variance.
    """

    loss: Tensor
    mse: Tensor | None
    vb: Tensor | None


def loss_terms(process: Process, x0: Tensor, x: Tensor, noise: Tensor, output: Tensor, t: Tensor) -> LossTerms:
    """The loss of a network's output.

    Args:
        process: decides the loss; a `GaussianDiffusion` by its recipe's `loss`, `variance` and `min_snr_gamma`.
        x0: (B, C, H, W) clean.
        x: noisy, `process.add_noise(x0, noise, t)`.
        noise: as x0.
        output: what the network returned for x: (B, C, H, W), or (B, 2C, H, W) with a learned variance.
        t: (B,) times of the process.

    Raises:
        ValueError: for an output of another shape than the recipe's variance asks for.
    """
    learned = isinstance(process, GaussianDiffusion) and process.recipe.variance == "learned_range"
    _check_output(output, x0, learned)
    if not learned:
        mse = _squared_error(process, x0, noise, output, t)
        return LossTerms(mse, mse, None)
    assert isinstance(process, GaussianDiffusion)
    channels = x0.shape[1]
    if process.recipe.loss == "vlb":
        vb = process.num_timesteps * variational_bound(process, x0, x, output, t)
        return LossTerms(vb, None, vb)
    # The bound trains the variance alone (section 3.1 of arXiv:2102.09672).
    frozen = torch.cat([output[:, :channels].detach(), output[:, channels:]], dim=1)
    weight = process.num_timesteps / 1000 if process.recipe.loss == "rescaled_hybrid" else 1.0
    vb = weight * variational_bound(process, x0, x, frozen, t)
    mse = _squared_error(process, x0, noise, output[:, :channels], t)
    return LossTerms(mse + vb, mse, vb)


def _check_output(output: Tensor, x0: Tensor, learned: bool) -> None:
    wanted = (x0.shape[0], x0.shape[1] * (2 if learned else 1), *x0.shape[2:])
    if tuple(output.shape) != wanted:
        remedy = (
            "the recipe's variance is 'learned_range': build the model with learn_sigma=True"
            if learned
            else "the recipe trains no variance: build the model with learn_sigma=False, or choose "
            "variance='learned_range' and loss='hybrid'"
        )
        raise ValueError(f"the model returned {tuple(output.shape)} where {wanted} is needed; {remedy}.")


def _squared_error(process: Process, x0: Tensor, noise: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
    error = (prediction.float() - process.target(x0, noise, t)).square()
    if isinstance(process, FlowMatching) and process.prediction == "score":
        error = error * process.alpha_sigma(t)[1].square()  # SiT's (sigma s + noise)^2
    weight = _weight(process, t)
    mean = error.flatten(1).mean(dim=1)
    return mean if weight is None else weight * mean


def _weight(process: Process, t: Tensor) -> Tensor | None:
    """Weights of the squared errors at times t, (B,); None where all are 1."""
    if isinstance(process, GaussianDiffusion) and process.recipe.min_snr_gamma is not None:
        return min_snr_weight(process, t).float().to(t.device)
    if isinstance(process, FlowMatching) and process.loss_weighting != "none":
        return flow_weight(process, t, process.loss_weighting)
    return None


def min_snr_weight(process: GaussianDiffusion, t: Tensor) -> Tensor:
    """Min-SNR weights (section 3.4 of arXiv:2303.09556) of the process's prediction at timesteps t, (B,) float64 on
    the CPU."""
    alpha, sigma = process.levels(t.cpu())
    snr = (alpha / sigma).square()
    capped = snr.clamp(max=process.recipe.min_snr_gamma)
    return {"epsilon": capped / snr, "sample": capped, "v_prediction": capped / (snr + 1)}[process.prediction]


def flow_weight(process: FlowMatching, t: Tensor, weighting: LossWeighting) -> Tensor:
    """SiT's weights of a loss of noise or score: (g / sigma)^2 for `"velocity"` and g / sigma^2 for `"likelihood"`,
    with g = sigma^2 alpha' / alpha - sigma sigma' (arXiv:2401.08740, section 3), (B,) float32."""
    sigma = process.alpha_sigma(t)[1].flatten()
    g = process.sbdm(t)
    return (g / sigma).square() if weighting == "velocity" else g / sigma.square()


def variational_bound(process: GaussianDiffusion, x0: Tensor, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
    """The bound's term at timesteps t, in bits per dimension, (B,): a Kullback-Leibler divergence of two Gaussians,
    and at t = 0 the negative log-likelihood of 8-bit data (section 3 of arXiv:2006.11239)."""
    mean, log_variance = process.posterior(x0, x, t)
    model = process.reverse_step(x, output, t)
    divergence = _gaussian_kl(mean, log_variance, model.mean, model.log_variance)
    likelihood = -_discretized_log_likelihood(x0, model.mean, 0.5 * model.log_variance)
    first = (t == 0).view(-1, *[1] * (x0.ndim - 1))
    return torch.where(first, likelihood, divergence).flatten(1).mean(dim=1) / math.log(2)


def prior_bits(process: GaussianDiffusion, x0: Tensor) -> Tensor:
    """The bound's last term, KL(q(x_T | x0) || N(0, 1)), in bits per dimension, (B,)."""
    t = torch.full((x0.shape[0],), process.num_timesteps - 1, device=x0.device)
    alpha, sigma = process.alpha_sigma(t)
    zero = torch.zeros((), device=x0.device)
    divergence = _gaussian_kl(alpha * x0, 2 * sigma.log(), zero, zero)
    return divergence.flatten(1).mean(dim=1) / math.log(2)


def _gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (-1 + log_variance2 - log_variance1 + ratio + distance)


def _discretized_log_likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability in nats that a Gaussian gives the bin of an 8-bit value x0 in [-1, 1], elementwise; the bins at
    both ends are open (eq. 13 of arXiv:2006.11239)."""
    centered, inverse = x0 - mean, torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (centered + 1 / 255))
    lower = _normal_cdf(inverse * (centered - 1 / 255))
    log_upper = upper.clamp(min=1e-12).log()
    log_survival = (1 - lower).clamp(min=1e-12).log()
    log_bin = (upper - lower).clamp(min=1e-12).log()
    return torch.where(x0 < -0.999, log_upper, torch.where(x0 > 0.999, log_survival, log_bin))


def _normal_cdf(z: Tensor) -> Tensor:
    """The tanh approximation of the normal distribution that DDPM's descendants train with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def denoising_terms(
    model: Callable[..., Tensor],
    process: Process,
    x0: Tensor,
    y: Tensor | None,
    draws: TrainingDraws,
    *,
    null_label: int | None = None,
    class_dropout_prob: float = 0.0,
    mask: object = None,
) -> LossTerms:
    """The loss of one pass and its parts, one number a sample. The process's recipe decides which.

    Args:
        model: called as model(x_t, t, y, mask=mask).
        process: gives x_t, the target and the loss.
        x0: (B, C, H, W) images in [-1, 1] or latents.
        y: (B,) labels; None for an unconditional model.
        draws: times, noise and label uniforms of this pass.
        null_label: replaces the labels whose uniform lies below `class_dropout_prob`.
        class_dropout_prob: how often to drop a label.
        mask: handed on to the model.

    Raises:
        ValueError: where the model returns another shape than the recipe's variance asks for.
    """
    t, noise = process.training_times(draws.t).to(x0.device), draws.noise.to(x0.device)
    if y is not None and null_label is not None:
        y = torch.where(draws.label_uniform.to(y.device) < class_dropout_prob, null_label, y)
    x = process.add_noise(x0, noise, t)
    output = process.call(model, x, t, y, mask=mask)
    return loss_terms(process, x0, x, noise, output, t)


def denoising_loss(
    model: Callable[..., Tensor], process: Process, x0: Tensor, y: Tensor | None, draws: TrainingDraws, **options: Any
) -> Tensor:
    """The loss of one pass, one number a sample: (B,) float32. Arguments and errors as `denoising_terms`."""
    return denoising_terms(model, process, x0, y, draws, **options).loss


def training_terms(
    model: Callable[..., Tensor],
    process: Process,
    x0: Tensor,
    y: Tensor | None,
    passes: Sequence[TrainingDraws],
    *,
    null_label: int | None = None,
    class_dropout_prob: float = 0.0,
    mask: object = None,
) -> dict[str, Tensor]:
    """The loss of a step and what it is made of, scalars averaged over the batch.

    `"loss"` is the plain pass's and, where `mask` is given, the masked one's of MDT, each weighted 1 (section 3.4 of
    arXiv:2303.14389). The others are `"mse"` and `"vb"` of the plain pass, `"masked_mse"` and `"masked_vb"` of the
    masked one, as far as the recipe has them, without gradients. Arguments as `denoising_terms`, with one set of draws
    a pass.

    Raises:
        ValueError: for another number of draws than passes.
    """
    masks = [None] if mask is None else [None, mask]
    if len(passes) != len(masks):
        raise ValueError(
            f"{len(passes)} sets of draws for {len(masks)} passes; call draw_training(..., num_passes={len(masks)})."
        )
    losses, parts = [], {}
    for draws, pass_mask in zip(passes, masks, strict=True):
        found = denoising_terms(
            model,
            process,
            x0,
            y,
            draws,
            null_label=null_label,
            class_dropout_prob=class_dropout_prob,
            mask=pass_mask,
        )
        losses.append(found.loss.mean())
        for name, values in (("mse", found.mse), ("vb", found.vb)):
            if values is not None:
                parts[name if pass_mask is None else f"masked_{name}"] = values.detach().mean()
    return {"loss": torch.stack(losses).sum(), **parts}


def training_loss(
    model: Callable[..., Tensor],
    process: Process,
    x0: Tensor,
    y: Tensor | None,
    passes: Sequence[TrainingDraws],
    **options: Any,
) -> Tensor:
    """The loss of a step alone, a scalar. Arguments and errors as `training_terms`."""
    return training_terms(model, process, x0, y, passes, **options)["loss"]
