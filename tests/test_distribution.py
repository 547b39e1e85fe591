"""What wheel and sdist hold. `make dist` runs these tests on the files in dist/, otherwise both are built here."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import ditzoo

ROOT = Path(__file__).parent.parent
NAME = f"ditzoo-{ditzoo.__version__}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a wheel and an sdist lie: the wheel is built from the sdist, with the hatchling that is installed."""
    if built := os.environ.get("DITZOO_DIST"):
        return Path(built)
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def wheel(folder: Path) -> dict[str, bytes]:
    """Path -> content."""
    with zipfile.ZipFile(folder / f"{NAME}-py3-none-any.whl") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(folder: Path) -> dict[str, bytes]:
    """Path below the top folder -> content."""
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name.removeprefix(f"{NAME}/"): file.read() for name, file in files.items() if file is not None}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    return email.message_from_bytes(wheel[f"{NAME}.dist-info/METADATA"])


def test_there_is_one_of_each(folder):
    assert sorted(path.name for path in folder.iterdir()) == [f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"]


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    assert {path.partition("/")[0] for path in wheel} == {"ditzoo", f"{NAME}.dist-info"}
    package = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "ditzoo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path: content for path, content in wheel.items() if path.startswith("ditzoo/")} == package


def test_the_wheel_has_what_is_no_python_file(wheel):
    assert wheel["ditzoo/py.typed"] == b""
    weights = [path for path in wheel if path.endswith(".safetensors")]
    assert "ditzoo/metrics/digits_classifier.safetensors" in weights
    assert all(len(wheel[path]) > 1_000 for path in weights)
    assert len(wheel["ditzoo/media/imagenet_classes.txt"].splitlines()) > 1_000
    assert b"Apache License" in wheel[f"{NAME}.dist-info/licenses/LICENSE"]


def test_the_wheel_has_command_and_suites(wheel):
    assert b"[console_scripts]\nditzoo = ditzoo.cli:main\n" in wheel[f"{NAME}.dist-info/entry_points.txt"]
    assert b"QUICK = QuickSuite()" in wheel["ditzoo/bench/suites.py"]


def test_metadata(metadata, sdist):
    assert (metadata["Name"], metadata["Version"]) == ("ditzoo", ditzoo.__version__)
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    required = [entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry]
    names = {entry.partition(">=")[0] for entry in required}
    assert names == {
        *("torch", "einops", "safetensors", "huggingface-hub", "filelock", "numpy", "pillow", "click", "rich"),
    }
    extras = {"bench", "train", "lora", "trackers", "eval", "ode", "diffusers"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras | {"docs", "dev", "all"}
    optional = [re.fullmatch(r"(.+?); extra == '(\w+)'", entry) for entry in metadata.get_all("Requires-Dist", [])]
    packages = {extra: {found[1] for found in optional if found and found[2] == extra} for extra in (*extras, "all")}
    assert packages["all"] == set().union(*(packages[extra] for extra in extras))
    assert metadata.get_payload().encode().strip() == sdist["README.md"].strip()


def test_the_sdist_holds_what_builds_and_tests(sdist):
    needed = {"pyproject.toml", "constraints.txt", "Makefile", "mkdocs.yml", ".ci/run", ".ci/dist", "LICENSE"}
    needed |= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "docs/hooks.py", "tests/conftest.py"}
    assert needed <= set(sdist)
    assert any(path.startswith("tests/golden/") and path.endswith(".safetensors") for path in sdist)


def test_the_sdist_holds_every_file_of_the_repository(sdist):
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout, so nobody knows which files are the repository's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {path for path in listed.split("\0") if path and (ROOT / path).is_file()}
    assert tracked <= set(sdist)
    assert len(tracked) > 100


def test_neither_holds_leftovers(wheel, sdist):
    leftovers = ("__pycache__", ".pyc", ".venv", ".hypothesis", "_cache/", "runs/", "site/", ".egg-info")
    assert [path for path in (*wheel, *sdist) if any(part in path for part in leftovers)] == []
