"""Classifier-free guidance in every convention."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditzoo.diffusion import guide
from ditzoo.recipe import Guidance

NULL = 10
scales = st.floats(-2, 8)


class Network:
    """Returns numbers that tell sample, time, label and channel apart, and remembers how it was called."""

    def __init__(self, out_channels=4):
        self.out_channels, self.calls = out_channels, []

    def __call__(self, x, t, y):
        self.calls.append((x, t, y))
        channels = torch.arange(1.0, self.out_channels + 1).view(1, -1, 1, 1)
        label = torch.sin(y.float() + 1).view(-1, 1, 1, 1)
        sample = x.mean(dim=1, keepdim=True)
        return channels * label + sample + 1e-3 * t.view(-1, 1, 1, 1)


def batch():
    return torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 1000]), torch.tensor([1, 5, 9])


def halves(network=None):
    """The conditional and the unconditional prediction."""
    network, (x, t, y) = network or Network(), batch()
    return (x, t, y), network(x, t, y), network(x, t, torch.full_like(y, NULL))


@given(scale=scales)
def test_the_usual_convention(scale):
    given, c, u = halves()
    output = guide(Network(), Guidance(scale=scale), NULL)(*given)
    torch.testing.assert_close(output, c if scale == 1 else u + scale * (c - u), rtol=1e-4, atol=1e-4)


@given(scale=scales)
def test_u_vits_convention_is_one_less(scale):
    given, c, u = halves()
    output = guide(Network(), Guidance(scale=scale, convention="uvit"), NULL)(*given)
    torch.testing.assert_close(output, c + scale * (c - u), rtol=1e-4, atol=1e-4)
    usual = guide(Network(), Guidance(scale=scale + 1), NULL)(*given)
    torch.testing.assert_close(output, usual, rtol=1e-4, atol=1e-4)


def test_scales_of_special_meaning():
    given, c, u = halves()
    torch.testing.assert_close(guide(Network(), Guidance(scale=0.0), NULL)(*given), u)
    torch.testing.assert_close(guide(Network(), Guidance(scale=1.0), NULL)(*given), c)
    off = guide(Network(), Guidance(scale=0.0, convention="uvit"), NULL)(*given)
    torch.testing.assert_close(off, c)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(scale=0.0, convention="uvit"),
        Guidance(schedule="power_cosine"),
        Guidance(scale=0.0, convention="uvit", schedule="power_cosine", channels=3),
    ],
)
def test_without_guidance_there_is_no_second_pass_and_no_need_for_a_null_label(guidance):
    assert guidance.is_off
    network = Network()
    x, t, y = batch()
    guide(network, guidance, None)(x, t, y)
    ((seen, _, labels),) = network.calls
    assert seen is x
    assert labels is y


def test_with_guidance_both_halves_are_one_batch():
    network = Network()
    x, t, y = batch()
    guide(network, Guidance(scale=2.0), NULL)(x, t, y)
    ((seen, times, labels),) = network.calls
    assert torch.equal(seen, torch.cat([x, x]))
    assert torch.equal(times, torch.cat([t, t]))
    assert labels.tolist() == [1, 5, 9, NULL, NULL, NULL]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(("channels", "guided"), [(None, 4), (3, 3), (1, 1), (4, 4)])
def test_channels_that_are_not_guided_are_conditional(channels, guided):
    network = Network(out_channels=8)  # four of them a learned variance
    given, c, u = halves(network)
    output = guide(network, Guidance(scale=3.0, channels=channels), NULL)(*given)
    assert output.shape == (3, 8, 2, 2)
    torch.testing.assert_close(output[:, :guided], (u + 3 * (c - u))[:, :guided])
    assert torch.equal(output[:, guided:], c[:, guided:])


@given(scale=scales, power=st.floats(0.01, 8), t=st.integers(0, 1000))
@pytest.mark.parametrize(("convention", "off"), [("dit", 1.0), ("uvit", 0.0)])
def test_power_cosine_schedule_by_its_formula(convention, off, scale, power, t):
    x, _, y = batch()
    t = torch.full((3,), t)
    c, u = Network()(x, t, y), Network()(x, t, torch.full_like(y, NULL))
    guidance = Guidance(scale=scale, convention=convention, schedule="power_cosine", power=power)
    output = guide(Network(), guidance, NULL)(x, t, y)
    ramp = (1 - math.cos(math.pi * (1 - int(t[0]) / 1000) ** power)) / 2
    here = off + (scale - off) * ramp
    expected = u + here * (c - u) if convention == "dit" else c + here * (c - u)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)


def test_power_cosine_runs_from_no_guidance_to_all_of_it_per_sample():
    (x, t, y), c, u = halves()
    output = guide(Network(), Guidance(scale=5.0, schedule="power_cosine"), NULL)(x, t, y)
    torch.testing.assert_close(output[0], (u + 5 * (c - u))[0])  # t = 0
    torch.testing.assert_close(output[2], c[2])  # t = T
    between = (1 - math.cos(math.pi * 0.5**4)) / 2
    torch.testing.assert_close(output[1], (u + (1 + 4 * between) * (c - u))[1])


def test_power_cosine_knows_the_length_of_the_process():
    x, _, y = batch()
    guidance = Guidance(scale=5.0, schedule="power_cosine")
    long = guide(Network(), guidance, NULL)(x, torch.tensor([500] * 3), y)
    short = guide(Network(), guidance, NULL, num_train_timesteps=100)(x, torch.tensor([50] * 3), y)
    torch.testing.assert_close(short + 0.45, long)  # the network's own dependence on t


def test_guidance_without_a_null_label_says_why():
    message = r"scale 4\.0 needs a null label, .* class_dropout_prob=0 or num_classes=0\. .* guidance off"
    with pytest.raises(ValueError, match=message):
        guide(Network(), Guidance(scale=4.0), None)


def test_guidance_without_labels_says_so():
    x, t, _ = batch()
    with pytest.raises(ValueError, match="needs class labels y, got None"):
        guide(Network(), Guidance(scale=4.0), NULL)(x, t, None)
