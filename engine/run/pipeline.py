"""Rasters → grid → tiles → reader → backend → cropped core → packs → COG: the module that joins them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.machine import available_cpus, available_memory
from deeplight.engine.core.progress import Progress, Silent
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.facts import Facts
from deeplight.engine.output.filling import PackFiller
from deeplight.engine.output.lights import light_warnings
from deeplight.engine.output.pack_format import Encoded
from deeplight.engine.output.parts import Mode, Record, claimed_parts
from deeplight.engine.output.shards import AnotherPlan, joined_parts
from deeplight.engine.raster.geodesy import valid_area_km2
from deeplight.engine.run import paths
from deeplight.engine.run.beside import beside
from deeplight.engine.run.cause import PLACES, moved_by_daytime
from deeplight.engine.run.engine import Began, Engine
from deeplight.engine.run.events import Events
from deeplight.engine.run.executor import LocalExecutor, Outcome, Quarantined, Task, check_all_done
from deeplight.engine.run.inputs import check_unchanged, has_remote
from deeplight.engine.run.options import RunOptions, as_shard
from deeplight.engine.run.ordering import Order, choose_order, tasks
from deeplight.engine.run.planned import PlannedRun, plan_scene
from deeplight.engine.run.preparation import (
    check_complete,
    check_request,
    output_spec,
    remove_beside_leftovers,
)
from deeplight.engine.run.report import RunReport, make_report, write_report
from deeplight.engine.run.result import RunResult, Tally
from deeplight.engine.run.seams import VerifiedSeams, verify_seams
from deeplight.engine.run.split import in_folder
from deeplight.engine.run.tiling import Crew
from deeplight.engine.run.work import Tile
from deeplight.engine.runtime.artifact import load_artifact

if TYPE_CHECKING:
    from deeplight.engine.output.hands import Piece
    from deeplight.engine.output.packs import PackStore
    from deeplight.engine.raster.scene import Scene


def infer(options: RunOptions, progress: Progress | None = None) -> RunReport | None:
    """Run a model over a scene and write the Cloud-Optimized GeoTIFF `options.out`, or a folder of them (`split`).

    Returns the report; None where a resumed run finds the output complete. Raises DeepLightError (InputError
    before anything is written). After an interruption, or where tiles had to be given up, the finished packs
    stay beside the output for `resume=True` and the output does not appear. A shard leaves its packs there, too.
    """
    with in_folder(options) as into:
        return _infer_as_asked(into, progress)


def _infer_as_asked(options: RunOptions, progress: Progress | None) -> RunReport | None:
    """Do what `infer` does, by workers or in this process."""
    if options.workers is not None:
        from deeplight.engine.run.workers.lead import infer_with_workers

        return infer_with_workers(options, progress or Silent())
    try:
        return _infer(options, progress or Silent())
    except AnotherPlan:  # which can be taken over now
        return _infer(options, progress or Silent())


def _infer(options: RunOptions, progress: Progress) -> RunReport | None:
    """Do what `infer` does, in this process. Raises AnotherPlan as well."""
    from deeplight.engine.raster.scene import Scene

    if options.shard is not None:
        options = as_shard(options)
    complete = check_request(options)
    began = Began.now()
    artifact = load_artifact(options.model, trust=options.trust)
    threads = options.threads or available_cpus()
    with (
        Events(options.events, append=options.mode is Mode.RESUME) as events,
        Scene.open(options.scene) as scene,
        paths.open_model(options, artifact, options.precision, threads, scene.grid) as backend,
    ):
        report = run_scene(
            options, scene, Engine(artifact, backend, threads, events, progress), complete, began
        )
    if report is not None and options.report is not None:
        write_report(report, options.report)
    return report


def run_scene(
    options: RunOptions, scene: Scene, engine: Engine, complete: bool, began: Began
) -> RunReport | None:
    """Run an open model over an open scene, whose request was checked: `infer` without opening and closing.

    complete: what `check_request` returned.
    """
    from deeplight.engine.output.packs import PackStore

    artifact, backend, progress = engine.artifact, engine.backend, engine.progress
    if complete:
        spec = output_spec(options, scene, artifact, backend)
        check_complete(options.out, spec, shard=options.shard is not None)
        progress.log(f"{options.out} is complete already")
        remove_beside_leftovers(options)
        beside(options, scene, spec, artifact.manifest, None)
        return None
    with plan_scene(options, scene, engine) as planned:
        spec = planned.spec
        planned.check_space(options)
        with parts_of(options, planned.record) as folder:
            remove_beside_leftovers(options)
            store = PackStore(folder, spec, planned.side)
            engine.begun()
            with Run(options, planned, store, engine) as run:
                run.stream()
                if not run.quarantined and options.shard is None:
                    run.assemble()
            result = engine.told(run.result(time.perf_counter() - began.seconds, began.moved))
            report = make_report(options, artifact, backend, scene, result)
            if options.report is not None and result.quarantined:
                write_report(report, options.report)
            check_all_done(result.quarantined)
        beside(options, scene, spec, artifact.manifest, report)
        engine.events.emit("finished", **report.summary())
    return report


def parts_of(options: RunOptions, record: Record) -> contextlib.AbstractContextManager[Path]:
    """The folder for packs: of this run alone, or together with other shards."""
    if options.shard is not None:
        return joined_parts(options.out, record, options.shard)
    return claimed_parts(options.out, record, options.mode)


def counting(
    tile: Tile, pixels: Floats | Encoded, seen: Floats, clamped: Callable[[Floats], int]
) -> Callable[[Window], Facts]:
    """What counts parts of a finished tile, in HR pixels of the scene. clamped: see BlockCodec."""
    counts, layers = tile.counts, tile.layers
    if layers is None:
        assert counts is not None  # the device has counted the core, which lies in one pack
        corner = (tile.core.row, tile.core.col)
        return lambda _: Facts.counted(tile.lr, tile.valid, seen, counts, corner)
    assert not isinstance(pixels, Encoded)

    def count(part: Window) -> Facts:
        rows, cols = part.slices_in(tile.core.scaled(SCALE))
        lr_part = Window(part.row // SCALE, part.col // SCALE, part.height // SCALE, part.width // SCALE)
        lr = lr_part.slices_in(tile.core)
        own = pixels[:, rows, cols]
        corner = (lr_part.row, lr_part.col)
        return Facts.of(
            tile.lr[lr], tile.valid[lr], own[0], seen[lr], layers[rows, cols], clamped(own[:1]), corner
        )

    return count


class Run:
    """One pass over the packs that are not done yet, then the output. A context manager.

    seconds: what the parts of the run took. quarantined: tiles that were given up.
    """

    def __init__(self, options: RunOptions, planned: PlannedRun, store: PackStore, engine: Engine) -> None:
        self.options, self.work, self.plan, self.store = options, planned.work, planned.plan, store
        self.threads, self.progress, self.events = engine.threads, engine.progress, engine.events
        self.hands = engine.hands
        scene = self.work.scene
        engine.split(
            self.plan.streams,
            self.work.products.model_outputs,
            layers=bool(scene.auxiliary),
            offset=scene.offset is not None,
        )
        self.tally = Tally()
        self.seams: VerifiedSeams | None = None
        self.regions: Mapping[Piece, int] | None = None
        self.seconds = {"stream": 0.0, "assemble": 0.0}
        self.filler = PackFiller(
            store,
            self.stored,
            # so that a pack that is there was made of the inputs that the record names
            functools.partial(check_unchanged, options, planned.record) if has_remote(options) else None,
            self.keys(),
            alone=not (planned.record.shared or options.part),
        )
        self.crew = self.work.crew(self.threads) if self.plan.core else Crew(1, 1)
        self.order = self._order()
        self.executor: LocalExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.work.close()

    def keys(self) -> Collection[tuple[int, int]] | None:
        """The packs to take care of; None: all."""
        return None if self.options.shard is None else self.options.shard.share(self.store.keys())

    def stored(self, key: tuple[int, int], size: int) -> None:
        """A pack is finished. size: its bytes."""
        self.events.emit("pack", key=key, bytes=size)

    @property
    def scene(self) -> Scene:
        """The rasters that are read."""
        return self.work.scene

    @property
    def quarantined(self) -> list[Quarantined]:
        """Tiles that were given up."""
        return self.executor.quarantined if self.executor is not None else []

    def result(self, total_s: float, moved_before: tuple[int, int] | None) -> RunResult:
        """What became of the run, for its report. total_s: its wall time. moved_before: `bytes_moved` when it began."""
        return RunResult(
            plan=self.plan,
            order=self.order,
            crew=self.crew,
            threads=self.threads,
            tally=self.tally,
            facts=self.filler.facts,
            packs=self.filler.counts(),
            stages=self.executor.stages if self.executor is not None else (),
            seconds={**self.seconds, "total": total_s},
            retried=self.executor.requeued if self.executor is not None else (),
            quarantined=self.quarantined,
            seams=self.seams,
            meter=self.work.meter,
            uncompiled=self.work.fallbacks(),
            moved_before=moved_before,
            regions=self.regions,
        )

    def _order(self) -> Order:
        from deeplight.engine.raster.source import CACHE_MB

        order = Order(self.scene.grid.width, CACHE_MB)
        if self.plan.core is not None:
            memory = available_memory() // self.options.beside  # what is this process's own
            order = choose_order(self.scene, self.plan, self.crew, CACHE_MB, memory)
            more = order.cache_mb - CACHE_MB + order.shared_mb << 20
            self.plan = replace(self.plan, estimate=self.plan.estimate + more)
        self.scene.prepare_reading(order.cache_mb, order.shared_mb)
        return order

    def stream(self) -> None:
        """Compute and store all packs that are missing, except those of tiles that have to be given up."""
        done, total = self.filler.done_px, self.filler.total_px
        if done == total:
            self.progress.log("all packs are there")
        elif done:
            share = "output" if self.options.shard is None else f"share of shard {self.options.shard}"
            self.progress.log(f"resuming: {done / total:.0%} of the {share} is done")
        self.events.emit(
            "started", tiles=self.plan.describe(), packs=self.filler.pending, hr_pixels=total - done
        )
        with self.progress, self._timed("stream"):
            self.progress.start(total - done)
            self.compute()
        if self.options.shard is None:
            self._say_what_was_counted()

    def compute(self) -> None:
        """Pass all tiles through the stages."""
        self.executor = LocalExecutor(
            self.work.read,
            self.work.compute,
            self.write,
            readers=self.crew.readers,
            streams=self.plan.streams,
            writers=self.crew.writers,
            ahead=self.crew.ahead,
            on_stop=self.work.cancel,
            **({} if self.plan.core else {"timeout_s": None}),
        )
        with self.executor as executor:
            executor.run(self.jobs(), self.note)

    def jobs(self) -> Iterator[Task | None]:
        """The tiles, in an order in which source blocks are decoded once and few packs are open."""
        if self.plan.core is None:
            if self.filler.pending:
                yield Task(Window(0, 0, self.scene.grid.height, self.scene.grid.width))
            return
        yield from tasks(
            self.filler.pending_windows(self.plan.pack), self.plan, self.order, self.crew.readers
        )

    def note(self, outcome: Outcome) -> None:
        """Say what became of a tile."""
        core = outcome.task.core
        place = {"row": core.row, "col": core.col, "height": core.height, "width": core.width}
        if outcome.error is None:
            self.events.emit("tile", **place, tried=outcome.task.tried, worker=outcome.worker)
            return
        self.progress.log(f"warning: tile at row {core.row}, column {core.col} failed: {outcome.error}")
        self.events.emit("tile_failed", **place, tried=outcome.task.tried + 1, error=str(outcome.error))

    def write(self, tile: Tile) -> None:
        """Mask and check a tile's pixels, hand them to its packs."""
        with self.work.collected(tile) as collected:
            self._store(collected)

    def _store(self, tile: Tile) -> None:
        core = tile.core
        pixels = self.work.finish(tile)
        if pixels is None or tile.window is None or tile.seen is None:
            self.filler.add(core.scaled(SCALE), None)
            self.tally.skip()
        else:
            facts = counting(tile, pixels, tile.seen, self.store.spec.codec.clamped)
            self.filler.add(core.scaled(SCALE), pixels, facts)
            computed = tile.window.height * tile.window.width
            self.tally.add(tile.lr.size, computed, valid_area_km2(self.scene.grid, core, tile.valid))
        self.progress.advance(core.height * core.width * SCALE**2)

    def _say_what_was_counted(self) -> None:
        from deeplight.engine.raster.units import RADIANCE_UNIT

        facts, codec = self.filler.facts, self.store.spec.codec
        for line in facts.lines(self.scene.covered):
            self.progress.log(line)
        lights = self.scene.unit, RADIANCE_UNIT, self.scene.doubtful
        for line in light_warnings(facts, *lights, self._moved_by_daytime, self.options.conserve_radiance):
            self.progress.log(f"warning: {line}")
        if facts.clamped:
            largest = f"{codec.largest:g} {self.scene.unit}".rstrip()
            self.progress.log(
                f"warning: {facts.clamped} pixels ({facts.clamped / facts.valid:.2g} of the valid ones) were above "
                f"{largest}, the largest value that uint16 holds here, and were written "
                'as that: use `dtype="float32"` to keep them'
            )

    def _moved_by_daytime(self) -> str:
        if not self.scene.covered["dmo"]:
            return ""
        with self.progress, self._timed("cause"):
            self.progress.start(PLACES, "places", "looking for what moved the light")
            return moved_by_daytime(self.work.host, self.progress.advance)

    def assemble(self) -> None:
        """Make the output from the packs. Raises DeepLightError where `verify_seams` finds a difference."""
        from deeplight.engine.output.cog import assemble
        from deeplight.engine.output.hands import Threads
        from deeplight.engine.output.regions import assemble_regions

        self.progress.log("assembling the output")
        self.events.emit("assembling")
        with self._timed("assemble"):
            verify = self.verify if self.options.verify_seams else None
            hands = self.hands or Threads(self.threads)
            how: Any = {"verify": verify, "progress": self.progress, "hands": hands}
            if self.options.split is None:
                assemble(self.store, self.options.out, **how)
            else:
                side = self.options.split // self.plan.pack
                self.regions = assemble_regions(self.store, self.options.out, side, **how)
        self.seconds["assemble"] -= self.seconds.get("verify", 0.0)

    def verify(self, path: Path) -> None:
        """Compute places at its seams again, on the finished file before it gets its name."""
        count = self.options.verify_seams
        with self._timed("verify"), self.progress:
            self.progress.start(count, "places", "verifying the seams")
            self.seams = verify_seams(
                path,
                self.store.spec,
                self.work,
                self.plan,
                count,
                self.filler.facts.largest,
                self.progress.advance,
            )
        self.progress.log(
            f"seams: {self.seams.windows} places computed again, largest difference {self.seams.worst:.1e} of the range"
        )
        self.events.emit("seams", windows=self.seams.windows, worst=self.seams.worst)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
