"""Arguments of `verify`, and the command `ditzoo verify`: what it prints and how it exits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import ditzoo
from ditzoo.cli import cli, main
from ditzoo.weights import Check, Verification, verify
from tests.weights.verifying import eight_bits, rows, verify_state, weights_of

# Arguments.


def test_wrong_arguments():
    with pytest.raises(ValueError, match="Did you mean dit_ti_2"):
        verify("dit_ti2")
    with pytest.raises(ValueError, match="'abacus' cannot be used here"):
        verify("dit_ti_2", device="abacus")
    with pytest.raises(ValueError, match="'meta' cannot be used here"):
        verify("dit_ti_2", device="meta")
    with pytest.raises(ValueError, match=r"must be float32, bfloat16 or float16, got torch\.int8"):
        verify("dit_ti_2", dtype=torch.int8)


def test_a_wrong_path_is_told_before_anything_is_computed(monkeypatch):
    def never(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr("ditzoo.weights.verification.network_checks", never)
    with pytest.raises(FileNotFoundError):
        verify("dit_ti_2", "nothing.pt")


# The command.


def run(*arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, ["verify", *arguments])
    return result.exit_code, result.output.splitlines()


def test_the_command_prints_the_table_and_exits_with_0(tmp_path):
    torch.save(weights_of("sit_ti_2"), tmp_path / "weights.pt")
    code, lines = run("sit_ti_2", "--checkpoint", str(tmp_path / "weights.pt"))
    result = verify("sit_ti_2", tmp_path / "weights.pt")
    assert code == 0
    assert lines[0] == f"sit_ti_2 on cpu in float32; ditzoo {ditzoo.__version__}, torch {torch.__version__}"
    table = lines[2 : 3 + len(result.checks)]
    assert max(len(line) for line in table) <= 110
    places = [table[0].index(title) for title in ("check", "result", "found", "expected")]
    cells = [[line[a:b].strip() for a, b in zip(places, [*places[1:], None], strict=True)] for line in table[1:]]
    assert cells == [[check.name, check.status, check.found, check.expected] for check in result.checks]
    assert lines[3 + len(result.checks) :] == [
        "",
        f"layout: {rows(result)['layout'].details}",
        f"forward: {rows(result)['forward'].details}",
        "source of golden sit, golden sit_probe: willisma/SiT@947f95bd3a51",
        f"sampled hash: {result.sampled_hash} (compare it with that of other copies)",
        "11 checks passed, 0 failed; 7 notes, 0 not checked.",
    ]


@pytest.mark.usefixtures("no_golden")
def test_the_command_exits_with_1_if_a_check_fails(tmp_path):
    state = weights_of("mdt_ti_2")
    torch.save(state, tmp_path / "weights.pt")
    code, lines = run("dit_ti_2", "--checkpoint", str(tmp_path / "weights.pt"))
    assert code == 1
    assert ["names", "FAIL", "10", "missing,", "16", "unexpected", "52"] in [line.split() for line in lines]
    assert any(line.startswith("names: missing blocks.3.attn.qkv.weight, ") for line in lines)
    assert any(line.startswith("The file fits mdt_ti_2: run ") for line in lines)
    assert ", 1 failed; " in lines[-1]


def test_the_command_computes_in_the_precision_asked_for():
    code, lines = run("dit_ti_2", "--dtype", "bfloat16")
    assert (code, lines[0].split(";")[0]) == (0, "dit_ti_2 on cpu in bfloat16")
    assert sum("at most 0.05 of the largest" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dit_ti2"], "Did you mean dit_ti_2"),
        (["dit_ti_2", "--device", "abacus"], "'abacus' cannot be used here"),
        (["dit_ti_2", "--checkpoint", "nothing.pt"], "there is no file nothing.pt"),
        (["dit_ti_2", "--checkpoint", "."], "is a folder"),
        (["dit_ti_2", "--checkpoint", ""], "PATH is empty; name a file of weights."),
        (["dit_ti_2", "--checkpoint", "page.pt"], "is a web page"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.pt").write_text("<html>")
    with pytest.raises(SystemExit) as exit_info:
        main(["verify", *arguments])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ditzoo: ")
    assert error.count("\n") == 1
    assert text in error


def test_wrong_choices_exit_with_2():
    assert run("dit_ti_2", "--dtype", "float8")[0] == 2
    assert run("dit_ti_2", "--weights", "best")[0] == 2


# Texts.


def test_counts_of_one_are_singular():
    checks = (Check("a", "pass", ""), Check("b", "note", ""))
    result = Verification("dit_ti_2", None, torch.device("cpu"), torch.float32, checks)
    assert result.summary() == "1 check passed, 0 failed; 1 note, 0 not checked."
    result = replace(result, checks=checks * 2)
    assert result.summary() == "2 checks passed, 0 failed; 2 notes, 0 not checked."


@pytest.mark.usefixtures("no_golden")
def test_names_from_a_file_do_not_reach_the_terminal_raw(tmp_path):
    state = {**weights_of("dit_ti_2"), "\x1b[2Jgone": torch.ones(1), "two\nlines": 7, "long" * 999: torch.ones(1)}
    torch.save(state, tmp_path / "weights.pt")
    code, lines = run("dit_ti_2", "--checkpoint", str(tmp_path / "weights.pt"))
    assert code == 1
    details = next(line for line in lines if line.startswith("names: "))
    long = f"{'long' * 25}..."
    assert details == f"names: unexpected '\\x1b[2Jgone', {long}, 'two\\nlines' (of type int)"
    assert all(line.isprintable() for line in lines)
    state = {f"\x1b{key}": value for key, value in weights_of("dit_ti_2").items()}
    assert verify_state("dit_ti_2", state, tmp_path).hints[0].startswith("Every name carries '\\x1b' in front;")


@pytest.mark.usefixtures("no_golden")
def test_rows_fit_a_terminal(tmp_path):
    """Also where most is wrong."""
    state = weights_of("mdt_ti_2")
    eight_bits(state)
    torch.save({"model": state}, tmp_path / "weights.pt")
    for name in ("mdt_ti_2", "uvit_ti_2", "dit_ti_2_crossattn", "dit_xl_2"):
        _, lines = run(name, "--checkpoint", str(tmp_path / "weights.pt"))
        assert max(len(line) for line in lines[2 : lines.index("", 2)]) <= 110
