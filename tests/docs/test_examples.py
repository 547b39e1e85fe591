"""The examples and commands of the pages run, and print what the pages say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
import torch

from ditzoo import cli
from tests.docs.pages import FAMILY_PAGES, PAGES, ROOT, blocks_of, examples_of, prose_of, run_examples

WITH_EXAMPLES = [page for page in PAGES if examples_of(page)]


def test_pages_have_examples():
    pages = {"README.md", "docs/index.md", "docs/quickstart.md", "docs/pretrained.md", *FAMILY_PAGES.values()}
    pages |= {"docs/converting.md", "docs/processes.md", "docs/guidance.md"}
    assert pages <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_examples_run_and_print_what_the_page_says(page, registry_sandbox):
    _, outputs = run_examples(page)
    for printed, expected in outputs:
        assert expected is None or printed == expected


def test_training_script_of_the_quick_start_samples_every_digit(registry_sandbox):
    namespace, _ = run_examples("docs/quickstart.md")
    assert namespace["samples"].shape == (10, 1, 8, 8)
    assert bool(torch.isfinite(namespace["samples"]).all())
    assert namespace["NUM_IMAGES"] == 1_000


# Commands.


def commands_of(page: str) -> Iterator[tuple[list[str], str | None]]:
    """Arguments of each `ditzoo` command, in blocks and in code spans, and what it prints where that is shown."""
    for block in blocks_of(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield shlex.split(command), output
    for block in blocks_of(page, "bash"):
        yield from ((shlex.split(line), None) for line in block.splitlines() if line.startswith("ditzoo "))
    for span in re.findall(r"`(ditzoo [a-z].*?)`", prose_of(page)):
        yield shlex.split(span.replace("NAME", "dit_ti_2")), None


COMMANDS = [(page, arguments[1:], output) for page in PAGES for arguments, output in commands_of(page)]


@pytest.mark.parametrize(("page", "arguments", "output"), COMMANDS)
def test_commands_exist_and_print_what_the_page_says(page, arguments, output, capsys):
    command, rest = cli.cli, list(arguments)
    while isinstance(command, click.Group) and rest:
        command = command.commands[rest.pop(0)]
    if rest:
        command.make_context("ditzoo", rest)  # parses, and runs nothing
    if output is not None:
        cli.cli.main(list(arguments), prog_name="ditzoo", standalone_mode=False)
        assert capsys.readouterr().out == output


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        commands = [*blocks_of(page, "bash"), *re.findall(r"`(make .*?)`", prose_of(page))]
        for target in re.findall(r"^make ([a-z-]+)", "\n".join(commands), re.MULTILINE):
            assert target in targets, f"{page}: make {target}"
