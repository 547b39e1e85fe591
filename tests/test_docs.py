"""README, documentation pages and project files: examples run, and what they name exists."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import math
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import pytest
import torch

import ditzoo
from ditzoo import cli
from ditzoo.bench import QUICK
from ditzoo.diffusion import SAMPLERS, make_betas, make_process, min_snr_weight
from ditzoo.metrics import count_macs
from ditzoo.recipe import Loss, Prediction, Recipe, Sampler, Schedule
from ditzoo.weights.published import agrees
from tests.golden_cases import PROCESS_CASES, golden_case, process_case, relative_error
from tests.zoo import TINY, on_meta

ROOT = Path(__file__).parent.parent
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
    pages = {"README.md", "docs/index.md", "docs/quickstart.md", "docs/models.md", *FAMILY_PAGES.values()}
    pages |= {"docs/processes.md", "docs/guidance.md"}
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


def test_load_official_of_the_models_page_loads_an_official_state_dict(registry_sandbox, tmp_path):
    namespace, _ = run_examples("docs/models.md")
    case = golden_case("dit")
    for nest in (case.state, {"ema": case.state, "model": {}}):
        torch.save(nest, tmp_path / "official.pt")
        model = namespace["load_official"]("dit_s_2", tmp_path / "official.pt", **case.options)
        with torch.no_grad():
            output = model(case["in.x"], case["in.t"], case["in.y"])
        assert relative_error(output, case["out.forward"]) < case.tolerance()


#: weights of the authors, and those that come with ditzoo
PUBLISHED = [name for name in ditzoo.list_models(pretrained=True) if not name.endswith(".digits")]
PACKAGED = [f"{name}.digits" for name in QUICK.default_models()]


def test_guidance_in_tables_is_that_of_the_recipes():
    rows = re.findall(
        r"^\| (`.*`) \| (?:none|`Guidance\((.*?)\)`) \| `(.*)`, (\d+) steps \|$", hooks().guidance_table(), re.M
    )
    found = {}
    for names, arguments, sampler, steps in rows:
        call = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        for name in re.findall(r"`(.+?)`", names):
            found[name] = (values, sampler, int(steps))
    assert sorted(found) == sorted(PUBLISHED)
    for name, (values, sampler, steps) in found.items():
        recipe = ditzoo.model_info(name).recipe
        assert (recipe.sampler, recipe.num_inference_steps) == (sampler, steps)
        assert recipe.guidance.is_off if not values else recipe.guidance == ditzoo.recipe.Guidance(**values)
    assert found["dit_xl_2.in256"] == ({"scale": 1.5, "channels": 3}, "ddpm", 250)
    assert found["uvit_h_4.in512"] == ({"scale": 0.7, "convention": "uvit"}, "dpmpp_3s", 50)
    assert found["uvit_l_4.in64"] == ({}, "dpm_3s", 50)
    assert found["diffit_xl_2.in256"][0] == {"scale": 4.4, "channels": 3, "schedule": "power_cosine", "power": 4.0}
    assert found["sit_xl_2.in256"] == ({"scale": 1.5, "channels": 3}, "heun", 125)


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


def test_the_overview_names_every_page_of_the_menu():
    pages = set(re.findall(r": ([\w-]+\.md)$", text_of("mkdocs.yml"), re.MULTILINE)) - {"index.md"}
    assert "sampling.md" in pages
    assert set(re.findall(r"^\| \[.+?\]\(([\w-]+\.md)\) \|", text_of("docs/index.md"), re.MULTILINE)) == pages


MODEL_NAME = (
    r"(?:(?:dit|uvit|mdt|mdtv2|diffit|sit)_(?:ti|s|s_deep|m|b|l|xl|h)_\d(?:_(?:adaln|crossattn|incontext))?"
    r"|diffit_unet_(?:ti|\d+))"
)


def test_names_of_models_are_recognised():
    assert [name for name in ditzoo.list_models() if not re.fullmatch(MODEL_NAME, name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_models_and_modules_exist(page):
    for name in re.findall(rf"\b({MODEL_NAME}(?:\.\w+)?)\b", text_of(page)):
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


def value_of(formula: str, **names: float) -> float:
    """Of a formula as the pages write it."""
    for sign, python in {"·": "*", "π": "pi ", "√": " sqrt "}.items():
        formula = formula.replace(sign, python)
    formula = re.sub(r"cos²(\(.*\))", r"cos\1**2", formula).replace("²", "**2")
    formula = re.sub(r"sqrt ([\d.]+)", r"sqrt(\1)", formula)
    formula = re.sub(r"(?<=[\w)]) (?=t|\(1 - t)", "*", formula)  # products without a sign
    known = {"pi": math.pi, "cos": math.cos, "sin": math.sin, "exp": math.exp, "sqrt": math.sqrt}
    return float(eval(formula, {"__builtins__": {}}, {**known, **names}))


def schedule_rows() -> dict[str, str]:
    """What the page says of the levels of each schedule, alpha spelled out and minus signs plain."""
    text = text_of("docs/processes.md").replace("\N{GREEK SMALL LETTER ALPHA}", "alpha").replace("\N{MINUS SIGN}", "-")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .* to \S+ \| ", text, re.MULTILINE)
    assert {name for name, _ in rows} == set(get_args(Schedule))
    return dict(rows)


_PREDICTIONS = {
    "continuous_vp": "epsilon", "flow_linear": "velocity", "flow_gvp": "velocity", "flow_vp": "velocity", "edm": "edm",
}  # fmt: skip


@pytest.mark.parametrize("schedule", _PREDICTIONS)
def test_the_page_has_the_noise_levels_of_continuous_time(schedule):
    alpha, sigma = re.fullmatch(r"alpha = (.*), σ²? = (.*)", schedule_rows()[schedule]).groups()
    for t in (0.03, 0.4, 0.9):
        a = value_of(alpha, t=t)
        s = math.sqrt(1 - a**2) if sigma == "1 - alpha²" else value_of(sigma, t=t)
        recipe = Recipe(prediction=_PREDICTIONS[schedule], schedule=schedule)
        assert make_process(recipe).level(t) == pytest.approx((a, s), rel=1e-9)


def test_the_page_has_the_betas_of_the_tables():
    rows, total = schedule_rows(), 1000
    first, last = re.search(r"β even from (\S+) to (\S+)$", rows["linear"]).groups()
    linear = torch.linspace(value_of(first, T=total), value_of(last, T=total), total, dtype=torch.float64)
    torch.testing.assert_close(make_betas("linear", total), linear)
    first, last = re.search(r"√β even from (\S+) to (\S+)$", rows["scaled_linear"]).groups()
    scaled = torch.linspace(value_of(first), value_of(last), total, dtype=torch.float64) ** 2
    torch.testing.assert_close(make_betas("scaled_linear", total), scaled)


def test_the_page_has_the_cosine_schedule():
    left, f, most = re.fullmatch(r"alpha² = (.*), f\(u\) = (.*), β at most (.*)", schedule_rows()["cosine"]).groups()
    total = 1000
    levels = [value_of(left, t=t, T=total, f=lambda u: value_of(f, u=u)) for t in range(total)]
    alphas = torch.tensor([1.0, *levels], dtype=torch.float64)
    betas = (1 - alphas[1:] / alphas[:-1]).clamp(max=float(most))
    torch.testing.assert_close(make_betas("cosine", total), betas, rtol=1e-9, atol=1e-12)


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
    assert len(rows) == 6
    for name, counted, paper, source in rows:
        assert counted == f"{count_macs(name).gmacs:.2f}"
        assert (paper, source) == printed[name]


@pytest.mark.parametrize("family", ["dit", "diffit"])
def test_printed_costs_are_reproduced(family):
    """Figures read in the papers themselves. DiT's have two decimals, and differ in the last one or two of them."""
    costs = [cost for cost in hooks().PUBLISHED_COSTS if cost.name.startswith(f"{family}_")]
    assert len(costs) == {"dit": 16, "diffit": 1}[family]
    for cost in costs:
        counted = count_macs(cost.name)
        value = counted.gmacs if cost.attention else counted.gmacs_without_attention
        tolerance = {"rel": 2e-4, "abs": 0.02} if "." in cost.gmacs else {"abs": 0.5}
        assert value == pytest.approx(float(cost.gmacs), **tolerance), cost.name


def test_tables_hold_every_model(monkeypatch):
    monkeypatch.setattr(
        ditzoo,
        "list_models",
        lambda family=None, pretrained=None: ["dit_xl_2.in512"] if pretrained else [*TINY, "dit_s_2"],
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
        f"{QUICK.flow_recipe.num_inference_steps} {QUICK.flow_recipe.sampler.capitalize()} steps",
        f"guidance scale {recipe.guidance.scale:g} on all channels",
        f"{QUICK.num_samples // 10} samples of each digit",
        f"batches of {QUICK.forward_batch_size} in inference mode",
        f"batches of {training.batch_size}, forward, backward and optimiser",
        f"{ {7: 'seven'}[QUICK.speed_rounds] } rounds",
        f"at least {QUICK.speed_seconds:g} s",
    ):
        assert fact in protocol, fact
    assert f"the same {training.num_images:,} training images" in text_of("README.md")
    assert recipe.guidance == QUICK.flow_recipe.guidance
    assert recipe.guidance.channels is None
    for name in QUICK.default_models():
        assert f"`{name}`" in text_of("README.md")
        assert ditzoo.model_info(name).config["class_dropout_prob"] == 0.1


def test_the_page_on_adding_a_model_names_the_endings_that_the_quick_benchmark_takes():
    for pattern in QUICK.patterns:
        assert f"`{pattern.removeprefix('*')}`" in prose_of("docs/extending.md")


def test_recorded_run_has_every_tiny_model():
    table = hooks().quick_table()
    for name in [*QUICK.default_models(), "real digits", "untrained"]:
        assert f"| {name} |" in table


SECTIONS = [
    "Against DiT",
    "Equations",
    "Diagram",
    "Sizes",
    "Published numbers",
    "How the authors train and sample",
    "Oddities",
    "Weights without effect",
    "Use",
]


@pytest.mark.parametrize("family", ditzoo.models.FAMILIES, ids=lambda family: family.name)
def test_every_family_has_its_page(family):
    page = FAMILY_PAGES[family.name]
    assert re.findall(r"^## (.+)$", prose_of(page), re.MULTILINE) == SECTIONS
    assert f"](families/{family.name}.md)" in text_of("docs/models.md")
    assert f": families/{family.name}.md\n" in text_of("mkdocs.yml")
    number = family.paper.rpartition(":")[2]
    for text in (text_of(page).split("##")[0], text_of("docs/models.md"), text_of("README.md")):
        assert f"[arXiv:{number}](https://arxiv.org/abs/{number})" in text
    for directive in ("size_table", "recipe_table", "result_table", "unused_table", "drawing"):
        arguments = re.findall(rf"^\{{\{{ {directive} (\w+)", text_of(page), re.MULTILINE)
        assert arguments
        of_this = ditzoo.list_models(family=family.name) if directive in ("unused_table", "drawing") else [family.name]
        assert set(arguments) <= set(of_this)


@pytest.mark.parametrize("page", DOCS)
def test_directives_are_known(page):
    found = re.findall(r"^\{\{ (\w+).*\}\}$", text_of(page), re.MULTILINE)
    assert text_of(page).count("{{") == len(found)
    assert set(found) <= set(hooks().CONTENT)


def test_size_tables_hold_the_options_in_which_a_family_differs():
    rows = [line.strip("| ").split(" | ") for line in hooks().size_table("mdt").splitlines()]
    assert rows[0][-2:] == ["tokens", "`decode_layer`"]
    sizes = {row[0]: row[1:] for row in rows[2:]}
    assert sorted(re.findall(r"`(\w+)`", " ".join(sizes))) == sorted(ditzoo.list_models(family="mdt"))
    assert sizes["`mdtv2_s_2`"] == ["38.45", "6.74", "12", "384", "6", "2", "4x32x32", "256", "6"]
    assert sizes["`mdt_xl_2`<br>`.in256`"][:2] == ["699.78", "118.62"]
    assert "`mdt_ti_2` (ours)<br>`.digits`" in sizes
    assert "| tokens | `conv` |" in hooks().size_table("uvit")
    assert "| tokens | `conditioning` |" in hooks().size_table("dit")
    assert "| tokens |\n" in hooks().size_table("sit")
    latent, u_shaped = hooks().size_table("diffit", "diffit_*_2"), hooks().size_table("diffit", "diffit_unet_*")
    assert "| tokens |\n" in latent
    assert "unet" not in latent
    assert "| `channels` | `blocks` | `window_size` | `head_size` | `condition_size` |" in u_shaped
    assert "| `diffit_unet_32` | 28.16 | 6.98 | 20 | 256 | 4 | 1 | 3x32x32 | 1024 | 128, 256, 256 |" in u_shaped


def test_recipe_tables_have_a_row_for_each_recipe():
    rows = [row.replace("\N{NO-BREAK SPACE}", " ") for row in hooks().recipe_table("uvit").splitlines()[2:]]
    assert len(rows) == 6  # of eight weights, two of them twice
    guidance = "c + 0.7 (c \N{MINUS SIGN} u), all channels"
    assert f"| {guidance} | `dpm_3s`, 50 steps | `autoencoder_kl`, times 0.18215 |" in rows[4]
    assert "| epsilon | `continuous_vp` | none | `dpm_3s`, 50 steps | none, pixels |" in rows[3]
    assert hooks().recipe_table("mdt").count("s up to 3.8, power 4, first 3 channels") == 2
    assert "| 0.3 to 0.5 |" in hooks().recipe_table("mdt")


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("dit", ["`dit_xl_2.in256`, `dit_xl_2.in512`, all `dit_*` of the paper"]),
        ("mdt", ["`mdt_xl_2.in256`, all `mdt_*` of the paper", "`mdtv2_xl_2.in256`, all `mdtv2_*` of the paper"]),
        ("sit", ["`sit_xl_2.in256`, all `sit_*` of the paper"]),
        (
            "diffit",
            ["`diffit_xl_2.in256`, `diffit_xl_2`", "`diffit_xl_2.in512`", "`diffit_unet_32`", "`diffit_unet_64`"],
        ),
        (
            "uvit",
            [
                "`uvit_h_2.in256`, `uvit_h_2`, `uvit_m_4`, `uvit_s_2`, `uvit_s_4`",
                "`uvit_h_4.in512`, `uvit_h_4`",
                "`uvit_l_2.in256`, `uvit_l_2`",
                "`uvit_l_4.in64`, `uvit_m_4.in64`",
                "`uvit_l_4.in512`, `uvit_l_4`",
                "`uvit_s_2.cifar10`, `uvit_s_4.celeba64`",
            ],
        ),
    ],
)
def test_recipe_tables_name_whoever_has_a_recipe_once(family, names):
    rows = hooks().recipe_table(family).splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == names


def test_packaged_weights_stand_in_a_table_of_their_own():
    tables = [hooks().published_table(), hooks().guidance_table(), *map(hooks().recipe_table, FAMILY_PAGES)]
    assert not any("digits" in table for table in tables)
    rows = [row.replace("\N{NO-BREAK SPACE}", " ") for row in hooks().packaged_table().splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+\.digits)`", "\n".join(rows))) == sorted(PACKAGED)
    guidance = "u + 1.5 (c \N{MINUS SIGN} u), all channels"
    assert f"| `dit_ti_2.digits` | 0.33 | v_prediction | `cosine`, T = 1,000 | {guidance} | `ddim`, 25 steps |" in rows
    assert f"| `diffit_unet_ti.digits` | 0.39 | edm | `edm` | {guidance} | `edm_heun`, 13 steps |" in rows
    assert "\n{{ packaged_table }}\n" in text_of("docs/models.md").split("## Packaged weights\n")[1]


def test_the_table_of_samplers_holds_every_one():
    rows = [row.split(" | ") for row in hooks().sampler_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"| `{name}`" for name in SAMPLERS]
    cells = {row[0].strip("| `"): row[1:] for row in rows}
    assert cells["ddpm"][1:5] == ["", "1", "discrete", "`clip_sample`"]
    assert cells["heun"][1:5] == ["2", "2", "continuous", "`spacing`"]
    assert cells["dpmpp_2m"][1:5] == ["2", "1", "all", "`spacing`, `lower_order`"]
    assert cells["dopri5"][1:5] == ["5", "adaptive", "continuous", "`rtol`, `atol`"]
    assert "[arXiv:2006.11239](https://arxiv.org/abs/2006.11239), algorithm 2" in cells["ddpm"][5]


def test_the_page_of_processes_counts_and_explains_every_choice():
    text = text_of("docs/processes.md")
    numbers = {"four": 4, "six": 6, "eight": 8, "thirteen": 13}
    counted = re.search(r"(\w+) schedules, (\w+) kinds of prediction, (\w+) losses and (\w+)\s+samplers", text)
    assert counted is not None
    choices = (Schedule, Prediction, Loss, Sampler)
    assert [numbers[word] for word in counted.groups()] == [len(get_args(choice)) for choice in choices]
    for choice in get_args(Schedule) + get_args(Prediction) + get_args(Loss):
        assert re.search(rf"^\| `{choice}` \|", text, re.MULTILINE), choice
    outputs = sum(len(process_case(case).outputs) for case in PROCESS_CASES)
    assert f"The {outputs} recorded outputs" in text


def test_scales_of_the_guidance_page_convert():
    rows = re.findall(r'^\| `"(dit|uvit)"` \| ([\d.| ]+) \|$', text_of("docs/guidance.md"), re.MULTILINE)
    scales = {name: [float(cell) for cell in cells.split("|")] for name, cells in rows}
    assert scales["dit"] == pytest.approx([1 + w for w in scales["uvit"]])
    recipes = {scales["dit"][2]: "dit_xl_2.in256", scales["dit"][4]: "mdt_xl_2.in256"}
    recipes |= {scales["uvit"][1]: "uvit_h_2.in256", scales["uvit"][3]: "uvit_h_4.in512"}
    for scale, name in recipes.items():
        assert ditzoo.model_info(name).recipe.guidance.scale == scale


def test_weights_of_the_loss_on_the_page_of_mdt_are_those_of_its_recipe():
    process = make_process(ditzoo.model_info("mdtv2_xl_2").recipe)
    weights = min_snr_weight(process, torch.arange(1000)).tolist()
    printed = r"The weight w_t is (\S+) at t = 0, (\S+) at t = (\d+) and 1 from t = (\d+) on\."
    first, later, t, whole = re.search(printed, text_of("docs/families/mdt.md")).groups()
    assert (f"{weights[0]:.0e}".replace("e-0", "e-"), f"{weights[int(t)]:.3f}") == (first, later)
    assert [weight == 1 for weight in weights].index(True) == int(whole)
    assert set(weights[int(whole) :]) == {1.0}


def test_discrete_models_on_the_page_of_u_vit_are_those_sampled_by_dpm_solver_plus_plus():
    rows = [row for row in hooks().published_results() if "DPM-Solver++" in row["sampler_steps"]]
    latent = [row["model"].removeprefix("U-ViT-") for row in rows if row["dataset"] == "ImageNet-1k"]
    assert [row["dataset"].split(" (")[0] for row in rows if row["dataset"] != "ImageNet-1k"] == ["MS-COCO"] * 2
    assert f"The discrete models ({', '.join(latent)}, and the two for MS-COCO) train on" in text_of(
        "docs/families/uvit.md"
    )


def test_no_page_says_that_every_network_has_an_original():
    """The image-space DiffiT and three conditionings of DiT are from their papers alone."""
    without = {family for family in FAMILY_PAGES for name in ditzoo.list_models(family=family) if not official(name)}
    assert without == {"dit", "diffit"}
    for page in ("README.md", "docs/index.md"):
        claim = "Each network that has an official implementation reproduces it number for number"
        assert claim in " ".join(text_of(page).split())
    assert text_of("pyproject.toml").count("exact to the official implementations that exist") == 1


def official(name: str) -> bool:
    """Whether its authors have published code of it."""
    model = on_meta(name)
    return model.has_original and model.config.get("conditioning", "adaln_zero") == "adaln_zero"


def test_unused_tables_count_values():
    table = hooks().unused_table("diffit_ti_2")  # width 80, 4 blocks
    assert "| `blocks.*.attn.qkv_temb.weight` | 4 | 80 to 159 of 240 | 25,600 | the softmax cancels" in table
    assert f"Together 26,240 of the {ditzoo.model_info('diffit_ti_2').num_params:,} values of `diffit_ti_2`," in table
    assert hooks().unused_table("uvit_h_2") == "None in `uvit_h_2`."
    assert "| `final_layer.linear.bias` | 1 | 16 of 32 | 16 |" in hooks().unused_table("sit_s_2")


def test_drawings_are_fenced():
    drawing = hooks().drawing("dit_ti_2")
    assert drawing.startswith("```text\n")
    assert drawing.endswith("\n```")
    assert drawing.count("```") == 2
    assert "AdaLNZeroBlock" in drawing


def test_files_of_weights_are_links():
    with_file = "[mdt_xl2_v1_ckpt.pt](https://huggingface.co/shgao/MDT-XL2)"
    assert with_file in hooks().published_table()
    assert "[DiT-XL-2-512x512.pt](https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt)" in (
        hooks().published_table()
    )


# Published results.


def test_published_results_are_of_known_models_and_name_their_sources():
    rows = hooks().published_results()
    assert len(rows) == 106
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    known = {*ditzoo.list_models(), *ditzoo.list_models(pretrained=True), ""}
    for row in rows:
        assert row["name"] in known
        assert row["family"] in FAMILY_PAGES
        assert not row["name"] or ditzoo.model_info(row["name"]).family == row["family"]
        assert row["source"]
        assert row["confidence"] in ("primary", "secondary")
        assert row["measured_by"] in ("authors", "others")
        assert float(row["fid"]) > 1
        for score in ("precision", "recall"):
            assert not row[score] or 0 < float(row[score]) < 1


#: What the authors measured with their published weights: name, guidance, sampling -> FID, sFID, IS, precision, recall.
#: Read in papers and repositories, not in the file that is tested. These settings name one row each.
MEASURED = {
    ("dit_xl_2.in256", "none", "250 DDPM"): "9.62 6.85 121.50 0.67 0.67",
    ("dit_xl_2.in256", "1.25, first 3 channels", "250 DDPM"): "3.22 5.28 201.77 0.76 0.62",
    ("dit_xl_2.in256", "1.375, all 4 channels", "250 DDPM"): "2.20",
    ("dit_xl_2.in256", "1.50", "250 DDPM"): "2.21",
    ("dit_xl_2.in512", "1.25, first 3 channels", "250 DDPM"): "4.64 5.77 174.77 0.81 0.57",
    ("dit_xl_2.in512", "1.50, first 3 channels", "250 DDPM"): "3.04 5.02 240.82 0.84 0.54",
    ("uvit_s_2.cifar10", "none", "1000 Euler-Maruyama"): "3.11",
    ("uvit_s_4.celeba64", "none", "1000 Euler-Maruyama"): "2.87",
    ("uvit_m_4.in64", "none", "50 DPM-Solver"): "5.85 33.71",
    ("uvit_l_4.in64", "none", "50 DPM-Solver"): "4.26 40.66",
    ("uvit_l_2.in256", "w = 0.4", "50 DPM-Solver"): "3.40 219.9 0.83 0.52",
    ("uvit_h_2.in256", "w = 0.4", "50 DPM-Solver++"): "2.29 5.68 263.88 0.82 0.57",
    ("uvit_h_2.in256", "none", ""): "6.58",
    ("uvit_l_4.in512", "w = 0.7", "50 DPM-Solver"): "4.67",
    ("uvit_h_4.in512", "w = 0.7", "50 DPM-Solver++"): "4.05 6.44 263.79 0.84 0.48",
    ("mdt_xl_2.in256", "none", ""): "6.23 5.23 143.02 0.71 0.65",
    ("mdt_xl_2.in256", "power-cosine", "250 DDPM"): "1.79 4.57 283.01 0.81 0.61",
    ("mdtv2_xl_2.in256", "power-cosine", "250 DDPM"): "1.58 4.52 314.73 0.79 0.65",
    ("diffit_xl_2.in256", "power-cosine to 4.6 (paper) or 4.4 (README)", "250 DDPM"): "1.73 4.54 276.49 0.8024 0.6205",
    ("diffit_xl_2.in512", "1.49", "250 DDPM"): "2.67 4.99 252.13 0.8277 0.5500",
    ("diffit_unet_32", "none", "18 EDM, deterministic"): "1.95",
    ("diffit_unet_64", "none", "40 EDM, deterministic"): "2.22",
    ("sit_xl_2.in256", "none", "125 Heun (ODE)"): "9.35 6.38 126.06 0.67 0.68",
    ("sit_xl_2.in256", "none", "250 Euler-Maruyama (SDE)"): "8.26 6.32 131.65 0.68 0.67",
    ("sit_xl_2.in256", "1.5", "125 Heun (ODE)"): "2.15 4.60 258.09 0.81 0.60",
    ("sit_xl_2.in256", "1.5", "250 Euler-Maruyama (SDE)"): "2.06 4.49 277.50 0.83 0.59",
    ("sit_xl_2.in256", "1.5", ""): "2.06 270.27",  # the README's
}
#: The same where settings do not tell rows apart: name, model as printed -> FID, of several rows in their order.
TOLD_APART = {
    ("dit_xl_2.in256", "DiT-XL/2-G"): "3.22 2.27",
    ("dit_xl_2.in256", "DiT-XL/2-G, original LDM decoder"): "2.46",
    ("dit_xl_2.in256", "DiT-XL/2-G, ft-MSE decoder"): "2.30",
    ("dit_xl_2.in512", "DiT-XL/2"): "12.03",
    ("dit_xl_2.in512", "DiT-XL/2, ft-MSE decoder"): "11.93",
    ("dit_xl_2", "DiT-XL/2"): "19.47 10.67",
    ("dit_xl_2_adaln", "DiT-XL/2, adaLN"): "25.21",
    ("dit_xl_2_crossattn", "DiT-XL/2, cross-attention"): "26.14",
    ("dit_xl_2_incontext", "DiT-XL/2, in-context"): "35.24",
}


def of_authors(**facts: str) -> list[dict[str, str]]:
    """Rows of what the authors measured that have these facts."""
    return [row for row in hooks().published_results() if ({"measured_by": "authors"} | facts).items() <= row.items()]


@pytest.mark.parametrize(("name", "guidance", "sampling"), MEASURED)
def test_published_results_are_what_the_papers_print(name, guidance, sampling):
    (row,) = of_authors(name=name, guidance=guidance, sampler_steps=sampling)
    scores = [row[key] for key in ("fid", "sfid", "is", "precision", "recall")]
    assert " ".join(filter(None, scores)) == MEASURED[name, guidance, sampling]


@pytest.mark.parametrize(("name", "model"), TOLD_APART)
def test_published_results_of_equal_settings_are_what_the_papers_print(name, model):
    assert " ".join(row["fid"] for row in of_authors(name=name, model=model)) == TOLD_APART[name, model]


def test_every_result_of_published_weights_is_compared_with_a_literal():
    rows = [row for row in of_authors() if "." in row["name"]]
    assert len(rows) == 30
    for row in rows:
        settings = row["name"], row["guidance"], row["sampler_steps"]
        assert settings in MEASURED or (row["name"], row["model"]) in TOLD_APART


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("dit", "XL/2 at 512 without guidance has 11.93 in table 4 and 12.03 in table 3."),
        ("dit", "The headline of 2.27 is the paper's, computed in JAX. The README of the PyTorch code gives 2.21"),
        ("dit", "at 400K steps the paper has 35.24, 26.14, 25.21 and 19.47."),
        (
            "diffit",
            "FID 1.95 for CIFAR-10 and 2.22 for FFHQ at 64x64 are those of `diffit_unet_32` and `diffit_unet_64`",
        ),
        ("diffit", "is 252.12 in the paper and 252.13 among the README's expected results."),
        ("sit", "the paper's second version has IS 277.50, sFID 4.49 and precision 0.83 with the SDE; the README and"),
        ("sit", "later papers have 270.27, 4.50 and 0.82."),
        ("sit", "8.26 (or 8.3) with the SDE, and 8.61 in the tables of two later papers, LightningDiT and REPA-E."),
        ("sit", "**2.15 and 2.06.** The paper gives the first to the ODE and the second to the SDE."),
    ],
)
def test_results_that_pages_repeat(page, text):
    assert text in " ".join(text_of(FAMILY_PAGES[page]).split())


def test_published_sizes_are_those_of_the_models():
    """Where a row is for the input that the name builds; version 2 of MDT is quoted with the numbers of version 1."""
    checked = 0
    for row in hooks().published_results():
        info = ditzoo.model_info(row["name"]) if row["name"] else None
        side = int(row["resolution"]) // (8 if info and info.config["in_channels"] == 4 else 1)
        if info is None or info.config["input_size"] != side or row["name"].startswith("mdtv2"):
            continue
        if row["params_m"] and row["name"] != "mdt_xl_2.in256":  # quoted without its side block
            assert info.num_params / 1e6 == pytest.approx(float(row["params_m"]), abs=1.1), row["model"]
            checked += 1
        if row["gmacs"]:
            counted = count_macs(row["name"])
            value = counted.gmacs_without_attention if row["family"] == "diffit" else counted.gmacs
            assert agrees(value, row["gmacs"]), row["model"]
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("family", FAMILY_PAGES)
def test_pages_show_every_published_result(family):
    groups = re.findall(rf"^\{{\{{ result_table {family} (\w+) \}}\}}$", text_of(FAMILY_PAGES[family]), re.MULTILINE)
    tables = "\n".join(hooks().result_table(family, group) for group in groups)
    rows = [row for row in hooks().published_results() if row["family"] == family]
    assert len(re.findall(r"\| \(\d+\) \|$", tables, re.MULTILINE)) == len(rows)
    for row in rows:
        assert f" {row['fid']} " in tables


def test_result_tables_say_once_what_all_rows_share():
    table = hooks().result_table("dit", "authors")
    assert table.startswith("All rows: images ImageNet-1k; sampling 250 DDPM.\n")
    assert "| DiT-XL/2 |  | 512 | 1301K | none | 13.78 | (1) |" in table
    assert "| U-ViT-L/4<br>`uvit_l_4.in64` | ImageNet-1k 64 | 300K, batch 1024 |" in hooks().result_table(
        "uvit", "weights"
    )
    assert "1. [arXiv:2212.09748](https://arxiv.org/abs/2212.09748), table 4 (ft-MSE decoder)\n" in table
    assert "second-hand" not in table
    others = hooks().result_table("sit", "others")
    assert "[github.com/willisma/SiT](https://github.com/willisma/SiT), issue 31" in others
    assert others.count(", second-hand") == 3
    assert "[github.com/sail-sg/MDT@7d26c2162c46](https://github.com/sail-sg/MDT/tree/7d26c2162c46) README" in (
        hooks().result_table("mdt", "weights")
    )


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
