"""README and documentation pages, as the tests read them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import ditzoo

ROOT = Path(__file__).parents[2]
DOCS = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/**/*.md"))]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
FAMILY_PAGES = {family.name: f"docs/families/{family.name}.md" for family in ditzoo.models.FAMILIES}

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


@cache
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
