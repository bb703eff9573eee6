"""Batches of augmented windows from a source, read by worker processes; memory holds a few batches at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import torch
from torch.utils.data import DataLoader, Dataset

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import SampleSource
from deeplight.train.fit.augment import augmented
from deeplight.train.fit.batch import Batch, collated
from deeplight.train.fit.config import AugmentConfig, VarietyConfig
from deeplight.train.fit.parts import Parts, window_parts
from deeplight.train.fit.sampler import Draw, StepSampler, Windows
from deeplight.train.fit.stages import DataFacts, TrainingStage

_ATTEMPTS = 1000
_PROBED, _PROBE_SIDE = 512, 4
"""Places that are looked at, evenly taken, to find out what the data offer, and the window read of each."""


@dataclass(frozen=True)
class Loaded:
    """One step's batch. where: a name for each window. unreadable: places met that cannot be read, with the reason."""

    batch: Batch
    where: list[str]
    unreadable: dict[str, str]

    def not_finite(self) -> list[str]:
        """Return the names of the windows that hold a number that is not finite."""
        tensors = [*self.batch.inputs, self.batch.ntl_hr, self.batch.isp]
        return [
            name for k, name in enumerate(self.where) if not all(bool(t[k].isfinite().all()) for t in tensors)
        ]

    def pin_memory(self) -> Loaded:
        """Return the same with the batch in pinned memory; the DataLoader calls it."""
        return Loaded(self.batch.pin_memory(), self.where, self.unreadable)


@dataclass(frozen=True)
class _Item:
    parts: Parts
    where: str
    unreadable: dict[str, str]


class WindowDataset(Dataset[_Item]):
    """Gives the augmented window of a draw. An unreadable place is replaced by another one, the same in every
    process."""

    def __init__(
        self,
        source: SampleSource,
        windows: Windows,
        augment: AugmentConfig,
        margin: int,
        variety: VarietyConfig | None = None,
    ) -> None:
        self._source, self._windows = source, windows
        self._augment, self._variety, self._margin = augment, variety, margin
        self._unreadable: dict[int, str] = {}

    def __getitem__(self, draw: Draw) -> _Item:
        """Return the window of a draw. Raises InputError where no place that is tried can be read."""
        with _one_thread():
            return self._made(draw)

    def _made(self, draw: Draw) -> _Item:
        met: dict[str, str] = {}
        for attempt in range(_ATTEMPTS):
            at = draw if attempt == 0 else self._windows.again(draw, attempt)
            if at.place not in self._unreadable:
                try:
                    sample = self._source.read(at.place, at.window)
                except InputError as error:
                    self._unreadable[at.place] = str(error)
                else:
                    parts = window_parts(sample, self._windows.size(at), self._windows.crop, self._margin)
                    made = augmented(
                        parts, self._augment, draw.rng(), self._variety, lambda: self._other(draw)
                    )
                    return _Item(made, self._where(at), met)
            met[self._source.name(at.place)] = self._unreadable[at.place]
        raise InputError(f"no clip can be read; the first that failed: {next(iter(met.values()))}")

    def _other(self, draw: Draw) -> Parts | None:
        """A window of another draw, for layers that belong elsewhere; None where it cannot be read."""
        at = self._windows.other(draw)
        if at.place in self._unreadable:
            return None
        try:
            sample = self._source.read(at.place, at.window)
        except InputError as error:
            self._unreadable[at.place] = str(error)
            return None
        return window_parts(sample, self._windows.size(at), self._windows.crop, self._margin)

    def _where(self, draw: Draw) -> str:
        w = draw.window
        return f"{self._source.name(draw.place)} [row {w.row}, column {w.col}, {w.height}×{w.width}]"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as a worker process has it: sums by several threads would have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _collate(items: list[_Item]) -> Loaded:
    unreadable = {name: reason for item in items for name, reason in item.unreadable.items()}
    return Loaded(collated([item.parts for item in items]), [item.where for item in items], unreadable)


def _quiet_worker(_: int) -> None:
    """A key that stops the run, and a terminal that is closed, reach its workers too: they end when the main process
    does."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _no_word_of_partings


def _no_word_of_partings(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """For the thread that hands tensors over: a main process that is stopped amid that is nothing to report."""
    if not issubclass(kind, EOFError | OSError | multiprocessing.ProcessError):
        sys.__excepthook__(kind, error, trace)


def stage_batches(
    source: SampleSource,
    stage: TrainingStage,
    places: tuple[int, ...],
    seed: int,
    first: int,
    *,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Iterator[Loaded]:
    """Yield the batches of the steps [first, stage.steps) for one process of `world`; the same for any `workers`.

    places: indices to draw from; empty: all. Raises InputError where nothing can be read.
    """
    windows = Windows(source, stage.crop, places)
    dataset = WindowDataset(source, windows, stage.augment, stage.margin, stage.variety)
    sampler = StepSampler(windows, stage.batch, (seed, stage.number), range(first, stage.steps), rank, world)
    if not workers:
        # without the DataLoader, whose fetcher would turn errors into its own
        return (_collate([dataset[draw] for draw in draws]) for draws in sampler)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_quiet_worker,
        pin_memory=pin,
        # its own, so that starting workers does not move the state that a resumed run takes up
        generator=torch.Generator(),
    )
    return iter(loader)


def probe(source: SampleSource) -> DataFacts:
    """Find out what the data offer, from small windows of up to 512 places; unreadable places are passed over.

    The offset counts as known only where every place knows it: a batch carries it for all of its windows or for none.
    """
    known: list[bool] = []
    isp, dmo, dem, aligned = False, False, False, []
    for index in range(0, len(source), max(1, -(-len(source) // _PROBED))):
        h, w = source.size(index)
        height, width = min(h, _PROBE_SIDE), min(w, _PROBE_SIDE)
        try:
            sample = source.read(index, Window((h - height) // 2, (w - width) // 2, height, width))
        except InputError:
            continue
        isp = isp or bool(sample.isp_valid.any())
        dmo = dmo or bool(sample.dmo_valid.any())
        dem = dem or bool(sample.dem_valid.any())
        known.append(sample.offset is not None)
        if sample.offset is not None and not sample.offset.any():
            aligned.append(index)
    return DataFacts(bool(known) and all(known), isp, tuple(aligned), dmo, dem)
