"""Who may import whom: each room of the house only those below it. And what `import ditzoo` loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ditzoo

PACKAGE = Path(ditzoo.__file__).parent
#: From the bottom up; each may import those before it.
STOREYS = ["layers", "models", "registry", "weights", "interop", "summary", "pipeline", "train", "bench", "cli"]
#: They work on callables and tensors, and import none of the storeys.
BASEMENT = ["data", "media", "recipe", "diffusion", "metrics"]
#: The calls that go up, each by an import inside one function.
UPWARD = {("registry", "weights"), ("metrics", "registry"), ("models", "weights"), ("models", "pipeline")}
#: Imported inside the function that needs them.
OPTIONAL = {
    *("accelerate", "datasets", "diffusers", "matplotlib", "sklearn", "timm", "torch_fidelity", "torchdiffeq"),
    *("peft", "tensorboard", "pyarrow", "torchvision", "transformers", "wandb", "yaml"),
}


class Import(NamedTuple):
    module: str
    in_function: bool
    for_types: bool  # under `if TYPE_CHECKING:`, so never executed


def imports(source: str) -> Iterator[Import]:
    """Every import in a source file; `from a import b` counts as `a.b`."""

    def walk(node: ast.AST, *where: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = (
                where[0] or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
                where[1] or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"),
            )
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, *inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "a relative import"
                yield from (Import(f"{child.module}.{alias.name}", *inside) for alias in child.names)
            yield from walk(child, *inside)

    return walk(ast.parse(source), False, False)


def room(module: str) -> str | None:
    """The room that a dotted name of ditzoo belongs to; None for the front door and for other packages."""
    package, _, rest = module.partition(".")
    if package != "ditzoo" or rest in ("", "__version__"):
        return None
    if rest in ditzoo._PUBLIC:  # `from ditzoo import create` reaches into the registry
        return room(ditzoo._PUBLIC[rest])
    return rest.partition(".")[0]


def forbidden(home: str, found: Import) -> bool:
    goal = room(found.module)
    if goal in (None, home) or goal in BASEMENT:
        return False
    if (home, goal) in UPWARD:
        return not found.in_function
    if home in BASEMENT:
        return True
    return STOREYS.index(goal) > STOREYS.index(home)


FILES = sorted(PACKAGE.rglob("*.py"))
FRONT_DOOR = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}


def home_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_place():
    rooms = {home_of(path) for path in FILES if path not in FRONT_DOOR}
    assert rooms <= {*STOREYS, *BASEMENT}
    assert {"layers", "models", "registry", "weights", *BASEMENT} <= rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_is_below(path):
    if path in FRONT_DOOR:
        wrong = [found for found in imports(path.read_text()) if found.module == "ditzoo"]
    else:
        wrong = [found for found in imports(path.read_text()) if forbidden(home_of(path), found)]
    assert wrong == []


def test_the_calls_that_go_up_are_those_of_the_rule():
    storeys = {home: place for place, home in enumerate([*BASEMENT, *STOREYS])}
    homes = [(home_of(path), path.read_text()) for path in FILES if path not in FRONT_DOOR]
    pairs = {(home, room(found.module)) for home, source in homes for found in imports(source)}
    found = {(home, goal) for home, goal in pairs if goal in STOREYS and storeys[goal] > storeys[home]}
    assert found == UPWARD
    words = {4: "Four"}
    assert f"\n{words[len(found)]} calls go up," in (PACKAGE.parent / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_are_imported_inside_functions(path):
    outside = [i.module for i in imports(path.read_text()) if not (i.in_function or i.for_types)]
    assert [module for module in outside if module.partition(".")[0] in OPTIONAL] == []


@pytest.mark.parametrize(
    ("home", "line", "wrong"),
    [
        ("layers", "from ditzoo.models import DiT", True),
        ("models", "from ditzoo.layers import Mlp", False),
        ("models", "from ditzoo import registry", True),
        ("models", "from ditzoo import create", True),
        ("models", "from ditzoo import random_token_mask", False),
        ("models", "import ditzoo.train.loop", True),
        ("metrics", "from ditzoo import registry", True),
        ("metrics", "def f():\n    from ditzoo import registry", False),
        ("metrics", "def f():\n    from ditzoo.models import DiT", True),
        ("registry", "def f():\n    from ditzoo.weights import fetch", False),
        ("registry", "from ditzoo.weights import fetch", True),
        ("weights", "from ditzoo import registry", False),
        ("weights", "from ditzoo.metrics import count_macs", False),
        ("weights", "def f():\n    from ditzoo.train import train", True),
        ("models", "def f():\n    from ditzoo.weights import verify", False),
        ("models", "from ditzoo.weights import verify", True),
        ("models", "def f():\n    from ditzoo.bench import run_quick", True),
        ("metrics", "def f():\n    from ditzoo.weights import verify", True),
        ("diffusion", "from ditzoo.recipe import Recipe", False),
        ("media", "from ditzoo.recipe import Recipe", False),
        ("media", "from ditzoo.models import DiT", True),
        ("media", "def f():\n    from ditzoo.registry import create", True),
        ("data", "if True:\n    from ditzoo.layers import Mlp", True),
        ("interop", "from ditzoo.weights import load_state_dict", False),
        ("interop", "def f():\n    from ditzoo.pipeline import Pipeline", True),
        ("weights", "def f():\n    from ditzoo.interop import from_diffusers", True),
        ("train", "def f():\n    from ditzoo import bench", True),
        ("bench", "from ditzoo import __version__", False),
        ("cli", "import torch", False),
    ],
)
def test_the_rule_itself(home, line, wrong):
    assert any(forbidden(home, found) for found in imports(line)) == wrong


def modules_after(code):
    """Top-level packages and ditzoo's own modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("code", ["import ditzoo", "import ditzoo; dir(ditzoo); ditzoo.__version__; ditzoo.__all__"])
def test_importing_ditzoo_loads_nothing_heavy(code):
    loaded = modules_after(code)
    assert "ditzoo" in loaded
    assert not loaded & {"torch", "numpy", "einops", "safetensors", "huggingface_hub", "click", "rich"}
    assert not {name for name in loaded if name.startswith("ditzoo.")}


def test_listing_models_loads_no_optional_dependency():
    loaded = modules_after("import ditzoo; assert ditzoo.list_models()")
    assert "torch" in loaded
    assert not loaded & {"timm", "torchvision", "diffusers", "accelerate", "torch_fidelity", "sklearn", "datasets"}


def test_every_public_name_can_be_had():
    for name in ditzoo.__all__:
        assert getattr(ditzoo, name).__doc__ if name != "__version__" else ditzoo.__version__
        assert name in dir(ditzoo)
    assert set(ditzoo.__all__) - {"__version__"} == set(ditzoo._PUBLIC)
    with pytest.raises(AttributeError, match="module 'ditzoo' has no attribute 'creat'"):
        _ = ditzoo.creat


def test_rooms_are_there_after_import_ditzoo():
    """Pages and messages name `ditzoo.weights.load_weights` and the like."""
    rooms = {path.stem for path in PACKAGE.iterdir() if not path.stem.startswith("_")} - {"cli", "py"}
    assert set(ditzoo._ROOMS) == rooms
    assert rooms <= set(dir(ditzoo))
    used = "ditzoo.weights.verify, ditzoo.models.DiT, ditzoo.interop.patch_diffusers, ditzoo.media.load_codec"
    assert "ditzoo.interop" in modules_after(f"import ditzoo; {used}")
