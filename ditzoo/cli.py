"""The `ditzoo` command: parses, calls the library, prints."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from ditzoo import __version__

if TYPE_CHECKING:
    from ditzoo.bench import QuickRun
    from ditzoo.interop.convert import Layout
    from ditzoo.registry import ModelInfo


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ditzoo")
def cli() -> None:
    """Diffusion transformers side by side."""


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collecting garbage takes a sixth of the time in which torch is imported, and finds next to none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cli.command("list")
@click.argument("pattern", required=False)
@click.option("--family", help="Only this family.")
@click.option("--pretrained", is_flag=True, help="Tagged names of published weights instead.")
def list_command(pattern: str | None, family: str | None, pretrained: bool) -> None:
    """List the models, or those that PATTERN matches (shell wildcards; quote it)."""
    with _garbage_kept():
        from ditzoo import registry

    names = registry.list_models(pattern, family=family, pretrained=pretrained or None)
    if not names:
        raise ValueError(f"no model matches {pattern!r}; `ditzoo list` shows all.")
    facts = [registry.model_info(name) for name in names]
    tagged = "." in names[0]
    rows = [
        (
            info.name,
            info.family,
            f"{info.num_params / 1e6:.1f}",
            str(info.depth),
            str(info.hidden_size),
            "{in_channels}x{input_size}x{input_size}".format(**info.config),
            "ours" if info.ours else "paper",
            *((_fetched(info), info.licence or "") if tagged else (" ".join(info.tags),)),
        )
        for info in facts
    ]
    last = ("weights from", "licence of the weights") if tagged else ("published weights",)
    _print_columns(("model", "family", "params M", "depth", "width", "input", "size of", *last), rows)


def _fetched(info: ModelInfo) -> str:
    """How the weights of a tagged name are to be had."""
    return "packaged" if info.packaged else next((file.fetched for file in info.files), "")


@cli.command()
@click.argument("name")
def info(name: str) -> None:
    """Show what is known about a model: sizes, cost, memory, recipe, licence, and a drawing of its blocks."""
    with _garbage_kept():
        from ditzoo.summary import describe, drawable

        text = describe(name, ascii=not drawable(sys.stdout.encoding))
    click.echo(text)


@cli.command()
@click.argument("name")
@click.option("--checkpoint", type=click.Path(), help="File of weights; default: one that comes with ditzoo.")
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option(
    "--weights",
    type=click.Choice(["ema", "raw"]),
    help="Of a training checkpoint: moving average or last step; default: the average where there is one.",
)
def verify(name: str, checkpoint: str | None, device: str, dtype: str, weights: Literal["ema", "raw"] | None) -> None:
    """Check a network, and a file of weights for it, against what is known of the original.

    Size and hashes of a file of published weights that passes are recorded on this machine: `ditzoo info` shows them,
    and later files for NAME are compared with it.

    Exits with 1 if a check fails.
    """
    with _garbage_kept():
        import torch

        from ditzoo.weights import verify as run

    result = run(name, checkpoint, device=device, dtype=getattr(torch, dtype), weights=weights, record=True)
    click.echo(f"{name} on {result.device} in {dtype}; ditzoo {__version__}, torch {torch.__version__}\n")
    rows = [(check.name, check.status, check.found, check.expected) for check in result.checks]
    _print_columns(("check", "result", "found", "expected"), rows)
    click.echo()
    for check in result.checks:
        if check.details:
            click.echo(f"{check.name}: {check.details}")
    sources = {check.source: [c.name for c in result.checks if c.source == check.source] for check in result.checks}
    for source, names in sources.items():
        if source:
            click.echo(f"source of {', '.join(names)}: {source}")
    if result.sampled_hash is not None:
        click.echo(f"sampled hash: {result.sampled_hash} (compare it with that of other copies)")
    for line in (*result.hints, result.summary()):
        click.echo(line)
    if not result.passed:
        sys.exit(1)


@cli.command()
@click.argument("src", type=click.Path())
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(["ditzoo", "official", "diffusers"]), required=True, help="Layout of DST.")
@click.option("--name", help="What SRC is, such as dit_xl_2.in256; the authors' files do not say it.")
@click.option(
    "--weights",
    type=click.Choice(["ema", "raw"]),
    default="ema",
    show_default=True,
    help="Of a training checkpoint: moving average or last step.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: that of SRC.")
@click.option("--max-shard-size", default="5GB", show_default=True, help="Of each file in a folder.")
def convert(src: str, dst: Path, to: Layout, dtype: str | None, **options: Any) -> None:
    """Write weights in another layout: SRC is an authors' file, or a folder of ditzoo or of diffusers.

    DST is a new folder, or with --to official a file that ends with .pt, .pth or .safetensors.
    """
    with _garbage_kept():
        import torch

        from ditzoo.interop.convert import convert as run

    run(src, dst, to=to, dtype=None if dtype is None else getattr(torch, dtype), **options)
    click.echo(f"Wrote {dst}.")


@cli.command()
@click.argument("name")
@click.option("--classes", help="Numbers, ranges and names, such as 0-9 or 'strawberry,207'; default: random ones.")
@click.option("--per-class", type=click.IntRange(min=1), help="Images of each of these classes.")
@click.option("--num", "--num-images", "num", type=click.IntRange(min=1), help="In all; default: one a class, or 16.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--size", type=int, nargs=2, metavar="H W", help="Of the images, in pixels; default: the trained one.")
@click.option("--sampler", help="Another sampler than the weights' own; a wrong one gives the list.")
@click.option("--steps", type=int, help="Of the sampler.")
@click.option("--guidance-scale", type=float, help="In the convention of the weights.")
@click.option("--guidance-interval", type=float, nargs=2, metavar="LOW HIGH", help="Guide where sigma/alpha is in it.")
@click.option("--guidance-channels", type=click.IntRange(min=0), help="Guide the first so many alone; 0: all of them.")
@click.option("--weak-model", help="A weaker model's tagged name or folder: autoguidance by it.")
@click.option("--columns", type=click.IntRange(min=1), help="Of a grid; default: one a class.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--checkpoint", help="Weights in place of the name's own: a file, a folder, https://... or hf-hub:...")
@click.option("--codec", help="Autoencoder instead of the recipe's: a folder or the id of a model.")
@click.option("--tiling", is_flag=True, help="Decode large images in tiles, which takes less memory.")
@click.option("--slicing", is_flag=True, help="Decode one image at a time, likewise.")
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
def sample(name: str, out: Path, **options: Any) -> None:
    """Sample from a model: NAME is a tagged name such as dit_ti_2.digits, a folder of a model or of a training run,
    or hf-hub:user/repo.

    OUT decides what is written: a grid (.png), an animation of the steps (.gif, .webp), a file for ADM's evaluation
    (.npz), or else a folder of PNG files. File and folder are written in shards: a stopped job goes on where it was,
    and under torchrun all processes share it.
    """
    from ditzoo.pipeline.command import SampleCommand

    command = SampleCommand(name=name, out=out, **options)
    try:
        for line in command.run():
            click.echo(line)
    except KeyboardInterrupt:
        click.echo(f"\n{command.when_stopped()}", err=True)
        sys.exit(130)


@cli.command()
@click.argument("data")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", help="Encode for this model: autoencoder, scale, shift and size are those of its recipe.")
@click.option("--codec", help="Autoencoder: a folder, the id of a model, or 'pixels' for images as they are.")
@click.option("--codec-name", help="What recipes call the autoencoder; default: what --codec says.")
@click.option("--size", type=click.IntRange(min=1), help="Side of the square that images are cropped to, in pixels.")
@click.option("--scale", type=float, help="What codes are multiplied by; default: as the autoencoder says.")
@click.option("--shift", type=float, help="What is subtracted from codes first.")
@click.option("--flip/--no-flip", default=True, show_default=True, help="Encode mirrored images too.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the values on disk.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--shard-size", type=click.IntRange(min=1), help="Images in a file; default: 1024.")
@click.option("--num-workers", type=click.IntRange(min=0), default=0, show_default=True, help="That read images.")
@click.option("--max-unreadable", type=click.IntRange(min=0), default=10, show_default=True, help="Images to replace.")
@click.option("--labels/--no-labels", default=True, show_default=True, help="Keep the classes of images.")
@click.option("--slicing", is_flag=True, help="Encode one image at a time, which takes less memory.")
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda.")
@click.option(
    "--codec-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="In which the autoencoder computes.",
)
def encode(**options: Any) -> None:
    """Cache latents of DATA in the folder OUT, so that training needs no autoencoder.

    DATA is a folder of images, digits, tar files ('data/*.tar') or a data set of the Hub (hf:owner/name). A stopped
    job goes on where it was, and under torchrun all processes share it.
    """
    from ditzoo.pipeline.encoding import EncodeCommand

    command = EncodeCommand(**options)
    try:
        with _progress_bars() as progress:
            lines = list(command.run(lambda done, total: progress("encoding", done, total)))
    except KeyboardInterrupt:
        click.echo(f"\n{command.when_stopped()}", err=True)
        sys.exit(130)
    for line in lines:
        click.echo(line)


class _TrainCommand(click.Command):
    """Has a flag for every setting of a run, made when somebody looks at them."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not any(param.name == "model" for param in self.params):
            from ditzoo.train.command import flags

            for flag in flags():
                self.params.append(
                    click.Option(
                        [flag.names, flag.setting],
                        default=None,
                        help=flag.text,
                        type=None if flag.choices is None else click.Choice(flag.choices),
                        metavar=flag.metavar,
                        multiple=flag.repeats,
                    )
                )
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from ditzoo.train.command import usual_flag

        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (flag := usual_flag(error.option_name)) is None:
                raise
            message = f"No such option {error.option_name!r}. Did you mean {flag!r}?"
            raise click.NoSuchOption(error.option_name, message, ctx=ctx) from error


@cli.command(cls=_TrainCommand)
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML of settings, such as a run's run.yaml.")
@click.option("--dry-run", is_flag=True, help="Show settings, their sources, sizes and cost, and train nothing.")
@click.option("--stop-at", type=click.IntRange(min=1), help="Images at which to stop, with a checkpoint, for now.")
def train(file: Path | None, dry_run: bool, stop_at: int | None, **given: Any) -> None:
    """Train a model, or go on with a run that was stopped: the same command again does so.

    Flags win over the file, the file over the preset, the preset over the defaults, which train a tiny model on the
    digits in about two minutes. Every setting is a flag and a line of the file.
    """
    from ditzoo.train.command import command_line, dry_run_lines, make_config, row_line, settings_rows

    given = {name: value for name, value in given.items() if value not in (None, ())}
    config = make_config(given, file=file)
    if dry_run:
        with _garbage_kept():
            lines = dry_run_lines(config)
        _print_columns(("setting", "value", "from"), settings_rows(config, given, file))
        click.echo()
        for topic, line in lines:
            click.echo(f"{topic:8}  {line}")
        return
    with _garbage_kept():
        from ditzoo.pipeline.jobs import process_of_launcher
        from ditzoo.train.runs import run

    result = run(
        config, stop_at=stop_at, command=command_line(given, file), on_row=lambda row: click.echo(row_line(row))
    )
    is_first = process_of_launcher()[0] == 0
    if result.stopped_by is not None:
        if is_first:
            click.echo(
                f"Stopped at {result.seen:,} images. The same command goes on from {result.checkpoint}.", err=True
            )
        sys.exit(128 + result.stopped_by)
    if is_first and not result.finished:
        click.echo(f"Stopped at {result.seen:,} images, as told. The same command goes on from {result.checkpoint}.")
    elif is_first:
        click.echo(f"{result.folder} holds the run: `ditzoo sample {result.folder}` draws from its model.")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--width", type=float, required=True, help="Of the average, relative to the images seen: 0.02 to 0.2, say."
)
@click.option(
    "--seen", type=click.IntRange(min=1), help="Where the average ends, in images; default: the last snapshot."
)
def ema(run: Path, out: Path, width: float, seen: int | None) -> None:
    """Make the model of RUN anew, with another average of its weights, and save it in the folder OUT.

    RUN is the folder of a training run with --ema-profiles, whose snapshots of averages are enough to make averages of
    any width afterwards (arXiv:2312.02696).
    """
    with _garbage_kept():
        from ditzoo.train.averages import save_reconstructed

    save_reconstructed(run, out, width, seen=seen)
    click.echo(f"{out} holds the model; ditzoo sample {out} draws from it.")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="USER/REPO")
@click.option("--private/--public", default=None, help="Of a new repository; default: as the account's settings say.")
@click.option("--revision", help="Branch to commit to, made where it does not exist; default: the main one.")
@click.option("--message", default="Upload a model of ditzoo", show_default=True, help="Of the commit.")
@click.option("--licence", "--license", "licence", help="Of the weights, such as apache-2.0.")
@click.option("--results", type=click.Path(path_type=Path), help="results.jsonl of a benchmark, for the card.")
@click.option("--samples", type=click.Path(path_type=Path), help="Picture for the card; default: drawn where quick.")
@click.option("--draw/--no-draw", default=None, help="Draw samples however long it takes, or never.")
def push(
    folder: Path, repo_id: str, results: Path | None, samples: Path | None, draw: bool | None, **options: Any
) -> None:
    """Upload FOLDER, a model that was saved or a training run, to the Hugging Face Hub, with a model card.

    Log in first: `hf auth login`, or HF_TOKEN in the environment.
    """
    if samples is not None and draw is not None:
        raise ValueError("--samples gives the picture, so leave out --draw and --no-draw.")
    with _garbage_kept():
        from ditzoo.bench.results import results_for
        from ditzoo.pipeline.sharing import push_saved
        from ditzoo.weights.folders import load_model

    measured: tuple[Any, ...] = ()
    if results is not None:
        model = load_model(folder)
        measured = results_for(results, type(model), model.config)
    click.echo(push_saved(folder, repo_id, samples=draw if samples is None else samples, results=measured, **options))


@cli.command()
@click.argument("name", metavar="USER/REPO[@REVISION]")
@click.argument("folder", type=click.Path(path_type=Path))
def pull(name: str, folder: Path) -> None:
    """Copy a model of the Hugging Face Hub into FOLDER, a new one.

    Private and gated ones need a login: `hf auth login`, or HF_TOKEN in the environment.
    """
    with _garbage_kept():
        from ditzoo.pipeline.sharing import pull as run

    click.echo(f"{run(name, folder)} holds {name}; ditzoo sample {folder} draws from it.")


@cli.group()
def bench() -> None:
    """Train, sample and compare models."""


@bench.command()
@click.option("--models", help="Comma-separated names; default: the tiny model of every family.")
@click.option("--images", type=int, help="Images each model trains on, repeats included; default: 48,000.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/quick"), show_default=True)
def quick(models: str | None, images: int | None, seed: int, device: str, out: Path) -> None:
    """Train tiny models on real 8x8 digits, sample them, and print one honest table.

    Finished rows stay in OUT; running again goes on after them.
    """
    from ditzoo.bench import prepare_quick, run_quick
    from ditzoo.bench.report import write_report

    names = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    run = prepare_quick(out, models=names, num_images=images, seed=seed, device=device)
    for problem in run.problems:
        click.echo(problem, err=True)
    if run.resumed:
        click.echo(
            f"Finished earlier, in {out}: {', '.join(run.resumed)}. For new measurements give another --out or "
            f"delete that folder."
        )
    try:
        with _progress_bars() as progress:
            run_quick(run, progress, num_workers=None)
    except KeyboardInterrupt:
        click.echo(f"\nStopped. {len(run.rows)} finished rows are in {out}; run the same command to go on.", err=True)
        sys.exit(130)
    paths = write_report(run)
    _print_quick(run)
    click.echo("\nWrote " + ", ".join(str(path) for path in [out / "results.jsonl", *paths]))


def _print_quick(run: QuickRun) -> None:
    from ditzoo.bench.report import HEADER, notes, table_cells

    click.echo()
    _print_columns(HEADER, table_cells(run))
    click.echo()
    for note in notes(run):
        click.echo(note)


@contextmanager
def _progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with time left for each stage; where nobody watches, a line when a stage ends."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: click.echo(f"{stage}: done", err=True) if done == total else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


def _print_columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Columns wide enough for their content, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if place == 0 or not _is_number_column(rows, place) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _is_number_column(rows: Sequence[tuple[str, ...]], place: int) -> bool:
    return all(not row[place] or row[place][0].isdigit() for row in rows)


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Advice to users without the place in the code; other warnings as Python has them."""
    formatted = warnings.formatwarning

    def in_a_line(message: Any, category: type[Warning], *place: Any, **more: Any) -> str:
        return f"ditzoo: {message}\n" if category is UserWarning else formatted(message, category, *place, **more)

    warnings.formatwarning = in_a_line
    try:
        yield
    finally:
        warnings.formatwarning = formatted


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: warnings, and errors a user can mend, are one line, without a traceback."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not record.name.startswith("huggingface_hub"))  # which prints what it logs itself
    logging.basicConfig(format="ditzoo: %(message)s", level=logging.WARNING, handlers=[handler])
    try:
        with _warnings_in_a_line():
            return cli.main(arguments, prog_name="ditzoo")
    except OSError as error:
        _fail(error.strerror if error.strerror and error.filename is None else str(error))
    except (ValueError, TypeError, ImportError, FloatingPointError) as error:
        _fail(str(error))


def _fail(reason: str) -> NoReturn:
    click.echo(f"ditzoo: {reason}", err=True)
    sys.exit(2)
