"""The packs that a worker is asked for, one after the other, through stages that stay open between them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import zip_longest

from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.packs import PackStore
from deeplight.engine.run.engine import Engine
from deeplight.engine.run.executor import Outcome, Task, TileFailed
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import Run
from deeplight.engine.run.planned import PlannedRun
from deeplight.engine.run.tiling import TilePlan, cores
from deeplight.engine.run.work import Tile
from deeplight.engine.run.workers.messages import Made
from deeplight.engine.run.workers.segments import Key


class AskedPacks(Run):
    """A run over packs that come one by one. It computes in a thread of its own from `start` to `end`."""

    def __init__(self, options: RunOptions, planned: PlannedRun, store: PackStore, engine: Engine) -> None:
        self.planned = planned
        self._inbox: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        self._asked: dict[Key, Future[Made]] = {}
        self._asked_at: dict[Key, float] = {}
        self._answered_at = 0.0
        self._with_data: set[Key] = set()
        self._done: set[Key] = set()
        self._broken: Exception | None = None
        self._looked_at = 0
        self._hopeless: set[Window] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="packs", daemon=True)
        super().__init__(options, planned, store, engine)

    def ask(self, key: Key) -> Future[Made]:
        """Let a pack be computed."""
        future: Future[Made] = Future()
        with self._lock:
            if self._broken is not None:
                future.set_exception(self._broken)
            elif key in self._done:
                future.set_result(Made())
            elif key in self._asked:
                return self._asked[key]
            else:
                self._asked[key], self._asked_at[key] = future, time.monotonic()
                self._inbox.put(key)
        return future

    def start(self) -> None:
        """Compute what is asked for from now on."""
        self._thread.start()

    def end(self, seconds: float | None = None) -> None:
        """Accept no more packs, and wait for those in work, which another may have finished meanwhile; not longer than
        so many seconds. Without a limit the memory is freed, too."""
        self._inbox.put(None)
        self._thread.join(seconds)
        if seconds is None:
            self.planned.work.close()

    def _serve(self) -> None:
        try:
            self.compute()
        except Exception as error:
            with self._lock:
                self._broken = error
                for key in list(self._asked):
                    self._asked.pop(key).set_exception(error)

    def keys(self) -> list[Key]:
        """No packs: they come one by one."""
        return []

    def note(self, outcome: Outcome) -> None:
        """Say what became of a tile."""
        super().note(outcome)
        if isinstance(outcome.error, TileFailed) and outcome.error.final:
            self._hopeless.add(outcome.task.core)

    def stored(self, key: Key, size: int) -> None:
        """A pack is finished. size: its bytes."""
        super().stored(key, size)
        with self._lock:
            self._done.add(key)
        self._answer(key, None, False)

    def _store(self, tile: Tile) -> None:
        if tile.pixels is not None:
            self._with_data.add(self._key(tile.core))
        super()._store(tile)

    def _key(self, core: Window) -> Key:
        """The pack that a core is in."""
        return core.row // self.plan.pack, core.col // self.plan.pack

    def jobs(self) -> Iterator[Task | None]:
        """The tiles of the packs that are asked for; None where there is none while others are at work."""
        while True:
            self._answer_for_failed()
            try:
                key = self._inbox.get(block=not self._asked)
            except queue.Empty:
                yield None
                continue
            if key is None:
                return
            hr = self.filler.expect(key)
            lr = Window(hr.row // SCALE, hr.col // SCALE, hr.height // SCALE, hr.width // SCALE)
            yield from shared_out(lr, self.plan, self.crew.readers)

    def _answer_for_failed(self) -> None:
        """Say which packs have tiles that were given up."""
        for given_up in self.quarantined[self._looked_at :]:
            self._looked_at += 1
            self._answer(self._key(given_up.core), given_up.reason, given_up.core in self._hopeless)

    def _answer(self, key: Key, error: str | None, final: bool) -> None:
        with self._lock:
            future, now = self._asked.pop(key, None), time.monotonic()
            if future is None:
                return
            took = now - max(self._answered_at, self._asked_at.pop(key))
            self._answered_at = now
        future.set_result(Made(error, final, took if key in self._with_data else None))


def shared_out(pack: Window, plan: TilePlan, readers: int) -> Iterator[Task]:
    """The tiles of a pack for so many readers, each of which has the same rows of every pack: neighbours share source
    blocks, and a pack keeps all readers busy."""
    lanes: dict[int, list[Task]] = {}
    for core in cores(pack, plan):
        lane = (core.row - pack.row) * readers // pack.height
        lanes.setdefault(lane, []).append(Task(core, lane))
    for together in zip_longest(*lanes.values()):
        yield from (task for task in together if task is not None)
