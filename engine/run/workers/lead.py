"""A run by workers: one proposes how to go about it, all compute packs, one assembles. No model is opened here."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.progress import Progress
from deeplight.engine.output.parts import Mode, Record, claimed_parts, exists, parts_folder, stored_record
from deeplight.engine.run.events import Events
from deeplight.engine.run.options import RunOptions, check_workers
from deeplight.engine.run.preparation import check_request, remove_beside_leftovers
from deeplight.engine.run.workers.beforehand import check_count, count_packs, narrowed
from deeplight.engine.run.workers.dispatch import Dispatch, Lost, Ready, Verdict
from deeplight.engine.run.workers.messages import Done, Proposal, SharedWork, Trouble
from deeplight.engine.run.workers.ray_pool import Gone, RayPool, import_ray
from deeplight.engine.run.workers.relay import Voice
from deeplight.engine.run.workers.request import Workers
from deeplight.engine.run.workers.segments import Key

if TYPE_CHECKING:
    from deeplight.engine.run.report import RunReport

_POLL_S = 0.2
_FINISHERS = 3
"""Workers that may be lost while they assemble the output."""


def infer_with_workers(options: RunOptions, progress: Progress) -> RunReport | None:
    """As `pipeline.infer`, computed by `options.workers`."""
    workers = options.workers
    assert workers is not None
    check_workers(options)
    check_count(workers, available_cpus())
    complete = check_request(options)
    with Events(options.events, append=options.mode is Mode.RESUME) as events:
        voice = Voice(progress, events)
        if workers.local:
            with voice.hearing():
                packs = count_packs(options)
            workers = workers if complete else narrowed(workers, packs, progress)
        import_ray()  # which takes longer than all before
        lead = Lead(options, workers, voice, events, complete)
        report: RunReport | None = _in_a_thread(lead.run, lead.stop)
        return report


def _in_a_thread(work: Callable[[], Any], stop: threading.Event) -> Any:
    """What `work` returns. Signals raise in the calling thread, which sets `stop` then and waits."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    # not joined: see stream.Worker.ended
    threading.Thread(target=run, name="workers").start()
    try:
        while not found.done():
            wait([found], _POLL_S)
            _keep_handlers()
    finally:
        stop.set()
        wait([found])
    return found.result()


def _keep_handlers() -> None:
    """Ray takes SIGTERM over when it starts, to write its stack to the terminal: Python's own handlers are put back."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.getsignal(number))


class _Crew:
    """The workers of a pool while one of them assembles the output. `wait` raises Gone where that one is lost."""

    def __init__(self, pool: RayPool, finisher: int) -> None:
        self._pool, self._finisher = pool, finisher
        self.hire, self.give, self.dismiss = pool.hire, pool.give, pool.dismiss

    def wait(self) -> Sequence[Ready | Verdict | Lost]:
        """What has happened."""
        found = self._pool.wait()
        for event in found:
            if isinstance(event, Lost) and event.worker == self._finisher and not event.fatal:
                raise Gone(event.reason)
        return found


class Lead:
    """One run. stop: set where it is to end."""

    def __init__(
        self, options: RunOptions, workers: Workers, voice: Voice, events: Events, complete: bool
    ) -> None:
        self.options, self.workers, self.complete = options, workers, complete
        self.progress, self.events, self.voice = voice.progress, events, voice
        self.stop = threading.Event()
        self.began = time.perf_counter()
        self.record: Record | None = None
        self.idle: dict[int, str] = {}

    def run(self) -> RunReport | None:
        """Run everything. Returns the report; None where the output was complete already."""
        try:
            return self._run()
        except BaseException:
            if self.record is not None:
                self._tidy(self.record)
            raise

    def _run(self) -> RunReport | None:
        with RayPool(self.workers, self._like_before(), self.voice, self.stop) as pool:
            self.progress.log(
                f"{self.workers}: starting {pool.share.count} workers of {pool.share.threads} threads"
            )
            for _ in range(1 if self.complete else pool.share.count):
                pool.hire()
            worker, _ = pool.first()
            if self.complete:
                self._asked(pool, worker, "finish", None, 0.0)
                return None
            proposal = self._proposal(pool)
            self.options = pool.options
            record, mode = proposal.record, self.options.mode
            with claimed_parts(self.options.out, record, mode, stay=True) as folder:
                remove_beside_leftovers(self.options)
                pool.begin(record, proposal.digests)
                done, ready = self._compute(pool, proposal, folder.iterdir() if folder.is_dir() else ())
            self.record = record
            return self._finish(pool, done, ready)

    def _tidy(self, record: Record) -> None:
        """Remove what a worker left behind when it was stopped while it assembled the output. The packs stay."""
        with (
            contextlib.suppress(DeepLightError),
            claimed_parts(self.options.out, record, Mode.RESUME, stay=True),
        ):
            pass

    def _like_before(self) -> RunOptions:
        """The options of the run; a resumed run takes the number of threads with which its packs were made."""
        earlier = stored_record(self.options.out) if self.options.mode is Mode.RESUME else None
        threads = earlier.fields.get("`threads`") if earlier is not None else None
        if self.options.threads or threads is None:
            return self.options
        return replace(self.options, threads=int(threads))

    def _proposal(self, pool: RayPool) -> Proposal:
        """The proposal of the first worker that answers."""
        for _ in range(_FINISHERS):
            worker, _name = pool.first()
            try:
                found: Proposal = self._asked(pool, worker, "propose")
                return found
            except Gone:
                pool.dismiss(worker)
                pool.hire()
        raise DeepLightError(f"{_FINISHERS} workers were lost before the run could begin")

    def _compute(self, pool: RayPool, proposal: Proposal, files: Any) -> tuple[Done, list[int]]:
        """Let the packs that are missing be computed. Returns also the workers that are there."""
        from deeplight.engine.output.packs import pack_name

        there = {path.name for path in files}
        areas = {key: area for key, area in proposal.areas.items() if pack_name(key) not in there}
        kept, left = len(proposal.areas) - len(areas), sum(areas.values())
        if kept:
            self.progress.log(
                f"resuming: {1 - left / sum(proposal.areas.values()):.0%} of the output is done"
            )
        self.events.emit("started", tiles=proposal.tiles, packs=len(areas), hr_pixels=left)

        def stored(key: Key) -> None:
            self.progress.advance(areas[key])

        began = time.perf_counter()
        dispatch = Dispatch(
            pool, list(areas), pool.share.count, stored, self.voice.log, at_once=proposal.at_once
        )
        with self.progress:
            self.progress.start(left)
            dispatch.run()
        self._check_all_done(dispatch)
        seconds = time.perf_counter() - began
        self.idle = dispatch.idle
        return Done(pool.told(dispatch.ready), dispatch.lost, kept, seconds), dispatch.ready

    def _check_all_done(self, dispatch: Dispatch) -> None:
        """Raise DeepLightError, naming packs, where some were given up."""
        if not dispatch.given_up:
            return
        places = ", ".join(f"row {g.key[0]} column {g.key[1]}" for g in dispatch.given_up[:5])
        more = ", …" if len(dispatch.given_up) > 5 else ""
        raise DeepLightError(
            f"{len(dispatch.given_up)} packs could not be computed ({places}{more}) and the output was not written; "
            f"all others are kept for `resume=True`; the first reason: {dispatch.given_up[0].reason}"
        )

    def _finish(self, pool: RayPool, done: Done | None, ready: list[int]) -> RunReport | None:
        """Let a worker assemble the output."""
        for _ in range(_FINISHERS):
            worker = ready.pop(0) if ready else pool.first()[0]
            try:
                so_far = time.perf_counter() - self.began
                found = self._asked(pool, worker, "finish", done, so_far, len(self.idle))
                while isinstance(found, SharedWork):
                    self._carry_out(pool, worker, found)
                    found = self._asked(pool, worker, "go_on")
                report: RunReport | None = found
                return report
            except Gone as gone:
                self.voice.log(f"warning: the worker that assembled the output was lost: {gone}")
                pool.dismiss(worker)
                pool.hire()
                if exists(self.options.out) and not parts_folder(self.options.out).exists():
                    done = None  # nothing is left to do but what stands beside it
        raise DeepLightError(
            f"{_FINISHERS} workers were lost while they assembled the output: make the same call with `resume=True`"
        )

    def _carry_out(self, pool: RayPool, finisher: int, work: SharedWork) -> None:
        """Let all idle workers, the one that assembles the output among them, do what it asks for. Raises Gone where
        that one is lost."""

        def done(piece: Key) -> None:
            self.progress.advance(work.job.size(piece))

        pool.assemble(work.job)
        ready = {worker: name for worker, name in self.idle.items() if pool.has(worker)}
        count = max(1, len(ready))
        crew = _Crew(pool, finisher)
        dispatch = Dispatch(crew, work.pieces, count, done, self.voice.log, ready=ready, what="part")
        dispatch.run()
        for worker in dispatch.ready:
            if (
                worker not in dispatch.idle and worker != finisher
            ):  # what it writes late is the same, but why wait for it
                pool.dismiss(worker)
        self.idle = dispatch.idle
        if dispatch.given_up:
            raise DeepLightError(f"the output could not be assembled: {dispatch.given_up[0].reason}")

    def _asked(self, pool: RayPool, worker: int, method: str, *given: Any) -> Any:
        found = pool.ask(worker, method, *given)
        if isinstance(found, Trouble):
            raise InputError(found.sentence) if found.refused else DeepLightError(found.sentence)
        return found
