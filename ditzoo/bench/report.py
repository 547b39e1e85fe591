"""Tables and pictures of a finished or half-finished run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ditzoo.bench.results import ResultRow, write_atomically
from ditzoo.bench.runner import REAL, UNTRAINED, QuickRun
from ditzoo.recipe import Recipe
from ditzoo.summary.words import guidance_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADER = (
    "model",
    "Frechet distance",
    "accuracy %",
    "params M",
    "MMACs",
    "forward images/s",
    "train images/s",
    "train memory MB",
    "train s",
)


def sorted_rows(run: QuickRun) -> list[ResultRow]:
    """The finished rows, nearest to the real digits first."""
    return sorted(run.rows.values(), key=lambda row: row.values["frechet_distance"].value)


def table_cells(run: QuickRun) -> list[tuple[str, ...]]:
    """One tuple of texts a row, in the order of `HEADER`; a reference row has quality alone."""
    return [_cells(row) for row in sorted_rows(run)]


def _cells(row: ResultRow) -> tuple[str, ...]:
    def number(name: str, pattern: str, scale: float = 1.0) -> str:
        value = row.values.get(name)
        return "" if value is None else pattern.format(value.value * scale)

    def spread(name: str) -> str:
        value = row.values.get(name)
        return "" if value is None else f"{value.value:,.0f} ({value.low:,.0f} to {value.high:,.0f})"

    return (
        row.name,
        number("frechet_distance", "{:.2f}"),
        number("accuracy", "{:.1f}", 100),
        number("num_params", "{:.2f}", 1e-6),
        number("gmacs", "{:.2f}", 1e3),
        spread("forward_throughput"),
        spread("train_throughput"),
        number("train_peak_memory", "{:.0f}", 1e-6),
        number("training_time", "{:.1f}"),
    )


def markdown_table(run: QuickRun) -> str:
    """The table in Markdown, numbers aligned to the right."""
    rule = "|---|" + "---:|" * (len(HEADER) - 1)
    lines = [" | ".join(HEADER), *(" | ".join(cells) for cells in table_cells(run))]
    first, *rest = [f"| {line} |" for line in lines]
    return "\n".join([first, rule, *rest])


def notes(run: QuickRun) -> list[str]:
    """What a reader must know to read the table."""
    suite = run.suite
    frechet = next(iter(run.rows.values())).frechet
    lines = [
        f"Frechet distance: features of the {frechet['extractor']}, {frechet['num_samples']:,} images a row against "
        f"{frechet['reference_samples']} {frechet['reference']}. It is no FID: not Inception features, not ImageNet.",
        f"Accuracy: share of the {suite.num_samples:,} samples that the same classifier reads as the digit asked for.",
        f"Reference rows: {REAL} are {suite.num_samples:,} images of the training split; {UNTRAINED} is a fresh "
        f"{run.models[0]}, sampled like the others.",
        f"Every model: {suite.train.num_images:,} images in batches of {suite.train.batch_size}, AdamW at "
        f"{suite.train.learning_rate:g}, averaged weights; seed {run.seed}.",
        *_recipe_notes(run),
        *_masking_note(run),
        f"MMACs: millions of multiply-adds of one forward pass of one image. Throughput: median and quartiles, "
        f"measured interleaved, with all threads; forward at batch {suite.forward_batch_size}, training at "
        f"{suite.train.batch_size}: forward, backward and optimiser.",
        "Memory: the most that tensors of a training step hold at once, weights and optimiser included.",
    ]
    roofs = sorted({row.values["roof"].value for row in run.rows.values() if "roof" in row.values})
    if roofs:
        measured = " and ".join(f"{roof:.0f}" for roof in roofs)
        lines.append(f"Roof of the machine in the same run: {measured} GMACs/s of a float32 matrix product.")
    if len(roofs) > 1:
        lines.append("The run was interrupted: speeds stem from more than one measurement and compare less exactly.")
    origin = next(iter(run.rows.values()))
    machine, versions = origin.machine, origin.versions
    lines.append(
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, device "
        f"{machine['device']}. " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    )
    return lines


def _recipe_notes(run: QuickRun) -> list[str]:
    """Which models train and sample how: they differ where a family has an objective of its own."""
    names: dict[str, list[str]] = {}
    for row in run.rows.values():
        if row.kind == "model":
            recipe = Recipe.from_dict(row.recipe)
            how = (
                f"schedule {recipe.schedule}, prediction {recipe.prediction}, {recipe.num_inference_steps} steps of "
                f"{recipe.sampler}, guidance "
                + guidance_in_words(recipe.guidance, recipe.num_train_timesteps, row.config["in_channels"])
            )
            names.setdefault(how, []).append(row.name)
    everyone = len(names) == 1
    return [f"{'Every model' if everyone else ', '.join(sorted(who))}: {how}." for how, who in sorted(names.items())]


def _masking_note(run: QuickRun) -> list[str]:
    masked = [row.name for row in run.rows.values() if row.kind == "model" and row.recipe["mask_ratio"] is not None]
    return [f"Two passes over each image, one with masked tokens: {', '.join(sorted(masked))}."] if masked else []


def write_report(run: QuickRun) -> list[Path]:
    """Write `report.md`, `comparison.png` and `samples.png`; return their paths.

    Raises:
        ImportError: where matplotlib is missing, naming the extra to install.
    """
    title = f"# Quick benchmark: {len(run.models)} diffusion transformers on 8x8 digits"
    text = [title, "", markdown_table(run), "", *(f"- {note}" for note in notes(run))]
    text += ["", "![Frechet distance against multiply-adds](comparison.png)", "", "![Samples](samples.png)", ""]
    paths = {
        run.out / "report.md": "\n".join(text).encode(),
        run.out / "comparison.png": _png(comparison_figure(run)),
        run.out / "samples.png": _png(samples_figure(run)),
    }
    for path, content in paths.items():
        write_atomically(path, content)
    return list(paths)


def comparison_figure(run: QuickRun) -> Figure:
    """Multiply-adds against Frechet distance, one labelled point a model, with both reference rows as lines."""
    figure = _new_figure(7.2, 4.6)
    axes = figure.add_subplot()
    rows = [row for row in run.rows.values() if row.kind == "model"]
    rows.sort(key=lambda row: row.values["gmacs"].value)
    points = [(1e3 * row.values["gmacs"].value, row.values["frechet_distance"].value) for row in rows]
    width = points[-1][0] - points[0][0]
    groups = _coincident(points, width)
    for group in groups:
        for depth, place in enumerate(group):  # the smaller on top, so that every point of a group is seen
            axes.scatter(*points[place], s=70 / (1 + 1.5 * depth), color=f"C{place}", zorder=3 + depth)
        x, y = points[group[0]]
        # Of close neighbours the lower one has its label below, so that no label lies on another's point, and of two
        # such labels the left one ends at its point.
        below = _is_below(points, groups, group, width)
        beside = any(
            0 < points[other[0]][0] - x < 0.2 * width and _is_below(points, groups, other, width) for other in groups
        )
        axes.annotate(
            ", ".join(rows[place].name for place in group),
            (x, y),
            textcoords="offset points",
            xytext=(-14 if below and beside else 0, -9 if below else 9),
            ha="right" if below and beside else "center",
            va="top" if below else "bottom",
            fontsize=10,
        )
    for name, style in ((REAL, "--"), (UNTRAINED, ":")):
        if name in run.rows:
            height = run.rows[name].values["frechet_distance"].value
            axes.axhline(height, color="0.45", linestyle=style, linewidth=1)
            axes.annotate(
                f"{name}: {height:.3g}",
                (0.01, height),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                xytext=(2, 4 if name == REAL else -11),
                fontsize=9,
                color="0.3",
            )
    axes.set_yscale("log")
    axes.margins(x=0.18)
    axes.set_xlabel("MMACs, millions of multiply-adds of one forward pass (less is cheaper)")
    axes.set_ylabel("Frechet distance, digits classifier (less is better)")
    samples = f"{run.suite.num_samples:,}"
    axes.set_title(
        f"Digits 8x8: {run.suite.train.num_images:,} training images, {samples} samples a model", fontsize=11
    )
    axes.grid(visible=True, which="major", alpha=0.25)
    return figure


def _is_below(
    points: Sequence[tuple[float, float]], groups: Sequence[list[int]], group: list[int], width: float
) -> bool:
    """Whether a close neighbour of a group of points lies higher."""
    x, y = points[group[0]]
    others = [points[other[0]] for other in groups if other != group]
    return any(other_y > y and abs(other_x - x) < 0.2 * width for other_x, other_y in others)


def _coincident(points: Sequence[tuple[float, float]], width: float) -> list[list[int]]:
    """Points too close to be labelled apart, as lists of their places: within 2 % of `width` and 5 % of the height."""
    groups: list[list[int]] = []
    for place, (x, y) in enumerate(points):
        for group in groups:
            first = points[group[0]]
            if abs(first[0] - x) <= 0.02 * width and abs(first[1] - y) <= 0.05 * first[1]:
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def samples_figure(run: QuickRun, rows_each: int = 4) -> Figure:
    """A grid of samples for each model and for the real digits: one column a digit."""
    names = [row.name for row in sorted_rows(run) if row.name != UNTRAINED]
    figure = _new_figure(3.1 * 3, 0.2 + 1.75 * ((len(names) + 2) // 3))
    panels = figure.subplots((len(names) + 2) // 3, 3, squeeze=False).flatten()
    for panel in panels:
        panel.axis("off")
    for panel, name in zip(panels, names, strict=False):
        images, labels = run.load_samples(run.rows[name])
        rows = [images[labels == digit][:rows_each, :, :, 0] for digit in range(10)]
        padded = np.pad(np.stack(rows), ((0, 0), (0, 0), (1, 1), (1, 1)))  # (digits, rows, height, width)
        digits, count, height, width = padded.shape
        panel.imshow(
            padded.transpose(1, 2, 0, 3).reshape(count * height, digits * width), cmap="gray", vmin=0, vmax=255
        )
        panel.set_title(f"{name} ({run.rows[name].values['frechet_distance'].value:.2f})", fontsize=10)
        for digit in range(digits):
            center = (digit + 0.5) * width - 0.5
            panel.text(center, count * height + 1, str(digit), ha="center", va="top", fontsize=8)
    figure.suptitle("Samples by class; Frechet distance in brackets", fontsize=11)
    return figure


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the report needs matplotlib: pip install "ditzoo[bench]"') from error
    # A figure of its own rather than pyplot's: no window system, no global state.
    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
