"""The command line: what it prints, and its one-line errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ditzoo import __version__, list_models
from ditzoo.bench import QUICK, runner, suites
from ditzoo.cli import cli, main
from ditzoo.summary import describe


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_list_shows_every_model_once() -> None:
    result = run("list")
    assert result.exit_code == 0
    header, *lines = result.output.splitlines()
    assert header.split()[:4] == ["model", "family", "params", "M"]
    assert [line.split()[0] for line in lines] == list_models()
    assert next(line.split() for line in lines if line.startswith("dit_xl_2 "))[:5] == [
        "dit_xl_2", "dit", "675.1", "28", "1152",
    ]  # fmt: skip


def test_list_filters_by_pattern_family_and_weights() -> None:
    assert [line.split()[0] for line in run("list", "dit_*_8").output.splitlines()[1:]] == list_models("dit_*_8")
    assert [line.split()[0] for line in run("list", "--family", "mdt").output.splitlines()[1:]] == list_models(
        family="mdt"
    )
    tagged = {line.split()[0]: " ".join(line.split()) for line in run("list", "--pretrained").output.splitlines()}
    assert list(tagged)[1:] == list_models(pretrained=True)
    assert tagged["model"].endswith("size of weights from licence of the weights")
    assert tagged["dit_xl_2.in256"].endswith("paper address CC-BY-NC-4.0")
    assert tagged["diffit_xl_2.in512"].endswith("paper Hub CC-BY-NC-SA-4.0")
    assert tagged["uvit_h_2.in256"].endswith("paper by hand none stated for the weights; the code is MIT")
    assert tagged["dit_ti_2.digits"].endswith("ours packaged Apache-2.0")


def test_info_prints_what_the_library_describes() -> None:
    output = run("info", "dit_xl_2.in512").output
    assert output == describe("dit_xl_2.in512") + "\n"
    for text in ("676,014,368", "1,024 patches", "524.5", "2212.09748", "CC-BY-NC-4.0", "input_size", "64", "◄"):
        assert text in output
    assert "no paper has it" in run("info", "diffit_s_2").output


def test_list_and_info_load_no_optional_package_and_draw_with_what_the_output_can_show() -> None:
    code = """
import sys
from ditzoo.cli import cli
heavy = {"timm", "torchvision", "diffusers", "accelerate", "torch_fidelity", "sklearn", "matplotlib", "torch._dynamo"}
cli.main(["list"], standalone_mode=False)
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
cli.main(["info", "uvit_ti_2"], standalone_mode=False)
print(sorted((heavy - {"torch._dynamo"}) & set(sys.modules)), file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
    assert done.stderr.splitlines() == [b"[]", b"[]"]
    listed, _, described = done.stdout.decode("ascii").partition("uvit_ti_2" + os.linesep + "  family")
    assert [line.split()[0] for line in listed.splitlines()[1:]] == list_models()
    plain = describe("uvit_ti_2", ascii=True)
    assert "uvit_ti_2\n  family" + described.replace(os.linesep, "\n") == plain + "\n"
    assert "<" in plain
    assert run("info", "uvit_ti_2").output == describe("uvit_ti_2") + "\n"  # to an output that can show all signs


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["info", "dit_xl2"], ("Unknown model 'dit_xl2'", "Did you mean dit_xl_2")),
        (["info", "dit_xl_2.in1024"], ("Unknown tag 'in1024'", "dit_xl_2.in256")),
        (["list", "nothing_*"], ("no model matches 'nothing_*'", "ditzoo list")),
        (["list", "--family", "gan"], ("Unknown family 'gan'", "dit, uvit, mdt, diffit")),
        (["bench", "quick", "--models", "dit_xl_2", "--out", "x"], ("dit_xl_2 is not made for 8x8 digits",)),
        (["bench", "quick", "--images", "-5", "--out", "x"], ("num_images must be 1 or more, got -5",)),
        (["bench", "quick", "--device", "abacus", "--out", "x"], ("'abacus' cannot be used here",)),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    arguments: list[str], texts: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ditzoo: ")
    assert error.count("\n") == 1
    assert all(text in error for text in texts)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", "quick", "--out", str(tmp_path / "file")])
    assert exit_info.value.code == 2
    assert "cannot write to" in capsys.readouterr().err


def test_help_and_version_load_no_torch() -> None:
    for arguments in (["--help"], ["--version"], ["bench", "quick", "--help"]):
        code = f"""
import sys
from ditzoo.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code in (0, None)
assert "torch" not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (
        __version__
        in subprocess.run(
            [sys.executable, "-m", "ditzoo", "--version"], check=False, capture_output=True, text=True
        ).stdout
    )


@pytest.fixture
def small_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bench.test_runner import SMALL

    for place in (runner, suites):
        monkeypatch.setattr(place, "QUICK", SMALL)
    monkeypatch.setitem(runner.prepare_quick.__kwdefaults__, "suite", SMALL)


@pytest.mark.usefixtures("small_suite")
def test_bench_quick_prints_the_table_and_says_when_all_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def without_workers(*arguments: object, num_workers: int | None) -> None:
        asked.append(num_workers)
        runner.run_quick(*arguments, num_workers=0)  # type: ignore[arg-type]

    monkeypatch.setattr("ditzoo.bench.run_quick", without_workers)
    arguments = ("bench", "quick", "--models", "uvit_ti_2", "--images", "32", "--out", str(tmp_path / "out"))
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    assert "uvit_ti_2" in first.output
    assert "It is no FID" in first.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.jsonl", "report.md", "comparison.png", "samples.png", "samples", "models",
    }  # fmt: skip
    assert asked == [None]  # a worker for each core
    second = run(*arguments)
    assert "Finished earlier" in second.output
    assert "uvit_ti_2" in second.output


@pytest.mark.usefixtures("small_suite")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ditzoo.bench.run_quick", interrupted)
    result = run("bench", "quick", "--out", str(tmp_path))
    assert result.exit_code == 130
    assert "run the same command to go on" in result.output


def test_the_quick_suite_is_the_one_that_the_help_describes() -> None:
    assert f"{QUICK.train.num_images:,}" in run("bench", "quick", "--help").output
