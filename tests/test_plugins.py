"""Models of other packages: the example of docs/extending.md, installed by pip, and packages that misbehave."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import ditzoo
from ditzoo import registry
from ditzoo.bench import QUICK
from ditzoo.cli import cli
from ditzoo.metrics import count_macs
from ditzoo.models import DiT
from tests.test_docs import blocks_of, run_examples, text_of
from tests.zoo import PLAIN

PAGE = "docs/extending.md"
MODULE, PYPROJECT = blocks_of(PAGE, "python")[0], blocks_of(PAGE, "toml")[0]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package of the page, which is built without the network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "my_zoo.py").write_text(MODULE)
    (source / "pyproject.toml").write_text(PYPROJECT)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", target, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def python(installed: Path, arguments: list[str], cwd: Path) -> str:
    """What a fresh interpreter prints that finds packages in `installed` too."""
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "error::RuntimeWarning", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SESSION = """
import json, sys
import ditzoo
assert "my_zoo" not in sys.modules and "torch" not in sys.modules
ditzoo.register_model  # the registry is there, but nobody has asked it for anything
assert "my_zoo" not in sys.modules and "torch" in sys.modules

from ditzoo.cli import cli
cli.main(["list", "my*"], standalone_mode=False)
assert "my_zoo" in sys.modules
print("---")
cli.main(["info", "my_ti_2"], standalone_mode=False)
print("---")

import torch
from ditzoo.metrics import count_macs
model = ditzoo.create("my_ti_2", num_classes=5, input_size=12)
output = model(torch.randn(2, 1, 12, 12), torch.tensor([10, 990]), torch.tensor([3, 5]))
facts = {"shape": list(output.shape), "finite": bool(output.isfinite().all()), "moves": bool(output.std() > 0.01)}
print(json.dumps({**facts, "macs": count_macs("my_ti_2").total, "class": type(model).__module__}))
"""


def test_the_example_of_the_page_once_it_is_installed(installed, tmp_path):
    listed, info, facts = python(installed, ["-c", SESSION], tmp_path).split("---\n")
    shown = re.search(r'^ditzoo list "my\*"\n```\n\n```text\n(.*?)^```$', text_of(PAGE), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert listed == shown[1]
    for fact in ("my_ti_2", "MyDiT", "329,988", "class_dropout_prob"):
        assert fact in info, fact
    # The products of a DiT of this size: the two differ in where positions come from.
    assert count_macs("dit_ti_2").total == 3_411_968
    assert json.loads(facts) == {
        "shape": [2, 1, 12, 12],
        "finite": True,
        "moves": True,
        "macs": 3_411_968,
        "class": "my_zoo",
    }


@pytest.mark.slow
def test_the_quick_benchmark_takes_the_example_in_its_worker_processes(installed, tmp_path):
    command = ["-m", "ditzoo", "bench", "quick", "--models", "my_ti_2", "--images", "64", "--out", "run"]
    python(installed, command, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == {"real digits", "untrained", "my_ti_2"}
    mine = next(row for row in rows if row["name"] == "my_ti_2")
    assert mine["values"]["num_params"]["value"] == 329_988


def test_the_example_is_as_short_as_the_page_says():
    lines = [line for line in MODULE.split("class MyDiT")[1].split("ditzoo.register_model")[0].splitlines() if line]
    assert len(lines) == 20
    assert "its class has 20 lines" in " ".join(text_of(PAGE).split())


@pytest.mark.usefixtures("registry_sandbox")
class TestCheckOfThePage:
    @pytest.fixture
    def page(self) -> dict[str, Any]:
        return run_examples(PAGE)[0]

    @pytest.mark.parametrize("name", PLAIN)
    def test_the_zoo_passes(self, page, name):
        page["check"](name)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("return super().forward(x, t, y) + torch.randn_like(x)", "forward draws random numbers"),
            ("return super().forward(x, t, y)[:, :, :8, :8]", "not every input size runs"),
            ("return super().forward(x, t, y if y is not None else x.new_zeros(1))", "is unconditional"),
        ],
    )
    def test_what_breaks_the_contract_does_not(self, page, body, message):
        namespace = dict(page)
        signature = "def forward(self, x, t, y=None, *, mask=None)"
        exec(f"class Wrong(MyDiT):\n    {signature}:\n        {body}", namespace)
        ditzoo.register_model("wrong_s_2", namespace["Wrong"], family="wrong")
        with pytest.raises((AssertionError, ValueError), match=message):
            page["check"]("wrong_s_2")


def test_the_ending_that_the_page_reserves_is_the_suites():
    assert QUICK.pattern == "*_ti_2"
    assert "every name that ends in `_ti_2`" in text_of(PAGE)


# Packages that are there and not loaded, or loaded and wrong. Each is a module and its metadata on the path.

Install = Callable[..., Path]
GOOD = """
import ditzoo
from ditzoo.models import DiT
ditzoo.register_model("good_s_2", DiT, {"depth": 1}, family="good")
"""
TAKEN = GOOD.replace("good_s_2", "dit_s_2")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry_sandbox: None) -> Iterator[Install]:
    """Puts a package on the path, before the registry is used for the first time."""
    modules = []

    def write(name: str, source: str, entry_point: str | None = None) -> Path:
        module = name.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[ditzoo.models]\n{module} = {entry_point or module}\n")
        importlib.invalidate_caches()
        return tmp_path

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_plugins", registry._Plugins())
    yield write
    for module in modules:
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    "use",
    [
        lambda: ditzoo.create("good_s_2"),
        ditzoo.list_models,
        ditzoo.list_families,
        lambda: ditzoo.model_info("good_s_2"),
        lambda: count_macs("good_s_2"),
        QUICK.default_models,
    ],
    ids=["create", "list_models", "list_families", "model_info", "count_macs", "benchmark"],
)
def test_a_package_is_loaded_when_the_registry_is_first_used(install, use):
    install("good", GOOD)
    ditzoo.register_model("mine_s_2", DiT, family="mine")
    assert "good" not in sys.modules
    use()
    assert "good" in sys.modules
    assert ditzoo.list_models("good*") == ["good_s_2"]
    assert ditzoo.list_families()[-2:] == ["mine", "good"]
    assert (ditzoo.model_info("good_s_2").ours, ditzoo.create("good_s_2").depth) == (True, 1)


def test_a_package_is_loaded_once(install):
    folder = install(
        "good", GOOD + "from pathlib import Path\nPath(__file__).with_name('loads').open('a').write('x')\n"
    )
    for _ in range(3):
        assert ditzoo.list_models("good*") == ["good_s_2"]
        sys.modules.pop("good", None)  # so that a second load would import it again
    assert (folder / "loads").read_text() == "x"


def test_an_entry_point_may_name_a_function(install):
    source = "def register(count=[]):\n    count.append(1)\n    assert count == [1]\n" + textwrap.indent(GOOD, "    ")
    install("good", source, entry_point="good:register")
    assert ditzoo.list_models("good*") == ditzoo.list_models("good*") == ["good_s_2"]


def test_a_package_may_ask_the_registry_while_it_is_loaded(install):
    install(
        "good",
        GOOD
        + "assert ditzoo.list_models('good*') == ['good_s_2'] and 'dit' in ditzoo.list_families()\n"
        + "assert ditzoo.create('good_s_2').depth == ditzoo.model_info('good_s_2').config['depth'] == 1\n",
    )
    assert ditzoo.list_models("good*") == ["good_s_2"]


def test_the_nearest_names_and_the_facts_include_what_a_package_adds(install):
    with pytest.raises(ValueError, match=r"Unknown model 'good_s_2'"):
        registry._model_info("good_s_2")  # before it is there
    install("good", GOOD)
    with pytest.raises(ValueError, match=r"Unknown model 'good_s2'\. Did you mean good_s_2"):
        ditzoo.create("good_s2")
    assert ditzoo.model_info("good_s_2").family == "good"


def test_a_package_is_imported_as_if_outside_of_any_context(install):
    install("good", GOOD + "import torch\nTABLE = torch.ones(3)\n")
    with torch.inference_mode(), torch.device("meta"):
        assert ditzoo.create("good_s_2").device.type == "meta"
    table = sys.modules["good"].TABLE
    assert table.device.type == "cpu"
    assert not table.is_inference()


def test_another_thread_waits_until_all_are_loaded(install):
    install("good", "import time\ntime.sleep(0.3)\n" + GOOD)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(ditzoo.list_models("good*"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["good_s_2"]] * 4


@pytest.mark.parametrize(
    ("source", "entry_point", "error"),
    [
        ("import no_such_package", None, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", None, "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('needs a GPU')", None, "SystemExit: needs a GPU"),
        ("x = 1", "bad_zoo:register", "AttributeError: module 'bad_zoo' has no attribute 'register'"),
        ("x = 1", "bad_zoo:x", "TypeError: 'int' object is not callable"),
        ("def f(name): ...", "bad_zoo:f", r"TypeError: f\(\) missing 1 required positional argument: 'name'"),
        (TAKEN, None, "ValueError: 'dit_s_2' is already registered, as DiT; choose another name."),
    ],
)
def test_a_package_that_fails_is_named_and_the_others_work(install, source, entry_point, error):
    install("bad-zoo", source, entry_point)
    install("good", GOOD)
    with pytest.warns(RuntimeWarning, match=rf"{error}$") as caught:
        assert ditzoo.list_models("good*") == ["good_s_2"]
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line that used the registry
    text = str(caught[0].message)
    value = entry_point or "bad_zoo"
    assert f"The package 'bad-zoo' could not add its models: its entry point 'bad_zoo' ({value}, " in text
    assert "`pip uninstall bad-zoo`" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert type(ditzoo.create("dit_ti_2")) is DiT
        assert "dit_s_2" in ditzoo.list_models()


def test_the_warning_that_the_page_shows(install):
    install("my-zoo", TAKEN)
    with pytest.warns(RuntimeWarning) as caught:
        ditzoo.list_families()
    assert str(caught[0].message) + "\n" in blocks_of(PAGE, "text")


def test_of_two_packages_with_the_same_name_the_first_in_the_alphabet_has_it(install):
    install("zebra", GOOD.replace('"good"', '"zebra"'))
    install("good", GOOD)
    with pytest.warns(RuntimeWarning, match=r"The package 'zebra' .* 'good_s_2' is already registered, as DiT"):
        assert ditzoo.model_info("good_s_2").family == "good"


def test_the_command_line_goes_on_too(install):
    install("bad-zoo", "import no_such_package")
    with pytest.warns(RuntimeWarning, match="'bad-zoo'"):
        result = CliRunner().invoke(cli, ["list", "dit_ti_2"])
    assert result.exit_code == 0
    assert result.output.splitlines()[1].startswith("dit_ti_2")
