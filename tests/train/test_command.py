"""`ditzoo train`: its flags, what a dry run shows, what it says while it trains."""

import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ditzoo.cli import cli, main
from ditzoo.train.command import command_line, flags, row_line
from ditzoo.train.config import RunConfig


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["train", *arguments])


def shown(result: Result) -> dict[str, str]:
    """First word of each line -> the rest."""
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=1) for line in result.output.splitlines() if line.strip()]
    return {line[0]: line[1] if len(line) > 1 else "" for line in lines}


def test_every_setting_has_a_flag_that_says_what_it_is() -> None:
    found = {flag.setting: flag for flag in flags()}
    assert set(found) == {f.name for f in fields(RunConfig)}
    assert found["batch_size"].names == "--batch-size"
    assert found["batch_size"].text.endswith("micro-batches [default: 16]")
    assert found["flip"].names == "--flip/--no-flip"
    assert found["from_weights"].names == "--from"
    assert found["lr_schedule"].choices == ("constant", "cosine", "linear")
    assert [flag.setting for flag in flags() if flag.repeats] == ["model_options", "recipe"]
    output = run("--help").output
    assert all(flag.names.partition("/")[0] in output for flag in flags())


def test_flags_are_known_without_torch() -> None:
    code = "from ditzoo.cli import cli; import sys\ntry: cli.main(['train', '--help'])\nfinally: sys.stdout.flush()"
    code += "; print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert "--learning-rate NUMBER" in done.stdout


def test_a_dry_run_shows_settings_and_cost_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = shown(run("--dry-run", "--seed", "3"))
    assert lines["seed"].split() == ["3", "given"]
    assert lines["batch_size"].split() == ["16", "default"]
    assert lines["network"] == "DiT, 329,988 parameters, 328,964 of which train"
    assert lines["recipe"] == "v_prediction under cosine, loss mse"
    assert lines["data"] == "1,297 handwritten digits: 1,297 of 1x8x8, 10 classes"
    assert lines["length"] == "48,000 images: 3,000 steps of 16, 37.0 epochs"
    assert lines["cost"].startswith("0.0034 GMACs forward an image; 0.01 an image of training")
    assert lines["memory"].startswith("about 10.9 MB in the process: weights 1.3 MB + optimiser 2.6 MB + ")
    assert lines["folder"] == "runs/dit_ti_2.digits"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_preset_shows_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditzoo.train.estimate.kept_for_backward", lambda *args, **options: (0, 10**6))
    lines = shown(run("--preset", "dit_xl_2.in256", "--dry-run", "--batch-size", "64"))
    assert lines["learning_rate"].endswith("preset: arXiv:2212.09748, section 4, and the authors' code")
    assert lines["betas"].endswith("preset: ours: no source gives them; PyTorch's own")
    assert lines["batch_size"].split() == ["64", "given"]
    assert lines["data"] == "not given: set data; the authors': ImageNet-1k"
    assert lines["length"] == "1,792,000,000 images: 28,000,000 steps of 64, 1,398.7 epochs"
    assert lines["cost"].startswith("118.62 GMACs forward an image; 355.86 an image of training")
    assert lines["memory"].endswith(
        "averages 2.7 GB + the larger of gradients 2.7 GB and activations and casts 64.0 MB"
    )


def test_a_dry_run_counts_what_is_frozen_and_tells_what_a_preset_leaves_out() -> None:
    lines = shown(run("--dry-run", "--freeze", "blocks.*"))
    assert lines["network"] == "DiT, 329,988 parameters, 30,212 of which train"
    lines = shown(run("--dry-run", "--model", "mdtv2_ti_2.digits"))
    assert lines["recipe"] == "v_prediction under cosine, loss mse, 0.3 of the tokens masked in a second pass"
    lines = shown(run("--dry-run", "--from", "dit_ti_2.digits", "--lora-rank", "4"))
    assert lines["network"] == "DiT, 353,540 parameters, 23,552 of which train"
    assert lines["note"].startswith("What loading resizes, such as the label table for other classes, trains too")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-classes", "3"], "num_classes is 3, and 1,297 handwritten digits has 10 classes; set it to 10 or more"),
        (["--model", "dit_xl_3"], "Unknown model 'dit_xl_3'. Did you mean dit_xl_8 or dit_xl_4 or dit_xl_2?"),
        (["--model-options", "dept=3"], "dit_ti_2.digits has no option 'dept'. Did you mean depth"),
        (["--betas", "0.9,x"], "betas must be a number, got 'x'"),
        (["--betas", "0.9"], "betas must be 2 numbers for adamw, such as its own (0.9, 0.999), got (0.9,)"),
        (["--optimizer", "AdamW"], "unknown optimizer 'AdamW'. Did you mean adamw"),
        (["--recipe", "mask_ratio=0.5"], "recipe has mask_ratio=0.5, and DiT takes no masks; leave it out"),
        (["--model-options", "depth=[3"], "model_options cannot read '[3': "),
        (["--device", "gpu"], "device must be one of cpu, cuda, mps, xpu, with a number as in cuda:0"),
        (["--freeze", "block.*"], "no parameter is called 'block.*'"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--config", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["train", "--dry-run", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ditzoo: ")
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "flag"),
    [
        ("--learning_rate", "--learning-rate"),
        ("--lr", "--learning-rate"),
        ("--epochs", "--num-images"),
        ("--mixed-precision", "--precision"),
        ("--pretrained", "--from"),
    ],
)
def test_a_flag_that_does_not_exist_names_the_nearest(word: str, flag: str) -> None:
    result = run(word, "3")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: No such option '{word}'. Did you mean '{flag}'?"


def test_a_dry_run_tells_of_the_recipe_that_suits_the_digits() -> None:
    lines = shown(run("--dry-run", "--model", "dit_ti_2"))
    assert lines["recipe"] == "epsilon under linear, loss mse"
    assert lines["note"] == "dit_ti_2 has its family's recipe; dit_ti_2.digits has one that suits the digits."
    assert "note" not in shown(run("--dry-run", "--model", "dit_ti_2.digits"))


def test_a_run_is_trained_and_tells_how_it_goes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--out", str(folder), "--model-options", "depth=1", "--num-images", "64", "--log-every", "32"]
    arguments += ["--sample-every", "0", "--device", "cpu", "--no-flip"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["0", "1,297", "handwritten", "digits,", "on", "cpu"]
    assert [line.split()[0] for line in lines[1:-1]] == ["32", "64"]
    assert lines[-1] == f"{folder} holds the run: `ditzoo sample {folder}` draws from its model."
    card = (folder / "README.md").read_text()
    assert f"ditzoo train {' '.join(arguments)}" in card
    assert run("--config", str(folder / "run.yaml")).exit_code == 0
    again = run("--config", str(folder / "run.yaml"), "--seed", "1")
    assert isinstance(again.exception, ValueError)
    assert "seed was 0, is 1" in str(again.exception)


def test_the_command_is_noted_as_it_was_given() -> None:
    given = {"model": "dit_s_2", "flip": True, "compile": False, "model_options": ("depth=4", "a='b c'"), "seed": "3"}
    assert command_line(given, "run.yaml") == (
        "ditzoo train --config run.yaml --model dit_s_2 --flip --no-compile --model-options depth=4 --model-options "
        "'a='\"'\"'b c'\"'\"'' --seed 3"
    )


def test_rows_of_metrics_are_lines() -> None:
    train = {"kind": "train", "seen": 12_800, "loss": 0.12345, "images_per_second": 1234.5, "learning_rate": 1e-4}
    assert row_line(train) == "       12,800  loss 0.1235, 1,234 images/s"
    assert math.isnan(float(row_line({**train, "loss": None}).split()[2].rstrip(",")))
    event = {"kind": "event", "seen": 1, "event": "loss spike", "message": "step 3: 7 is {large}"}
    assert row_line(event) == "            1  loss spike: step 3: 7 is {large}"
