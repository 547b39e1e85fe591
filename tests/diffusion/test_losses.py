"""Training objectives against the official ones and by their definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ditzoo
from ditzoo.diffusion import GaussianDiffusion, TrainingDraws, denoising_loss, draw_training, training_loss
from ditzoo.recipe import Recipe
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
