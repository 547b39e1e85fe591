"""MkDocs hook: puts what is computed from the registry in place of `{{ name }}` or `{{ name argument }}` in the pages.

No number of these tables is typed by hand, except what papers print.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import torch

import ditzoo
from ditzoo.diffusion import SAMPLERS
from ditzoo.metrics import MacCount, count_macs
from ditzoo.models import PublishedFile
from ditzoo.recipe import CONTINUOUS_SAMPLERS, DISCRETE_SAMPLERS, Guidance, Recipe
from ditzoo.summary import draw_blocks
from ditzoo.summary.words import (
    UnusedGroup,
    file_facts,
    guidance_formula,
    guided_channels,
    mask_ratio,
    result_settings,
    score,
    unused_groups,
)
from ditzoo.weights.published import PUBLISHED_COSTS, headline_results, result_rows

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

#: heading -> column of `published.csv`
_RESULT_COLUMNS = {
    "model": "model",
    "name": "name",
    "images": "dataset",
    "pixels": "resolution",
    "training": "train_steps",
    "guidance": "guidance",
    "sampling": "sampler_steps",
    "FID": "fid",
    "sFID": "sfid",
    "IS": "is",
    "P": "precision",
    "R": "recall",
}

#: facts of every network, whether its constructor takes them or derives them
_SIZES = ("depth", "hidden_size", "num_heads", "patch_size")

_DIRECTIVE = re.compile(r"^\{\{ (\w+)((?: \S+)*) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of every page."""
    return _DIRECTIVE.sub(lambda match: CONTENT[match[1]](*match[2].split()), markdown)


def model_table() -> str:
    """Every bare name of the registry, by family and cost."""
    rows = []
    for name in _by_family_and_cost(ditzoo.list_models()):
        info = ditzoo.model_info(name)
        rows.append(
            (
                _name(info),
                info.family,
                f"{info.num_params / 1e6:.2f}",
                _gmacs(name),
                _input_shape(info),
                str(info.num_tokens),
                info.paper.rpartition(", ")[2],
                _tags(info),
            )
        )
    header = ("model", "family", "parameters (M)", "GMACs", "input", "tokens", "paper", "tags")
    return _table(header, rows, right={2, 3, 5})


def size_table(family: str, pattern: str = "*") -> str:
    """The bare names of one family, or those that match, with the options of its own in which they differ."""
    names = _by_family_and_cost(ditzoo.list_models(pattern, family=family))
    infos = [ditzoo.model_info(name) for name in names]
    shared = {*_SIZES, *set.intersection(*(set(ditzoo.model_info(name).config) for name in ditzoo.list_models()))}
    own = [
        option
        for option in infos[0].config
        if option not in shared and len({_option(info.config.get(option)) for info in infos}) > 1
    ]
    rows = [
        (
            _name(info) + "".join(f"<br>`.{tag}`" for tag in info.tags),
            f"{info.num_params / 1e6:.2f}",
            _gmacs(info.name),
            *(str(getattr(info, size)) for size in _SIZES),
            _input_shape(info),
            str(info.num_tokens),
            *(_option(info.config.get(option)) for option in own),
        )
        for info in infos
    ]
    header = ("model, `.tag`", "params (M)", "GMACs", "depth", "width", "heads", "patch", "input", "tokens")
    return _table((*header, *(f"`{option}`" for option in own)), rows, right={1, 2, 3, 4, 5, 6, 8})


def published_table() -> str:
    """The networks of the weights that authors published, and what these were trained on."""
    rows = []
    for name in _tagged(packaged=False):
        info = ditzoo.model_info(name)
        rows.append((f"`{name}`", f"{info.num_params / 1e6:.2f}", _gmacs(name), _input_shape(info), info.data or ""))
    return _table(("name", "params (M)", "GMACs", "input", "trained on"), rows, right={1, 2})


def pretrained_table() -> str:
    """Where the weights are that their authors published, under which licence, and how good."""
    rows = []
    for family in ditzoo.list_families():
        for name in _tagged(family, packaged=False):
            info, best = ditzoo.model_info(name), headline_results(name)[-1]
            source = _linked(best.source) + ", second-hand" * (best.confidence == "secondary")
            rows.append(
                (
                    f"`{name}`",
                    (info.licence or "") + ", no commercial use" * info.is_non_commercial,
                    {True: "yes", False: "no", None: "not stated"}[info.ema],
                    "<br>".join(_copy(file) for file in info.files),
                    f"**{score(best.fid)}**, {result_settings(best)}<br>{source}",
                )
            )
    return _table(("name", "licence", "EMA", "copies", "FID and its source"), rows, right=set())


def packaged_table() -> str:
    """The weights that come with ditzoo, and how they were trained and are sampled."""
    rows = []
    for family in ditzoo.list_families():
        for name in _tagged(family, packaged=True):
            recipe = _recipe(name)
            rows.append(
                (
                    f"`{name}`",
                    f"{ditzoo.model_info(name).num_params / 1e6:.2f}",
                    recipe.prediction,
                    _schedule(recipe),
                    _guidance(recipe.guidance),
                    _steps(recipe),
                )
            )
    header = ("name", "params (M)", "prediction", "schedule", "guidance", "sampler")
    return _table(header, rows, right={1})


def cost_table() -> str:
    """Multiply-adds counted here beside those that papers print."""
    rows = []
    for published in PUBLISHED_COSTS:
        counted = count(published.name)
        bare = counted.gmacs_without_attention
        rows.append(
            (
                f"`{published.name}`",
                published.gmacs,
                f"**{counted.gmacs:.2f}**" if published.attention else f"{counted.gmacs:.2f}",
                f"{bare:.2f}" if published.attention else f"**{bare:.2f}**",
                published.source,
            )
        )
    header = ("model", "printed", "counted", "counted without attention products", "source of the printed figure")
    return _table(header, rows, right={1, 2, 3})


def recipe_table(family: str) -> str:
    """How the authors train and sample, one row for each recipe of the family, and which names have it."""
    names: dict[Recipe, list[str]] = {}
    for name in _tagged(family, packaged=False):
        names.setdefault(_recipe(name), []).append(f"`{name}`")
    bare: dict[str, list[str]] = {}  # by the prefix of the name
    for name in ditzoo.list_models(family=family):
        if not ditzoo.model_info(name).ours:
            bare.setdefault(name.partition("_")[0], []).append(name)
    for prefix, sizes in bare.items():
        recipes = {_recipe(name) for name in sizes}
        if len(recipes) == 1 and recipes <= set(names):
            names[recipes.pop()].append(f"all `{prefix}_*` of the paper")
        else:
            for name in sizes:
                names.setdefault(_recipe(name), []).append(f"`{name}`")
    masked = any(recipe.mask_ratio is not None for recipe in names)
    rows = [
        (
            ", ".join(who),
            recipe.prediction,
            _schedule(recipe),
            _guidance(recipe.guidance),
            _steps(recipe),
            f"`{recipe.latent_codec}`, times {recipe.latent_scale:g}" if recipe.latent_codec else "none, pixels",
            *([mask_ratio(recipe)] if masked else []),
        )
        for recipe, who in names.items()
    ]
    header = ("names", "prediction", "schedule", "guidance", "sampler", "autoencoder")
    return _table((*header, *(("masked",) if masked else ())), rows, right=set())


def sampler_table() -> str:
    """Every sampler: order, cost, the schedules that it goes with, its options and its source."""
    rows = []
    for name, info in SAMPLERS.items():
        table, continuous = name in DISCRETE_SAMPLERS, name in CONTINUOUS_SAMPLERS
        rows.append(
            (
                f"`{name}`",
                info.title,
                "" if info.order is None else str(info.order),
                "adaptive" if info.evaluations is None else str(info.evaluations),
                {(True, True): "all", (True, False): "discrete", (False, True): "continuous"}[table, continuous],
                ", ".join(f"`{option}`" for option in info.options),
                _linked(info.source),
            )
        )
    header = ("sampler", "method", "order", "evaluations a step", "schedules", "options", "source")
    return _table(header, rows, right={2, 3})


def guidance_table() -> str:
    """Guidance and sampler of all weights that authors published, as a recipe writes them."""
    names: dict[tuple[Guidance, str], list[str]] = {}
    for family in ditzoo.list_families():
        for name in _tagged(family, packaged=False):
            recipe = _recipe(name)
            names.setdefault((recipe.guidance, _steps(recipe)), []).append(f"`{name}`")
    rows = [
        (", ".join(who), "none" if guidance.is_off else f"`{_call(guidance)}`", steps)
        for (guidance, steps), who in names.items()
    ]
    return _table(("weights", "guidance", "sampler"), rows, right=set())


def result_table(family: str, group: str) -> str:
    """Printed results of one family: of its published weights, of its authors' other runs, or measured by others."""
    rows = [row for row in result_rows() if row["family"] == family and _group(row) == group]
    cells = {title: [row[key] for row in rows] for title, key in _RESULT_COLUMNS.items()}
    cells["name"] = [name and f"`{name}`" for name in cells["name"]]
    constant = {title: column[0] for title, column in cells.items() if len(rows) > 1 and len(set(column)) == 1}
    shown = [title for title in cells if title not in constant and any(cells[title])]
    if len(shown) > 8:  # a narrower table: two cells in one
        _merge(cells, shown, "model", "name", "<br>")
        _merge(cells, shown, "images", "pixels", " ")
    sources = list(dict.fromkeys((row["source"], row["confidence"]) for row in rows))
    cells["ref."] = [f"({sources.index((row['source'], row['confidence'])) + 1})" for row in rows]
    shown.append("ref.")
    right = {shown.index(title) for title in ("FID", "sFID", "IS", "P", "R") if title in shown}
    table = _table(shown, zip(*(cells[title] for title in shown), strict=True), right)
    same = "; ".join(f"{title} {value}" for title, value in constant.items() if value)
    kinds = {"primary": "", "secondary": ", second-hand"}
    listed = [
        f"{place}. {_linked(source)}{kinds[confidence]}" for place, (source, confidence) in enumerate(sources, start=1)
    ]
    return "\n".join([*([f"All rows: {same}.", ""] if same else []), table, "", "Sources:", "", *listed])


def unused_table(name: str) -> str:
    """Weights that change no output, with the layers' numbers left out of their names."""
    with torch.device("meta"):
        groups = unused_groups(ditzoo.create(name), ditzoo.model_info(name).unused)
    if not groups:
        return f"None in `{name}`."
    values, total = sum(group.values for group in groups), ditzoo.model_info(name).num_params
    rows = [
        (
            f"`{group.name}`",
            str(len(group.names)),
            _rows(group),
            f"{group.values:,}",
            group.reason,
        )
        for group in groups
    ]
    header = ("parameter", "tensors", "rows of each", "values", "why")
    share = f"Together {values:,} of the {total:,} values of `{name}`, {values / total:.3%}."
    return _table(header, rows, right={1, 3}) + "\n\n" + share


def drawing(name: str) -> str:
    """The network as the library draws it."""
    with torch.device("meta"):
        model = ditzoo.create(name)
    return f"```text\n{draw_blocks(model)}\n```"


def quick_table() -> str:
    """The recorded result of the quick benchmark, as the README shows it."""
    match = re.search(r"<!-- quick-table-begin -->\n(.*?)<!-- quick-table-end -->", README.read_text(), re.DOTALL)
    assert match is not None, "README.md has lost the markers of its table"
    return match[1].strip()


CONTENT: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        cost_table,
        drawing,
        guidance_table,
        model_table,
        packaged_table,
        pretrained_table,
        published_table,
        quick_table,
        recipe_table,
        result_table,
        sampler_table,
        size_table,
        unused_table,
    )
}


def _merge(cells: dict[str, list[str]], shown: list[str], title: str, other: str, between: str) -> None:
    """Put one column into another where both are shown."""
    if title in shown and other in shown:
        shown.remove(other)
        pairs = zip(cells[title], cells[other], strict=True)
        cells[title] = [between.join(text for text in pair if text) for pair in pairs]


def _group(row: dict[str, str]) -> str:
    if row["measured_by"] == "others":
        return "others"
    return "weights" if "." in row["name"] else "authors"


@cache
def count(name: str) -> MacCount:
    """Multiply-adds of the network of that name, counted once where several names are of one network."""
    bare = name.partition(".")[0]
    if name != bare and ditzoo.model_info(name).config == ditzoo.model_info(bare).config:
        return count(bare)
    return count_macs(name)


def _gmacs(name: str) -> str:
    gmacs = count(name).gmacs
    return f"{gmacs:.2f}" if gmacs > 0.1 else f"{gmacs:.4f}"


def _by_family_and_cost(names: Iterable[str]) -> list[str]:
    families = ditzoo.list_families()

    def key(name: str) -> tuple[int, str, float]:
        return families.index(ditzoo.model_info(name).family), name.partition("_")[0], count(name).gmacs

    return sorted(names, key=key)


def _tagged(family: str | None = None, *, packaged: bool) -> list[str]:
    """Names of weights that come with ditzoo, or of those that authors published."""
    names = ditzoo.list_models(family=family, pretrained=True)
    return [name for name in names if ditzoo.model_info(name).packaged == packaged]


def _recipe(name: str) -> Recipe:
    recipe = ditzoo.model_info(name).recipe
    assert recipe is not None, f"{name} has no recipe"
    return replace(recipe, licence=None, source=None)  # which differ between weights that are sampled alike


def _schedule(recipe: Recipe) -> str:
    return f"`{recipe.schedule}`" + (f", T = {recipe.num_train_timesteps:,}" if recipe.is_discrete else "")


def _steps(recipe: Recipe) -> str:
    return f"`{recipe.sampler}`, {recipe.num_inference_steps} steps"


def _guidance(guidance: Guidance) -> str:
    if guidance.is_off:
        return "none"
    formula, rise = guidance_formula(guidance), ""
    if guidance.schedule == "power_cosine":
        formula, rise = formula.replace("s", "s(t)"), f", s up to {guidance.scale:g}, power {guidance.power:g}"
    formula = formula.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")
    return f"{formula}{rise}, {guided_channels(guidance)}"


def _call(guidance: Guidance) -> str:
    """The shortest constructor call."""
    grows = guidance.schedule == "power_cosine"
    values = {field.name: getattr(guidance, field.name) for field in fields(guidance)}
    default = Guidance()
    shown = {
        key: value
        for key, value in values.items()
        if key == "scale" or (key == "power" and grows) or value != getattr(default, key)
    }
    return f"Guidance({', '.join(f'{key}={value!r}' for key, value in shown.items())})".replace("'", '"')


def _rows(group: UnusedGroup) -> str:
    """Rows in a cell: `all 3456`, `1152 to 2303 of 3456`, or how many where they are scattered."""
    total = group.shape[0]
    if group.rows is None:
        return f"all {total}"
    return f"{group.row_count} of {total}" if "," in group.rows else f"{group.rows} of {total}"


def _linked(source: str) -> str:
    """arXiv numbers and repositories of a source as links."""
    source = re.sub(r"arXiv:(\d{4}\.\d{5}(?:v\d)?)", r"[\g<0>](https://arxiv.org/abs/\1)", source)
    return re.sub(
        r"github\.com/([\w-]+/[\w-]+)(?:@(\w+))?",
        lambda match: f"[{match[0]}](https://github.com/{match[1]}{'/tree/' + match[2] if match[2] else ''})",
        source,
    )


def _copy(file: PublishedFile) -> str:
    """One copy of published weights in a cell."""
    layout = {"official": "the authors' layout", "diffusers": "diffusers' layout"}[file.layout]
    how = {"Hub": "from the Hub", "address": "from its address", "by hand": "by hand"}[file.fetched]
    return f"[{file.name}]({file.page}), {how}, {layout}; {file_facts(file)}"


def _name(info: ditzoo.ModelInfo) -> str:
    return f"`{info.name}`" + (" (ours)" if info.ours else "")


def _tags(info: ditzoo.ModelInfo) -> str:
    return ", ".join(f"`{tag}`" for tag in info.tags)


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _input_shape(info: ditzoo.ModelInfo) -> str:
    config = info.config
    return f"{config['in_channels']}x{config['input_size']}x{config['input_size']}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: set[int]) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])
