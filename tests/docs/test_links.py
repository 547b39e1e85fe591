"""Links lead somewhere, and what the pages name exists."""

from __future__ import annotations

import contextlib
import importlib.util
import re

import pytest

import ditzoo
from ditzoo.train.presets import list_presets
from tests.docs.pages import DOCS, PAGES, ROOT, prose_of, text_of

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


def test_the_overview_names_every_page_of_the_menu():
    pages = set(re.findall(r": ([\w-]+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)) - {"index.md"}
    assert "sampling.md" in pages
    assert set(re.findall(r"^\| \[.+?\]\(([\w-]+\.md)\) \|", text_of("docs/index.md"), re.MULTILINE)) == pages


def documented() -> set[str]:
    """Names of functions and classes whose docstrings the built pages show."""
    names = set()
    for page in DOCS:
        for dotted, options in re.findall(r"^::: (\S+)\n((?: +.*\n?)*)", text_of(page), re.MULTILINE):
            members = re.search(r"members:\s*\[(.*?)\]|members:\n((?: +- \w+\n)+)", options)
            names |= set(re.findall(r"\w+", members[1] or members[2])) if members else {dotted.rpartition(".")[2]}
    return names


@pytest.mark.parametrize("module", ["ditzoo", "ditzoo.weights", "ditzoo.models", "ditzoo.interop"])
def test_every_public_name_is_documented(module):
    names = set(importlib.import_module(module).__all__) - {"FAMILIES", "__version__"}
    assert names - documented() == set()


MODEL_NAME = (
    r"(?:(?:dit|uvit|mdt|mdtv2|diffit|sit)_(?:ti|s|s_deep|m|b|l|xl|h)_\d(?:_(?:adaln|crossattn|incontext))?"
    r"|diffit_unet_(?:ti|\d+))"
)


def test_names_of_models_are_recognised():
    assert [name for name in ditzoo.list_models() if not re.fullmatch(MODEL_NAME, name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_models_and_modules_exist(page):
    for name in re.findall(rf"\b({MODEL_NAME}(?:\.\w+)?)\b", text_of(page)):
        if name not in list_presets():
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
