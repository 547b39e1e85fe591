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
from ditzoo.models.digits import DIGITS_RECIPE
from ditzoo.pipeline import Pipeline
from tests.docs.pages import blocks_of, run_examples, text_of
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
    assert QUICK.patterns == ("*_ti_2", "*_unet_ti")
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


def test_a_saved_pipeline_loads_the_package_of_its_model(install, tmp_path):
    model_cls = type("Mine", (DiT,), {"__module__": "good"})  # as the package will have it
    options = {"input_size": 8, "in_channels": 1, "hidden_size": 32, "depth": 1, "num_heads": 4, "learn_sigma": False}
    Pipeline(model_cls(**options, num_classes=10), DIGITS_RECIPE).save_pretrained(tmp_path / "saved")
    install(
        "good", GOOD.replace("ditzoo.register", "class Mine(DiT): pass\nditzoo.register").replace(", DiT,", ", Mine,")
    )
    assert "good" not in sys.modules
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert type(again.model) is sys.modules["good"].Mine
    assert again.model.depth == 1


def test_a_package_is_imported_as_if_outside_of_any_context(install):
    install("good", GOOD + "import torch\nTABLE = torch.ones(3)\n")
    with torch.inference_mode(), torch.device("meta"):
        assert ditzoo.create("good_s_2").device.type == "meta"
    table = sys.modules["good"].TABLE
    assert table.device.type == "cpu"
    assert not table.is_inference()


# Threads.


def answers(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return or raise, each made in a thread of its own.

    A deadlock fails here, rather than hangs. Its threads keep the import locks of their packages, so that no other test
    may use the name of a package that could be in one.
    """
    found: dict[int, Any] = {}

    def answer(place: int, call: Callable[[], Any]) -> None:
        try:
            found[place] = call()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=answer, args=given, daemon=True) for given in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    return [found[place] for place in range(len(calls))]


def good() -> list[str]:
    return ditzoo.list_models("good*")


def test_another_thread_waits_until_all_are_loaded(install):
    install("good", "import time\ntime.sleep(0.3)\n" + GOOD)
    assert answers(good, good, good, good) == [["good_s_2"]] * 4


ASKING = """
import threading
answers = []
def ask():
    answers.extend([ditzoo.list_models("good*"), ditzoo.create("good_s_2").depth, ditzoo.model_info("dit_s_2").name])
thread = threading.Thread(target=ask, daemon=True)
thread.start()
thread.join()
ditzoo.register_model("good_b_2", DiT, {"depth": 1}, family="good")
"""


def test_a_package_may_wait_for_a_thread_that_asks_the_registry(install, monkeypatch):
    monkeypatch.setattr(registry._Plugins, "patience", 0.2)
    install("asking", GOOD + ASKING)
    assert answers(good) == [["good_b_2", "good_s_2"]]
    assert sys.modules["asking"].answers == [["good_s_2"], 1, "dit_s_2"]


def test_a_package_that_waits_for_a_thread_costs_patience_once(install, monkeypatch):
    waits = []

    def wait_for(self: threading.Condition, predicate: Callable[[], bool], timeout: float) -> bool:
        waits.append(timeout)
        return predicate()

    monkeypatch.setattr(threading.Condition, "wait_for", wait_for)
    install("asking", GOOD + ASKING)
    assert answers(good) == [["good_b_2", "good_s_2"]]
    assert waits == [10.0]  # by the first of the questions


IMPORTING = """
import importlib, threading
begun = threading.Event()
def register():
    begun.set()
    importlib.import_module("shared")
"""


def test_a_package_may_import_what_another_thread_imports_that_asks_the_registry(install, monkeypatch):
    monkeypatch.setattr(registry._Plugins, "patience", 0.2)
    install("alpha", IMPORTING, entry_point="alpha:register")
    # Its import lock is held by the second thread, which waits for the first one's packages.
    install("shared", GOOD.lstrip() + "import alpha\nalpha.begun.wait()\nnames = ditzoo.list_models('good*')\n")
    answers(good, lambda: importlib.import_module("shared"))
    assert sys.modules["shared"].names == good() == ["good_s_2"]


class Comparing(str):
    """A family of which some comparisons have another thread register a model.

    There are more names than families, so that by the twentieth the names are being gone through.
    """

    def __init__(self, _: str) -> None:
        self.comparisons = 0

    def __eq__(self, other: object) -> bool:
        self.comparisons += 1
        if self.comparisons in (20, 21, 22):
            name = f"zz_s_{self.comparisons}"
            assert answers(lambda: ditzoo.register_model(name, DiT, {"depth": 1}, family="zz")) == [None]
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.usefixtures("registry_sandbox")
def test_names_can_be_listed_while_another_thread_registers():
    expected = ditzoo.list_models(family="diffit")
    assert ditzoo.list_models(family=Comparing("diffit")) == expected
    assert ditzoo.list_models("zz*") == ["zz_s_20", "zz_s_21", "zz_s_22"]


@pytest.mark.usefixtures("registry_sandbox")
def test_threads_that_register_lose_nothing():
    def registering(family: str) -> Callable[[], None]:
        def register() -> None:
            for number in range(8):
                ditzoo.register_model(f"{family}_s_{number}", DiT, {"depth": 1}, family=family)

        return register

    def listing() -> bool:
        seen: list[str] = []
        while len(seen) < 24:
            before, seen = seen, ditzoo.list_models("zz*")
            assert set(before) <= set(seen)
            assert ditzoo.create("dit_ti_2").depth == 4
        return True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        assert answers(*map(registering, ("zza", "zzb", "zzc")), listing, listing) == [None, None, None, True, True]
    finally:
        sys.setswitchinterval(interval)
    assert ditzoo.list_models("zz*") == [f"zz{letter}_s_{number}" for letter in "abc" for number in range(8)]


@pytest.mark.usefixtures("registry_sandbox")
def test_of_threads_that_register_the_same_name_one_succeeds():
    together = threading.Barrier(6)

    def registering(depth: int) -> Callable[[], int]:
        def register() -> int:
            together.wait(timeout=60)
            ditzoo.register_model("zz_s_2", DiT, {"depth": depth}, family="zz")
            return depth

        return register

    outcomes = answers(*map(registering, range(1, 7)))
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert ditzoo.model_info("zz_s_2").config["depth"] == winner
    losers = [str(outcome) for outcome in outcomes if isinstance(outcome, ValueError)]
    assert losers == ["'zz_s_2' is already registered, as DiT; choose another name."] * 5


# Interrupts.

STOPPED_ONCE = """
from pathlib import Path
stopped = Path(__file__).with_name("stopped")
if not stopped.exists():
    stopped.touch()
    raise KeyboardInterrupt
ditzoo.register_model("good_b_2", DiT, {"depth": 1}, family="good")
"""


def test_an_interrupt_ends_the_loading_and_the_next_call_goes_on(install):
    counted = "from pathlib import Path\nPath(__file__).with_name('loads').open('a').write('x')\n"
    folder = install("alpha", GOOD.replace('"good', '"alpha') + counted)
    install("good", GOOD + STOPPED_ONCE)  # interrupted between its two names
    install("zeta", GOOD.replace('"good', '"zeta'))
    with pytest.raises(KeyboardInterrupt):
        ditzoo.list_models()
    assert "zeta" not in sys.modules
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = ["alpha_s_2", "good_b_2", "good_s_2", "zeta_s_2"]
        assert [
            name for name in ditzoo.list_models() if ditzoo.model_info(name).family in ("alpha", "good", "zeta")
        ] == names
    assert (folder / "loads").read_text() == "x"


@pytest.mark.parametrize("entry_point", ["good", "good:register"])
def test_another_thread_goes_on_after_an_interrupt(install, entry_point):
    body = GOOD + STOPPED_ONCE
    source = body if entry_point == "good" else "def register():\n" + textwrap.indent(body, "    ")
    install("good", source, entry_point=entry_point)
    with pytest.raises(KeyboardInterrupt):
        ditzoo.create("good_s_2")
    assert answers(good, good) == [["good_b_2", "good_s_2"]] * 2


def test_what_is_interrupted_twice_is_loaded_the_third_time(install):
    twice = STOPPED_ONCE + STOPPED_ONCE.replace("stopped", "again").replace("good_b_2", "good_l_2")
    install("good", GOOD + twice)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ditzoo.list_families()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert good() == ["good_b_2", "good_l_2", "good_s_2"]
    model = ditzoo.create("good_s_2")
    assert type(model) is DiT


def test_an_interrupted_package_has_the_class_of_its_second_import(install):
    own = GOOD.replace("ditzoo.register", "class Mine(DiT): pass\nditzoo.register").replace(", DiT,", ", Mine,")
    install("good", own + "ditzoo.model_info('good_s_2')\n" + STOPPED_ONCE)
    with pytest.raises(KeyboardInterrupt):
        ditzoo.list_models()
    assert type(ditzoo.create("good_s_2")) is sys.modules["good"].Mine


def test_an_interrupted_package_may_still_not_register_a_name_twice(install):
    install("good", GOOD + STOPPED_ONCE + GOOD)
    with pytest.raises(KeyboardInterrupt):
        ditzoo.list_models()
    with pytest.warns(RuntimeWarning, match="ValueError: 'good_s_2' is already registered, as DiT"):
        assert good() == ["good_b_2", "good_s_2"]


def test_a_failure_before_an_interrupt_is_told_after_it(install):
    install("bad-zoo", "1 / 0")
    install("good", GOOD + STOPPED_ONCE)
    with pytest.raises(KeyboardInterrupt):
        ditzoo.list_models()
    with pytest.warns(RuntimeWarning, match="'bad-zoo' .* ZeroDivisionError") as caught:
        assert good() == ["good_b_2", "good_s_2"]
    assert len(caught) == 1


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
