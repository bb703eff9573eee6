"""Stages on threads, joined by bounded queues: memory stays flat, an error anywhere stops everything."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_POLL_S = 0.2
"""How often the waiting main thread lets signal handlers run."""


class _Stopped(Exception):
    """The stream was aborted; workers leave quietly."""


class _Channel:
    """A bounded queue that ends (`close`) or breaks off (`abort`), waking everyone who waits."""

    def __init__(self, depth: int, producers: int) -> None:
        self._items: deque[Any] = deque()
        self._depth = depth
        self._producers = producers
        self._aborted = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or len(self._items) < self._depth)
            if self._aborted:
                raise _Stopped
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Any:
        """The next item; raises StopIteration at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._items or not self._producers)
            if self._aborted:
                raise _Stopped
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


class _Source:
    """An iterable that several threads take from, one item at a time."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._iterator = iter(items)
        self._lock = threading.Lock()

    def get(self) -> Any:
        """The next item; raises StopIteration at the end."""
        with self._lock:
            return next(self._iterator)


@dataclass
class Stage:
    """One step of the stream. work: item → item for the next stage; called by `workers` threads at once.

    busy_s: seconds spent in `work` over all workers, without waiting for queues.
    """

    name: str
    work: Callable[[Any], Any]
    workers: int = 1
    busy_s: float = 0.0

    def load(self, wall_s: float) -> float:
        """Share of the wall time that an average worker was busy."""
        return self.busy_s / (self.workers * wall_s) if wall_s > 0 else 0.0


def run_stages(
    items: Iterable[Any], stages: Sequence[Stage], depth: int = 2, on_stop: Callable[[], None] | None = None
) -> None:
    """Pass every item through all stages; the last stage's results are dropped. Order is not kept.

    At most `depth` items wait between two stages. The first exception of any worker, or one raised in the
    calling thread by a signal handler, aborts all queues, calls `on_stop` and is raised when they ended.
    """
    channels = [_Channel(depth, stage.workers) for stage in stages[:-1]]
    inlets: list[_Source | _Channel] = [_Source(items), *channels]
    outlets: list[_Channel | None] = [*channels, None]
    crew = _Crew(channels, on_stop)
    for stage, inlet, outlet in zip(stages, inlets, outlets, strict=True):
        crew.hire(stage, inlet, outlet)
    crew.run()


class _Crew:
    """The worker threads of one stream and the first error among them."""

    def __init__(self, channels: Sequence[_Channel], on_stop: Callable[[], None] | None) -> None:
        self._channels = channels
        self._on_stop = on_stop
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._stopped = False
        self._error: BaseException | None = None

    def hire(self, stage: Stage, inlet: _Source | _Channel, outlet: _Channel | None) -> None:
        for i in range(stage.workers):
            name = f"{stage.name}-{i}"
            self._threads.append(threading.Thread(target=self._work, args=(stage, inlet, outlet), name=name))

    def run(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
            for thread in self._threads:
                while thread.is_alive():
                    thread.join(_POLL_S)
        except BaseException as e:
            self._stop(e)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._error is not None:
            raise self._error

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            if self._stopped:
                return
            self._stopped, self._error = True, error
        for channel in self._channels:
            channel.abort()
        if self._on_stop is not None:
            self._on_stop()

    def _work(self, stage: Stage, inlet: _Source | _Channel, outlet: _Channel | None) -> None:
        busy = 0.0
        try:
            while not self._stopped:
                item = inlet.get()
                start = time.perf_counter()
                item = stage.work(item)
                busy += time.perf_counter() - start
                if outlet is not None:
                    outlet.put(item)
                del item  # a worker that waits must not keep its last tile in memory
        except (_Stopped, StopIteration):
            pass
        except BaseException as e:
            self._stop(e)
        finally:
            with self._lock:
                stage.busy_s += busy
            if outlet is not None:
                outlet.close()
