"""Who computes tiles, behind one interface: submit, collect, requeue, quarantine. Here: this process.

Only places and verdicts travel; pixels go from the worker that made them into packs. Storing a tile twice is
the same as storing it once, so a tile may be tried again wherever it is not known to have failed for good.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import counted
from deeplight.engine.run.stream import DROPPED, POLL_S, Stage, Stopped, Stream
from deeplight.engine.runtime.device import DeviceFailed

TRIES = 3
"""Workers that a tile may fail on before it is put into quarantine."""
MOST_QUARANTINED = 10
"""A run with more tiles than that in quarantine ends at once: then not the tiles are at fault."""
TILE_TIMEOUT_S = 1800.0
"""How long a worker may take for one step of one tile."""


class TileFailed(DeepLightError):
    """Something is wrong with one tile alone, so that the others go on. final: another try would not help."""

    def __init__(self, sentence: str, *, final: bool) -> None:
        super().__init__(sentence)
        self.final = final


@dataclass(frozen=True)
class Task:
    """A tile to compute. core: in LR pixels. lane: tasks of one lane share source blocks, so one reader
    should take them; None: whoever is free. tried: how often it failed."""

    core: Window
    lane: int | None = 0
    tried: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task. worker: who had it. error: None where it is stored."""

    task: Task
    worker: str
    error: Exception | None = None


@dataclass(frozen=True)
class Quarantined:
    """A tile that was given up, the last reason, and the workers that it failed on."""

    core: Window
    reason: str
    workers: tuple[str, ...]


def check_all_done(quarantined: Sequence[Quarantined]) -> None:
    """Raise DeepLightError, naming tiles, where some were given up."""
    if not quarantined:
        return
    places = ", ".join(f"row {q.core.row} column {q.core.col}" for q in quarantined[:5])
    more = ", …" if len(quarantined) > 5 else ""
    raise DeepLightError(
        f"{counted(len(quarantined), 'tiles')} could not be computed (LR pixels {places}{more}) and the output was not "
        f"written; all others are kept for `resume=True`; the first reason: {quarantined[0].reason}"
    )


class Executor(ABC):
    """Runs tasks somewhere. A context manager; all methods are called from one thread.

    An implementation gives `submit`, `collect` and `close`; a task that failed comes back through `submit`,
    and one with workers of its own (hosts) must hand it to one that has not failed on it while there is one.
    """

    capacity: int = 1
    """Tasks that may be submitted and not collected yet: places only, so it may exceed the tiles in memory."""

    def __init__(self) -> None:
        self.quarantined: list[Quarantined] = []
        self.requeued: list[Outcome] = []
        """Failures that were answered by another try."""
        self._failed: dict[Window, list[str]] = {}

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Accept a task; does not block."""

    @abstractmethod
    def collect(self) -> Outcome:
        """Wait for the next task to end, well or not. Raises what makes going on pointless: a full disk, a
        signal, a defect."""

    @abstractmethod
    def close(self, error: BaseException | None = None) -> None:
        """No more tasks come. Wait for the workers; `error`: stop them and drop what they have."""

    def requeue(self, outcome: Outcome) -> None:
        """Try a failed task again."""
        self.requeued.append(outcome)
        self.submit(replace(outcome.task, tried=outcome.task.tried + 1))

    def quarantine(self, outcome: Outcome) -> None:
        """Give a task up; the others go on. Raises DeepLightError where there are too many."""
        core = outcome.task.core
        self.quarantined.append(Quarantined(core, str(outcome.error), tuple(self._failed[core])))
        if len(self.quarantined) > MOST_QUARANTINED:
            raise DeepLightError(
                f"more than {MOST_QUARANTINED} tiles failed, so the run was stopped; the last reason: "
                f"{outcome.error}"
            )

    def run(self, tasks: Iterable[Task | None], seen: Callable[[Outcome], None] = lambda _: None) -> None:
        """Compute all tasks: each ends stored or in quarantine. A task None: there is no other yet, so that it is asked
        again after the next outcome. seen: told of every outcome."""
        waiting, open_tasks = iter(tasks), 0
        exhausted = False
        while True:
            while not exhausted and open_tasks < self.capacity:
                try:
                    task = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                if task is None:
                    break
                self.submit(task)
                open_tasks += 1
            if not open_tasks and exhausted:
                return
            if not open_tasks:
                continue
            outcome = self.collect()
            seen(outcome)
            if outcome.error is None or not self._again(outcome):
                open_tasks -= 1

    def _again(self, outcome: Outcome) -> bool:
        """Requeue or quarantine a failed task; True where it is tried again."""
        workers = self._failed.setdefault(outcome.task.core, [])
        workers.append(outcome.worker)
        final = isinstance(outcome.error, TileFailed) and outcome.error.final
        if final or len(workers) >= TRIES:
            self.quarantine(outcome)
            return False
        self.requeue(outcome)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)


@dataclass
class Job:
    """A task and what the stages made of it so far."""

    task: Task
    payload: Any = None
    settled: bool = False


class _Inbox:
    """Tasks for the readers: each stays in its lane as long as that has any. A stream.Source."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        self._lane: dict[int, int | None] = {}
        self._ended = self._aborted = False
        self._changed = threading.Condition()

    def put(self, task: Task) -> None:
        with self._changed:
            if task.tried:
                self._tasks.appendleft(task)
            else:
                self._tasks.append(task)
            self._changed.notify_all()

    def get(self, worker: int) -> Job:
        with self._changed:
            while (task := self._choose(worker)) is None:
                if self._aborted:
                    raise Stopped
                if self._ended and not self._tasks:
                    raise StopIteration
                self._changed.wait()
            self._tasks.remove(task)
            # Who helps with a retry is in no lane for it, or two readers would keep each other out.
            if not task.tried:
                self._lane[worker] = task.lane
            self._changed.notify_all()
            return Job(task)

    def _choose(self, worker: int) -> Task | None:
        """A retry; the next of the worker's own lane; of one that no other reader is in. Else None: to help
        another reader would be to decode its blocks again."""
        if self._aborted:
            return None
        own = self._lane.get(worker)
        others = {lane for reader, lane in self._lane.items() if reader != worker}
        fitting = [t for t in self._tasks if t.tried or t.lane is None or t.lane not in others]
        return min(fitting, key=lambda t: 0 if t.tried else 1 if t.lane == own else 2, default=None)

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._aborted = True
            self._changed.notify_all()


class LocalExecutor(Executor):
    """Threads of this process: readers → device → writers, joined by bounded queues.

    read: core → tile. infer: tile → tile, from `streams` threads. write: tile → None; its errors other than
    TileFailed end the run. ahead: tiles that may wait for a writer. A reader that takes longer than timeout_s (a
    network disk that hangs) is left behind and its tile tried by another thread; a model or a disk that does ends the
    run.
    """

    def __init__(
        self,
        read: Callable[[Window], Any],
        infer: Callable[[Any], Any],
        write: Callable[[Any], None],
        *,
        readers: int = 1,
        streams: int = 1,
        writers: int = 1,
        ahead: int = 1,
        timeout_s: float | None = TILE_TIMEOUT_S,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.capacity = 4 * (readers + streams + writers)
        self._timeout_s = timeout_s
        self._settling = threading.Lock()
        self._inbox = _Inbox()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._read = self._guarded(lambda job: read(job.task.core), (DeepLightError, OSError, MemoryError))
        self._infer = self._guarded(lambda job: infer(job.payload), (DeepLightError, MemoryError))
        self._write = self._guarded(lambda job: write(job.payload), (TileFailed,))
        self.stages = [
            Stage("read", self._read, readers),
            Stage("infer", self._infer, streams),
            Stage("write", self._end, writers),
        ]
        # A tile that was read waits in its reader's hands: one more would cost its memory and gain nothing.
        self._stream = Stream(self._inbox, self.stages, depths=(streams - 1, ahead), on_stop=on_stop)
        self._stream.start()

    def submit(self, task: Task) -> None:
        """Put the task where the readers take theirs from; does not block."""
        self._inbox.put(task)

    def collect(self) -> Outcome:
        """Wait for the next task to end; meanwhile give up workers that take too long."""
        while True:
            try:
                return self._outcomes.get(timeout=POLL_S)
            except queue.Empty:
                self._stream.check()
                self._watch()

    def close(self, error: BaseException | None = None) -> None:
        """No more tasks come: wait for the threads. error: stop them and drop the tiles that they have."""
        if error is not None:
            self._stream.stop(error)
        self._inbox.end()
        self._stream.join()

    def _end(self, job: Job) -> Any:
        if self._write(job) is not DROPPED:
            self._outcomes.put(Outcome(job.task, threading.current_thread().name))
        return DROPPED

    def _guarded(self, work: Callable[[Job], Any], expected: tuple[type[Exception], ...]) -> Any:
        """A stage's work that reports what may happen to a single tile, and raises everything else."""

        def guarded(job: Job) -> Any:
            try:
                return Job(job.task, work(job))
            except expected as error:
                if isinstance(error, InputError | DeviceFailed):
                    raise
                if self._settle(job):
                    self._outcomes.put(Outcome(job.task, threading.current_thread().name, error))
                return DROPPED

        return guarded

    def _settle(self, job: Job) -> bool:
        """Whether this is the first verdict on a job: its worker and the watch may both want to give one."""
        with self._settling:
            first, job.settled = not job.settled, True
            return first

    def _watch(self) -> None:
        """Give up workers that take too long."""
        for worker, job in self._stream.overdue(self._timeout_s) if self._timeout_s is not None else []:
            core, stage = job.task.core, worker.stage.name
            reading = stage == self.stages[0].name
            # in this order: a worker that fails in between still gives its verdict, and only one counts
            if not self._stream.abandon(worker, job, replace=reading) or not self._settle(job):
                continue
            error = DeepLightError(
                f"{stage} took longer than {self._timeout_s:g} s for the tile at row {core.row}, column "
                f"{core.col}: check the disk or network, then make the same call with `resume=True`"
            )
            if not reading:
                raise error
            self._outcomes.put(Outcome(job.task, repr(worker), error))
