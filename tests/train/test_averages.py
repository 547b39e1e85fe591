"""Averages of the weights: the exponential one, power functions, and those made afterwards."""

import math
import shutil

import pytest
import torch
from click.testing import CliRunner
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ditzoo.cli import cli
from ditzoo.models import DiffusionTransformer
from ditzoo.train import make_config, run
from ditzoo.train.averages import (
    Averages,
    combination,
    exponent_to_width,
    find_snapshots,
    inner_product,
    power_decay,
    reconstruct,
    reconstructed_model,
    width_to_exponent,
    write_snapshots,
)
from ditzoo.train.options import TrainOptions
from ditzoo.weights import load_state_dict
from ditzoo.weights.folders import load_model, model_folder


def make(weights, **options):
    return Averages(weights, TrainOptions(num_images=1, **options))


def walk(steps: int, seed: int = 0):
    """Weights along a random walk."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(3, 5, generator=generator))
    for _ in range(steps):
        with torch.no_grad():
            weight += 0.1 * torch.randn(3, 5, generator=generator)
        yield weight


def test_the_exponential_average_is_that_of_pytorch_bit_for_bit() -> None:
    update = get_ema_multi_avg_fn(0.995)
    reference = None
    averages = None
    for step, weight in enumerate(walk(20)):
        averages = averages or make({"w": weight}, ema_decay=0.995)
        averages.update(step=step, seen=step + 1, batch_size=1)
        if step == 0:
            reference = weight.detach().clone()
        else:
            update([reference], [weight.detach()], step)
    assert torch.equal(averages.tensors["ema"]["w"], reference)
    assert not torch.equal(reference, weight)


def test_the_warm_up_begins_with_short_averages_and_ends_at_the_decay() -> None:
    averages, expected = None, None
    for step, weight in enumerate(walk(30)):
        averages = averages or make({"w": weight}, ema_decay=0.6, ema_warmup=True)
        averages.update(step=step, seen=step + 1, batch_size=1)
        decay = {1: 2 / 11, 2: 3 / 12}.get(step, min(0.6, (1 + step) / (10 + step)))
        expected = weight.detach().clone() if step == 0 else decay * expected + (1 - decay) * weight.detach()
    assert (1 + 29) / (10 + 29) > 0.6
    torch.testing.assert_close(averages.tensors["ema"]["w"], expected)


def test_frozen_weights_are_not_averaged() -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    averages = make({"frozen": frozen, "w": torch.nn.Parameter(torch.ones(2))}, ema_profiles=(0.1,))
    assert {key: list(group) for key, group in averages.tensors.items()} == {"ema": ["w"], "0.1": ["w"]}


@pytest.mark.parametrize(("width", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_relative_widths_have_the_exponents_of_the_paper(width: float, exponent: float) -> None:
    """Section 3.2 of arXiv:2312.02696 tracks these two."""
    assert width_to_exponent(width) == pytest.approx(exponent, abs=5e-3)
    assert exponent_to_width(width_to_exponent(width)) == pytest.approx(width)
    assert width_to_exponent(12**-0.5) == pytest.approx(0, abs=1e-6)  # the mean of all weights


def test_the_relative_width_is_the_standard_deviation_of_the_weighting() -> None:
    gamma, count = 3.0, 200_000
    tau = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    density = (gamma + 1) * tau**gamma
    mean = (density * tau).mean()
    deviation = ((density * (tau - mean) ** 2).mean()) ** 0.5
    assert exponent_to_width(gamma) == pytest.approx(deviation.item(), rel=1e-6)


@pytest.mark.parametrize("width", [0, -0.1, 0.29, math.nan])
def test_a_width_that_no_power_has_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=rf"width must be above 0 and at most 0.288, got {width}"):
        width_to_exponent(width)


def test_a_power_average_weighs_the_past_by_its_power() -> None:
    """Weights equal to the time: their average ends at (gamma + 1) / (gamma + 2) of it."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    averages = make({"w": weight}, ema_profiles=(0.1,))
    count, batch_size = 4000, 32
    for step in range(count):
        with torch.no_grad():
            weight.fill_((step + 0.5) / count)
        averages.update(step=step, seen=(step + 1) * batch_size, batch_size=batch_size)
    gamma = width_to_exponent(0.1)
    assert averages.tensors["0.1"]["w"].item() == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-6)


def test_steps_of_any_size_make_one_average() -> None:
    """Two half steps with the same weights count as a whole one."""
    halves = power_decay(5.0, 48, 16) * power_decay(5.0, 64, 16)
    assert halves == pytest.approx(power_decay(5.0, 64, 32))
    assert power_decay(5.0, 32, 32) == 0


@pytest.mark.parametrize(("a", "b"), [((6.94, 100), (16.97, 100)), ((6.94, 100), (16.97, 60)), ((0.5, 80), (3.0, 100))])
def test_inner_products_are_those_of_the_densities(a, b) -> None:
    tau = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 10_000
    densities = [
        torch.where(tau <= t, (gamma + 1) / t * (tau / t) ** gamma, torch.zeros_like(tau)) for gamma, t in (a, b)
    ]
    expected = (densities[0] * densities[1]).sum() / 10_000
    assert inner_product(a, b) == pytest.approx(expected.item(), rel=1e-4)
    assert inner_product(a, b) == inner_product(b, a)


def test_early_snapshots_of_long_runs_do_not_overflow() -> None:
    value = inner_product((1500.0, 12_800), (1500.0, 2_000_000_000))
    assert value == 0
    assert math.isfinite(inner_product((1500.0, 2_000_000_000), (1500.0, 2_000_000_000)))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """A folder with 16 snapshots each of two widths, and averages of other widths kept along the way."""
    folder = tmp_path_factory.mktemp("ema")
    averages, batch_size = None, 16
    for step, weight in enumerate(walk(800)):
        averages = averages or make({"w": weight}, ema_profiles=(0.05, 0.1, 0.15, 0.07))
        seen = (step + 1) * batch_size
        averages.update(step=step, seen=seen, batch_size=batch_size)
        if seen % 800 == 0:
            write_snapshots(folder, {key: averages.tensors[key] for key in ("ema", "0.05", "0.1")}, seen)
    return folder, averages, weight.detach().clone()


def test_snapshots_are_found_oldest_first(snapshots) -> None:
    folder, _, _ = snapshots
    (folder / "notes.txt").write_text("not one of them")
    found = find_snapshots(folder)
    assert [(s.seen, s.width) for s in found[:3]] == [(800, 0.05), (800, 0.1), (1600, 0.05)]
    assert len(found) == 32


@pytest.mark.parametrize("width", [0.05, 0.1])
def test_an_average_that_was_kept_is_reconstructed(snapshots, width: float) -> None:
    folder, averages, _ = snapshots
    made = reconstruct(folder, width)
    torch.testing.assert_close(made["w"], averages.tensors[f"{width:g}"]["w"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [0.07, 0.15])
def test_an_average_of_another_width_is_near_the_one_kept_along_the_way(snapshots, width: float) -> None:
    folder, averages, last = snapshots
    kept = averages.tensors[f"{width:g}"]["w"]
    error = (reconstruct(folder, width)["w"] - kept).norm()
    others = [(averages.tensors[key]["w"] - kept).norm() for key in ("0.05", "0.1")]
    assert error < 0.1 * min(others)
    assert error < 0.02 * (last - kept).norm()


def test_factors_of_a_snapshot_add_up_to_one_nearly() -> None:
    parts = [(width_to_exponent(width), time) for time in range(100, 1700, 100) for width in (0.05, 0.1)]
    factors, error = combination(parts, (width_to_exponent(0.13), 1600))
    assert sum(factors) == pytest.approx(1, abs=1e-3)
    assert 0 < error < 0.01
    factors, error = combination(parts, parts[-1])
    assert factors == pytest.approx([0.0] * 31 + [1.0], abs=1e-6)
    assert error < 1e-6


def test_the_error_of_a_combination_is_the_distance_of_its_density() -> None:
    parts = [(width_to_exponent(width), time) for time in (50, 100) for width in (0.05, 0.1)]
    goal = (width_to_exponent(0.2), 100)
    factors, error = combination(parts, goal)
    tau = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 10_000

    def density(gamma: float, t: int) -> torch.Tensor:
        return torch.where(tau <= t, (gamma + 1) / t * (tau / t) ** gamma, torch.zeros_like(tau))

    made = sum(factor * density(*part) for factor, part in zip(factors, parts, strict=True))
    assert error == pytest.approx(((made - density(*goal)).norm() / density(*goal).norm()).item(), rel=1e-3)
    assert error > 0.05


def test_a_width_that_the_snapshots_tell_little_of_is_warned_of(snapshots, tmp_path) -> None:
    """Factors that do not add up to 1 scale all weights."""
    folder, _, _ = snapshots
    for name in ("000012000-0.05", "000012000-0.1", "000012800-0.05", "000012800-0.1"):
        shutil.copy(folder / f"{name}.safetensors", tmp_path)
    with pytest.warns(
        UserWarning, match=r"width 0.2 at 12,800 images is known from 4 snapshots .* to \d\d% only.*0.05, 0.1"
    ):
        reconstruct(tmp_path, 0.2)


def test_an_average_that_nothing_was_added_to_goes_on_in_time() -> None:
    """A step that float16 left out is one in which the weights stood still."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    averages = make({"w": weight}, ema_profiles=(0.1,))
    gamma, values = width_to_exponent(0.1), [1.0, 2.0, 2.0, 5.0]
    for step, value in enumerate(values):
        with torch.no_grad():
            weight.fill_(value)
        averages.update(step=step, seen=(step + 1) * 8, batch_size=8)
    edges = [(k / 4) ** (gamma + 1) for k in range(5)]
    expected = sum(value * (edges[k + 1] - edges[k]) for k, value in enumerate(values))
    assert averages.tensors["0.1"]["w"].item() == pytest.approx(expected, rel=1e-9)


def test_an_average_can_end_earlier(snapshots) -> None:
    folder, _, _ = snapshots
    expected = load_state_dict(folder / "000004000-0.1.safetensors")["w"]
    torch.testing.assert_close(reconstruct(folder, 0.1, seen=4000)["w"], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"seen must be from 800 to 12800, where .* has snapshots, got 20000"):
        reconstruct(folder, 0.1, seen=20_000)


def test_what_killed_processes_leave_of_snapshots_goes_with_the_next(tmp_path) -> None:
    (tmp_path / ".000000008-0.1.safetensors.partial-0123456789abcdef").write_bytes(bytes(10))
    write_snapshots(tmp_path, {"1e-05": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}}, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["000000016-1e-05.safetensors"]
    assert [(each.seen, each.width) for each in find_snapshots(tmp_path)] == [(16, 1e-5)]


def test_a_folder_without_snapshots_says_how_to_have_some(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no snapshots to make averages from; train with ema_profiles"):
        reconstruct(tmp_path, 0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run with snapshots."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = {"depth": 2, "hidden_size": 16, "num_heads": 2}
    config = {"out": str(folder), "model": "dit_ti_2", "model_options": small, "num_images": 96, "batch_size": 8}
    config |= {"checkpoint_every": 24, "sample_every": 0, "ema_profiles": (0.05, 0.1), "warmup_images": 0}
    run(make_config(config))
    return folder


def test_the_command_makes_a_model_of_another_width(trained, tmp_path) -> None:
    result = CliRunner().invoke(cli, ["ema", str(trained), str(tmp_path / "model"), "--width", "0.1"])
    assert result.exit_code == 0, result.output
    assert result.output == f"{tmp_path / 'model'} holds the model; ditzoo sample {tmp_path / 'model'} draws from it.\n"
    model = DiffusionTransformer.from_pretrained(tmp_path / "model")
    kept = load_state_dict(trained / "ema" / "000000096-0.1.safetensors")
    torch.testing.assert_close({name: model.state_dict()[name] for name in kept}, kept, rtol=1e-5, atol=1e-6)
    assert model.details.recipe == load_model(model_folder(trained)).details.recipe
    assert model.details.results == ()


def test_a_model_of_another_width_goes_outside_of_the_run(trained, tmp_path) -> None:
    (tmp_path / "link").symlink_to(trained)
    for out in (trained, trained / "other", tmp_path / "link"):
        result = CliRunner().invoke(cli, ["ema", str(trained), str(out), "--width", "0.1"])
        assert isinstance(result.exception, ValueError)
        assert f"{out} lies in the folder of the run, {trained}; give a folder outside" in str(result.exception)
    assert not (trained / "config.json").exists()


def test_only_runs_and_their_own_snapshots_make_models(trained, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} is no folder of a training run; give the one that holds"):
        reconstructed_model(tmp_path, 0.1)
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "ema")
    write_snapshots(tmp_path / "run" / "ema", {"0.1": {"base_model.lora_A": torch.ones(2)}}, 96)
    with pytest.raises(ValueError, match=r"has averages of base_model.lora_A, which the model .* does not have"):
        reconstructed_model(tmp_path / "run", 0.1)
