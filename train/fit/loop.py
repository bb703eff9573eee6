"""The training loop: stages one after the other, each resumable at any checkpoint, on Lightning Fabric."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.engine.runtime.manifest import MANIFEST_NAME
from deeplight.train.clips.samples import SampleSource
from deeplight.train.evaluation.scores import by_layers, rows_of, table
from deeplight.train.evaluation.validation import validate
from deeplight.train.fit.batch import FixedBatches
from deeplight.train.fit.checkpoint import save_checkpoint, thinned
from deeplight.train.fit.devices import make_fabric, worker_count
from deeplight.train.fit.estimates import EstimatedSource, affordable
from deeplight.train.fit.loader import Loaded, probe, stage_batches
from deeplight.train.fit.logs import Records, Reporter
from deeplight.train.fit.losses import one_process
from deeplight.train.fit.run_folder import BEST, STATE, claimed, clear
from deeplight.train.fit.settings import Settings, differences
from deeplight.train.fit.stages import DataFacts, TrainingStage, plan, schedule
from deeplight.train.fit.state import Position, Saved, load_state, restore, save_state
from deeplight.train.fit.supervision import Supervised, average, optimiser

_LESS_IS_BETTER = ("rmse", "mae")


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and what it is validated on. card: provenance for the checkpoint. simple: makes places
    for the stages that ask for simple ones, in memory for as long as they last; None: `train` is for all stages."""

    train: SampleSource
    held_out: SampleSource
    card: dict[str, Any]
    simple: Callable[[], SampleSource] | None = None

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints, SHA-256, of the training and the validation data."""
        return {"train": self.train.fingerprint(), "validation": self.held_out.fingerprint()}


def keep_heap() -> None:
    """Ask glibc to keep freed memory: torch on a CPU otherwise maps and faults every large tensor anew, each step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mmap for large blocks
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return  # not glibc: only speed is lost


def train(
    settings: Settings,
    data: TrainingData,
    run: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    reporter: Reporter | None = None,
    start: DeepLightSR | None = None,
) -> DeepLightSR:
    """Train on `data` and leave a checkpoint (averaged weights), the state and the records in `run`; see `stages.plan`.

    resume: go on from the state in `run`, or start where there is none. Otherwise what is in `run` is replaced.
    start: its weights are the first, in place of random ones; its configuration must be that of the settings.
    Returns the averaged weights, in eval mode. Raises InputError where the data, the device or a resumed run do not
    fit the settings, and DeepLightError, naming the batch, where the loss is no longer finite.
    """
    keep_heap()
    reporter = reporter or Reporter()
    trainer = _Trainer(settings, data, run, make_fabric(device, settings.training.precision), reporter, start)
    try:
        # of several processes only the first writes
        claim = claimed(run) if trainer.fabric.is_global_zero else contextlib.nullcontext()
        with claim, contextlib.closing(trainer):
            return trainer.go(resume)
    finally:
        reporter.stop()


@dataclass
class _Trainer:
    settings: Settings
    data: TrainingData
    run: Path
    fabric: Fabric
    reporter: Reporter
    start: DeepLightSR | None = None
    position: Position = field(default_factory=Position)
    records: Records | None = None
    facts: DataFacts = field(default_factory=lambda: DataFacts(False, False, ()))
    simple: SampleSource | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(self.settings.training.seed)
        model = DeepLightSR(self.settings.model)
        if self.start is not None:
            model.load_state_dict(self.start.state_dict())
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.fabric.to_device(model)
        self.model = model
        self.averaged = copy.deepcopy(self.model).eval()
        size = self.settings.training.batch
        limit = self.settings.data.validation_places
        rim = halo(self.settings.model)
        self.checks = FixedBatches(self.data.held_out, size, rim, limit, self.fabric.device)
        self.fingerprints = self.data.fingerprints()
        if size < self.fabric.world_size:
            raise InputError(
                f"training.batch = {size} is less than the {self.fabric.world_size} processes of this run; "
                "give each at least one window"
            )

    def go(self, resume: bool) -> DeepLightSR:
        """Make all stages that are not over yet, and return the averaged weights."""
        saved = self._saved() if resume else None
        if resume and saved is None:
            self.reporter.log(f"nothing to resume in {self.run}: starting")
        self.fabric.barrier()
        facts = self.facts = probe(self.data.train)
        stages, notes = plan(self.settings, facts, trained=self.start is not None)
        if saved:
            self.position = saved.position
            restore(saved, {"model": self.model, "averaged": self.averaged})
            _take_up(self.position, stages)
            self.reporter.log(f"resumed after {self.position.steps} steps")
        elif self.fabric.is_global_zero:
            clear(self.run)
        for note in notes:
            self.reporter.log(note)
        if self.fabric.is_global_zero:
            self.records = Records(self.run, self.position.steps)
        for stage in stages:
            if stage.name not in self.position.ended:
                self._stage(stage, facts, saved if stage.name == self.position.stage else None)
        if self.fabric.is_global_zero and not (self.run / MANIFEST_NAME).exists():
            # a run of an older version, or one whose data has nothing to validate on
            save_checkpoint(self.run, self.averaged, self._record(self.position.network_steps))
        if self.fabric.is_global_zero and len(self.checks):
            self._summary(facts)
        return self.averaged

    def _summary(self, facts: DataFacts) -> None:
        """Tell the quality with each set of the layers that the data have."""
        rows = rows_of(facts.dmo, facts.dem)
        self.reporter.start("scoring", 0, len(rows) * len(self.checks))
        self.reporter.log(table(by_layers(self.averaged, self.checks, rows, self.reporter.advance)))

    def close(self) -> None:
        """Write out the records."""
        if self.records:
            self.records.close()

    def _saved(self) -> Saved | None:
        """Read the state in the run's folder. Raises InputError where it belongs to other settings or data."""
        file = self.run / STATE
        if not file.exists():
            return None
        saved = load_state(file)
        changed = differences(self.settings, saved.settings)
        changed += [
            f"{name} data: fingerprint {then[:12]}… → {self.fingerprints[name][:12]}…"
            for name, then in saved.data.items()
            if then != self.fingerprints[name]
        ]
        if changed:
            raise InputError(
                f"{self.run} was started with other settings or data ({'; '.join(changed)}): give them as they were, "
                "or `overwrite=True` to start anew"
            )
        then, now = saved.settings["training"]["steps"], self.settings.training.steps
        if now < then:
            raise InputError(f"`steps` may grow with `resume=True`, not shrink: {then} → {now}")
        return saved

    def _stage(self, stage: TrainingStage, facts: DataFacts, saved: Saved | None) -> None:
        """Make the steps of a stage that are left, from the averaged weights of the stage before."""
        first = self.position.done.setdefault(stage.name, 0)
        if saved is None:
            self.model.load_state_dict(self.averaged.state_dict())
            self.position.stage, self.position.waited = stage.name, 0
        world = self.fabric.world_size
        across = self._mean_over_processes if world > 1 else one_process
        source, estimated = self._source(stage, facts)
        module = Supervised(self.model, stage, across, estimated=estimated)
        plain = optimiser(self.model, stage, self.settings.training.weight_decay)
        if saved is not None:
            restore(saved, {"model": self.model, "averaged": self.averaged}, plain)
            self.fabric.strategy.precision.load_state_dict(saved.scaler)
        wrapped, stepper = self.fabric.setup(module, plain)
        self.reporter.start(stage.name, first, stage.steps)
        for step, loaded in enumerate(self._batches(source, stage, facts, first), first):
            rate = schedule(step, stage.rate, stage.horizon, stage.warm_up, stage.floor)
            for group in plain.param_groups:
                group["lr"] = rate * group["relative"]
            loss, parts = self._step(wrapped, stepper, loaded)
            average(self.averaged, self.model, min(stage.average, (step + 1) / (step + 10)))
            self.position.done[stage.name] = step + 1
            self._tell(stage, step, {"loss": loss, **parts}, rate)
            if self._after(stage, step, plain):
                break

    def _source(self, stage: TrainingStage, facts: DataFacts) -> tuple[SampleSource, bool]:
        """Return what a stage draws from, and whether its offsets are the network's own estimates for whole places."""
        places = self._places(stage)
        if not (stage.estimated and facts.offset and affordable(places)):
            return places, False
        self.reporter.log(f"stage {stage.name}: estimating the offset of {len(places)} places")
        self.reporter.start("offsets of places", 0, len(places))
        return EstimatedSource(places, self.model, self.reporter.advance), True

    def _places(self, stage: TrainingStage) -> SampleSource:
        if not (stage.simple and self.data.simple):
            self.simple = None
            return self.data.train
        self.simple = self.simple or self.data.simple()
        return self.simple

    def _batches(
        self, source: SampleSource, stage: TrainingStage, facts: DataFacts, first: int
    ) -> Iterator[Loaded]:
        workers = worker_count(self.settings.data.workers, self.fabric, available_cpus())
        batches = stage_batches(
            source,
            stage,
            facts.aligned if stage.aligned else (),
            self.settings.training.seed,
            first,
            workers=workers,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            pin=self.fabric.device.type == "cuda",
        )
        for loaded in batches:
            self._note_unreadable(loaded.unreadable)
            yield loaded

    def _step(self, wrapped: Any, stepper: Any, loaded: Loaded) -> tuple[Tensor, dict[str, Tensor]]:
        """Make one step of the optimiser. Raises DeepLightError, before the weights change, where the loss is not
        finite."""
        loss, parts = wrapped(loaded.batch.to(self.fabric.device))
        stepper.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            wrapped, stepper, max_norm=self.settings.training.clip, error_if_nonfinite=False
        )
        total = loss.detach()
        if self.fabric.world_size > 1:
            total = self._mean_over_processes(total)
        # the scaler of 16-mixed meets gradients that are too large, passes over the step and lowers its factor
        checked = total if self.settings.training.precision == "16-mixed" else total + norm
        if not torch.isfinite(checked):
            self._stop_naming_the_batch(loss.detach(), parts, loaded)
        stepper.step()
        return total, parts

    def _stop_naming_the_batch(self, loss: Tensor, parts: dict[str, Tensor], loaded: Loaded) -> None:
        """Raise DeepLightError with the windows at fault, of all processes: those whose tensors are not finite, else
        those of the processes whose loss is not, else all.
        """
        told: list[Any] = [(loaded.not_finite(), bool(torch.isfinite(loss)), loaded.where)]
        if self.fabric.world_size > 1:
            everyone: list[Any] = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(everyone, told[0])
            told = everyone
        windows = [w for broken, _, _ in told for w in broken]
        windows = windows or [w for _, finite, where in told if not finite for w in where]
        windows = windows or [w for _, _, where in told for w in where]
        values = " ".join(f"{name} {float(v):.4g}" for name, v in parts.items())
        stage = self.position.stage
        raise DeepLightError(
            f"the loss became {float(loss):.4g} or its gradient infinite ({values}) at step "
            f"{self.position.done[stage]} of stage {stage}, on {'; '.join(windows)}: look at these data, or lower the "
            "learning rate"
        )

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        mean = self.fabric.all_reduce(value.detach().clone(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean

    def _tell(self, stage: TrainingStage, step: int, parts: dict[str, Tensor], rate: float) -> None:
        self.reporter.advance()
        if step % self.settings.training.log_every == 0:
            numbers = torch.stack(list(parts.values()))
            if self.fabric.world_size > 1:
                numbers = self._mean_over_processes(numbers)
            values = dict(zip(parts, numbers.tolist(), strict=True)) | {"rate": rate}
            self.reporter.step(stage.name, step, stage.steps, values)
            if self.records:
                self.records.add(self.position.steps, stage.name, values)

    def _after(self, stage: TrainingStage, step: int, plain: torch.optim.Optimizer) -> bool:
        """Validate and save where it is time to. Returns whether the stage is over."""
        config, last = self.settings.training, step + 1 == stage.steps
        stop = False
        if stage.validated and (last or (step + 1) % config.validate_every == 0):
            stop = self._validate(stage)
        if last or stop:
            self.position.ended[stage.name] = "steps" if last else "early"
        if (last or stop or (step + 1) % config.checkpoint_every == 0) and self.fabric.is_global_zero:
            scaler = self.fabric.strategy.precision.state_dict()
            meta = {"settings": self.settings.to_dict(), "data": self.fingerprints, "scaler": scaler}
            models = {"model": self.model, "averaged": self.averaged}
            save_state(self.run / STATE, models, plain, meta, self.position)
        return last or stop

    def _validate(self, stage: TrainingStage) -> bool:
        """Validate the averaged weights and write them, in the first process. Returns whether `patience` is at its
        end."""
        stop = False
        if self.fabric.is_global_zero:
            step = self.position.network_steps
            scores: dict[str, float] = {}
            if len(self.checks):
                scores = validate(self.averaged, self.checks, known_offset=stage.told)
            self._note_unreadable(self.checks.unreadable)
            entry = {"step": float(step), "known_offset": float(stage.told), **scores}
            self.position.history.append(entry)
            told = {k: v for k, v in entry.items() if self._exists(k)}
            self.reporter.log("validation " + " ".join(f"{k} {v:.4g}" for k, v in told.items()))
            if self.records:
                self.records.add(self.position.steps, f"validation {stage.name}", scores)
            self._keep(step, scores, stage)
            patience = self.settings.training.patience
            stop = stage.stops_early and 0 < patience <= self.position.waited
        stop = bool(self.fabric.broadcast(stop))
        if stop:
            self.reporter.log(
                f"stage {stage.name} ends early: nothing better in {self.position.waited} validations"
            )
        return stop

    def _exists(self, score: str) -> bool:
        """Whether the data have what a score is about: those without ISP or a true offset leave its score 0."""
        return (self.facts.isp or "isp" not in score) and (self.facts.offset or "offset" not in score)

    def _keep(self, step: int, scores: dict[str, float], stage: TrainingStage) -> None:
        """Write the last weights; also as the best, where no validation was better that aligned with its own
        estimate."""
        save_checkpoint(self.run, self.averaged, self._record(step))
        monitor = self.settings.training.monitor
        value = scores.get(monitor, math.nan) * (-1.0 if monitor in _LESS_IS_BETTER else 1.0)
        if stage.told or math.isnan(value):
            return
        self.position.waited += 1
        if self.position.best is None or value > self.position.best:
            self.position.best, self.position.waited = value, 0
            save_checkpoint(self.run / BEST, self.averaged, self._record(step))

    def _record(self, step: int) -> dict[str, Any]:
        """Return how the weights came about, for their manifest."""
        return {
            "step": step,
            "settings": self.settings.to_dict(),
            "data": {**self.data.card, "fingerprint": self.fingerprints},
            "history": thinned(self.position.history),
        }

    def _note_unreadable(self, met: dict[str, str]) -> None:
        """Name places that cannot be read, once each. Raises InputError where they are more than allowed."""
        limit = self.settings.data.unreadable
        for name, reason in met.items():
            if name not in self.position.unreadable:
                self.position.unreadable[name] = reason
                self.reporter.log(f"warning: skipped {name}: {reason}")
        if len(self.position.unreadable) > limit:
            names = ", ".join(list(self.position.unreadable)[:5])
            raise InputError(
                f"{len(self.position.unreadable)} clips cannot be read, more than data.unreadable = {limit} "
                f"({names}): repair or remove them; the last: {list(self.position.unreadable.values())[-1]}"
            )


def _take_up(position: Position, stages: list[TrainingStage]) -> None:
    """Reopen the stage of the whole network where it has grown since it ended; the one after it is then made anew."""
    for stage in stages:
        over = position.ended.get(stage.name) == "steps"
        if stage.name == "whole" and over and position.done[stage.name] < stage.steps:
            fresh = position.stage != stage.name
            for name in ("whole", "finish"):
                position.ended.pop(name, None)
            position.done.pop("finish", None)
            if fresh:
                position.stage = ""
