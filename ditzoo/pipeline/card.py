"""The model card: what the Hub shows of a model, from what travels with its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ditzoo import __version__
from ditzoo.models import DiffusionTransformer, EvaluationResult, ModelDetails
from ditzoo.summary.describe import recipe_lines
from ditzoo.weights.hub import SAMPLES
from ditzoo.weights.hub_errors import without_tokens

#: The last line of a card that was made here, with the hash of the lines above.
_SEAL = "<!-- Made by ditzoo, and made anew by the next push unless it is edited: {} -->\n"
#: Licences that the Hub knows by the short names of SPDX in lower case.
_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense"),
    *("openrail", "creativeml-openrail-m", "bigscience-openrail-m"),
}
#: Data sets as the Hub calls them.
_DATASETS = {"ImageNet-1k": "ILSVRC/imagenet-1k", "CIFAR-10": "uoft-cs/cifar10"}
_TASK = "unconditional-image-generation"  # the Hub has no other for images without text


@dataclass(frozen=True, kw_only=True)
class CardSubject:
    """What a card is of.

    Attributes:
        model: the network.
        details: of its weights.
        weak_model: of autoguidance.
        dtype: of the weights that travel; None for the model's.
    """

    model: DiffusionTransformer
    details: ModelDetails
    weak_model: DiffusionTransformer | None = None
    dtype: torch.dtype | None = None


def model_card(subject: CardSubject, repo_id: str, *, caption: str | None = None) -> str:
    """A `README.md` with the Hub's metadata.

    Args:
        subject: of which the card is.
        repo_id: `"user/repo"`.
        caption: of the samples that lie beside the card, may be empty; None if there are no samples.
    """
    details, model = subject.details, subject.model
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        _summary(model, details),
        *([] if caption is None else [f"![Samples]({SAMPLES})", _plain(caption)]),
        _usage(details, repo_id),
        _section("Model", _model_lines(subject)),
    ]
    if details.recipe is not None:
        parts.append(_section("Recipe", list(recipe_lines(details.recipe, model.in_channels))))
    if details.results:
        parts.append(_results(details.results))
    if details.training_command:
        parts.append(f"## Training command\n\n{_fenced(details.training_command, 'bash')}")
    text = f"---\n{_metadata(model, details, repo_id)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n\n"
    return _sealed(without_tokens(text))


def is_generated(card: str) -> bool:
    """Whether `model_card` made this text, and nobody has changed it since."""
    text, _, last = card.rpartition("<!--")
    return bool(last) and card == _sealed(text)


def _sealed(text: str) -> str:
    return text + _SEAL.format(hashlib.sha256(text.encode()).hexdigest())


def _metadata(model: DiffusionTransformer, details: ModelDetails, repo_id: str) -> str:
    from huggingface_hub import ModelCardData

    return str(
        ModelCardData(
            library_name="ditzoo",
            pipeline_tag=_TASK,
            tags=["ditzoo", "diffusion-transformer", type(model).__name__.lower()],
            datasets=_dataset_ids(details.data),
            model_name=repo_id.rpartition("/")[2],
            eval_results=[_eval_result(result) for result in details.results] or None,
            **_licence(details.licence),
        ).to_yaml()
    ).strip()


def _licence(words: str | None) -> dict[str, Any]:
    if words is None:
        return {}
    if words.lower() in _LICENCES:
        return {"license": words.lower()}
    return {"license": "other", "license_name": _slug(words, "-")[:60].strip("-.") or "other"}


def _slug(words: str, joint: str) -> str:
    return re.sub(r"[^a-z0-9.]+", joint, words.lower()).strip(f"{joint}.")


def _dataset_ids(data: str | None) -> list[str] | None:
    """Of words such as `ImageNet-1k at 256x256`, or of the id of a data set of the Hub."""
    if data is None:
        return None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", data):
        return [data]
    return [name for words, name in _DATASETS.items() if data.startswith(words)] or None


def _eval_result(result: EvaluationResult) -> Any:
    from huggingface_hub import EvalResult

    facts = {name: text for name in ("settings", "source") if (text := getattr(result, name))}
    return EvalResult(
        task_type=_TASK,
        dataset_type=(_dataset_ids(result.dataset) or [_slug(result.dataset, "-") or "data"])[0],
        dataset_name=result.dataset,
        metric_type=_slug(result.metric, "_").replace(".", "_") or "metric",
        metric_name=result.metric,
        metric_value=result.value,
        # Not of the data set: the Hub's client files all results of a data set under the arguments of the first.
        metric_args=facts or None,
    )


def _summary(model: DiffusionTransformer, details: ModelDetails) -> str:
    name = f"`{_inline(details.name)}`, a" if details.name else "A"
    data = f", trained on {_plain(details.data)}" if details.data else ""
    return f"{name} {type(model).__name__} of [ditzoo](https://pypi.org/project/ditzoo/){data}."


def _usage(details: ModelDetails, repo_id: str) -> str:
    lines = ["import ditzoo", "", f'model = ditzoo.create("hf-hub:{repo_id}")']
    if details.recipe is not None:
        lines += [
            "",
            f'pipe = ditzoo.Pipeline.from_pretrained("hf-hub:{repo_id}")',
            'pipe(num_images=16).save("samples.png")',
        ]
    return _fenced("\n".join(lines), "python")


def _model_lines(subject: CardSubject) -> list[tuple[str, str]]:
    model, details, weak_model = subject.model, subject.details, subject.weak_model
    dtype = str(subject.dtype or model.dtype).removeprefix("torch.")
    lines = [("parameters", f"{_count(model)}, in {dtype}")]
    if weak_model is not None:
        lines.append(("weaker model", f"a {type(weak_model).__name__} of {_count(weak_model)} parameters"))
    return [
        *lines,
        ("input", f"{model.in_channels} x {model.input_size} x {model.input_size}"),
        ("classes", f"{model.num_classes:,}" if model.num_classes else "none: it is unconditional"),
        ("licence", details.licence or "none given"),
        ("source", details.source or "not given"),
        ("trained on", details.data or "not given"),
        ("saved by", f"ditzoo {__version__}"),
    ]


def _count(model: DiffusionTransformer) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def _results(results: tuple[EvaluationResult, ...]) -> str:
    rows = [
        " | ".join(
            _cell(text)
            for text in (result.metric, f"{result.value:.6g}", result.dataset, result.settings, result.source)
        )
        for result in results
    ]
    head = "| metric | value | against | settings | source |\n|---|---|---|---|---|"
    return "\n".join(["## Results", "", head, *(f"| {row} |" for row in rows)])


def _section(title: str, lines: list[tuple[str, str]]) -> str:
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *_rows(lines)])


def _rows(lines: list[tuple[str, str]]) -> Iterator[str]:
    for label, words in lines:
        yield f"| {_cell(label)} | {_cell(words)} |"


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One line, and none of it Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", " ".join(text.split()))


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


def _fenced(text: str, language: str) -> str:
    ticks = max([2, *(len(run) for run in re.findall(r"`+", text))]) + 1
    return f"{'`' * ticks}{language}\n{text}\n{'`' * ticks}"
