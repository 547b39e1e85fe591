"""The training loop: order of data, schedule, averaging, repeatability, and how it stops."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import ditzoo
from ditzoo.bench import QUICK
from ditzoo.data import load_digits_split
from ditzoo.diffusion import make_process
from ditzoo.models import EvaluationResult
from ditzoo.recipe import Recipe
from ditzoo.train import TrainOptions, train

RECIPE = Recipe(prediction="v_prediction", schedule="cosine")
DIGITS = load_digits_split("train")


def run(model: nn.Module, recipe: Recipe = RECIPE, **options):
    return train(model, DIGITS.images[:40], DIGITS.labels[:40], recipe, TrainOptions(**{"num_images": 48, **options}))


def fresh(name: str = "dit_ti_2", **options):
    torch.manual_seed(0)
    return ditzoo.create(name, **options)


def test_the_learning_rate_warms_up_and_falls_as_its_schedule_says() -> None:
    options = TrainOptions(num_images=1100, warmup_images=100, batch_size=10, learning_rate=2.0)
    assert options.learning_rate_at(0) == pytest.approx(2 * 10 / 110)
    assert options.learning_rate_at(100) == 2
    assert options.learning_rate_at(600) == pytest.approx(1)
    assert options.learning_rate_at(350) == pytest.approx(1 + math.cos(math.pi / 4))
    assert options.learning_rate_at(1100) == pytest.approx(0)
    line, level = replace(options, lr_schedule="linear"), replace(options, lr_schedule="constant")
    assert [line.learning_rate_at(seen) for seen in (100, 350, 1100)] == pytest.approx([2, 1.5, 0])
    assert [level.learning_rate_at(seen) for seen in (0, 100, 1100)] == pytest.approx([2 * 10 / 110, 2, 2])


def test_the_models_know_how_they_were_trained() -> None:
    model = fresh("dit_ti_2.digits", pretrained=True)
    old = EvaluationResult(metric="FID-50K", value=2.0, dataset="x")
    model.details = replace(model.details, results=(old,), training_command="before")
    result = run(model, replace(RECIPE, source="mine"))
    details = result.ema.details
    assert details.recipe == replace(RECIPE, weights="ema", source="mine", licence="Apache-2.0")
    assert model.details == replace(details, recipe=replace(details.recipe, weights="raw"))
    assert (details.data, details.training_command, details.label_names[3]) == (None, None, "3, three")
    (loss,) = details.results
    assert (loss.metric, loss.dataset) == ("training loss", "the training data")
    assert loss.value == pytest.approx(sum(result.losses) / 2)
    assert loss.settings == "mean of the last 2 steps; 48 images seen in batches of 32, seed 0"


def test_the_same_seed_trains_the_same_weights_and_another_seed_others() -> None:
    first, again, other = run(fresh()), run(fresh()), run(fresh(), seed=1)
    assert first.losses == again.losses
    assert all(torch.equal(a, b) for a, b in zip(first.ema.parameters(), again.ema.parameters(), strict=True))
    assert first.losses != other.losses


def test_training_leaves_the_global_generator_alone() -> None:
    model = fresh("mdtv2_ti_2")
    state = torch.get_rng_state()
    run(model, Recipe(prediction="v_prediction", schedule="cosine", mask_ratio=0.3, mask_ratio_spread=0.2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_average_follows_its_recurrence() -> None:
    snapshots: list[torch.Tensor] = []
    model = fresh()
    options = TrainOptions(num_images=96, ema_decay=0.8)
    weight = model.final_layer.linear.weight
    result = train(
        model, DIGITS.images, DIGITS.labels, RECIPE, options, callback=lambda seen: snapshots.append(weight.clone())
    )
    average = snapshots[0]
    for snapshot in snapshots[1:]:
        average = 0.8 * average + 0.2 * snapshot
    torch.testing.assert_close(result.ema.final_layer.linear.weight, average, rtol=1e-5, atol=1e-8)
    assert not result.ema.training
    assert not torch.equal(result.ema.final_layer.linear.weight, weight)


def test_the_last_batch_may_be_smaller_and_progress_counts_images() -> None:
    seen: list[int] = []
    options = TrainOptions(num_images=70, batch_size=32)
    result = train(fresh(), DIGITS.images, DIGITS.labels, RECIPE, options, callback=seen.append)
    assert seen == [32, 64, 70]
    assert len(result.losses) == 3


@pytest.mark.parametrize("name", ditzoo.list_models("*_ti_2"))
def test_a_few_steps_on_a_few_images_lower_the_loss(name: str) -> None:
    model = fresh(name)
    recipe = QUICK.recipe_for(name, model)
    losses = run(model, recipe, num_images=32 * 60, learning_rate=4e-3, warmup_images=0).losses
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_an_unconditional_model_trains_without_labels() -> None:
    result = train(fresh(num_classes=0), DIGITS.images, None, RECIPE, TrainOptions(num_images=64))
    assert all(math.isfinite(loss) for loss in result.losses)
    labelled = train(fresh(num_classes=0), DIGITS.images, DIGITS.labels, RECIPE, TrainOptions(num_images=64))
    assert labelled.losses == result.losses


def test_labels_that_the_model_has_no_class_for_are_refused() -> None:
    message = r"labels go up to 9 and the model has 9 classes: create it with num_classes=10, or with 0"
    with pytest.raises(ValueError, match=message):
        train(fresh(num_classes=9), DIGITS.images, DIGITS.labels, RECIPE, TrainOptions(num_images=64))


def test_a_loss_that_is_not_finite_stops_and_says_where() -> None:
    model = fresh()
    with torch.no_grad():
        model.final_layer.linear.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"(?s)Step 1 \(32 images seen\).*loss inf.*final_layer: nan"):
        run(model)


def test_a_masking_recipe_needs_a_model_with_masks() -> None:
    recipe = Recipe(prediction="v_prediction", schedule="cosine", mask_ratio=0.3)
    with pytest.raises(ValueError, match=r"masks tokens \(mask_ratio=0.3\) but DiT takes no masks"):
        run(fresh(), recipe)


def test_a_model_of_unit_times_refuses_timesteps() -> None:
    message = (
        r"SiT embeds times from 0 to 1, and the recipe's schedule 'cosine' tells it times up to 999; use a flow's "
        r"schedule, or a smaller time_scale\."
    )
    with pytest.raises(ValueError, match=message):
        run(fresh("sit_ti_2"))
    with pytest.raises(ValueError, match=r"'continuous_vp' tells it times up to 999; use a flow's"):
        run(fresh("sit_ti_2"), replace(RECIPE, schedule="continuous_vp", time_scale=999.0))
    # Scaled to its range, timesteps are as good as a flow's times; and a network of timesteps can be a flow.
    run(fresh("sit_ti_2"), replace(RECIPE, time_scale=1 / 999))
    run(fresh("dit_ti_2"), Recipe(prediction="velocity", schedule="flow_linear", sampler="euler"))


@pytest.mark.parametrize(
    ("recipe", "last"),
    [
        (RECIPE, 999),
        (replace(RECIPE, num_train_timesteps=100, time_offset=1.0), 100),
        (replace(RECIPE, schedule="continuous_vp", time_scale=999.0), 999),
        (Recipe(prediction="velocity", schedule="flow_linear", sampler="euler"), 1),
        (Recipe(prediction="edm", schedule="edm"), math.log(80) / 4),
    ],
)
def test_the_last_time_that_a_recipe_tells(recipe: Recipe, last: float) -> None:
    assert recipe.last_network_time == pytest.approx(last)
    process = make_process(recipe)
    start = torch.tensor([max(process.start, process.end if recipe.is_flow else 0)], dtype=torch.float64)
    assert float(process.network_time(start)) == pytest.approx(last)


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid"), True),
        (Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="vlb"), True),
        (Recipe(prediction="epsilon", schedule="scaled_linear", min_snr_gamma=5.0), False),
        (Recipe(prediction="epsilon", schedule="continuous_vp", time_scale=999.0), False),
        (Recipe(prediction="velocity", schedule="flow_gvp", sampler="euler"), False),
        (Recipe(prediction="score", schedule="flow_vp", sampler="euler", loss_weighting="velocity"), False),
        (Recipe(prediction="edm", schedule="edm"), False),
    ],
    ids=lambda value: f"{value.schedule}-{value.prediction}-{value.loss}" if isinstance(value, Recipe) else "",
)
def test_every_loss_trains(recipe: Recipe, parts: bool) -> None:
    losses = run(fresh(learn_sigma=parts), recipe, num_images=32 * 30, learning_rate=4e-3, warmup_images=0).losses
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_learned_variance_needs_a_model_that_predicts_one() -> None:
    recipe = Recipe(prediction="epsilon", schedule="linear", variance="learned_range", loss="hybrid")
    with pytest.raises(ValueError, match=r"variance is 'learned_range': build the model with learn_sigma=True"):
        run(fresh(), recipe)
    with pytest.raises(ValueError, match=r"the recipe trains no variance: build the model with learn_sigma=False"):
        run(fresh(learn_sigma=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_images": 0}, "num_images must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrainOptions(**{"num_images": 1, **options})
