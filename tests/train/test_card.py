"""What a run says of itself, and what of it goes to the Hub."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ditzoo
from ditzoo import cli
from ditzoo.metrics import FrechetDistance
from ditzoo.models import EvaluationResult, ModelDetails
from ditzoo.pipeline.card import is_generated
from ditzoo.train.card import trained_details, write_card
from ditzoo.train.monitor import draw_grid
from ditzoo.train.options import TrainOptions
from tests.hub_server import use_hub
from tests.pipeline.pipes import QUICK
from tests.train.test_finetune import finish
from tests.zoo import lively

OPTIONS = TrainOptions(num_images=6400, batch_size=32, seed=3)
DISTANCE = FrechetDistance(2.5, "digits classifier", 1000, "held-out digits", 500)


def test_details_say_how_the_weights_were_made():
    details = trained_details(
        ModelDetails(name="dit_ti_2"),
        recipe=replace(QUICK, weights="ema"),
        options=OPTIONS,
        losses=[9.0] * 10 + [1.0] * 25 + [2.0] * 25,
        seen=3200,
        distance=DISTANCE,
        data="1,297 digits",
        label_names=["zero", "one"],
        command="ditzoo train --data digits",
    )
    loss, distance = details.results
    assert loss.value == 1.5
    assert loss.settings == "mean of the last 50 steps; 3,200 images seen in batches of 32, seed 3"
    assert (distance.metric, distance.value) == ("Frechet distance (digits classifier)", 2.5)
    assert (distance.dataset, distance.settings) == ("500 held-out digits", "1,000 samples")
    assert details.recipe.weights == "ema"
    assert (details.name, details.data, details.label_names) == ("dit_ti_2", "1,297 digits", ("zero", "one"))
    assert details.training_command == "ditzoo train --data digits"


def test_details_keep_licence_and_source_and_drop_what_was_measured_before():
    old = EvaluationResult(metric="FID-50K", value=2.0, dataset="x")
    recipe = replace(QUICK, licence="CC0-1.0", source="elsewhere")
    before = ModelDetails(recipe=recipe, data="x", training_command="y", results=(old,), label_names=("a",))
    details = trained_details(before, recipe=replace(QUICK, source="here"), options=OPTIONS, losses=[])
    assert (details.licence, details.source) == ("CC0-1.0", "here")
    assert (details.results, details.data, details.training_command) == ((), None, None)
    assert details.label_names == ("a",)


def test_what_is_not_finite_or_rests_on_few_samples():
    few = replace(DISTANCE, rank_deficient=True)
    details = trained_details(ModelDetails(), recipe=QUICK, options=OPTIONS, losses=[float("nan")] * 60, distance=few)
    (distance,) = details.results
    assert distance.settings == "1,000 samples, rank-deficient covariance"


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "mine"
    model = lively("dit_ti_2")
    model.details = trained_details(
        model.details, recipe=QUICK, options=OPTIONS, losses=[0.5], distance=DISTANCE, command="ditzoo train"
    )
    checkpoint = folder / "checkpoints" / "000006400"
    model.save_pretrained(checkpoint)
    save_file({"exp_avg": torch.zeros(3)}, checkpoint / "training.safetensors")
    finish(checkpoint)
    draw_grid(model, QUICK, folder / "samples" / "000006400.png", rows=1, columns=10)
    assert write_card(folder, model, picture=folder / "samples" / "000006400.png")
    return folder


def test_the_readme_is_a_card_of_the_run(run):
    text = (run / "README.md").read_text()
    assert is_generated(text)
    assert "# mine\n" in text
    assert "![Samples](samples.png)" in text
    assert "Classes, from left to right: 0, 1, 2" in text
    assert "| Frechet distance (digits classifier) | 2.5 | 500 held-out digits | 1,000 samples | ditzoo.train |" in text
    assert (run / "samples.png").read_bytes() == (run / "samples" / "000006400.png").read_bytes()


def test_a_later_card_replaces_its_own_and_not_one_that_somebody_edited(run):
    model = lively("dit_ti_2")
    model.details = replace(model.details, recipe=QUICK, data="other data")
    assert write_card(run, model)
    assert "other data" in (run / "README.md").read_text()
    (run / "README.md").write_text("my own words")
    assert not write_card(run, model, picture=run / "samples" / "000006400.png")
    assert (run / "README.md").read_text() == "my own words"


def test_a_run_is_pushed_without_the_state_of_its_training(run, hub_server, monkeypatch, tmp_path):
    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    cli.cli.main(["push", str(run), "me/pushed"], standalone_mode=False)
    files = hub_server.repository("me/pushed").files()
    assert set(files) - {".gitattributes"} == {"README.md", "config.json", "model.safetensors", "samples.png"}
    card = files["README.md"].decode()
    assert "# pushed\n" in card  # made anew for the repository
    assert 'ditzoo.create("hf-hub:me/pushed")' in card
    assert "Classes, from left to right" in card
    again = ditzoo.create("hf-hub:me/pushed")
    assert torch.equal(again.final_layer.linear.weight, lively("dit_ti_2").final_layer.linear.weight)


def test_an_edited_readme_of_a_run_travels(run, hub_server, monkeypatch, tmp_path):
    from ditzoo.pipeline.sharing import push_saved

    use_hub(monkeypatch, hub_server, cache=tmp_path / "cache")
    (run / "README.md").write_text("my own words")
    (run / "LICENSE").write_text("free")
    push_saved(run, "me/words")
    files = hub_server.repository("me/words").files()
    assert files["README.md"] == b"my own words"
    assert files["LICENSE"] == b"free"


def test_a_run_is_sampled_from_by_its_folder(run, tmp_path):
    cli.cli.main(["sample", str(run), "--num", "4", "--out", str(tmp_path / "grid.png")], standalone_mode=False)
    assert Image.open(tmp_path / "grid.png").width > 100
