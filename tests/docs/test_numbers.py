"""Numbers, formulas and tables of the pages are those of the code."""

from __future__ import annotations

import ast
import math
import re
from typing import get_args

import pytest
import torch

import ditzoo
from ditzoo.bench import QUICK
from ditzoo.diffusion import SAMPLERS, make_betas, make_process, min_snr_weight
from ditzoo.recipe import Loss, Prediction, Recipe, Sampler, Schedule
from ditzoo.train.config import make_config
from ditzoo.train.estimate import Estimate, estimate
from ditzoo.train.network import meta_network
from ditzoo.train.presets import list_presets
from ditzoo.weights.published import result_rows
from tests.docs.pages import DOCS, FAMILY_PAGES, hooks, prose_of, text_of
from tests.golden_cases import PROCESS_CASES, process_case
from tests.zoo import TINY, on_meta

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


def test_costs_in_the_readme_are_what_is_counted():
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| (.+) \|$", text_of("README.md"), re.MULTILINE)
    printed = {cost.name: (cost.gmacs, cost.source) for cost in hooks().PUBLISHED_COSTS}
    assert len(rows) == 6
    for name, counted, paper, source in rows:
        assert counted == f"{hooks().count(name).gmacs:.2f}"
        assert (paper, source) == printed[name]


@pytest.mark.parametrize("family", ["dit", "diffit"])
def test_printed_costs_are_reproduced(family):
    """Figures read in the papers themselves. DiT's have two decimals, and differ in the last one or two of them."""
    costs = [cost for cost in hooks().PUBLISHED_COSTS if cost.name.startswith(f"{family}_")]
    assert len(costs) == {"dit": 16, "diffit": 1}[family]
    for cost in costs:
        counted = hooks().count(cost.name)
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
    assert published[1:] == ["676.01", "524.54", "4x64x64", "ImageNet-1k at 512x512 |"]


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
    assert "| tokens | `conv` |" in hooks().size_table("uvit", "uvit_[mt]*")
    assert "| tokens | `conditioning` |" in hooks().size_table("dit", "dit_ti_2*")
    assert "| tokens |\n" in hooks().size_table("sit", "sit_[ts]*")
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
    rows = [row for row in result_rows() if "DPM-Solver++" in row["sampler_steps"]]
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


def test_presets_stand_in_a_table():
    table = hooks().preset_table()
    for name in list_presets():
        assert (f"`{name}`" in table) == (not name.endswith(".digits"))
    row = next(line for line in table.splitlines() if line.startswith("| `mdtv2_xl_2.in256`"))
    assert row.split(" | ")[1:7] == ["1,382,400,000", "256", "adan", "0.0005", "0", "0.9999"]
    recalled = "`lr_schedule`, `warmup_images`, `num_images`, `batch_size`"
    assert row.endswith(f"| {recalled} | `betas`, `weight_decay`, `flip`, `precision` |")


@pytest.mark.slow
def test_estimates_of_training_are_those_of_the_dry_run():
    rows = re.findall(r"^\| `(\w+\.in\d+)` \| (.*) \|$", text_of("docs/training.md"), re.MULTILINE)
    memory, hours = (dict(rows[start : start + 6]) for start in (0, 6))
    assert list(memory) == list(hours)
    for name in memory:
        costs = [
            cost_of(name, 32, 1),
            cost_of(name, 32, 1, grad_checkpointing=True),
            cost_of(name, 32 * 8, 8, grad_checkpointing=True, fsdp=True),
        ]
        cells = [f"{costs[0].memory.activations / 32e6:,.0f}", *(f"{each.memory.total / 1e9:.1f}" for each in costs)]
        assert memory[name].split(" | ") == cells
        images, macs = make_config({"preset": name}).num_images, costs[0].training_gmacs
        time = 2e9 * macs * images / 125e12 / 3600
        assert hours[name].split(" | ") == [f"{macs:,.1f}", f"{images:,}", f"{time:,.0f}", f"{time / 8:,.0f}"]


def cost_of(name: str, batch_size: int, processes: int, **settings: bool) -> Estimate:
    config = make_config({"preset": name, "batch_size": batch_size, **settings})
    return estimate(config, meta_network(config), processes=processes)
