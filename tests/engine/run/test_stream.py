"""Stages and queues: everything passes once, memory is bounded, an error anywhere stops everything."""

from __future__ import annotations

import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from deeplight.engine.run.stream import DROPPED, Stage, Stopped, Stream


class Items:
    """An iterable as a stream's source."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.iterator, self.lock, self.aborted = iter(items), threading.Lock(), False

    def get(self, worker: int) -> Any:
        with self.lock:
            if self.aborted:
                raise Stopped
            return next(self.iterator)

    def abort(self) -> None:
        self.aborted = True


def run_stages(
    items: Iterable[Any], stages: Sequence[Stage], depth: int = 2, on_stop: Callable[[], None] | None = None
) -> None:
    stream = Stream(Items(items), stages, [depth] * (len(stages) - 1), on_stop)
    stream.start()
    stream.join()


@pytest.mark.parametrize("workers", [(1, 1, 1), (3, 1, 2)])
def test_every_item_passes_every_stage_once(workers: tuple[int, int, int]) -> None:
    out: list[int] = []
    stages = [
        Stage("a", lambda x: x + 1, workers[0]),
        Stage("b", lambda x: x * 10, workers[1]),
        Stage("c", out.append, workers[2]),
    ]
    run_stages(range(200), stages)
    assert sorted(out) == [10 * (i + 1) for i in range(200)]


def test_nothing_to_do() -> None:
    out: list[int] = []
    run_stages([], [Stage("a", lambda x: x), Stage("b", out.append)])
    assert out == []


def test_busy_time_counts_work_not_waiting() -> None:
    stages = [Stage("fast", lambda x: x, 2), Stage("slow", lambda x: time.sleep(0.03))]
    run_stages(range(10), stages)
    assert stages[1].busy_s >= 0.3
    # both fast workers wait nearly all that time, which would be 0.6 s; a third of a second is left to a busy machine
    assert stages[0].busy_s < 0.3


@pytest.mark.parametrize(("depth", "most"), [(2, 8), (1, 6), (0, 4)])
def test_a_slow_end_holds_the_source_back(depth: int, most: int) -> None:
    taken, done, ahead = 0, 0, 0

    def source() -> Iterator[int]:
        nonlocal taken
        for i in range(60):
            taken += 1
            yield i

    def slow(item: int) -> None:
        nonlocal done, ahead
        ahead = max(ahead, taken - done)
        time.sleep(0.002)
        done += 1

    run_stages(source(), [Stage("a", lambda x: x, 2), Stage("b", lambda x: x), Stage("c", slow)], depth)
    # two queues of `depth`, and one item in the hands of each of the 4 workers
    assert done == 60 and ahead <= most


@pytest.mark.parametrize("failing", ["source", "a", "b", "c"])
def test_an_error_stops_all_stages_and_is_raised(failing: str) -> None:
    before = threading.active_count()
    seen = 0
    stopped = threading.Event()

    def source() -> Iterator[int]:
        for i in range(100_000):
            if failing == "source" and i == 20:
                raise OSError("source failed")
            yield i

    def work(name: str):
        def step(item: int) -> int:
            nonlocal seen
            seen += 1
            if name == failing and item == 20:
                raise OSError(f"{name} failed")
            return item

        return step

    stages = [Stage("a", work("a"), 2), Stage("b", work("b")), Stage("c", work("c"), 2)]
    with pytest.raises(OSError, match=f"{failing} failed"):
        run_stages(source(), stages, on_stop=stopped.set)
    assert stopped.is_set()
    assert seen < 300
    assert threading.active_count() == before


def test_interruption_of_the_caller_stops_the_workers() -> None:
    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    before = threading.active_count()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_stages(iter(int, 1), [Stage("a", lambda x: x), Stage("b", lambda x: time.sleep(0.001))])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert threading.active_count() == before


def test_interruption_waits_for_the_work_in_hand() -> None:
    """Until Python 3.12 a `Thread.join` that a signal handler's exception leaves takes the thread for ended."""
    at_work = threading.Event()
    ended = False

    def work(item: int) -> int:
        nonlocal ended
        at_work.set()
        time.sleep(0.3)
        ended = True
        return item

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, handler)
    stream = Stream(Items([0]), [Stage("a", work)], [])
    stream.start()
    try:
        assert at_work.wait(10)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            stream.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert ended


def test_waiting_workers_do_not_keep_items_alive() -> None:
    class Tile:
        pass

    alive: weakref.WeakSet[Tile] = weakref.WeakSet()
    most = 0

    def make(_: int) -> Tile:
        tile = Tile()
        alive.add(tile)
        return tile

    def slow(tile: Tile) -> None:
        nonlocal most
        del tile
        time.sleep(0.005)
        most = max(most, len(alive))

    run_stages(range(40), [Stage("a", make, 2), Stage("b", lambda t: t), Stage("c", slow)], depth=1)
    # one item in each of the two queues, one in the hands of each of the four workers
    assert most <= 6


def test_dropped_items_go_no_further() -> None:
    out: list[int] = []
    stages = [Stage("a", lambda x: DROPPED if x % 3 else x, 2), Stage("b", out.append)]
    run_stages(range(30), stages)
    assert sorted(out) == list(range(0, 30, 3))


OVERDUE_S = 1.0
"""Longer than a busy machine keeps a thread waiting that has nothing to do."""


@pytest.mark.parametrize("replace", [True, False])
def test_an_abandoned_worker_is_not_waited_for_and_its_item_is_dropped(replace: bool) -> None:
    out: list[int] = []
    free = threading.Event()

    def first(item: int) -> int:
        if item == 3:
            assert free.wait(60)
        return item

    stream = Stream(Items(range(8)), [Stage("a", first), Stage("b", out.append)])
    stream.start()
    while not (late := stream.overdue(OVERDUE_S)):
        time.sleep(0.01)
    ((worker, item),) = late
    assert item == 3 and not stream.abandon(worker, 4, replace=replace)
    assert stream.abandon(worker, 3, replace=replace)
    if replace:
        while len(out) < 7:
            time.sleep(0.01)
    else:
        stream.stop(TimeoutError("hangs"))
    threading.Timer(0.1, free.set).start()
    if replace:
        stream.join()
        assert sorted(out) == [0, 1, 2, 4, 5, 6, 7]
    else:
        with pytest.raises(TimeoutError):
            stream.join()
