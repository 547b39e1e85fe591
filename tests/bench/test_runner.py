"""The quick suite at a small size: rows, resuming, repeatability, bad input."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ditzoo
from ditzoo import registry
from ditzoo.bench import QUICK, QuickRun, QuickSuite, prepare_quick, read_rows, run_quick, write_row
from ditzoo.bench.report import (
    HEADER,
    _coincident,
    comparison_figure,
    markdown_table,
    notes,
    sorted_rows,
    table_cells,
    write_report,
)
from ditzoo.bench.results import evaluation_results
from ditzoo.bench.runner import REAL, RESULTS, UNTRAINED
from ditzoo.diffusion import count_evaluations
from ditzoo.models import DiT
from ditzoo.pipeline import Pipeline
from ditzoo.recipe import Recipe
from ditzoo.train import TrainOptions

SMALL = QuickSuite(
    train=TrainOptions(num_images=64, warmup_images=0),
    recipe=replace(QUICK.recipe, num_inference_steps=2),
    num_samples=100,
    sample_batch_size=60,
    forward_batch_size=2,
    speed_rounds=2,
    speed_seconds=1e-3,
)
MODELS = ["dit_ti_2", "mdtv2_ti_2"]
QUALITY = ("frechet_distance", "accuracy", "final_loss")


def small_run(out: Path, **options: object) -> QuickRun:
    run = prepare_quick(out, suite=SMALL, **{"models": MODELS, **options})  # type: ignore[arg-type]
    run_quick(run)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    return small_run(tmp_path_factory.mktemp("quick"))


def test_worker_processes_give_the_same_quality(finished: QuickRun, tmp_path: Path) -> None:
    run = prepare_quick(tmp_path, models=MODELS, suite=replace(SMALL, speed_rounds=1))
    run_quick(run, num_workers=2)
    for name in MODELS:
        for column in QUALITY:
            assert run.rows[name].values[column].value == finished.rows[name].values[column].value


def test_every_row_is_on_disk_with_units_recipe_and_origin(finished: QuickRun) -> None:
    rows, problems = read_rows(finished.out / RESULTS)
    assert problems == []
    assert [row.name for row in rows] == [REAL, UNTRAINED, *MODELS]
    assert [row.kind for row in rows] == ["reference", "reference", "model", "model"]
    for row in rows[2:]:
        assert all(value.unit for value in row.values.values())
        assert row.values["num_params"].value == registry.model_info(row.name).num_params
        assert row.values["gflops"].value == 2 * row.values["gmacs"].value
        assert row.values["train_peak_memory"].value > 4 * 4 * row.values["num_params"].value
        assert row.values["forward_throughput"].low <= row.values["forward_throughput"].value
        assert row.config == registry.create(row.name).config
        assert row.recipe["schedule"] == "cosine"
        assert row.frechet == {
            "extractor": "ditzoo digits classifier v1",
            "num_samples": 100,
            "reference": "held-out digits",
            "reference_samples": 500,
        }
        assert row.versions["ditzoo"]
        assert row.source_digest
    masked = {row.name: (row.recipe["mask_ratio"], row.recipe["mask_ratio_spread"]) for row in rows[2:]}
    assert masked == {"dit_ti_2": (None, 0.0), "mdtv2_ti_2": (0.3, 0.2)}


def test_real_digits_are_nearer_than_an_untrained_model(finished: QuickRun) -> None:
    real, untrained = (finished.rows[name].values["frechet_distance"].value for name in (REAL, UNTRAINED))
    assert 12 * real < untrained
    assert finished.rows[REAL].values["accuracy"].value > 0.97


def test_samples_lie_beside_the_row_with_their_labels(finished: QuickRun) -> None:
    for name in (REAL, UNTRAINED, *MODELS):
        images, labels = finished.load_samples(finished.rows[name])
        assert images.shape == (100, 8, 8, 1)
        assert images.dtype == np.uint8
        assert labels.tolist() == [i % 10 for i in range(100)]


def test_the_model_of_a_row_lies_beside_it_with_what_was_measured(finished: QuickRun) -> None:
    row = finished.rows["dit_ti_2"]
    pipe = Pipeline.from_pretrained(finished.model_path(row))
    details = pipe.model.details
    assert pipe.model.config == row.config
    assert details.recipe == Recipe.from_dict(row.recipe)
    assert details.training_command == "ditzoo bench quick --models dit_ti_2 --images 64 --seed 0"
    assert details.data == ditzoo.model_info("dit_ti_2.digits").data
    loss, *measured = details.results
    assert (loss.metric, loss.value) == ("training loss", pytest.approx(row.values["final_loss"].value))
    assert tuple(measured) == evaluation_results(row)
    assert [result.value for result in measured] == [row.values[name].value for name in QUALITY[:2]]
    samples = pipe(range(10), num_images=100, seed=0, batch_size=60)
    assert np.array_equal(samples.pixels, finished.load_samples(row)[0])
    assert len(list((finished.out / "models").iterdir())) == len(MODELS)


def test_a_finished_run_does_nothing_again(finished: QuickRun) -> None:
    again = prepare_quick(finished.out, models=MODELS, suite=SMALL)
    assert again.resumed == [REAL, UNTRAINED, *MODELS]
    stages: list[str] = []
    before = (finished.out / RESULTS).read_bytes()
    run_quick(again, lambda stage, done, total: stages.append(stage))
    assert stages == []
    assert (finished.out / RESULTS).read_bytes() == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_images": 65}])
def test_other_settings_are_measured_anew(finished: QuickRun, change: dict[str, int]) -> None:
    run = prepare_quick(finished.out, models=MODELS, suite=SMALL, **change)  # type: ignore[arg-type]
    assert not set(MODELS) & set(run.rows)


def test_interrupted_runs_keep_finished_rows_and_go_on_to_the_same_result(finished: QuickRun, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "sample mdtv2_ti_2":
            raise KeyboardInterrupt

    run = prepare_quick(tmp_path, models=MODELS, suite=SMALL)
    with pytest.raises(KeyboardInterrupt):
        run_quick(run, interrupt)
    assert [row.name for row in read_rows(tmp_path / RESULTS)[0]] == [REAL, UNTRAINED, "dit_ti_2"]
    resumed = prepare_quick(tmp_path, models=MODELS, suite=SMALL)
    assert resumed.resumed == [REAL, UNTRAINED, "dit_ti_2"]
    stages: set[str] = set()
    run_quick(resumed, lambda stage, done, total: stages.add(stage))
    assert stages == {"measure speed", "measure memory", "train mdtv2_ti_2", "sample mdtv2_ti_2"}
    for name in MODELS:
        for column in QUALITY:
            assert resumed.rows[name].values[column].value == finished.rows[name].values[column].value


def test_another_seed_gives_other_quality(finished: QuickRun, tmp_path: Path) -> None:
    other = small_run(tmp_path, models=["dit_ti_2"], seed=1)
    distances = [run.rows["dit_ti_2"].values["frechet_distance"].value for run in (finished, other)]
    assert distances[0] != distances[1]


def test_a_damaged_results_file_is_reported_and_used(finished: QuickRun, tmp_path: Path) -> None:
    lines = (finished.out / RESULTS).read_text().splitlines()
    (tmp_path / "samples").mkdir()
    for file in (finished.out / "samples").iterdir():
        (tmp_path / "samples" / file.name).write_bytes(file.read_bytes())
    lines[2] = lines[2][:50]
    (tmp_path / RESULTS).write_text("\n".join(lines))
    run = prepare_quick(tmp_path, models=MODELS, suite=SMALL)
    assert len(run.problems) == 1
    assert "line 3 is damaged" in run.problems[0]
    assert run.resumed == [REAL, UNTRAINED, "mdtv2_ti_2"]


def test_runs_of_two_seeds_in_one_folder_keep_their_own_samples(tmp_path: Path) -> None:
    first = small_run(tmp_path, models=["dit_ti_2"])
    before = first.load_samples(first.rows["dit_ti_2"])[0]
    small_run(tmp_path, models=["dit_ti_2"], seed=1)
    again = prepare_quick(tmp_path, models=["dit_ti_2"], suite=SMALL)
    assert "dit_ti_2" in again.resumed
    assert np.array_equal(again.load_samples(again.rows["dit_ti_2"])[0], before)


@pytest.mark.parametrize("damage", ["values", "frechet", "samples"])
def test_a_damaged_row_or_its_samples_are_reported_and_measured_again(
    finished: QuickRun, tmp_path: Path, damage: str
) -> None:
    (tmp_path / "samples").mkdir()
    for file in (finished.out / "samples").iterdir():
        (tmp_path / "samples" / file.name).write_bytes(file.read_bytes())
    rows = read_rows(finished.out / RESULTS)[0]
    for row in rows:
        broken = damage != "samples" and row.name == "dit_ti_2"
        write_row(tmp_path / RESULTS, replace(row, **{damage: {}}) if broken else row)
    if damage == "samples":
        path = tmp_path / "samples" / finished.samples_path(finished.rows["dit_ti_2"]).name
        path.write_bytes(path.read_bytes()[:100])
    run = prepare_quick(tmp_path, models=MODELS, suite=SMALL)
    assert run.resumed == [REAL, UNTRAINED, "mdtv2_ti_2"]
    assert len(run.problems) == 1
    assert "The finished row of dit_ti_2 cannot be used" in run.problems[0]


def test_the_recorded_run_keeps_the_promises_of_the_readme() -> None:
    """Twelve times nearer to the data than untrained, 95 % read as their label, and the table made from these rows."""
    root = Path(__file__).parents[2]
    rows, problems = read_rows(root / "benchmarks" / "results" / "quick.jsonl")
    assert problems == []
    table = (root / "README.md").read_text()
    untrained = next(row.values["frechet_distance"].value for row in rows if row.name == UNTRAINED)
    models = [row for row in rows if row.kind == "model"]
    assert sorted(row.name for row in models) == sorted(QUICK.default_models())
    assert all(row.config == registry.model_info(row.name).config for row in models)
    for row in models:
        distance, accuracy = row.values["frechet_distance"].value, row.values["accuracy"].value
        assert 12 * distance < untrained
        assert accuracy >= 0.95
        assert f"| {row.name} | {distance:.2f} | {100 * accuracy:.1f} |" in table
        assert row.seed == 0
        assert row.settings["train"]["num_images"] == QUICK.train.num_images


def test_a_row_without_its_samples_is_measured_again(finished: QuickRun, tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_bytes((finished.out / RESULTS).read_bytes())
    assert prepare_quick(tmp_path, models=MODELS, suite=SMALL).resumed == []


def test_the_report_sorts_by_distance_and_never_says_fid_50k(finished: QuickRun) -> None:
    distances = [row.values["frechet_distance"].value for row in sorted_rows(finished)]
    assert distances == sorted(distances)
    assert table_cells(finished)[0][0] == REAL
    assert all(len(cells) == len(HEADER) for cells in table_cells(finished))
    paths = write_report(finished)
    assert [path.name for path in paths] == ["report.md", "comparison.png", "samples.png"]
    text = paths[0].read_text()
    assert markdown_table(finished) in text
    assert "ditzoo digits classifier v1, 100 images a row against 500 held-out digits" in text
    assert "FID-50K" not in text
    assert all(note in text for note in notes(finished))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[1:])


@pytest.mark.parametrize("name", QUICK.default_models())
def test_every_model_trains_by_the_objective_of_its_family(name: str) -> None:
    recipe = QUICK.recipe_for(name, registry.create(name))
    published = registry.model_info(name).recipe
    assert published is not None
    assert recipe.is_flow == published.is_flow == (name == "sit_ti_2")
    assert (recipe.schedule == "edm") == (published.schedule == "edm") == (name == "diffit_unet_ti")
    assert count_evaluations(recipe) == count_evaluations(QUICK.recipe) == 25
    assert recipe.sampler == {"sit_ti_2": "euler", "diffit_unet_ti": "edm_heun"}.get(name, "ddim")
    rows, _ = read_rows(Path(__file__).parents[2] / "benchmarks" / "results" / "quick.jsonl")
    assert Recipe.from_dict(next(row.recipe for row in rows if row.name == name)) == recipe


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(prediction="edm", schedule="edm", num_inference_steps=18), QUICK.edm_recipe),
        (Recipe(prediction="epsilon", schedule="flow_gvp"), QUICK.flow_recipe),
        (Recipe(prediction="epsilon", schedule="continuous_vp"), QUICK.recipe),
        (Recipe(prediction="epsilon", schedule="linear"), QUICK.recipe),
        (None, QUICK.recipe),
    ],
)
def test_a_registered_model_trains_by_the_objective_of_its_recipe(
    recipe: Recipe | None, expected: Recipe, registry_sandbox: None
) -> None:
    registry.register_model("mine_ti_2", DiT, {"learn_sigma": False}, family="mine", recipe=recipe)
    assert QUICK.recipe_for("mine_ti_2", registry.create("mine_ti_2", depth=1)) == expected


def test_points_that_coincide_share_a_label(finished: QuickRun) -> None:
    same = _coincident([(1.0, 2.0), (1.0, 2.09), (1.0, 2.2), (1.5, 2.0), (1.01, 1.95)], width=1.0)
    assert same == [[0, 1, 4], [2], [3]]
    labels = {text.get_text() for text in comparison_figure(finished).axes[0].texts}
    assert all(any(name in label for label in labels) for name in MODELS)


def test_the_suite_finds_the_tiny_models_of_every_family() -> None:
    families = {registry.model_info(name).family for name in QUICK.default_models()}
    assert families == set(registry.list_families())


@pytest.mark.parametrize(
    ("options", "error", "texts"),
    [
        ({"models": ["dit_ti_3"]}, ValueError, ("dit_ti_3", "dit_ti_2")),
        ({"models": ["dit_xl_2"]}, ValueError, ("dit_xl_2 is not made for 8x8 digits", "uvit_ti_2")),
        ({"models": []}, ValueError, ("no models",)),
        ({"num_images": 0}, ValueError, ("num_images must be 1 or more, got 0",)),
        ({"device": "abacus"}, ValueError, ("'abacus' cannot be used here", "cpu")),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, options: dict[str, object], error: type[Exception], texts: tuple[str, ...]
) -> None:
    with pytest.raises(error) as raised:
        prepare_quick(tmp_path / "out", suite=SMALL, **options)  # type: ignore[arg-type]
    assert all(text in str(raised.value) for text in texts)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*file.*another folder with --out"):
        prepare_quick(tmp_path / "file" / "out", suite=SMALL)


@pytest.mark.slow
def test_every_family_reaches_the_quality_that_the_readme_promises(tmp_path: Path) -> None:
    """Twelve times nearer to the data than untrained, and 95 % of the samples read as their label."""
    run = prepare_quick(tmp_path)
    run_quick(run, num_workers=None)
    untrained = run.rows[UNTRAINED].values["frechet_distance"].value
    for name in run.models:
        values = run.rows[name].values
        assert 12 * values["frechet_distance"].value < untrained, name
        assert values["accuracy"].value >= 0.95, name
