"""Dispatching tiles: every one ends stored or in quarantine, whatever fails, hangs or gives bad numbers."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque

import pytest

from deeplight.engine.core.errors import DeepLightError, InputError, Interrupted
from deeplight.engine.core.windows import Window
from deeplight.engine.run.executor import (
    MOST_QUARANTINED,
    TRIES,
    Executor,
    LocalExecutor,
    Outcome,
    Task,
    TileFailed,
)


def core(number: int) -> Window:
    return Window(0, 8 * number, 8, 8)


TASKS = [Task(core(n)) for n in range(20)]


class Elsewhere(Executor):
    """An executor of another kind: three hosts that take turns; `broken` tells which fail on what."""

    def __init__(self, broken: set[tuple[str, Window]], capacity: int = 4) -> None:
        super().__init__()
        self.capacity, self.broken = capacity, broken
        self.waiting: deque[Task] = deque()
        self.most = self.turn = 0

    def submit(self, task: Task) -> None:
        self.waiting.append(task)
        self.most = max(self.most, len(self.waiting))

    def collect(self) -> Outcome:
        task = self.waiting.popleft()
        self.turn += 1
        host = f"host{self.turn % 3}"
        failed = (host, task.core) in self.broken
        return Outcome(task, host, DeepLightError(f"{host} is down") if failed else None)

    def close(self, error: BaseException | None = None) -> None:
        pass


def test_any_executor_gets_requeue_and_quarantine() -> None:
    broken = {(f"host{h}", core(5)) for h in range(3)} | {("host0", core(n)) for n in range(20)}
    seen: list[Outcome] = []
    with Elsewhere(broken) as executor:
        executor.run(TASKS, seen.append)
    stored = Counter(o.task.core for o in seen if o.error is None)
    gone = {q.core for q in executor.quarantined}
    assert stored.keys() | gone == {t.core for t in TASKS} and not stored.keys() & gone
    assert set(stored.values()) == {1} and core(5) in gone
    assert all(len(q.workers) == TRIES for q in executor.quarantined)
    assert executor.most <= 4


class Steps:
    """Readers, model and writer of a LocalExecutor; `read` and so on may be replaced by what fails."""

    def __init__(self) -> None:
        self.stored: list[Window] = []

    def read(self, window: Window) -> Window:
        return window

    def infer(self, tile: Window) -> Window:
        return tile

    def write(self, tile: Window) -> None:
        self.stored.append(tile)

    def run(self, **options) -> LocalExecutor:
        executor = LocalExecutor(self.read, self.infer, self.write, **options)
        with executor:
            executor.run(TASKS)
        return executor

    def missing(self) -> set[Window]:
        assert len(self.stored) == len(set(self.stored))
        return {t.core for t in TASKS} - set(self.stored)


@pytest.mark.parametrize("readers", [1, 3])
def test_all_tiles_are_stored_once(readers: int) -> None:
    steps = Steps()
    before = threading.active_count()
    executor = steps.run(readers=readers, writers=2)
    assert not steps.missing() and not executor.quarantined
    assert threading.active_count() == before


def test_helping_with_a_retry_does_not_bind_a_reader_to_that_lane() -> None:
    """Two readers of one lane, each taking the other for the one who is in it, would wait for ever."""
    steps, failed = Steps(), threading.Event()
    tasks = [Task(core(0), lane=0), *(Task(core(n), lane=1) for n in range(1, 12))]

    def read(window: Window) -> Window:
        time.sleep(0 if window == core(0) else 0.02)  # one reader is done with its lane and waits
        return window

    def infer(tile: Window) -> Window:
        if tile == core(3) and not failed.is_set():
            failed.set()
            raise DeepLightError("a model that failed once")
        return tile

    steps.read, steps.infer = read, infer  # type: ignore[method-assign]
    executor = LocalExecutor(steps.read, steps.infer, steps.write, readers=2)
    done = threading.Thread(target=_run, args=(executor, tasks), daemon=True)
    done.start()
    done.join(20)
    assert not done.is_alive(), "the readers wait for each other"
    assert {t.core for t in tasks} == set(steps.stored) and failed.is_set()


def _run(executor: LocalExecutor, tasks: list[Task]) -> None:
    with executor:
        executor.run(tasks)


def test_streams_compute_at_the_same_time() -> None:
    steps, both = Steps(), threading.Barrier(2, timeout=20)

    def infer(tile: Window) -> Window:
        if tile in (core(0), core(1)):
            both.wait()
        return tile

    steps.infer = infer  # type: ignore[method-assign]
    steps.run(readers=2, streams=2)
    assert not steps.missing()


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_tile_is_tried_three_times(failures: int) -> None:
    steps = Steps()
    tries: Counter[Window] = Counter()

    def read(window: Window) -> Window:
        tries[window] += 1
        if window == core(7) and tries[window] <= failures:
            raise OSError("stale file handle")
        return window

    steps.read = read  # type: ignore[method-assign]
    executor = steps.run()
    assert tries[core(7)] == min(failures + 1, TRIES)
    gone = {core(7)} if failures == TRIES else set()
    assert steps.missing() == gone == {q.core for q in executor.quarantined}
    assert all("stale" in q.reason and len(q.workers) == TRIES for q in executor.quarantined)
    assert len(executor.requeued) == min(failures, TRIES - 1)


@pytest.mark.parametrize("cured", [True, False])
def test_a_tile_that_failed_for_good_is_not_tried_again(cured: bool) -> None:
    steps = Steps()
    tries: list[Window] = []

    def write(tile: Window) -> None:
        tries.append(tile)
        again = tries.count(tile) == 2
        if tile == core(3) and not (cured and again):
            raise TileFailed("not finite", final=again)
        steps.stored.append(tile)

    steps.write = write  # type: ignore[method-assign]
    executor = steps.run()
    assert tries.count(core(3)) == 2 and len(executor.requeued) == 1
    assert steps.missing() == (set() if cured else {core(3)})
    assert [q.core for q in executor.quarantined] == ([] if cured else [core(3)])


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("read", InputError),
        ("read", ZeroDivisionError),
        ("infer", ZeroDivisionError),
        ("write", DeepLightError),
    ],
)
def test_what_is_not_about_one_tile_ends_the_run(stage: str, error: type[Exception]) -> None:
    steps = Steps()

    def fail(*_: object) -> None:
        raise error("the disk is full")

    setattr(steps, stage, fail)
    before = threading.active_count()
    stopped = threading.Event()
    with pytest.raises(error, match="the disk is full"):
        steps.run(on_stop=stopped.set)
    assert stopped.is_set() and threading.active_count() == before


def test_many_failures_end_the_run() -> None:
    steps = Steps()
    tried: set[Window] = set()

    def read(window: Window) -> Window:
        tried.add(window)
        raise DeepLightError("nothing can be read")

    steps.read = read  # type: ignore[method-assign]
    with pytest.raises(
        DeepLightError, match=rf"more than {MOST_QUARANTINED} tiles failed.*nothing can be read"
    ):
        steps.run()
    assert len(tried) < len(TASKS)


def test_a_signal_in_the_caller_stops_the_run() -> None:
    steps = Steps()

    def seen(outcome: Outcome) -> None:
        raise Interrupted(15)

    before = threading.active_count()
    with pytest.raises(Interrupted), LocalExecutor(steps.read, steps.infer, steps.write) as executor:
        executor.run(TASKS, seen)
    assert threading.active_count() == before


HANGS_S = 1.5
"""Longer than a busy machine keeps a thread waiting that has nothing to do."""


def test_a_reader_that_hangs_is_replaced() -> None:
    steps = Steps()
    free, hung = threading.Event(), threading.Event()

    def read(window: Window) -> Window:
        if window == core(4) and not hung.is_set():
            hung.set()
            assert free.wait(60)
        return window

    steps.read = read  # type: ignore[method-assign]
    executor = LocalExecutor(steps.read, steps.infer, steps.write, timeout_s=HANGS_S)
    start = time.monotonic()
    with executor:
        executor.run(TASKS)
        assert time.monotonic() - start < 30
        free.set()
    assert not steps.missing() and not executor.quarantined
    (outcome,) = executor.requeued
    assert outcome.task.core == core(4) and f"read took longer than {HANGS_S} s" in str(outcome.error)


def test_a_model_that_hangs_ends_the_run() -> None:
    steps = Steps()
    free = threading.Event()
    steps.infer = lambda tile: free.wait(60)  # type: ignore[assignment]
    with pytest.raises(
        DeepLightError, match=r"infer took longer than 1\.5 s for the tile at row 0, column 0"
    ):
        steps.run(timeout_s=HANGS_S, on_stop=free.set)


def test_readers_stay_in_their_lanes() -> None:
    lanes: dict[int, set[str]] = {}

    def read(window: Window) -> Window:
        lanes.setdefault(window.row, set()).add(threading.current_thread().name)
        time.sleep(0.01)
        return window

    tasks = [Task(Window(lane, n, 1, 1), lane) for n in range(8) for lane in range(2)]
    with LocalExecutor(read, lambda t: t, lambda t: None, readers=2) as executor:
        executor.run(tasks)
    assert lanes[0] != lanes[1] and all(len(names) == 1 for names in lanes.values())
