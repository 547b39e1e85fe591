"""Random numbers that belong to a sample, not to a batch or a process."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditzoo.diffusion import StepNoise, draw_training, sample_labels, sample_noise
from ditzoo.diffusion.draws import epoch_order, step_uniform

SHAPE = (2, 3, 3)
OPTIONS = {"num_timesteps": 1000, "num_tokens": 9, "num_passes": 2}
indices = st.lists(st.integers(0, 10**9), min_size=1, max_size=5)
seeds = st.integers(0, 2**40)

#: First numbers of seed 0, sample 0: noise to sample from, and of step 3; labels of samples 0 to 3; time, noise, label
#: and tokens of training; step; epoch.
SAMPLING = [0.5458652, -0.3587555, -0.7178655, 0.7713175]
SAMPLING_STEP, LABELS = [0.209472, -0.1738128], [79, 27, 21, 767]
TRAINING = (228, [-0.7434663, 1.1298269], [0.5924332], [0.4049436, 0.077202])
STEP, EPOCH = [0.6568508], [4, 3, 5, 0, 1, 2]


@given(seed=seeds, batch=indices)
def test_a_samples_noise_does_not_depend_on_its_batch(seed, batch):
    together = sample_noise(seed, batch, SHAPE)
    assert together.shape == (len(batch), *SHAPE)
    for index, noise in zip(batch, together, strict=True):
        assert torch.equal(sample_noise(seed, [index], SHAPE)[0], noise)


@given(seed=seeds, batch=indices)
def test_training_draws_do_not_depend_on_the_batch(seed, batch):
    together = draw_training(seed, batch, SHAPE, **OPTIONS)
    for position, index in enumerate(batch):
        alone = draw_training(seed, [index], SHAPE, **OPTIONS)
        for ours, theirs in zip(together, alone, strict=True):
            assert all(torch.equal(a[position], b[0]) for a, b in zip(ours, theirs, strict=True))


def test_shapes_and_types_of_training_draws():
    first, second = draw_training(0, range(4), SHAPE, **OPTIONS)
    for draws in (first, second):
        assert {name: (tuple(value.shape), value.dtype) for name, value in draws._asdict().items()} == {
            "t": ((4,), torch.int64),
            "label_uniform": ((4,), torch.float32),
            "noise": ((4, *SHAPE), torch.float32),
            "token_noise": ((4, 9), torch.float32),
        }


def test_passes_share_their_times_and_nothing_else():
    first, second = draw_training(0, range(4), SHAPE, **OPTIONS)
    assert torch.equal(first.t, second.t)
    for name in ("label_uniform", "noise", "token_noise"):
        assert (getattr(first, name) != getattr(second, name)).all()


def test_a_family_without_masks_trains_on_the_same_times_noise_and_dropped_labels():
    first, _ = draw_training(0, range(4), SHAPE, **OPTIONS)
    (plain,) = draw_training(0, range(4), SHAPE, num_timesteps=1000)
    assert torch.equal(plain.t, first.t)
    assert torch.equal(plain.noise, first.noise)
    assert torch.equal(plain.label_uniform, first.label_uniform)
    assert plain.token_noise.shape == (4, 0)


def test_seeds_samples_and_uses_have_streams_of_their_own():
    noises = [
        sample_noise(0, [0], SHAPE),
        sample_noise(0, [1], SHAPE),
        sample_noise(1, [0], SHAPE),
        draw_training(0, [0], SHAPE, num_timesteps=1000)[0].noise,
    ]
    for i, noise in enumerate(noises):
        assert all((noise != other).all() for other in noises[:i])


@given(seed=seeds, batch=indices, step=st.integers(0, 1000))
def test_a_samples_noise_of_a_step_does_not_depend_on_its_batch(seed, batch, step):
    together = StepNoise(seed, batch, SHAPE)(step)
    assert together.shape == (len(batch), *SHAPE)
    assert together.dtype == torch.float32
    for index, noise in zip(batch, together, strict=True):
        assert torch.equal(StepNoise(seed, [index], SHAPE)(step)[0], noise)


def test_the_noises_of_steps_samples_and_seeds_differ_from_each_other_and_from_the_start():
    noises = [
        StepNoise(0, [0], SHAPE)(0),
        StepNoise(0, [0], SHAPE)(1),
        StepNoise(0, [1], SHAPE)(0),
        StepNoise(1, [0], SHAPE)(0),
        sample_noise(0, [0], SHAPE),
        sample_noise(0, [1], SHAPE),
    ]
    for i, noise in enumerate(noises):
        assert all((noise != other).all() for other in noises[:i])
    again = StepNoise(0, [0], SHAPE)
    again(5)  # steps may be asked for in any order
    assert torch.equal(again(0), noises[0])


def test_the_noise_of_steps_is_standard_normal_and_uncorrelated():
    first, second = (StepNoise(3, range(2000), (2, 2, 2))(step).flatten() for step in (0, 1))
    assert float(first.mean()) == pytest.approx(0, abs=4 / 16000**0.5)
    assert float(first.std()) == pytest.approx(1, abs=4 / 32000**0.5)
    assert float((first * second).mean()) == pytest.approx(0, abs=4 / 16000**0.5)


def test_the_numbers_never_change():
    # Published samples are named by their seed: these numbers are part of the interface.
    assert sample_noise(0, [0], (4,)).flatten().tolist() == pytest.approx(SAMPLING, abs=1e-6)
    assert StepNoise(0, [0], (2,))(3).flatten().tolist() == pytest.approx(SAMPLING_STEP, abs=1e-6)
    assert sample_labels(0, range(4), 1000).tolist() == LABELS
    draws = draw_training(0, [0], (2,), num_timesteps=1000, num_tokens=2)[0]
    assert draws.t.tolist() == [TRAINING[0]]
    assert draws.noise.flatten().tolist() == pytest.approx(TRAINING[1], abs=1e-6)
    assert draws.label_uniform.tolist() == pytest.approx(TRAINING[2], abs=1e-6)
    assert draws.token_noise.flatten().tolist() == pytest.approx(TRAINING[3], abs=1e-6)
    assert step_uniform(0, 0).tolist() == pytest.approx(STEP, abs=1e-6)
    assert epoch_order(0, 0, 6).tolist() == EPOCH


def test_the_distributions():
    draws = draw_training(0, range(20_000), (1, 2, 2), num_timesteps=10, num_tokens=1)[0]
    share = draws.t.bincount(minlength=10) / 20_000
    assert share.tolist() == pytest.approx([0.1] * 10, abs=0.01)
    assert float(draws.noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(draws.noise.std()) == pytest.approx(1, abs=0.02)
    for uniform in (draws.label_uniform, draws.token_noise):
        assert 0 <= uniform.min() <= uniform.max() < 1
        assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(uniform.std()) == pytest.approx(12**-0.5, abs=0.01)


def test_no_draw_touches_the_global_generator():
    before = torch.get_rng_state()
    sample_noise(0, range(3), SHAPE)
    draw_training(0, range(3), SHAPE, **OPTIONS)
    StepNoise(0, range(3), SHAPE)(1)
    sample_labels(0, range(3), 10)
    step_uniform(0, 3)
    epoch_order(0, 1, 10)
    assert torch.equal(torch.get_rng_state(), before)


@given(seed=seeds, batch=indices, classes=st.integers(1, 1000))
def test_a_samples_label_does_not_depend_on_its_batch(seed, batch, classes):
    labels = sample_labels(seed, batch, classes)
    assert labels.dtype == torch.int64
    assert ((labels >= 0) & (labels < classes)).all()
    assert labels.tolist() == [int(sample_labels(seed, [index], classes)) for index in batch]


def test_labels_are_uniform():
    share = sample_labels(0, range(5000), 10).bincount(minlength=10) / 5000
    assert share.tolist() == pytest.approx([0.1] * 10, abs=4 * (0.09 / 5000) ** 0.5)


@given(seed=seeds, step=st.integers(0, 10**7))
def test_one_number_a_step(seed, step):
    number = step_uniform(seed, step)
    assert number.shape == (1,)
    assert number.dtype == torch.float32
    assert 0 <= number < 1
    assert torch.equal(number, step_uniform(seed, step))
    assert not torch.equal(number, step_uniform(seed, step + 1))


@given(seed=seeds, epoch=st.integers(0, 100), images=st.integers(1, 50))
def test_an_epoch_visits_every_image_once(seed, epoch, images):
    order = epoch_order(seed, epoch, images)
    assert sorted(order.tolist()) == list(range(images))
    assert torch.equal(order, epoch_order(seed, epoch, images))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
