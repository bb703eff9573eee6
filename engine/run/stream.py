"""Stages on threads, joined by bounded queues: memory stays flat, an error anywhere stops everything."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

POLL_S = 0.2
"""How often a waiting main thread lets signal handlers run."""
_GRACE_S = 5.0
"""How long the end of a stream waits for a worker that was given up."""
DROPPED: Final = object()
"""What a stage's work returns for an item that goes no further."""


class Stopped(Exception):
    """The stream was aborted; workers leave quietly."""


class Source(Protocol):
    """Where the first stage takes its items from, from several threads."""

    def get(self, worker: int) -> Any:
        """The next item for the worker of that number; raises StopIteration at the end, Stopped after
        `abort`."""

    def abort(self) -> None:
        """Give out no more items and wake everyone who waits."""


class _Channel:
    """A bounded queue that ends (`close`) or breaks off (`abort`), waking everyone who waits.

    depth: items that may lie in it; 0: each is handed to someone who waits for it.
    """

    def __init__(self, depth: int, producers: int) -> None:
        self._items: deque[Any] = deque()
        self._depth = depth
        self._producers = producers
        self._waiting = 0
        self._aborted = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or len(self._items) < self._depth + self._waiting)
            if self._aborted:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def get(self, worker: int) -> Any:
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._aborted or self._items or not self._producers)
            self._waiting -= 1
            if self._aborted:
                raise Stopped
            if not self._items:
                raise StopIteration
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """One producer is done; the last one ends the queue."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._changed.notify_all()


@dataclass
class Stage:
    """One step of the stream. work: item → item for the next stage, or DROPPED; called by `workers` threads
    at once.

    busy_s: seconds spent in `work` over all workers, without waiting for queues.
    """

    name: str
    work: Callable[[Any], Any]
    workers: int = 1
    busy_s: float = 0.0

    def load(self, wall_s: float) -> float:
        """Share of the wall time that an average worker was busy."""
        return self.busy_s / (self.workers * wall_s) if wall_s > 0 else 0.0


class Worker:
    """One thread of a stage. item: what it works on since `since` (monotonic seconds), None between items.

    ended: set when the thread does nothing more. Waited for in place of `Thread.join`, which until Python 3.12 takes a
    thread for ended, running as it is, once a signal handler has raised within it.
    """

    def __init__(self, stage: Stage, number: int, inlet: Source, outlet: _Channel | None) -> None:
        self.stage, self.number = stage, number
        self.inlet, self.outlet = inlet, outlet
        self.item: Any = None
        self.since = 0.0
        self.abandoned = False
        self.thread: threading.Thread | None = None
        self.ended = threading.Event()

    def __repr__(self) -> str:
        return f"{self.stage.name}-{self.number}"


class Stream:
    """Passes every item of a source through all stages; the last stage's results are dropped.

    Order is not kept. depths: how many items may wait behind each stage but the last, beside the one that each of its
    workers holds until then. The first exception of any worker, or
    one given to `stop`, aborts all queues and calls `on_stop`; `check` and `join` raise it.
    """

    def __init__(
        self,
        source: Source,
        stages: Sequence[Stage],
        depths: Sequence[int] | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self._source = source
        depths = depths or [2] * (len(stages) - 1)
        self._channels = [_Channel(d, s.workers) for d, s in zip(depths, stages[:-1], strict=True)]
        self._on_stop = on_stop
        self._lock = threading.Lock()
        self._stopped = False
        self._error: BaseException | None = None
        inlets: list[Source] = [source, *self._channels]
        outlets: list[_Channel | None] = [*self._channels, None]
        self._workers = [
            Worker(stage, number, inlet, outlet)
            for stage, inlet, outlet in zip(stages, inlets, outlets, strict=True)
            for number in range(stage.workers)
        ]

    def start(self) -> None:
        """Begin; the calling thread goes on."""
        for worker in self._workers:
            self._start(worker)

    def check(self) -> None:
        """Raise the error that stopped the stream, if one did."""
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Wait until all items are through or the stream was stopped; then raise the error, if there is one.

        An exception raised meanwhile in the calling thread, by a signal handler, stops the stream.
        """
        try:
            for worker in self._workers:
                while worker.thread is not None and not worker.abandoned and not worker.ended.wait(POLL_S):
                    pass
        except BaseException as error:
            held = error  # one that comes behind another is not lost for that; see terminal.signals_raise
            self.stop(held)
        for worker in self._workers:
            if worker.thread is not None and worker.thread.ident is not None:
                worker.ended.wait(_GRACE_S if worker.abandoned else None)
        self.check()

    def stop(self, error: BaseException) -> None:
        """Abort because of `error`; only the first counts. Does not wait for the workers."""
        with self._lock:
            if self._stopped:
                return
            self._stopped, self._error = True, error
        self._source.abort()
        for channel in self._channels:
            channel.abort()
        if self._on_stop is not None:
            self._on_stop()

    def overdue(self, limit_s: float) -> list[tuple[Worker, Any]]:
        """The workers that have been at one item for longer than `limit_s` seconds, and that item."""
        now = time.monotonic()
        # the item first: it may be an older one than `since` then, never a newer
        held = [(w, w.item, w.since) for w in self._workers]
        return [(w, item) for w, item, since in held if item is not None and now - since > limit_s]

    def abandon(self, worker: Worker, item: Any, *, replace: bool) -> bool:
        """Wait no more for a worker and drop what it may still return; `replace` puts another in its place.

        False, and nothing happens, where the worker is done with `item` by now.
        """
        with self._lock:
            if worker.item is not item:
                return False
            worker.abandoned, worker.item = True, None
        if replace:
            fresh = Worker(worker.stage, worker.number, worker.inlet, worker.outlet)
            self._workers.append(fresh)
            self._start(fresh)
        return True

    def _start(self, worker: Worker) -> None:
        # Daemons, so that a worker that hangs in a library cannot keep the process from ending.
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=repr(worker), daemon=True)
        worker.thread.start()

    def _work(self, worker: Worker) -> None:
        stage, outlet = worker.stage, worker.outlet
        busy = 0.0
        try:
            while not self._stopped:
                item = worker.inlet.get(worker.number)
                start = time.perf_counter()
                worker.since, worker.item = time.monotonic(), item
                item = stage.work(item)
                busy += time.perf_counter() - start
                with self._lock:
                    worker.item = None
                    if worker.abandoned:
                        return
                if outlet is not None and item is not DROPPED:
                    outlet.put(item)
                del item  # a worker that waits must not keep its last tile in memory
        except (Stopped, StopIteration):
            pass
        except BaseException as error:
            if not worker.abandoned:
                self.stop(error)
        finally:
            with self._lock:
                stage.busy_s += busy
                closing = outlet is not None and not worker.abandoned
            if outlet is not None and closing:
                outlet.close()
            worker.ended.set()
