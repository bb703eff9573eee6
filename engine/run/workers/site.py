"""A worker: opens the inputs and the model itself and computes the packs that it is given into the shared folder."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from deeplight.engine.core.errors import DiskRefused, InputError
from deeplight.engine.core.machine import bytes_moved, peak_memory
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.terminal import explained
from deeplight.engine.core.windows import Window
from deeplight.engine.output.hands import Piece, Published, SharedJob
from deeplight.engine.output.pack_format import DamagedPack
from deeplight.engine.output.packs import PackStore
from deeplight.engine.output.parts import Mode, Record, packs_folder, stored_record
from deeplight.engine.raster.scene import Scene
from deeplight.engine.run import paths
from deeplight.engine.run.contents import Seen, known_digests, learn_digests
from deeplight.engine.run.engine import Began, Engine
from deeplight.engine.run.executor import Outcome, Task, TileFailed
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.ordering import packs_at_once, shared_out
from deeplight.engine.run.pipeline import Run, run_scene
from deeplight.engine.run.planned import PlannedRun, plan_scene
from deeplight.engine.run.report import RunReport, write_report
from deeplight.engine.run.result import RunResult
from deeplight.engine.run.work import Tile
from deeplight.engine.run.workers.affinity import GpuPlace, bind, cpu_list, gpu_place
from deeplight.engine.run.workers.finishing import Finishing
from deeplight.engine.run.workers.messages import Computed, Done, Made, Proposal, SharedWork, Told, Trouble
from deeplight.engine.run.workers.relay import Message, Relay
from deeplight.engine.run.workers.segments import Key
from deeplight.engine.run.workers.told import with_workers
from deeplight.engine.runtime.artifact import load_artifact

_PATIENCE_S = 2.0
"""How long a worker that is asked what it has done waits for what it still does."""


class Site:
    """One worker, in a process of its own. Its methods may be called from any thread; `compute`, `assist` and `heard`
    answer while others run, which take turns.

    Nothing is raised but what is a defect: what went wrong is returned as Trouble.
    """

    def __init__(self, options: RunOptions, folder: str, gpu: bool = False) -> None:
        """options: of the run, threads among them. folder: where names are relative to. gpu: CUDA_VISIBLE_DEVICES is
        the worker's own GPU, by its number in the order of addresses."""
        self.options, self.folder, self.gpu = options, folder, gpu
        self.place: GpuPlace | None = None
        self.relay = Relay(events=options.events is not None)
        self._open = contextlib.ExitStack()
        self._began = Began.now()
        self._packs: Packs | None = None
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._job: tuple[Published, SharedJob] | None = None
        self._finishing: Finishing | None = None

    @property
    def name(self) -> str:
        """The name of the worker in messages."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    def open(self) -> str | Trouble:
        """Open the inputs and the model. Returns the worker's name."""
        try:
            self.relay.listen()
            os.chdir(self.folder)
            options = self.options
            if self.gpu:
                self._go_beside_gpu()
            scene = self._open.enter_context(Scene.open(options.scene))
            artifact = load_artifact(options.model, trust=options.trust)
            threads = options.threads or 1
            backend = self._open.enter_context(
                paths.open_model(options, artifact, options.precision, threads, scene.grid)
            )
            self.scene = scene
            self.engine = Engine(artifact, backend, threads, self.relay.events, self.relay)
        except Exception as error:
            return self._trouble(error)
        return self.name

    def _go_beside_gpu(self) -> None:
        """Run on the CPUs beside the GPU, before memory is taken and threads are started."""
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as whoever chose the GPU has counted
        visible, threads = os.environ.get("CUDA_VISIBLE_DEVICES", ""), self.options.threads or 1
        self.place = gpu_place(visible, threads, self.options.beside, os.sched_getaffinity(0))
        if self.place is not None and self.place.cpus:
            bind(self.place.cpus)

    def propose(self) -> Proposal | Trouble:
        """Plan the run for all workers. Checks the space on the disk and, where it is asked for, reduced precision."""
        try:
            self.relay.counting = True
            with self._turn, plan_scene(self.options, self.scene, self.engine) as planned:
                planned.check_space(self.options)
                at_once = packs_at_once(planned.plan, planned.work.crew(self.engine.threads))
            tiles = planned.plan.describe()
            return Proposal(planned.record, tiles, _areas(planned), known_digests(), at_once)
        except Exception as error:
            return self._trouble(error)
        finally:
            self.relay.counting = False

    def begin(self, record: Record, digests: Mapping[Seen, str]) -> Trouble | None:
        """Take part in the run that this record describes. digests: of inputs, where another process has read them."""
        try:
            learn_digests(digests)
            with self._turn:
                self._begin(record)
        except Exception as error:
            return self._trouble(error)
        return None

    def _begin(self, record: Record) -> None:
        out = self.options.out
        first = stored_record(out)
        if first is None:
            raise InputError(
                f"{out} was not begun where this worker looks: give all hosts the same folder under this name"
            )
        options = replace(self.options, mode=Mode.RESUME, check=0)
        planned = plan_scene(options, self.scene, self.engine)
        planned.record.check_same(record, out, shard=True)
        if first.digest != record.digest:
            raise InputError(f"another run of {out} has begun")
        store = PackStore(packs_folder(out, planned.record), planned.spec, planned.side)
        self._packs = Packs(options, planned, store, self.engine)
        self._thread = threading.Thread(target=self._packs.serve, name="packs", daemon=True)
        self._thread.start()

    def compute(self, keys: Sequence[Key]) -> Computed | Trouble:
        """Compute packs and store them, after those that were asked for before."""
        assert self._packs is not None
        asked = [self._packs.ask(key) for key in keys]
        try:
            made = [future.result() for future in asked]
        except Exception as error:
            return self._trouble(error)
        return Computed(made, self.relay.taken())

    def heard(self) -> list[Message]:
        """The messages for the user since the last call."""
        return self.relay.taken()

    def told(self) -> Told:
        """Say what this worker has done. It is given no more packs after this."""
        assert self._packs is not None
        with self._turn:
            self._end_packs(_PATIENCE_S)
        packs, moved, before = self._packs, bytes_moved(), self._began.moved
        stages = packs.executor.stages if packs.executor is not None else ()
        meter, place = packs.work.meter, self.place
        return Told(
            worker=self.name,
            device=self.engine.backend.device + (f" at {place.gpu}" if place is not None else ""),
            cpus=cpu_list(place.cpus) if place is not None else "",
            packs=packs.filler.counts(),
            counts=packs.tally.counts(),
            stages={s.name: (s.workers, s.busy_s) for s in stages},
            meter=None if meter is None else meter.numbers(),
            read=self.scene.bytes_read,
            moved=(moved[0] - before[0], moved[1] - before[1]) if moved and before else None,
            cpu_s=time.process_time(),
            peak_memory_bytes=peak_memory(),
            retried=[
                (o.task.core, str(o.error)) for o in (packs.executor.requeued if packs.executor else ())
            ],
        )

    def assist(self, pieces: Sequence[Piece], known: Published) -> Computed | Trouble:
        """Do pieces of a job of the worker that assembles the output, which may be this one."""
        assert self._packs is not None
        store, made = self._packs.store, []
        try:
            if self._job is None or self._job[0] != known:
                self._job = known, known.job(store)
            job = self._job[1]
            for piece in pieces:
                began = time.monotonic()
                job.do(piece)
                made.append(Made(seconds=time.monotonic() - began))
        except DamagedPack as error:
            store.discard(error.key)
            return replace(self._trouble(error), fatal=True)
        except Exception as error:
            return self._trouble(error)
        return Computed(made, self.relay.taken())

    def finish(
        self, done: Done | None, seconds: float, hands: int = 1
    ) -> SharedWork | RunReport | Trouble | None:
        """Assemble the output from the packs, as a resumed run does, and write what stands beside it.

        done: what workers did; None where the output was complete, so that there is no report. seconds: that the run
        took so far. hands: workers that have nothing else to do. Shared work is theirs: when it is done, `go_on`.
        """
        self._finishing = Finishing(hands, partial(self._finish, done, seconds))
        return self._finishing.next()

    def go_on(self) -> SharedWork | RunReport | Trouble | None:
        """Go on after shared work; returns what `finish` does."""
        assert self._finishing is not None
        return self._finishing.go_on()

    def _finish(self, done: Done | None, seconds: float, hands: Finishing) -> RunReport | Trouble | None:
        try:
            self.relay.counting = True
            now = Began.now()
            if done is not None:
                self.engine.told = partial(self._with_workers, done)
            if hands.count > 1:
                self.engine.hands = hands
            options = replace(self.options, workers=None, mode=Mode.RESUME, check=0, events=None)
            began = Began(now.seconds - seconds, now.moved)
            with self._turn:
                self._end_packs()
                report = run_scene(options, self.scene, self.engine, done is None, began)
            if report is None:
                return None
            report = replace(report, options={**report.options, "mode": self.options.mode.value})
            if options.report is not None:
                write_report(report, options.report)
            return report
        except Exception as error:
            return self._trouble(error)
        finally:
            self.relay.counting = False

    def _with_workers(self, done: Done, result: RunResult) -> RunResult:
        """The result of the run, with what all workers did."""
        for told in done.told:
            self.scene.count_read(told.read)
        return with_workers(result, done)

    def _end_packs(self, seconds: float | None = None) -> None:
        """Wait for the packs in work, which another may have finished meanwhile; not longer than so many seconds.
        Without a limit their memory is freed, too."""
        if self._packs is None or self._thread is None:
            return
        self._packs.end()
        self._thread.join(seconds)
        if seconds is None:
            self._packs.planned.work.close()

    def _trouble(self, error: Exception) -> Trouble:
        """The message for an error. Where the folder of the packs is gone, that is named as the reason."""
        sentence, status = explained(error)
        folder = self._packs.store.folder if self._packs is not None else None
        gone = folder is not None and not folder.is_dir()
        if gone:
            sentence = (
                f"{folder} was removed meanwhile: another run has finished {self.options.out}, or began anew"
            )
        refused = status == InputError.exit_code and not gone
        return Trouble(f"{sentence} (worker {self.name})", refused, gone or isinstance(error, DiskRefused))


def _areas(planned: PlannedRun) -> dict[Key, int]:
    """The packs of the output, row by row, and the HR pixels of each."""
    side, height, width = planned.side, *planned.spec.grid.shape
    keys = [(row, col) for row in range(-(-height // side)) for col in range(-(-width // side))]
    windows = {(r, c): Window(r * side, c * side, side, side).clipped(height, width) for r, c in keys}
    return {key: window.height * window.width for key, window in windows.items()}


class Packs(Run):
    """The packs that a worker is given one after the other, through stages that stay open between them."""

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

    def end(self) -> None:
        """Accept no more packs."""
        self._inbox.put(None)

    def serve(self) -> None:
        """Compute what is asked for until the end."""
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
            yield from shared_out(lr, self.plan, self.crew)

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
