"""Training objectives by their definition; `test_golden.py` compares them with the official ones."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ditzoo
from ditzoo.diffusion import (
    EDM,
    FlowMatching,
    GaussianDiffusion,
    LossTerms,
    TrainingDraws,
    denoising_loss,
    denoising_terms,
    draw_training,
    loss_terms,
    make_process,
    min_snr_weight,
    prior_bits,
    training_loss,
    training_terms,
    variational_bound,
)
from ditzoo.recipe import Recipe
from tests.diffusion.mixture import KINDS, process_of
from tests.golden_cases import relative_error
from tests.zoo import MASKED, lively

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def process(prediction="epsilon", schedule="linear"):
    return GaussianDiffusion(Recipe(prediction=prediction, schedule=schedule))


def draws(t, noise, label_uniform=None):
    label_uniform = torch.ones(len(t)) if label_uniform is None else label_uniform
    return TrainingDraws(t, label_uniform, noise, torch.empty(len(t), 0))


class Recorder:
    """Returns `answer` (x itself where None) and remembers how it was called."""

    def __init__(self, answer=None):
        self.answer, self.calls = answer, []

    def __call__(self, x, t, y, *, mask):
        self.calls.append((x, t, y, mask))
        return x if self.answer is None else self.answer


@given(seed=st.integers(0, 1000))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_mean_squared_error_of_each_sample(prediction, seed):
    this = process(prediction)
    x0 = torch.randn(3, 2, 4, 4)
    (these,) = draw_training(seed, range(3), (2, 4, 4), num_timesteps=1000)
    answer = torch.randn(3, 2, 4, 4)
    loss = denoising_loss(Recorder(answer), this, x0, None, these)
    target = this.target(x0, these.noise, these.t)
    expected = [float(((a - b) ** 2).mean()) for a, b in zip(answer, target, strict=True)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)
    assert denoising_loss(Recorder(target), this, x0, None, these).tolist() == [0, 0, 0]
    batch = training_loss(Recorder(answer), this, x0, None, [these])
    assert float(batch) == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_half_precision_predictions_are_compared_in_float32(prediction):
    x0, answer = torch.randn(2, 3, 2, 4, 4).bfloat16()
    (these,) = draw_training(0, range(3), (2, 4, 4), num_timesteps=1000)
    loss = denoising_loss(Recorder(answer), process(prediction), x0, None, these)
    full = denoising_loss(Recorder(answer.float()), process(prediction), x0.float(), None, these)
    assert loss.dtype == torch.float32
    assert relative_error(loss, full) < 1e-6


def test_labels_are_dropped_where_their_number_is_below_the_probability():
    network, y = Recorder(), torch.tensor([0, 1, 2, 3])
    these = draws(torch.zeros(4).long(), torch.zeros(4, 1, 2, 2), torch.tensor([0.0, 0.09, 0.1, 0.9]))
    denoising_loss(network, process(), torch.zeros(4, 1, 2, 2), y, these, null_label=10, class_dropout_prob=0.1)
    labels = network.calls[0][2]
    assert labels.tolist() == [10, 10, 2, 3]
    assert labels.dtype == torch.int64
    assert y.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5])
def test_labels_are_dropped_as_often_as_asked_for(probability):
    network = Recorder()
    (these,) = draw_training(0, range(10_000), (1, 1, 1), num_timesteps=1000)
    y = torch.arange(10_000) % 10
    options = {"null_label": 10, "class_dropout_prob": probability}
    denoising_loss(network, process(), torch.zeros(10_000, 1, 1, 1), y, these, **options)
    dropped = network.calls[0][2] == 10
    assert float(dropped.float().mean()) == pytest.approx(probability, abs=0.015)
    assert torch.equal(network.calls[0][2][~dropped], y[~dropped])


def test_labels_stay_where_there_is_no_null_label():
    network, y = Recorder(), torch.tensor([0, 1])
    these = draws(torch.zeros(2).long(), torch.zeros(2, 1, 2, 2), torch.zeros(2))
    denoising_loss(network, process(), torch.zeros(2, 1, 2, 2), y, these)
    assert network.calls[0][2] is y


def test_a_masked_step_is_a_plain_pass_and_a_masked_one():
    mask, network = object(), Recorder()
    x0, y = torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 2])
    passes = draw_training(0, range(3), (2, 4, 4), num_timesteps=1000, num_passes=2)
    total = training_loss(network, process(), x0, y, passes, mask=mask)
    assert [call[3] for call in network.calls] == [None, mask]
    parts = [denoising_loss(network, process(), x0, y, these).mean() for these in passes]
    assert float(total) == pytest.approx(float(parts[0] + parts[1]), rel=1e-6)
    assert total.shape == ()
    assert torch.equal(network.calls[0][1], network.calls[1][1])
    assert not torch.equal(network.calls[0][0], network.calls[1][0])


def test_a_step_tells_what_its_loss_is_made_of():
    recipe = Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid")
    x0, y = torch.randn(3, 2, 4, 4), torch.tensor([0, 1, 2])
    passes = draw_training(0, range(3), (2, 4, 4), num_timesteps=1000, num_passes=2)

    def network(x, t, y, mask):
        return torch.cat([x, 0.5 * x], dim=1).requires_grad_()

    terms = training_terms(network, GaussianDiffusion(recipe), x0, y, passes, mask=object())
    assert set(terms) == {"loss", "mse", "vb", "masked_mse", "masked_vb"}
    assert terms["loss"].item() == pytest.approx(sum(float(terms[name]) for name in terms if name != "loss"), rel=1e-6)
    assert [name for name, value in terms.items() if value.requires_grad] == ["loss"]
    alone = training_terms(network, GaussianDiffusion(recipe), x0, y, passes[:1])
    assert {name: float(value) for name, value in alone.items() if name != "loss"} == {
        name: float(terms[name]) for name in ("mse", "vb")
    }


def test_draws_for_another_number_of_passes_are_refused():
    passes = draw_training(0, range(2), (1, 2, 2), num_timesteps=1000, num_passes=2)
    for these, mask in [(passes, None), (passes[:1], object())]:
        with pytest.raises(ValueError, match=r"sets of draws for \d passes; .*num_passes="):
            training_loss(Recorder(), process(), torch.zeros(2, 1, 2, 2), None, these, mask=mask)


@pytest.mark.parametrize("name", MASKED)
def test_the_masked_pass_trains_the_side_interpolater(name):
    model = lively(name)
    x0, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    passes = draw_training(0, range(4), (1, 8, 8), num_timesteps=1000, num_tokens=16, num_passes=2)
    mask = ditzoo.random_token_mask(4, 16, 0.3, noise=passes[1].token_noise)
    training_loss(model, process("v_prediction"), x0, y, passes, mask=mask).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.sideblocks.parameters())
    assert model.mask_token.grad.abs().max() > 0


@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_every_process_is_trained_by_the_error_of_its_target(schedule, prediction):
    this = process_of(schedule, prediction)
    (these,) = draw_training(3, range(4), (2, 4, 4), num_timesteps=this.num_timesteps)
    x0, answer = torch.randn(2, 4, 2, 4, 4)
    network = Recorder(answer)
    loss = denoising_loss(network, this, x0, None, these)
    t = this.training_times(these.t)
    error = (answer - this.target(x0, these.noise, t)).square().mean(dim=(1, 2, 3))
    if prediction == "score":  # SiT's (sigma s + noise)^2
        error = error * this.alpha_sigma(t)[1].flatten() ** 2
    torch.testing.assert_close(loss, error, rtol=1e-5, atol=0)
    x, told, _, _ = network.calls[0]
    torch.testing.assert_close(told, this.network_time(t))
    torch.testing.assert_close(x, this.scale_input(this.add_noise(x0, these.noise, t), t))
    assert denoising_loss(Recorder(this.target(x0, these.noise, t)), this, x0, None, these).max() < 1e-9


# Parts of the loss.

LEARNED = Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid")


def learned_parts(loss, respaced=None, **changes):
    this = GaussianDiffusion(dataclasses.replace(LEARNED, loss=loss, **changes))
    this = this if respaced is None else this.respace(respaced)
    x0, noise = torch.randn(2, 4, 3, 4, 4).clamp(-1, 1)
    output = torch.randn(4, 6, 4, 4).requires_grad_()
    t = torch.tensor([0, 1, 4, 9])
    x = this.add_noise(x0, noise, t)
    return this, loss_terms(this, x0, x, noise, output, t), output, (x0, x, t)


def test_the_hybrid_loss_trains_the_variance_by_the_bound_and_the_mean_by_the_error():
    this, terms, output, (x0, x, t) = learned_parts("hybrid")
    torch.testing.assert_close(terms.loss, terms.mse + terms.vb)
    torch.testing.assert_close(terms.vb, variational_bound(this, x0, x, output, t))
    terms.vb.sum().backward(retain_graph=True)
    assert output.grad[:, :3].abs().max() == 0
    assert output.grad[:, 3:].abs().amax(dim=(1, 2, 3)).min() > 0
    output.grad = None
    terms.mse.sum().backward()
    assert output.grad[:, 3:].abs().max() == 0
    assert output.grad[:, :3].abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("steps", [10, 250])
def test_the_rescaled_bound_counts_the_steps_of_the_process(steps):
    torch.manual_seed(1)
    _, plain, _, _ = learned_parts("hybrid", respaced=steps)
    torch.manual_seed(1)
    _, rescaled, _, _ = learned_parts("rescaled_hybrid", respaced=steps)
    torch.testing.assert_close(rescaled.vb, steps / 1000 * plain.vb)
    torch.testing.assert_close(rescaled.mse, plain.mse)


def test_the_bound_alone_trains_both():
    this, terms, output, (x0, x, t) = learned_parts("vlb")
    assert terms.mse is None
    torch.testing.assert_close(terms.loss, 1000 * variational_bound(this, x0, x, output, t))
    terms.loss.sum().backward()
    assert output.grad[:, :3].abs().amax(dim=(1, 2, 3)).min() > 0
    assert output.grad[:, 3:].abs().amax(dim=(1, 2, 3)).min() > 0


def test_the_bound_of_a_perfect_model_is_zero():
    """KL(q || p) of a model whose mean and variance are the posterior's."""
    this = GaussianDiffusion(LEARNED)
    x0, noise = torch.rand(2, 3, 2, 4, 4) * 2 - 1
    t = torch.tensor([1, 300, 999])
    x = this.add_noise(x0, noise, t)
    perfect = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)  # -1 is the smallest variance
    # At t = 999 an x0 from a noise prediction keeps four digits.
    assert variational_bound(this, x0, x, perfect, t).abs().max() < 1e-5
    assert (variational_bound(this, x0, x, perfect + 0.3, t) > 1e-5).all()


def test_the_bound_at_the_last_step_is_the_likelihood_of_eight_bits():
    """Against the normal distribution itself, which the tanh approximates within 2e-4."""
    this = GaussianDiffusion(dataclasses.replace(LEARNED, prediction="sample"))
    levels = torch.arange(256) / 127.5 - 1  # the values of an 8-bit channel
    x0 = levels.view(256, 1, 1, 1)
    mean = torch.full_like(x0, 0.1)
    output = torch.cat([mean, torch.full_like(x0, 1.0)], dim=1)
    t = torch.zeros(256).long()
    bits = variational_bound(this, x0, torch.zeros_like(x0), output, t).double()
    deviation = float(this.betas[0]) ** 0.5  # the larger variance
    normal = torch.distributions.Normal(0.1, deviation)
    edges = torch.cat([torch.tensor([-math.inf]), levels[:-1] + 1 / 255, torch.tensor([math.inf])]).double()
    expected = (normal.cdf(edges[1:]) - normal.cdf(edges[:-1])).clamp(min=1e-12)
    near = expected > 1e-3
    assert near.sum() >= 5
    torch.testing.assert_close(2 ** -bits[near], expected[near], rtol=2e-2, atol=3e-4)
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-3)


def test_the_prior_is_the_divergence_from_a_standard_normal():
    this, x0 = GaussianDiffusion(LEARNED), torch.randn(3, 2, 4, 4)
    alpha, sigma = this.level(999.0)
    divergence = 0.5 * (alpha**2 * x0.double() ** 2 + sigma**2 - 1 - math.log(sigma**2)) / math.log(2)
    assert prior_bits(this, x0).tolist() == pytest.approx(divergence.mean(dim=(1, 2, 3)).tolist(), rel=2e-2, abs=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_by_their_formula(prediction, gamma):
    """Section 3.4 of arXiv:2303.09556: min(snr, gamma) for x0, which for noise is over snr, for v over snr + 1."""
    this = GaussianDiffusion(Recipe(prediction=prediction, schedule="linear", min_snr_gamma=gamma))
    t = torch.tensor([0, 120, 640, 999])
    snr = this.alphas_cumprod[t] / (1 - this.alphas_cumprod[t])
    over = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(4)}[prediction]
    torch.testing.assert_close(
        min_snr_weight(this, t), torch.minimum(snr, torch.tensor(gamma)) / over, rtol=1e-12, atol=0
    )
    x0, noise, answer = torch.randn(3, 4, 2, 4, 4)
    weighted = denoising_terms(Recorder(answer), this, x0, None, draws(t, noise))
    plain = denoising_loss(Recorder(answer), process(prediction), x0, None, draws(t, noise))
    torch.testing.assert_close(weighted.loss, plain * min_snr_weight(this, t).float())
    assert weighted == LossTerms(weighted.loss, weighted.mse, None)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@pytest.mark.parametrize("weighting", ["velocity", "likelihood"])
def test_sits_weights_by_their_formula(prediction, weighting):
    recipe = Recipe(prediction=prediction, schedule="flow_linear", loss_weighting=weighting)
    weighted, plain = make_process(recipe), FlowMatching("linear", prediction)
    uniform = torch.tensor([0.1, 0.5, 0.9])
    x0, noise, answer = torch.randn(3, 3, 2, 4, 4)
    losses = [denoising_loss(Recorder(answer), this, x0, None, draws(uniform, noise)) for this in (weighted, plain)]
    t = plain.training_times(uniform)
    g, sigma = (1 - t) / t, 1 - t  # of the line
    weight = (g / sigma) ** 2 if weighting == "velocity" else g / sigma**2
    torch.testing.assert_close(losses[0], weight * losses[1], rtol=1e-5, atol=0)


def test_weighted_by_velocity_a_noise_loss_is_the_velocitys():
    """What the weight is for: the error of the velocity that the noise prediction implies."""
    recipe = Recipe(prediction="epsilon", schedule="flow_linear", loss_weighting="velocity")
    this, uniform = make_process(recipe), torch.tensor([0.2, 0.5, 0.8])
    x0, noise, answer = torch.randn(3, 3, 2, 4, 4)
    loss = denoising_loss(Recorder(answer), this, x0, None, draws(uniform, noise))
    t = this.training_times(uniform)
    implied, _ = this.denoise(this.add_noise(x0, noise, t), answer, t)
    error = (this.velocity(implied, answer, t) - this.velocity(x0, noise, t)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, error, rtol=1e-3, atol=1e-4)


# Bad input.


@pytest.mark.parametrize(
    ("this", "channels", "message"),
    [
        (
            GaussianDiffusion(LEARNED),
            2,
            r"returned \(3, 2, 4, 4\) where \(3, 4, 4, 4\) is needed; the recipe's variance is 'learned_range': build "
            r"the model with learn_sigma=True",
        ),
        (
            process(),
            4,
            r"returned \(3, 4, 4, 4\) where \(3, 2, 4, 4\) is needed; the recipe trains no variance: build the model "
            r"with learn_sigma=False, or choose variance='learned_range' and loss='hybrid'",
        ),
        (FlowMatching(), 4, r"where \(3, 2, 4, 4\) is needed; the recipe trains no variance"),
        (EDM(), 1, r"returned \(3, 1, 4, 4\) where \(3, 2, 4, 4\) is needed"),
    ],
)
def test_an_output_of_the_wrong_shape_is_named_with_the_remedy(this, channels, message):
    (these,) = draw_training(0, range(3), (2, 4, 4), num_timesteps=this.num_timesteps)
    answer = torch.zeros(3, channels, 4, 4)
    with pytest.raises(ValueError, match=message):
        denoising_loss(Recorder(answer), this, torch.zeros(3, 2, 4, 4), None, these)


def test_a_misspelt_option_of_the_loss_is_refused():
    (these,) = draw_training(0, range(3), (2, 4, 4), num_timesteps=1000)
    with pytest.raises(TypeError, match="class_dropout"):
        denoising_loss(Recorder(), process(), torch.zeros(3, 2, 4, 4), None, these, class_dropout=0.1)
