"""Classifier-free guidance in every convention."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditzoo.diffusion import ddim_sample, ddpm_sample, euler_sample, guidance_scale, guide, make_process
from ditzoo.recipe import Guidance
from tests.diffusion.mixture import KINDS, process_of, recipe_of

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


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 1.0), (0.001, 0.0), (2.0, -0.5)])
def test_power_cosine_counts_timesteps_whatever_the_network_is_told(scale, offset):
    x, _, y = batch()
    guidance = Guidance(scale=5.0, schedule="power_cosine")
    this = make_process(replace(recipe_of("linear", "epsilon"), time_scale=scale, time_offset=offset))

    def network(x, t, y):  # does not see t
        return Network()(x, torch.zeros_like(t), y)

    timesteps = torch.tensor([100, 500, 750])
    expected = guide(network, guidance, NULL)(x, timesteps, y)
    told = guide(network, guidance, NULL, process=this)(x, this.network_time(timesteps), y)
    torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)


# No second pass where it would change nothing.


@pytest.mark.parametrize(("convention", "off"), [("dit", 1.0), ("uvit", 0.0)])
def test_a_schedule_that_has_not_risen_yet_needs_no_second_pass(convention, off):
    guidance = Guidance(scale=4.0, convention=convention, schedule="power_cosine")
    x, _, y = batch()
    network = Network()
    early = torch.tensor([999, 990, 980])  # where cos(pi (1 - t / 1000)^4) is 1 in float32
    assert guidance_scale(guidance, early).flatten().tolist() == [off] * 3
    output = guide(network, guidance, NULL)(x, early, y)
    assert [len(seen) for seen, _, _ in network.calls] == [3]
    assert torch.equal(output, Network()(x, early, y))
    guide(network, guidance, NULL)(x, torch.tensor([999, 990, 500]), y)  # one of them is guided
    assert [len(seen) for seen, _, _ in network.calls] == [3, 6]


def test_a_guided_trajectory_counts_its_rows():
    """Of 50 steps those above timestep 900 see half as many rows as the others."""
    network = Network(out_channels=4)
    guidance = Guidance(scale=3.8, channels=3, schedule="power_cosine")
    this = process_of("linear", "sample")
    x, _, y = batch()
    noise = {"step_noise": lambda step: torch.zeros_like(x)}
    ddpm_sample(guide(network, guidance, NULL), this, x, y, num_inference_steps=50, **noise)
    rows = {int(t[0]): len(seen) for seen, t, _ in network.calls}
    assert len(rows) == 50
    assert {t for t, count in rows.items() if count == 3} == {t for t in rows if t > 900}
    assert {count for t, count in rows.items() if t < 900} == {6}


# Only in an interval of noise levels.


@pytest.mark.parametrize("kind", [*KINDS[:1], ("scaled_linear", "epsilon"), *KINDS[9:10], *KINDS[12:13], KINDS[-1]])
def test_an_interval_is_guided_and_nothing_else(kind):
    this = process_of(*kind)
    guidance = Guidance(scale=3.0, interval=(0.3, 2.0))
    network, x, y = Network(), *batch()[::2]
    guided = guide(network, guidance, NULL, process=this)
    for level, inside in ((5.0, False), (1.99, True), (1.0, True), (0.31, True), (0.29, False), (0.05, False)):
        time = this.time_at(-math.log(level))
        t = this.network_time(torch.full((3,), time, dtype=torch.float64))
        network.calls.clear()
        output = guided(x, t, y)
        assert [len(seen) for seen, _, _ in network.calls] == [6 if inside else 3], level
        plain = Network()(x, t, y)
        assert torch.equal(output, plain) != inside
        if inside:
            torch.testing.assert_close(output, guide(Network(), Guidance(scale=3.0), NULL)(x, t, y))


def test_the_interval_is_open_below_and_closed_above():
    this = process_of("edm", "edm")
    network, x, y = Network(), *batch()[::2]
    level = this.noise_level(this.process_time(math.log(2.0) / 4))
    for interval, rows in (((1.0, level), 6), ((level, 3.0), 3)):
        network.calls.clear()
        guide(network, Guidance(scale=3.0, interval=interval), NULL, process=this)(
            x, torch.full((3,), math.log(2.0) / 4, dtype=torch.float64), y
        )
        assert [len(seen) for seen, _, _ in network.calls] == [rows]


def test_a_sampler_outside_the_interval_makes_no_null_pass():
    network, this = Network(), process_of("flow_linear", "velocity")
    x, _, y = batch()
    guided = guide(network, Guidance(scale=2.0, interval=(0.5, 3.0)), NULL, process=this)
    euler_sample(guided, this, 1e-3 * x, y, num_inference_steps=20)
    levels = [this.noise_level(float(t[0])) if t[0] > 0 else math.inf for _, t, _ in network.calls]
    assert [len(seen) for seen, _, _ in network.calls] == [6 if 0.5 < level <= 3.0 else 3 for level in levels]
    assert {3, 6} == {len(seen) for seen, _, _ in network.calls}


# By a weaker model.


class Weak(Network):
    def __call__(self, x, t, y):
        return super().__call__(x, t, y) / 2 - 1


@given(scale=scales)
@pytest.mark.parametrize("convention", ["dit", "uvit"])
def test_autoguidance_by_its_formula(convention, scale):
    x, t, y = batch()
    strong, weak = Network(), Weak()
    guidance = Guidance(scale=scale, kind="autoguidance", convention=convention)
    output = guide(strong, guidance, None, weak_model=weak)(x, t, y)
    c, w = Network()(x, t, y), Weak()(x, t, y)
    expected = w + scale * (c - w) if convention == "dit" else c + scale * (c - w)
    torch.testing.assert_close(output, c if guidance.is_off else expected, rtol=1e-4, atol=1e-4)
    # Both see the labels; neither a null label.
    assert all(torch.equal(labels, y) for _, _, labels in strong.calls + weak.calls)
    assert len(weak.calls) == (0 if guidance.is_off else 1)


def test_autoguidance_needs_no_labels():
    x, t, _ = batch()
    unlabelled = lambda x, t, y: x * (2 if y is None else 0)  # noqa: E731
    guided = guide(unlabelled, Guidance(scale=3.0, kind="autoguidance"), None, weak_model=lambda x, t, y: x)
    torch.testing.assert_close(guided(x, t, None), 4 * x)


def test_autoguidance_in_an_interval_and_on_some_channels():
    this = process_of("edm", "edm")
    x, _, y = batch()
    guidance = Guidance(scale=2.0, kind="autoguidance", channels=1, interval=(0.3, 2.0))
    weak = Weak()
    guided = guide(Network(), guidance, None, process=this, weak_model=weak)
    for level, calls in ((1.0, 1), (5.0, 1)):
        t = this.network_time(torch.full((3,), level))
        c, w = Network()(x, t, y), Weak()(x, t, y)
        output = guided(x, t, y)
        assert len(weak.calls) == calls
        torch.testing.assert_close(output[:, :1], (w + 2 * (c - w))[:, :1] if level == 1.0 else c[:, :1])
        assert torch.equal(output[:, 1:], c[:, 1:])


@pytest.mark.parametrize(
    ("guidance", "given", "message"),
    [
        (
            Guidance(scale=2.0, kind="autoguidance"),
            {},
            r"autoguidance needs weak_model=, a smaller or less trained model of the same kind",
        ),
        (
            Guidance(scale=2.0),
            {"weak_model": Weak()},
            r"weak_model= is for Guidance\(kind='autoguidance'\); classifier-free guidance takes none",
        ),
        (
            Guidance(scale=2.0, interval=(0.1, 1.0)),
            {},
            r"guidance in an interval needs process=, which tells the noise level of a time",
        ),
    ],
)
def test_what_guidance_lacks_is_named(guidance, given, message):
    with pytest.raises(ValueError, match=message):
        guide(Network(), guidance, NULL, **given)


def test_an_interval_needs_the_whole_process():
    short = process_of("linear", "epsilon").respace(10)
    x, t, y = batch()
    guided = guide(Network(), Guidance(scale=2.0, interval=(0.1, 1.0)), NULL, process=short)
    with pytest.raises(TypeError, match="cannot tell its times from the network's; use the full one"):
        guided(x, t, y)


def test_guidance_that_is_off_asks_for_nothing():
    for guidance in (Guidance(kind="autoguidance"), Guidance(interval=(0.1, 1.0))):
        network = Network()
        assert guide(network, guidance, None) is network


def test_a_guided_sample_is_what_the_formula_gives_at_every_step():
    """Guidance by hand, in a loop of DDIM."""
    this = process_of("cosine", "sample")
    x, _, y = batch()

    def by_hand(x, t, y):
        c, u = Network()(x, t, y), Network()(x, t, torch.full_like(y, NULL))
        return torch.cat([(u + 1.7 * (c - u))[:, :3], c[:, 3:]], dim=1)

    guided = guide(Network(), Guidance(scale=1.7, channels=3), NULL)
    options = {"num_inference_steps": 6}
    torch.testing.assert_close(ddim_sample(guided, this, x, y, **options), ddim_sample(by_hand, this, x, y, **options))


def test_guidance_without_a_null_label_says_why():
    message = r"scale 4\.0 needs a null label, .* class_dropout_prob=0 or num_classes=0\. .* guidance off"
    with pytest.raises(ValueError, match=message):
        guide(Network(), Guidance(scale=4.0), None)


def test_guidance_without_labels_says_so():
    x, t, _ = batch()
    with pytest.raises(ValueError, match="needs class labels y, got None"):
        guide(Network(), Guidance(scale=4.0), NULL)(x, t, None)


def test_a_learned_variance_is_not_guided_where_more_channels_are_named_than_there_are():
    def model(x, t, y):
        return torch.cat([x * y.view(-1, 1, 1, 1)] * 2, dim=1)

    guided = guide(model, Guidance(scale=2.0, channels=3), 1)
    output = guided(torch.ones(1, 1, 1, 1), torch.tensor([5]), torch.tensor([3]))
    assert output.flatten().tolist() == [1 + 2 * (3 - 1), 3]
