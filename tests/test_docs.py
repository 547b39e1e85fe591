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
from typing import Any, get_args

import click
import pytest
import torch

import ditzoo
from ditzoo import cli
from ditzoo.bench import QUICK
from ditzoo.diffusion import SAMPLERS
from ditzoo.metrics import count_macs
from ditzoo.recipe import Loss, Prediction, Sampler, Schedule
from ditzoo.weights.published import agrees
from tests.golden_cases import PROCESS_CASES, golden_case, process_case, relative_error
from tests.zoo import TINY

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
    assert sorted(found) == sorted(ditzoo.list_models(pretrained=True))
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
    table = hooks().recipe_table("uvit").replace("\N{NO-BREAK SPACE}", " ")
    guidance = "c + 0.7 (c \N{MINUS SIGN} u), all channels"
    assert f"| {guidance} | `dpm_3s`, 50 steps | `autoencoder_kl`, times 0.18215 |" in table
    assert "| `uvit_l_4.in64`, `uvit_m_4.in64` | epsilon | `continuous_vp` | none | `dpm_3s`, 50 steps | none" in table
    assert table.count("\n") == 8  # of ten weights, two of them twice
    assert hooks().recipe_table("mdt").count("s up to 3.8, power 4, first 3 channels") == 2
    assert "| 0.3 to 0.5 |" in hooks().recipe_table("mdt")
    assert "| `diffit_xl_2.in256`, other `diffit_*` |" in hooks().recipe_table("diffit")
    assert "`diffit_unet_32`" in hooks().recipe_table("diffit")


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


def test_published_results_are_what_the_papers_print():
    def fid(**facts):
        (row,) = [row for row in hooks().published_results() if facts.items() <= row.items()]
        return row["fid"]

    table_2 = "arXiv:2212.09748, tables 2 and 5 (ft-EMA decoder); github.com/facebookresearch/DiT@ed81ce222909 README"
    assert fid(name="dit_xl_2.in256", source=table_2) == "2.27"
    assert fid(name="dit_xl_2_crossattn") == "26.14"
    assert fid(name="uvit_h_2.in256", sampler_steps="50 DPM-Solver++") == "2.29"
    assert fid(name="mdtv2_xl_2.in256") == "1.58"
    assert fid(name="diffit_xl_2.in512") == "2.67"
    assert fid(name="sit_xl_2.in256", guidance="1.5", sampler_steps="125 Heun (ODE)") == "2.15"
    assert fid(name="sit_xl_2.in256", guidance="1.5", sampler_steps="250 Euler-Maruyama (SDE)") == "2.06"


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
