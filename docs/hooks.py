"""MkDocs hook: puts tables that are computed from the registry in place of `{{ name }}` in the pages.

No number of these tables is typed by hand, except what papers print.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import ditzoo
from ditzoo.metrics import MacCount, count_macs

README = Path(__file__).parent.parent / "README.md"


class PublishedCost(NamedTuple):
    """What a paper prints for one model."""

    name: str
    gmacs: str
    """1e9 multiply-adds, with the paper's own digits"""
    source: str
    attention: bool = True
    """whether the figure includes the two products inside attention"""


_DIT = "arXiv:2212.09748, table 4"
_QUOTED = "quoted by later papers; read second-hand"
PUBLISHED_COSTS = (
    PublishedCost("dit_s_8", "0.36", _DIT),
    PublishedCost("dit_s_4", "1.41", _DIT),
    PublishedCost("dit_s_2", "6.06", _DIT),
    PublishedCost("dit_b_8", "1.42", _DIT),
    PublishedCost("dit_b_4", "5.56", _DIT),
    PublishedCost("dit_b_2", "23.01", _DIT),
    PublishedCost("dit_l_8", "5.01", _DIT),
    PublishedCost("dit_l_4", "19.70", _DIT),
    PublishedCost("dit_l_2", "80.71", _DIT),
    PublishedCost("dit_xl_8", "7.39", _DIT),
    PublishedCost("dit_xl_4", "29.05", _DIT),
    PublishedCost("dit_xl_2", "118.64", _DIT),
    PublishedCost("dit_xl_2.in512", "524.60", _DIT),
    PublishedCost("uvit_l_2", "77", _QUOTED),
    PublishedCost("uvit_h_2", "133", _QUOTED),
    PublishedCost("mdt_xl_2", "119", _QUOTED),
    PublishedCost("diffit_xl_2", "114", "arXiv:2312.02139, table 9", attention=False),
)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of every page."""
    return re.sub(r"^\{\{ (\w+) \}\}$", lambda match: TABLES[match[1]](), markdown, flags=re.MULTILINE)


def model_table() -> str:
    """Every bare name of the registry, by family and cost."""
    rows = []
    for name in _by_family_and_cost(ditzoo.list_models()):
        info = ditzoo.model_info(name)
        rows.append(
            (
                f"`{name}`" + (" (ours)" if info.ours else ""),
                info.family,
                f"{info.num_params / 1e6:.2f}",
                _gmacs(name),
                _input_shape(info),
                str(info.num_tokens),
                info.paper.rpartition(", ")[2],
                ", ".join(f"`{tag}`" for tag in info.tags),
            )
        )
    header = ("model", "family", "parameters (M)", "GMACs", "input", "tokens", "paper", "tags")
    return _table(header, rows, right={2, 3, 5})


def published_table() -> str:
    """Every tagged name: weights that its authors published."""
    rows = []
    for name in ditzoo.list_models(pretrained=True):
        info = ditzoo.model_info(name)
        source = re.sub(r"https://\S+", r"<\g<0>>", info.source or "")
        params = f"{info.num_params / 1e6:.2f}"
        rows.append(
            (f"`{name}`", params, _gmacs(name), _input_shape(info), info.data or "", info.licence or "", source)
        )
    header = ("name", "parameters (M)", "GMACs", "input", "trained on", "licence of the weights", "source")
    return _table(header, rows, right={1, 2})


def cost_table() -> str:
    """Multiply-adds counted here beside those that papers print."""
    rows = []
    for published in PUBLISHED_COSTS:
        counted = _count(published.name)
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


def quick_table() -> str:
    """The recorded result of the quick benchmark, as the README shows it."""
    match = re.search(r"<!-- quick-table-begin -->\n(.*?)<!-- quick-table-end -->", README.read_text(), re.DOTALL)
    assert match is not None, "README.md has lost the markers of its table"
    return match[1].strip()


TABLES: dict[str, Callable[[], str]] = {
    "cost_table": cost_table,
    "model_table": model_table,
    "published_table": published_table,
    "quick_table": quick_table,
}


@cache
def _count(name: str) -> MacCount:
    return count_macs(name)


def _gmacs(name: str) -> str:
    gmacs = _count(name).gmacs
    return f"{gmacs:.2f}" if gmacs > 0.1 else f"{gmacs:.4f}"


def _by_family_and_cost(names: Iterable[str]) -> list[str]:
    families = ditzoo.list_families()

    def key(name: str) -> tuple[int, str, float]:
        return families.index(ditzoo.model_info(name).family), name.partition("_")[0], _count(name).gmacs

    return sorted(names, key=key)


def _input_shape(info: ditzoo.ModelInfo) -> str:
    config = info.config
    return f"{config['in_channels']}x{config['input_size']}x{config['input_size']}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: set[int]) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])
