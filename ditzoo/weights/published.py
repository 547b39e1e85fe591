"""What is known of the published networks: parameter counts of the official code, and what papers print."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, cast

from ditzoo import registry

#: Counted in the official networks; packed by `tests/weights/pack_golden.py`.
PARAM_COUNTS_FILE = Path(__file__).parent / "param_counts.json"
#: Results that authors and others printed; nothing in it was measured with ditzoo.
RESULTS_FILE = Path(__file__).parent / "published.csv"


class OfficialCount(NamedTuple):
    """Size of an official network."""

    total: int
    """parameters, frozen ones included"""
    keys: int
    """entries of its state dict, constant buffers included"""
    source: str
    """repository and commit"""


class PublishedCost(NamedTuple):
    """What a paper prints for one model."""

    name: str
    gmacs: str
    """1e9 multiply-adds, with the paper's own digits"""
    source: str
    attention: bool = True
    """whether the figure includes the two products inside attention"""
    params: str | None = None
    """millions of parameters, where no official code tells them exactly"""


class PublishedResult(NamedTuple):
    """What a paper, a repository or a report prints for samples of one model. None: not printed."""

    name: str
    """of the registry: a tagged name for the published weights, a bare one for other runs"""
    model: str
    """as the source calls it"""
    dataset: str
    resolution: int
    """side of the images, in pixels"""
    training: str
    """steps or epochs, as printed; empty where not printed. So are the next two"""
    guidance: str
    """`none` where there was none"""
    sampler: str
    """steps and method"""
    fid: float
    sfid: float | None
    inception_score: float | None
    precision: float | None
    recall: float | None
    measured_by: Literal["authors", "others"]
    source: str
    confidence: Literal["primary", "secondary"]
    """`secondary` if a figure was read in a text that quotes its source"""

    @property
    def num_figures(self) -> int:
        """How many of the five scores are printed."""
        scores = (self.fid, self.sfid, self.inception_score, self.precision, self.recall)
        return sum(score is not None for score in scores)


_DIT = "arXiv:2212.09748, table 4"
# As published.csv names them; the papers themselves were not read.
_UVIT_NOTE = "a note quoting arXiv:2209.12152, second-hand"
_COLLECTION = "a collection of models, second-hand"
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
    PublishedCost("dit_xl_2_adaln", "118.56", _DIT, params="600"),
    PublishedCost("dit_xl_2_crossattn", "137.62", _DIT, params="598"),
    PublishedCost("dit_xl_2_incontext", "119.37", _DIT, params="449"),
    PublishedCost("uvit_l_2", "77", _UVIT_NOTE),
    PublishedCost("uvit_h_2", "133", _UVIT_NOTE),
    PublishedCost("mdt_xl_2", "119", _COLLECTION),
    PublishedCost("diffit_xl_2", "114", "arXiv:2312.02139, table 9", attention=False),
    PublishedCost("sit_xl_2", "119", "README of github.com/willisma/SiT"),
)

#: `sampled_hash` of published files, by tagged name: of those that come with ditzoo. No other is known to this release.
SAMPLED_HASHES: dict[str, str] = {
    "diffit_ti_2.digits": "b0cd328fff1cdc730073dfbd196492b13cf58b3c86bb7214db314ab63607b976",
    "diffit_unet_ti.digits": "0c16250f71ad2836c582c61f0ab0f5a739e714acb3c22ed926bcae3cf3fe65e0",
    "dit_ti_2.digits": "80329e68ba396f2c62e72554ea87290384a15a7551665e4f33b0091e2e6a10a8",
    "mdt_ti_2.digits": "004e69833a0b3d973d1fb9f64bfbfde497a1ef46def54c18728965c564aff80f",
    "mdtv2_ti_2.digits": "302cba2a45c5c6f7e1a4452c9f68692800294fcc5570bba73f2db6cf9b943a0c",
    "sit_ti_2.digits": "64473d8a0ad36cb887d602595a99a70db0a3484a9c42951c9700f6655c5e5083",
    "uvit_ti_2.digits": "054e5ad608e3b96b15817aee61de6e0e307548b9fc85fdd0fdf08ee91113f0a5",
}


def official_count(name: str) -> OfficialCount | None:
    """The official network's size; None where there is no official network of this configuration."""
    return next((_param_counts()[twin] for twin in _twins(name) if twin in _param_counts()), None)


def published_cost(name: str) -> PublishedCost | None:
    """What a paper prints for this configuration; None where none does."""
    costs = {cost.name: cost for cost in PUBLISHED_COSTS}
    return next((costs[twin] for twin in _twins(name) if twin in costs), None)


@cache
def result_rows() -> tuple[dict[str, str], ...]:
    """The rows of `published.csv`, with the printed digits."""
    with RESULTS_FILE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def published_results(name: str) -> tuple[PublishedResult, ...]:
    """Every printed result of a name, in the order of `published.csv`; ditzoo measured none of them.

    Args:
        name: a tagged name, such as `"dit_xl_2.in256"`, for the published weights; a bare one for other runs.

    Raises:
        ValueError: unknown name or tag.
    """
    registry.model_info(name)
    return tuple(_result(row) for row in result_rows() if row["name"] == name)


def headline_results(name: str) -> tuple[PublishedResult, ...]:
    """Without guidance and with guidance the authors' best result; of two, that with more scores. The same error."""
    found = [result for result in published_results(name) if result.measured_by == "authors"]
    by_guidance = ([r for r in found if r.guidance == "none"], [r for r in found if r.guidance != "none"])
    return tuple(min(results, key=lambda r: (-r.num_figures, r.fid)) for results in by_guidance if results)


def _result(row: dict[str, str]) -> PublishedResult:
    def score(key: str) -> float | None:
        return float(row[key]) if row[key] else None

    return PublishedResult(
        name=row["name"],
        model=row["model"],
        dataset=row["dataset"],
        resolution=int(row["resolution"]),
        training=row["train_steps"],
        guidance=row["guidance"],
        sampler=row["sampler_steps"],
        fid=float(row["fid"]),
        sfid=score("sfid"),
        inception_score=score("is"),
        precision=score("precision"),
        recall=score("recall"),
        measured_by=cast(Literal["authors", "others"], row["measured_by"]),
        source=row["source"],
        confidence=cast(Literal["primary", "secondary"], row["confidence"]),
    )


def allowance(printed: str) -> float:
    """How far a number may be from the printed one: half a unit of its last digit, for rounding, and 0.5 %, since
    papers differ in what small layers they count."""
    decimals = len(printed.partition(".")[2])
    return 0.5 * 10**-decimals + 0.005 * float(printed)


def agrees(value: float, printed: str) -> bool:
    """Whether a number is the printed one, up to its `allowance`."""
    return abs(value - float(printed)) <= allowance(printed)


@cache
def _param_counts() -> dict[str, OfficialCount]:
    counts = json.loads(PARAM_COUNTS_FILE.read_text(encoding="utf-8"))
    return {name: OfficialCount(**facts) for name, facts in counts.items()}


def _twins(name: str) -> list[str]:
    """The name, and those of its architecture that build the same network."""
    bare = name.partition(".")[0]
    others = (bare, *(f"{bare}.{tag}" for tag in registry.model_info(name).tags))
    return [name, *(other for other in others if registry.same_network(name, other))]
