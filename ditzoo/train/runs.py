"""A run: training with a folder, in which the same call goes on where a killed one stopped."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditzoo import __version__, registry
from ditzoo.data.latents import LatentCache
from ditzoo.data.source import Source
from ditzoo.media import Codec, LabelNames, load_codec, load_codec_for_recipe
from ditzoo.media.files import remove_leftovers, writing
from ditzoo.metrics import FrechetDistance
from ditzoo.models import DiffusionTransformer, ModelDetails
from ditzoo.train.averages import SNAPSHOTS, write_snapshots
from ditzoo.train.card import trained_details, write_card
from ditzoo.train.checkpoints import Checkpoint, Checkpoints, load_state, num_bytes
from ditzoo.train.claiming import claimed, remove
from ditzoo.train.config import RunConfig, read_yaml
from ditzoo.train.devices import Devices, make_devices
from ditzoo.train.finetune import add_lora, freeze, merged, start_model
from ditzoo.train.guards import SpikeWatch
from ditzoo.train.loop import Step, Training
from ditzoo.train.monitor import Evaluator, MetricsFile, Trackers, check_trackers, distance_values, draw_grid
from ditzoo.train.network import meta_network, network_options, open_data, run_recipe
from ditzoo.train.signals import StopSignals
from ditzoo.train.state import check_optimizer, full_averages, full_state, restore
from ditzoo.weights.folders import CHECKPOINTS, RUN_CONFIG

METRICS, SAMPLES = "metrics.jsonl", "samples"
#: What else a run leaves in its folder, for `overwrite`.
_LEFT = (METRICS, SAMPLES, SNAPSHOTS, CHECKPOINTS, "README.md", "samples.png", "tensorboard", "wandb")
#: Losses before that say what a spike is, and what the loss at the end is.
_RECENT = SpikeWatch.window

#: A bit that no signal has: in some process, files could not be read.
_UNREADABLE = 1 << 8
#: Parameters below which one thread is faster than two.
_TINY = 10**6

_logger = logging.getLogger("ditzoo")


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: of the run.
        seen: images, over all of its parts.
        finished: False where it was stopped before.
        checkpoint: the newest one.
        stopped_by: the signal that stopped it, whichever process received it.
        loss: mean of the last steps.
        distance: the last that was measured.
    """

    folder: Path
    seen: int
    finished: bool
    checkpoint: Path
    stopped_by: int | None = None
    loss: float | None = None
    distance: FrechetDistance | None = None


def run(
    config: RunConfig,
    *,
    stop_at: int | None = None,
    command: str | None = None,
    on_row: Callable[[Mapping[str, Any]], None] | None = None,
) -> RunResult:
    """Train as the settings say, or go on with the run that their folder holds.

    What is in the folder: `run.yaml`, the settings; `metrics.jsonl`, a row each `log_every` images; `samples/`,
    pictures drawn with the averaged weights from the same noise; `checkpoints/`, each a model that can be loaded,
    sampled and pushed; and a `README.md`, the model's card.

    SIGTERM and SIGINT end the run after the step at hand, with a checkpoint; a second SIGINT, at once. A run that was
    killed in any other way goes on from its newest whole checkpoint.

    Args:
        config: from `make_config`.
        stop_at: stop once so many images are seen, with a checkpoint: a part of a run that is planned longer.
        command: that is recorded with the model.
        on_row: called in the main process with each row of metrics.

    Raises:
        ValueError: for settings that contradict each other or the data, for a folder that holds another run (the
            message names the fields that differ), and for a `stop_at` below 1.
        OSError: for data that is not there, too many unreadable files, a folder that cannot be written, too little
            space for the next checkpoint, and a folder in which another process trains.
        FloatingPointError: at the first loss or gradient that is not finite, where the settings say to stop.
        ImportError: for a package that is missing, naming the extra to install.
    """
    if stop_at is not None and stop_at < 1:
        raise ValueError(f"stop_at must be 1 or more, got {stop_at}.")
    devices = make_devices(config, config.device)
    with ExitStack() as stack:
        if devices.is_main:
            stack.enter_context(claimed(config.folder))
        stop = stack.enter_context(StopSignals())
        stack.enter_context(_threads_put_back())
        result = _Run(config, devices, command, on_row).train(stop, stop_at)
    devices.close()
    return result


class _Run:
    """Everything that a run has, from its settings to its files."""

    def __init__(
        self,
        config: RunConfig,
        devices: Devices,
        command: str | None,
        on_row: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        self.config, self.devices, self.on_row = config, devices, on_row
        self.folder = config.folder
        self.codec: Codec | None = None
        self.distance: FrechetDistance | None = None
        self.pending: list[Step] = []
        self.recent: list[float] = []
        self.seconds, self.logged = 0.0, 0
        network = meta_network(config)
        self.source = open_data(config, network)
        self._check_same_data()
        model = _model(config, network_options(config, network, self.source))
        self.recipe = run_recipe(config, model, latents=isinstance(self.source, LatentCache))
        self._open_codec(model)
        self.before = _with_names_of(self.source, model)
        if devices.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and _is_tiny(model):
            torch.set_num_threads(1)
        if config.lora_rank:
            add_lora(
                model,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                targets=config.lora_targets or None,
                seed=config.seed,
            )
        if config.freeze:
            freeze(model, config.freeze)
        self.evaluator = self._evaluator() if config.evaluate_every else None
        if config.trackers:
            check_trackers(config.trackers)
        self.metrics = MetricsFile(self.folder / METRICS)
        self._check_folder()
        self.checkpoints = Checkpoints(
            self.folder / CHECKPOINTS, keep_last=config.keep_last, keep_every=config.keep_every or None
        )
        self.training = Training(model, self.recipe, config, devices)
        self.command = command
        self._begin()
        self._resume(self._newest())

    def train(self, stop: StopSignals, stop_at: int | None) -> RunResult:
        """The run, step by step."""
        config, training = self.config, self.training
        end = config.num_images if stop_at is None else min(stop_at, config.num_images)
        watch = SpikeWatch(config.spike_factor, self.recent)
        before = training.seen
        clock = time.perf_counter()
        signals = 0
        with closing(training.steps(self.source, num_workers=config.num_workers)) as steps:
            for step in steps if before < end else ():
                self.seconds += time.perf_counter() - clock
                if step.number == 1:
                    check_optimizer(training.weights, training.optimizer)

                # What all processes met.
                flags = self.devices.any(stop.received | (_UNREADABLE if step.unreadable else 0))
                signals = flags & ~_UNREADABLE
                if flags & _UNREADABLE:
                    step = step._replace(unreadable=tuple(chain(*self.devices.gather(step.unreadable))))
                self._note(step, watch)

                # What is due, each at its own cadence in images, and at the end.
                ends, stops = step.seen == config.num_images, step.seen >= end or signals
                if _is_due(config.log_every, before, step.seen) or ends:
                    self._log(step)
                if config.sample_every and (_is_due(config.sample_every, before, step.seen) or ends):
                    self._draw(step)
                if self.evaluator and (_is_due(config.evaluate_every, before, step.seen) or ends):
                    self._evaluate(step)
                if _is_due(config.checkpoint_every, before, step.seen) or stops:
                    self._save()
                before = step.seen
                if stops:
                    break
                clock = time.perf_counter()
        if self.metrics.trackers is not None:
            self.metrics.trackers.close()
        assert training.newest_checkpoint is not None
        return RunResult(
            folder=self.folder,
            seen=training.seen,
            finished=training.seen >= config.num_images,
            checkpoint=training.newest_checkpoint,
            stopped_by=signals or None,
            loss=sum(self.recent[-50:]) / len(self.recent[-50:]) if self.recent else None,
            distance=self.distance,
        )

    # The start.

    def _check_same_data(self) -> None:
        """That all processes have the same data: machines may have copies of their own, of which one is not whole."""
        mine, first = self.source.fingerprint, self.devices.broadcast(self.source.fingerprint)
        if mine != first:
            raise ValueError(
                f"data {self.config.data!r} of process {self.devices.rank} is not that of process 0: its fingerprint "
                f"is {mine[:12]} instead of {first[:12]}. Give all machines the same files."
            )

    def _open_codec(self, model: DiffusionTransformer) -> None:
        """Check the latents, and load what decodes samples, if any will be drawn: what is missing is told here, and not
        after hours.

        Raises:
            ValueError: for latents that are not the recipe's, and a codec without latents.
            OSError: for an autoencoder that cannot be had.
        """
        config, recipe = self.config, self.recipe
        if not isinstance(self.source, LatentCache):
            if config.codec is not None:
                raise ValueError(
                    f"codec {config.codec!r} decodes latents, and the data holds pixels; leave it out, or "
                    "encode the data first (`ditzoo encode`)."
                )
            return
        manifest = self.source.manifest
        if config.codec is None:
            manifest.check_fits(recipe)
        name = config.codec or recipe.latent_codec
        if name is None or not (config.codec or config.sample_every or config.evaluate_every):
            return
        try:
            scale, shift, device = recipe.latent_scale, recipe.latent_shift, self.devices.device
            if config.codec is None:
                self.codec = load_codec(name, scale=scale, shift=shift, device=device)
            else:
                self.codec = load_codec_for_recipe(name, latent_scale=scale, latent_shift=shift, device=device)
        except OSError as error:
            raise OSError(
                f"samples of latents need an autoencoder: {error} Set codec to the folder, or sample_every and "
                "evaluate_every to 0 to train without samples."
            ) from error
        self.codec.check_fits(model.in_channels)
        # A tiny autoencoder stands in for another one's decoder; its own encoder did not make these latents.
        manifest.check_fits(recipe, codec=self.codec if self.codec.has_posterior else None)

    def _evaluator(self) -> Evaluator:
        return Evaluator(
            self.recipe,
            self.source,
            num_samples=self.config.evaluation_samples,
            seed=self.config.seed,
            features=self.config.evaluation_features,
            codec=self.codec,
            device=self.devices.device,
        )

    def _check_folder(self) -> None:
        """That the folder is new, or holds this run.

        Raises:
            ValueError: it holds another one, or something else.
        """
        if (self.folder / RUN_CONFIG).exists():
            if not self.config.overwrite:
                self._check_same_run(RunConfig.from_dict(read_yaml(self.folder / RUN_CONFIG)))
        elif any(not path.name.startswith(".") for path in self.folder.glob("*")):
            raise ValueError(
                f"{self.folder} holds something, but no {RUN_CONFIG} of a run; give another name with out."
            )

    def _check_same_run(self, saved: RunConfig) -> None:
        starts = self.metrics.rows("start")
        fingerprint = starts[0]["data_fingerprint"] if starts else self.source.fingerprint
        same_data = fingerprint == self.source.fingerprint
        differing = self.config.differences(saved, same_data=same_data)
        if differing:
            lines = "; ".join(f"{name} was {there!r}, is {here!r}" for name, (here, there) in differing.items())
            raise ValueError(
                f"{self.folder} holds a run of other settings: {lines}. Give them as they were to go on, another name "
                "with out to start anew, or overwrite to delete what is there."
            )
        if not same_data:
            raise ValueError(
                f"data {self.config.data!r} has changed since {self.folder} began: its fingerprint was "
                f"{fingerprint[:12]}, is {self.source.fingerprint[:12]}. Restore the data, or start anew with another "
                "out."
            )

    def _begin(self) -> None:
        """Make the folder this run's: nothing is written or deleted before all else is known to fit."""
        self.devices.barrier()
        if self.devices.is_main:
            if self.config.overwrite and (self.folder / RUN_CONFIG).exists():
                for name in _LEFT:
                    remove(self.folder / name)
            for folder in (self.folder, self.folder / SAMPLES, self.folder / SNAPSHOTS):
                remove_leftovers(folder)
            with writing(self.folder / RUN_CONFIG) as temporary:
                temporary.write_text(replace(self.config, overwrite=False).to_yaml(), encoding="utf-8")

    def _newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, the same in all processes."""
        return self.devices.broadcast(self.checkpoints.newest() if self.devices.is_main else None)

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        training = self.training
        if checkpoint is not None:
            restore(load_state(checkpoint), training.weights, training.averages, training.optimizer)
            extra = checkpoint.extra
            self.devices.load_state_dict(extra["devices"])
            self.pending = [Step(*row) for row in extra["pending"]]
            self.recent = list(extra["recent"])
            self.seconds, self.logged = extra["seconds"], extra["logged"]
            if extra["distance"] is not None:
                self.distance = FrechetDistance(**extra["distance"])
            training.seen, training.step = checkpoint.seen, checkpoint.step
            training.newest_checkpoint = checkpoint.path
        if not self.devices.is_main:
            return
        self.metrics.truncate(training.seen if checkpoint is not None else -1)
        if self.config.trackers:
            settings = self.config.to_dict()
            self.metrics.trackers = Trackers(self.config.trackers, run=self.folder, config=settings, seen=training.seen)
        self._row(
            "start",
            data=self.source.name,
            data_fingerprint=self.source.fingerprint,
            num_samples=len(self.source),
            ditzoo=__version__,
            torch=torch.__version__,
            device=str(self.devices.device),
            processes=self.devices.world,
            command=self.command,
        )

    # During the run.

    def _row(self, kind: str, **values: Any) -> None:
        if not self.devices.is_main:
            return
        self.metrics.append(kind, self.training.seen, **values)
        if self.on_row is not None:
            self.on_row({"kind": kind, "seen": self.training.seen, **values})

    def _note(self, step: Step, watch: SpikeWatch) -> None:
        """Remember a step, and tell what is unusual about it."""
        loss = step.terms["loss"]
        if step.updated:
            self.pending.append(step._replace(unreadable=()))
            self.recent = [*self.recent[-_RECENT + 1 :], loss]
        for message in step.unreadable:
            if self.devices.is_main:
                _logger.warning("%s", message)
            self._row("event", event="unreadable", message=message)
        if spike := watch.check(loss):
            message = f"step {step.number} ({step.seen:,} images seen): {spike}"
            self._row("event", event="loss spike", message=message)
        if not step.updated:
            message = (
                f"step {step.number} ({step.seen:,} images seen) is left out: loss {loss:g}, norm of the gradient "
            )
            message += f"{step.grad_norm:g}"
            self._row("event", event="step left out", message=message)

    def _log(self, step: Step) -> None:
        """A row of the steps since the last one."""
        steps, count, images = self.pending, len(self.pending), step.seen - self.logged
        means = {name: sum(each.terms[name] for each in steps) / count if count else None for name in step.terms}
        self._row(
            "train",
            step=step.number,
            loss=means.pop("loss"),
            **{f"loss_{name}": value for name, value in means.items()},
            learning_rate=step.learning_rate,
            grad_norm=sum(each.grad_norm for each in steps) / count if count else None,
            images_per_second=images / self.seconds if self.seconds else None,
        )
        self.pending, self.seconds, self.logged = [], 0.0, step.seen

    def _draw(self, step: Step) -> None:
        with self.training.averaged_model() as ema:
            if self.devices.is_main:
                try:
                    draw_grid(
                        merged(ema).to(self.devices.device),
                        self.recipe,
                        self.folder / SAMPLES / f"{step.seen:09d}.png",
                        seed=self.config.seed,
                        rows=self.config.grid_rows,
                        columns=self.config.grid_columns,
                        codec=self.codec,
                        label_names=self.before.label_names,
                    )
                except FloatingPointError as error:
                    self._row("event", event="no samples", message=str(error))
        self.devices.barrier()  # GPUs wait for each other less patiently than this

    def _evaluate(self, step: Step) -> None:
        """All processes share the samples."""
        evaluator, devices = self.evaluator, self.devices
        assert evaluator is not None
        total = self.config.evaluation_samples
        share = range(devices.rank * total // devices.world, (devices.rank + 1) * total // devices.world)
        found: list[Tensor | str] = []
        with self.training.averaged_model() as ema:
            try:
                if share:
                    found.append(evaluator.features(merged(ema).to(devices.device), share))
            except FloatingPointError as error:
                found.append(str(error))
        parts = list(chain(*devices.gather(found)))
        if errors := [part for part in parts if isinstance(part, str)]:
            self._row("event", event="no distance", message=errors[0])
        elif devices.is_main:
            self.distance = evaluator.distance(torch.cat([part for part in parts if isinstance(part, Tensor)]))
            self._row("evaluation", step=step.number, **distance_values(self.distance))
        devices.barrier()  # as in `_draw`

    def _save(self) -> None:
        """A checkpoint, the card, and snapshots of the power-function averages."""
        training, devices, config = self.training, self.devices, self.config
        state = full_state(training.weights, training.averages, training.optimizer, is_main=devices.is_main)
        if config.ema_profiles:
            whole = full_averages(training.averages, is_main=devices.is_main)
            if devices.is_main:
                profiles = [tensor for key, group in whole.items() if key != "ema" for tensor in group.values()]
                self.checkpoints.check_space(num_bytes([*state.tensors.values(), *profiles]))
                write_snapshots(self.folder / SNAPSHOTS, whole, training.seen)
        with training.averaged_model() as ema:
            if devices.is_main:
                model = merged(ema)
                model.details = self._details()
                extra = {
                    "devices": devices.state_dict(),
                    "pending": [list(step) for step in self.pending],
                    "recent": self.recent,
                    "seconds": self.seconds,
                    "logged": self.logged,
                    "distance": None if self.distance is None else asdict(self.distance),
                }
                path = self.checkpoints.save(model, state, seen=training.seen, step=training.step, extra=extra)
                training.newest_checkpoint = path
                picture = max((self.folder / SAMPLES).glob("*.png"), default=None)
                write_card(self.folder, model, picture=picture)
        training.newest_checkpoint = devices.broadcast(training.newest_checkpoint)

    def _details(self) -> ModelDetails:
        return trained_details(
            self.before,
            recipe=replace(self.recipe, weights="ema"),
            options=self.config,
            losses=self.recent,
            seen=self.training.seen,
            distance=self.distance,
            data=self.source.name,
            command=self.command,
        )


def _model(config: RunConfig, options: Mapping[str, Any]) -> DiffusionTransformer:
    """The network with the weights that training starts from; fresh ones depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.from_weights is not None:
            return start_model(config.from_weights, model=config.model, **options)
        assert config.model is not None
        return registry.create(config.model, **options)


def _with_names_of(source: Source, model: DiffusionTransformer) -> ModelDetails:
    """The model's details, with the names that the data gives its classes: all classes of the network have one, or none
    has.

    Raises:
        ValueError: for a name that is empty.
    """
    if source.label_names is None:
        return model.details
    LabelNames(source.label_names)
    details = replace(model.details, label_names=source.label_names).for_classes(model.num_classes)
    if model.num_classes and details.label_names is None:
        _logger.warning(
            "The names of the %d classes of the data are left out: the network has %d.",
            len(source.label_names),
            model.num_classes,
        )
    return details


def _is_tiny(model: DiffusionTransformer) -> bool:
    """Whether threads would only wait for each other, and on a busy machine for long."""
    return sum(weight.numel() for weight in model.parameters()) < _TINY


@contextmanager
def _threads_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_due(every: int, before: int, seen: int) -> bool:
    """Whether a multiple of `every` images lies in (before, seen]."""
    return every > 0 and seen // every > before // every
