"""The model card: what the Hub shows of a model, from what travels with its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ditzoo import __version__
from ditzoo.models import DiffusionTransformer, EvaluationResult, ModelDetails
from ditzoo.summary.describe import recipe_lines

#: The file that the card shows.
SAMPLES = "samples.png"
#: Licences that the Hub knows by the short names of SPDX in lower case.
_LICENCES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense"),
    *("openrail", "creativeml-openrail-m", "bigscience-openrail-m"),
}
#: Data sets as the Hub calls them.
_DATASETS = {"ImageNet-1k": "ILSVRC/imagenet-1k", "CIFAR-10": "uoft-cs/cifar10"}
_TASK = "unconditional-image-generation"  # the Hub has no other for images without text


def model_card(model: DiffusionTransformer, details: ModelDetails, repo_id: str, *, has_samples: bool) -> str:
    """A `README.md` with the Hub's metadata.

    Args:
        model: of which the card is.
        details: of its weights.
        repo_id: `"user/repo"`.
        has_samples: whether `samples.png` lies beside the card.
    """
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        _summary(model, details),
        *([f"![Samples]({SAMPLES})"] if has_samples else []),
        _usage(details, repo_id),
        _section("Model", _model_lines(model, details)),
    ]
    if details.recipe is not None:
        parts.append(_section("Recipe", list(recipe_lines(details.recipe, model.in_channels))))
    if details.results:
        parts.append(_results(details.results))
    if details.training_command:
        parts.append(f"## Training command\n\n{_fenced(details.training_command, 'bash')}")
    return f"---\n{_metadata(model, details, repo_id)}\n---\n\n" + "\n\n".join(parts) + "\n"


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
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")[:60]}


def _dataset_ids(data: str | None) -> list[str] | None:
    """Of words such as `ImageNet-1k at 256x256`, or of the id of a data set of the Hub."""
    if data is None:
        return None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", data):
        return [data]
    return [name for words, name in _DATASETS.items() if data.startswith(words)] or None


def _eval_result(result: EvaluationResult) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=_TASK,
        dataset_type=re.sub(r"[^a-z0-9]+", "-", result.dataset.lower()).strip("-") or "data",
        dataset_name=result.dataset,
        metric_type=re.sub(r"[^a-z0-9]+", "_", result.metric.lower()).strip("_") or "metric",
        metric_name=result.metric,
        metric_value=result.value,
        dataset_args={"settings": result.settings} if result.settings else None,
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


def _model_lines(model: DiffusionTransformer, details: ModelDetails) -> list[tuple[str, str]]:
    count = sum(parameter.numel() for parameter in model.parameters())
    classes = f"{model.num_classes:,}" if model.num_classes else "none: it is unconditional"
    lines = [
        ("parameters", f"{count:,}, in {str(model.dtype).removeprefix('torch.')}"),
        ("input", f"{model.in_channels} x {model.input_size} x {model.input_size}"),
        ("classes", classes),
        ("licence", details.licence or "none given"),
        ("source", details.source or "not given"),
        ("trained on", details.data or "not given"),
        ("saved by", f"ditzoo {__version__}"),
    ]
    return lines


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
