"""README, documentation pages and project files: examples run, and what they name exists."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch

import ditzoo
from ditzoo import cli
from ditzoo.bench import QUICK
from ditzoo.metrics import count_macs
from tests.golden_cases import golden_case, relative_error
from tests.zoo import TINY

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md")))]

#: (language, text) of each fenced block
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """The page without its fenced blocks."""
    return _BLOCK.sub("", text_of(page))


def blocks_of(page: str, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(text_of(page)) if language in languages]


# Python examples.


def examples_of(page: str) -> list[tuple[str, str | None]]:
    """Python blocks and, where a block of output follows at once, what they print."""
    fences = list(_BLOCK.finditer(text_of(page)))
    examples = []
    for place, fence in enumerate(fences):
        if fence[1] != "python":
            continue
        following = fences[place + 1] if place + 1 < len(fences) else None
        between = None if following is None else text_of(page)[fence.end() : following.start()]
        output = following[2] if following is not None and following[1] == "text" and not between.strip() else None
        examples.append((fence[2], output))
    return examples


WITH_EXAMPLES = [page for page in PAGES if examples_of(page)]


@cache
def run_examples(page: str) -> tuple[dict[str, Any], list[tuple[str, str | None]]]:
    """All blocks of a page in one namespace: the namespace, and (printed, expected) of each block."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, (code, expected) in enumerate(examples_of(page), start=1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, f"{page}, example {number}", "exec"), namespace)
            outputs.append((printed.getvalue(), expected))
        assert os.listdir() == [], f"examples of {page} leave files behind"
    return namespace, outputs


def test_pages_have_examples():
    assert {"README.md", "docs/index.md", "docs/quickstart.md", "docs/models.md"} <= set(WITH_EXAMPLES)


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


def test_load_official_of_the_models_page_loads_an_official_state_dict(registry_sandbox, tmp_path):
    namespace, _ = run_examples("docs/models.md")
    case = golden_case("dit")
    for nest in (case.state, {"ema": case.state, "model": {}}):
        torch.save(nest, tmp_path / "official.pt")
        model = namespace["load_official"]("dit_s_2", tmp_path / "official.pt", **case.options)
        with torch.no_grad():
            output = model(case["in.x"], case["in.t"], case["in.y"])
        assert relative_error(output, case["out.forward"]) < case.tolerance()


def test_guidance_in_tables_is_valid():
    table = re.findall(r"`Guidance\((.*?)\)`", text_of("docs/models.md"))
    assert len(table) == 6
    for arguments in table:
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        assert not ditzoo.recipe.Guidance(**values).is_off


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


# Links, files, anchors.

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors_of(page: str) -> set[str]:
    """What GitHub and MkDocs make of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in _LINK.findall(prose_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if page.startswith("docs/"):
            assert target.resolve().is_relative_to(ROOT / "docs"), f"{page}: {link} is not part of the built pages"
        if anchor:
            assert anchor in anchors_of(target.resolve().relative_to(ROOT).as_posix()), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    """Code spans that look like a path of the repository, apart from patterns, outputs and placeholders."""
    folders = ("ditzoo/", "docs/", "tests/", "benchmarks/", ".ci/")
    for span in re.findall(r"`([^`\n]+)`", prose_of(page)):
        if span.startswith(folders) and re.fullmatch(r"[\w./-]+", span):
            assert (ROOT / span).exists(), f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES)
def test_named_models_and_modules_exist(page):
    for name in re.findall(r"\b((?:dit|uvit|mdt|mdtv2|diffit)_(?:ti|s|m|b|l|xl|h)_\d(?:\.\w+)?)\b", text_of(page)):
        ditzoo.model_info(name)
    for dotted in re.findall(r"\b(ditzoo(?:\.\w+)+)\b(?!\()", text_of(page)):
        resolve(dotted)


def resolve(dotted: str) -> object:
    """The module or member of that name; raises where there is none."""
    parts = dotted.split(".")
    for split in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found: object = importlib.import_module(".".join(parts[:split]))
            for attribute in parts[split:]:
                found = getattr(found, attribute)
            return found
    raise ModuleNotFoundError(dotted)


# Numbers and tables.


@cache
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_costs_in_the_readme_are_what_is_counted():
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| (.+) \|$", text_of("README.md"), re.MULTILINE)
    printed = {cost.name: (cost.gmacs, cost.source) for cost in hooks().PUBLISHED_COSTS}
    assert len(rows) == 5
    for name, counted, paper, source in rows:
        assert counted == f"{count_macs(name).gmacs:.2f}"
        assert (paper, source) == printed[name]


@pytest.mark.parametrize("family", ["dit", "diffit"])
def test_printed_costs_are_reproduced(family):
    """Figures read in the papers themselves. DiT's have two decimals, and differ in the last one or two of them."""
    costs = [cost for cost in hooks().PUBLISHED_COSTS if cost.name.startswith(f"{family}_")]
    assert len(costs) == {"dit": 13, "diffit": 1}[family]
    for cost in costs:
        counted = count_macs(cost.name)
        value = counted.gmacs if cost.attention else counted.gmacs_without_attention
        tolerance = {"rel": 2e-4, "abs": 0.02} if "." in cost.gmacs else {"abs": 0.5}
        assert value == pytest.approx(float(cost.gmacs), **tolerance), cost.name


def test_tables_hold_every_model(monkeypatch):
    monkeypatch.setattr(
        ditzoo, "list_models", lambda pretrained=None: ["dit_xl_2.in512"] if pretrained else [*TINY, "dit_s_2"]
    )
    lines = hooks().on_page_markdown("# Models\n\n{{ model_table }}\n\n{{ published_table }}\n").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    assert sorted(row[0] for row in rows) == sorted(
        [*(f"| `{name}` (ours)" for name in TINY), "| `dit_s_2`", "| `dit_xl_2.in512`"]
    )
    small = next(row for row in rows if row[0] == "| `dit_s_2`")
    assert small[1:7] == ["dit", "32.96", "6.06", "4x32x32", "256", "arXiv:2212.09748"]
    published = next(row for row in rows if "in512" in row[0])
    assert published[1:4] == ["676.01", "524.54", "4x64x64"]
    assert ditzoo.model_info("dit_xl_2.in512").licence in published


def test_quick_table_of_the_readme_reaches_the_benchmark_page():
    page = hooks().on_page_markdown("{{ quick_table }}")
    assert page
    assert page in text_of("README.md")
    assert "{{ quick_table }}" in text_of("docs/benchmark.md")


def test_protocol_of_the_benchmark_page_is_that_of_the_suite():
    training, recipe = QUICK.train, QUICK.recipe
    protocol = " ".join(text_of("docs/benchmark.md").split())
    for fact in (
        f"{training.num_images:,} images, repeats included, in batches of {training.batch_size}",
        f"peak learning rate {training.learning_rate:.0e}".replace("e-0", "e-"),
        f"warm-up over {training.warmup_images:,} images",
        f"gradient norm clipped at {training.max_grad_norm:g}",
        f"weights averaged with decay {training.ema_decay:g}",
        f"of {recipe.prediction[0]} under the {recipe.schedule} schedule",
        f"with {recipe.num_train_timesteps:,} timesteps",
        f"{recipe.num_inference_steps} {recipe.sampler.upper()} steps",
        f"guidance scale {recipe.guidance.scale:g} on all channels",
        f"{QUICK.num_samples // 10} samples of each digit",
        f"batches of {QUICK.forward_batch_size} in inference mode",
        f"batches of {training.batch_size}, forward, backward and optimiser",
        f"{ {7: 'seven'}[QUICK.speed_rounds] } rounds",
        f"at least {QUICK.speed_seconds:g} s",
    ):
        assert fact in protocol, fact
    assert f"the same {training.num_images:,} training images" in text_of("README.md")
    assert recipe.guidance.channels is None
    for name in TINY:
        assert f"`{name}`" in text_of("README.md")
        assert ditzoo.model_info(name).config["class_dropout_prob"] == 0.1


def test_recorded_run_has_every_tiny_model():
    table = hooks().quick_table()
    for name in [*TINY, "real digits", "untrained"]:
        assert f"| {name} |" in table


def test_every_family_has_its_section():
    sections = anchors_of("docs/models.md")
    for family in ditzoo.models.FAMILIES:
        assert any(family.name.replace("_", "-") in section.replace("-", "") for section in sections), family.name
        number = family.paper.rpartition(":")[2]
        assert number in text_of("docs/models.md")
        assert number in text_of("README.md")


def test_extras_in_the_readme_are_those_of_the_package():
    pyproject = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", pyproject, re.DOTALL)
    assert extras is not None
    documented = re.findall(r"^\| `(\w+)` \| .* \| .*\|$", text_of("README.md").split("## Use")[0], re.MULTILINE)
    assert set(re.findall(r"^(\w+) = ", extras[1], re.MULTILINE)) == set(documented)


# Project files.


def test_version_is_the_same_everywhere():
    citation = text_of("CITATION.cff")
    released = re.search(r"^## \[(.+?)\] - (\d{4}-\d\d-\d\d)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert released is not None
    assert released[1] == ditzoo.__version__
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [ditzoo.__version__]
    assert re.findall(r'^date-released: "(.+)"$', citation, re.MULTILINE) == [released[2]]


def test_licence_is_the_same_everywhere():
    assert re.findall(r"^license: (.+)$", text_of("CITATION.cff"), re.MULTILINE) == ["Apache-2.0"]
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
