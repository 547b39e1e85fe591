"""Training objectives against the official ones and by their definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ditzoo
from ditzoo.diffusion import GaussianDiffusion, TrainingDraws, denoising_loss, draw_training, training_loss
from ditzoo.recipe import Recipe
from tests.golden_cases import process_case, relative_error
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


@pytest.mark.parametrize(
    ("prediction", "output", "error"),
    [
        ("epsilon", "in.model_output", "out.training_losses.mse_fixed.mse"),
        ("sample", "in.model_output_xstart", "out.training_losses.mse_learned_xstart.mse"),
    ],
)
def test_squared_errors_equal_those_of_dit(prediction, output, error):
    golden = process_case("diffusion_dit")
    network = Recorder(golden[output][:, :3])
    these = draws(golden["in.t"], golden["in.noise"])
    loss = denoising_loss(network, process(prediction), golden["in.x_start"], None, these)
    assert loss.shape == (3,)
    assert relative_error(loss, golden[error]) < 2e-5
    x, t, y, mask = network.calls[0]
    assert relative_error(x, golden["out.q_sample"]) < 1e-6
    assert (t is golden["in.t"], y, mask) == (True, None, None)


def test_the_loss_equals_that_of_u_vit():
    golden = process_case("diffusion_uvit")
    model = golden.model()
    seen = []

    def network(x, t, y, *, mask):  # U-ViT counts its timesteps from 1
        seen.append(x)
        return model(x, t + 1, y)

    these = draws(golden["in.n"] - 1, golden["in.eps"])
    loss = denoising_loss(network, process(schedule="scaled_linear"), golden["in.x0"], golden["in.y"], these)
    assert relative_error(loss, golden["out.lsimple.loss"]) < 2e-5
    assert relative_error(seen[0], golden["out.lsimple.xn"]) < 2e-5


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_plain_and_masked_errors_equal_those_of_mdt(version, mode):
    golden = process_case("diffusion_mdt")
    model = golden.model(version)
    given = {key: golden[f"in.{version}.{key}"] for key in ("x_start", "y", "t", "mask_noise")}
    ratio = model.mask_ratio
    if version == "v2":  # drawn anew each step, in float32
        ratio = ratio + 0.2 * golden["in.v2.mask_ratio_rand"]
    mask = ditzoo.random_token_mask(len(given["t"]), 16, ratio, noise=given["mask_noise"])

    def network(x, t, y, *, mask):  # without the learned variance
        return model(x, t, y, mask=mask)[:, :4]

    passes = [
        draws(given["t"], golden[f"in.{version}.noise_{kind}"], golden[f"in.{version}.label_rand_{kind}"])
        for kind in ("unmasked", "masked")
    ]
    options = {"null_label": 10, "class_dropout_prob": 0.1 if mode == "train" else 0.0}
    expected = [golden[f"out.{version}.{mode}.{kind}.mse"] for kind in ("unmasked", "masked")]
    if version == "v2":  # whose recorded errors are weighted by the signal-to-noise ratio
        expected = [errors / golden["out.v2.min_snr_weight_f64"] for errors in expected]
    for these, kept, errors in zip(passes, [None, mask], expected, strict=True):
        loss = denoising_loss(network, process(), given["x_start"], given["y"], these, mask=kept, **options)
        assert relative_error(loss, errors) < 2e-5
    total = training_loss(network, process(), given["x_start"], given["y"], passes, mask=mask, **options)
    assert float(total.detach()) == pytest.approx(float(sum(errors.mean() for errors in expected)), rel=2e-5)


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
