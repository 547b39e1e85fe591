"""Version, licence and extras are the same everywhere."""

from __future__ import annotations

import re

import ditzoo
from tests.docs.pages import ROOT, text_of


def test_extras_in_the_readme_are_those_of_the_package():
    pyproject = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", pyproject, re.DOTALL)
    assert extras is not None
    documented = re.findall(r"^\| `(\w+)` \| .* \| .*\|$", text_of("README.md").split("## Use")[0], re.MULTILINE)
    assert set(re.findall(r"^(\w+) = ", extras[1], re.MULTILINE)) == set(documented)


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
