"""What the report says of the recipes that occur in a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from ditzoo.bench import QUICK, QuickRun, read_rows
from ditzoo.bench.report import notes
from ditzoo.recipe import Guidance

ROOT = Path(__file__).parents[2]
MODELS = ["diffit_ti_2", "dit_ti_2", "mdt_ti_2", "mdtv2_ti_2", "uvit_ti_2"]


@pytest.fixture
def recorded(tmp_path: Path) -> QuickRun:
    """The recorded rows, whose models train by three recipes: SiT's by flow matching, the image-space DiffiT's by
    EDM, the others' by diffusion."""
    rows, _ = read_rows(ROOT / "benchmarks" / "results" / "quick.jsonl")
    return QuickRun(QUICK, QUICK.default_models(), "cpu", tmp_path, {}, {row.name: row for row in rows})


def guided(run: QuickRun, **guidance: Guidance) -> QuickRun:
    """The same run with other guidance for the models named."""
    rows = dict(run.rows)
    for name, other in guidance.items():
        recipe = {**rows[name].recipe, "guidance": other.__dict__}
        rows[name] = replace(rows[name], recipe=recipe)
    return replace(run, rows=rows)


def guidance_notes(run: QuickRun) -> list[str]:
    return [note for note in notes(run) if "guidance" in note]


def test_the_recipe_of_each_model_is_told_with_its_guidance(recorded: QuickRun) -> None:
    told = guidance_notes(recorded)
    assert told == [
        f"{', '.join(MODELS)}: schedule cosine, prediction v_prediction, 25 steps of ddim, guidance u + 1.5 (c - u) on "
        "all channels.",
        "diffit_unet_ti: schedule edm, prediction edm, 13 steps of edm_heun, guidance u + 1.5 (c - u) on all channels.",
        "sit_ti_2: schedule flow_linear, prediction velocity, 25 steps of euler, guidance u + 1.5 (c - u) on all "
        "channels.",
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert all(f"- {note}" in readme for note in told)
    assert "Every model: 48,000 images in batches of 16, AdamW at 0.004, averaged weights; seed 0." in notes(recorded)


def test_one_recipe_is_that_of_every_model(recorded: QuickRun) -> None:
    others = ("sit_ti_2", "diffit_unet_ti")
    alike = replace(recorded, rows={name: row for name, row in recorded.rows.items() if name not in others})
    assert guidance_notes(alike) == [
        "Every model: schedule cosine, prediction v_prediction, 25 steps of ddim, guidance u + 1.5 (c - u) on all "
        "channels."
    ]


def test_models_are_grouped_by_guidance(recorded: QuickRun) -> None:
    run = guided(
        recorded,
        uvit_ti_2=Guidance(scale=0.4, convention="uvit"),
        mdt_ti_2=Guidance(scale=3.8, schedule="power_cosine", channels=3),
        mdtv2_ti_2=Guidance(scale=3.8, schedule="power_cosine", channels=3),
        dit_ti_2=Guidance(),
    )
    told = {note.partition(":")[0]: note.partition("guidance ")[2] for note in guidance_notes(run)}
    assert told == {
        "diffit_ti_2": "u + 1.5 (c - u) on all channels.",
        "diffit_unet_ti": "u + 1.5 (c - u) on all channels.",
        "dit_ti_2": "none.",
        "mdt_ti_2, mdtv2_ti_2": "u + s (c - u) on all channels, s = 1 + 2.8 (1 - cos(pi (1 - t / 1000)^4)) / 2, from 1 "
        "in noise to 3.8 at t = 0.",  # digits have one channel, of the three
        "sit_ti_2": "u + 1.5 (c - u) on all channels.",
        "uvit_ti_2": "c + 0.4 (c - u) on all channels.",
    }
