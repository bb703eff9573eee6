"""The run over one date, or over several into one folder, for which model and layers are opened once."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.machine import available_cpus, available_memory, return_memory
from deeplight.engine.core.progress import Progress, Silent
from deeplight.engine.core.spec import OFFSET
from deeplight.engine.output.folders import made_folder
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.run import paths
from deeplight.engine.run.device_dates import DatesOnDevice
from deeplight.engine.run.engine import Began, Engine
from deeplight.engine.run.events import Events
from deeplight.engine.run.pipeline import infer, run_scene
from deeplight.engine.run.preparation import output_spec
from deeplight.engine.run.report import RunReport
from deeplight.engine.run.suggested import SuggestedLights
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.stack.counts import with_counts
from deeplight.engine.stack.nights import Night, check_dated_bands, find_nights, read_pieces
from deeplight.engine.stack.options import OFFSET_FILE, StackOptions, is_group, is_map
from deeplight.engine.stack.outputs import Outputs
from deeplight.engine.stack.preparation import (
    Date,
    check_all_space,
    check_offset,
    check_same,
    check_split,
    check_stack,
    is_stack,
)
from deeplight.engine.stack.progress import DateProgress
from deeplight.engine.stack.report import StackReport, earlier_report
from deeplight.engine.stack.shared_blur import earlier_blur, with_one_blur
from deeplight.engine.stack.zarr_group import ZarrGroup, check_group, claimed_group

if TYPE_CHECKING:
    from deeplight.engine.raster.auxiliary import Beside
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.raster.lights import OpenLights
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.raster.shared_offset import SharedOffset
    from deeplight.engine.run.options import RunOptions

    _Opened = tuple[Night, bool, OpenLights]

_log = logging.getLogger(__name__)

_SUGGESTED_SHARE = 0.01
"""Share of the free memory for what the layers suggest: 4 bytes an LR pixel, so that it suffices for most countries."""

_KEPT_SHARE = 0.15
"""Share of the free memory for resampled tiles of the layers that dates share; a run itself plans with 0.7 of it."""


def infer_dates(options: StackOptions, progress: Progress | None = None) -> RunReport | StackReport | None:
    """Run a model over the lights of one date into the file `options.run.out`, or over those of several into a folder
    of that name: {date}.tif, a VRT of all, run.json and what else is asked for; or into a Zarr group, OUT.zarr.

    Each date's map has the bytes of its own single run; where the blur is measured (`psf="auto"`), of one that is told
    the blur of all dates, which they share. Returns the report; None where a resumed run finds the output
    of one date complete. Raises DeepLightError (InputError before anything is written); finished dates, and finished
    packs of the one in work, stay for `resume=True`.
    """
    progress = progress or Silent()
    nights = _nights(options)
    if options.run.split is not None:
        check_split(options, nights)
    if options.run.split is not None or not is_stack(options, nights):
        if options.offset == "stack":
            raise InputError(
                f'`offset="stack"` is one alignment for several dates and {options.run.out} is for one: leave it out'
            )
        return infer(options.single(nights[0]), progress)
    with _place(options, nights):
        complete = check_stack(options, nights)
        with Stack(options, nights, complete, progress) as stack:
            return stack.run()


def _nights(options: StackOptions) -> list[Night]:
    """Find the dates. A single name that cannot be opened counts as one date; its run refuses it after other checks."""
    scene, one = options.run.scene, is_map(options.run.out) or options.run.split is not None
    try:
        pieces = read_pieces(options.ntl, scene, len(options.dates or ()))
    except InputError:
        if len(options.ntl) == 1 and options.dates is None and one:
            return [Night(scene, None, told=False)]
        raise
    if options.dates is None and not one:
        check_dated_bands(pieces)
    return with_counts(find_nights(pieces, options.ntl, scene, options.dates), scene, options.dates)


def _place(options: StackOptions, nights: Sequence[Night]) -> contextlib.AbstractContextManager[None]:
    """The folder to which maps are written, while the block runs."""
    if not is_group(options.run.out):
        return made_folder(options.folder)
    check_group(options, nights)
    return claimed_group(options.run.out, options.run.mode)


class Stack:
    """Everything that the dates share, opened once. A context manager."""

    def __init__(
        self, options: StackOptions, nights: Sequence[Night], complete: Sequence[bool], progress: Progress
    ) -> None:
        self.options, self.progress = options, DateProgress(progress)
        self.nights = list(zip(nights, complete, strict=True))
        group = is_group(options.run.out)
        self.outputs = ZarrGroup(options) if group else Outputs(options)
        places = {night.name: options.run.out if group else options.of(night).out for night in nights}
        self.report = StackReport.begin(options.run.out, options.run.mode.value, places)
        self.began = time.perf_counter()
        self._stack = contextlib.ExitStack()
        self._beside: list[tuple[Grid, Beside]] = []
        self._offset: SharedOffset | None = None
        self._keep = int(_KEPT_SHARE * available_memory()) if len(nights) > 1 else 0

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> StackReport:
        """Compute all dates, then write the files about all of them."""
        run = self.options.run
        if run.mode is Mode.RESUME:
            self.report.remember(earlier_report(self.options.report))
        artifact = load_artifact(run.model, trust=run.trust)
        threads = run.threads or available_cpus()
        events = self._stack.enter_context(Events(run.events, append=run.mode is Mode.RESUME))
        scenes = self._scenes()
        grid = scenes[0][2].layer.raster.grid
        backend = self._stack.enter_context(paths.open_model(run, artifact, run.precision, threads, grid))
        on_device = DatesOnDevice()
        self._stack.callback(on_device.close)
        shares = self._keep > 0 and self.options.offset == "own"
        suggested = SuggestedLights(int(_SUGGESTED_SHARE * available_memory())) if shares else None
        engine = Engine(
            artifact,
            backend,
            threads,
            events,
            self.progress,
            begun=self._begun,
            dates=on_device,
            suggested=suggested,
        )
        with self._aligned(scenes, engine) as aligned:
            dates = self._dates(aligned, engine)
        opened = time.perf_counter()
        for number, date in enumerate(dates, 1):
            self.progress.name = f"{date.night.name} ({number} of {len(dates)})"
            events.common = {"date": date.night.name}
            self._compute(date, engine)
            date.lights.rest()
            backend.rest()
            for _, beside in self._beside:
                beside.rest()
            return_memory()
        self.progress.name, events.common = "", {}
        computed = time.perf_counter()
        self.outputs.write()
        self.report.status = "complete"
        ends = {"opening": opened - self.began, "dates": computed - opened}
        self.report.seconds = {**ends, "total": time.perf_counter() - self.began}
        self.report.write(self.options.report)
        return self.report

    @contextlib.contextmanager
    def _aligned(self, scenes: list[_Opened], engine: Engine) -> Iterator[list[_Opened]]:
        """The dates with the alignment that they share, if they are to share one. Its file is removed again if they are
        refused."""
        if self.options.offset == "own":
            yield scenes
            return
        from deeplight.engine.raster.kept import KeptTiles
        from deeplight.engine.raster.scene import Scene
        from deeplight.engine.stack.alignment import estimated, mean_of, write_offset

        lights = [date for _, _, date in scenes]
        check_offset(self.options, lights, engine.backend)
        mean = replace(lights[0], layer=mean_of([date.layer for date in lights]))
        layers = self._layers(scenes[0][0], mean.layer.raster.grid)
        # its tiles are others than those of the dates
        scene = Scene(mean, replace(layers, kept=KeptTiles(0)))
        engine.split(1, (OFFSET.name,), layers=True)
        with self.progress:
            self.progress.start(
                scene.grid.height * scene.grid.width, "pixels", "aligning the mean of all dates"
            )
            self._offset = estimated(scene, engine.backend, engine.artifact.manifest, self.progress.advance)
        for date in lights:
            date.rest()
        path = self.options.folder / OFFSET_FILE
        made = not path.exists()
        write_offset(path, self._offset, scene.grid, keep=self.options.run.mode is Mode.RESUME)
        _log.warning(
            "all dates have one alignment, that of their mean: maps differ from those of single runs"
        )
        try:
            yield [
                (replace(night, scene=replace(night.scene, offset=str(path))), complete, date)
                for night, complete, date in scenes
            ]
        except InputError:
            if made:
                path.unlink()
            raise

    def _dates(self, scenes: list[_Opened], engine: Engine) -> list[Date]:
        """Prepare all dates. Raises InputError where one of them could not be finished."""
        dates = []
        for night, complete, lights in scenes:
            own, scene = self._options(night), self._scene(night, lights)
            spec = output_spec(own, scene, engine.artifact, engine.backend)
            dates.append(Date(night, lights, scene, own, spec, complete and own.mode is Mode.RESUME))
        self.outputs.begin([(date.night, date.spec) for date in dates], engine.artifact.manifest)
        waiting = [date for date in dates if not self.outputs.has(date.night)]
        for date in waiting:
            with _naming(date.night):
                check_same(date, engine)
        check_all_space(self.options, waiting)
        for date in dates:
            date.lights.rest()
        return dates

    def _compute(self, date: Date, engine: Engine) -> None:
        """Compute the map of a date, and add it to the files about all dates."""
        night, report = date.night, None
        if self.outputs.has(night):
            self.progress.log(f"it is complete already in {self.options.run.out}")
        else:
            with _naming(night):
                report = run_scene(date.options, date.scene, engine, date.complete, Began.now())
        if report is not None:
            self.report.finished(night.name, report)
            self.progress.log(report.headline())
        self.outputs.add(night, date.scene, date.spec, report)
        self.report.of(night.name).status = "complete"
        self.report.write(self.options.report)

    def _counted(self, what: str) -> Iterator[tuple[Night, bool]]:
        """Go through all dates and show progress."""
        with self.progress:
            self.progress.start(len(self.nights), "dates", what)
            for night in self.nights:
                yield night
                self.progress.advance()

    def _begun(self) -> None:
        """Write the report before the first tile, so that a resumed run knows which maps are to be replaced; it is
        written after each date, too."""
        if not self.report.computed:
            self.report.write(self.options.report)

    def _options(self, night: Night) -> RunOptions:
        """The options of a date's run. A resumed run that replaces maps also replaces those not reached before."""
        own = self.options.of(night)
        waiting = self.report.mode == Mode.OVERWRITE.value and self.report.of(night.name).status == "waiting"
        if own.mode is Mode.RESUME and waiting and not parts_folder(own.out).exists():
            return replace(own, mode=Mode.OVERWRITE)
        return own

    def _scenes(self) -> list[_Opened]:
        """Open and check all dates before anything is written, and return those whose lights have data."""
        from deeplight.engine.raster.lights import OpenLights
        from deeplight.engine.raster.radiance import NoLight

        found, error = [], None
        blur = earlier_blur(self.options, [night for night, _ in self.nights])
        for night, complete in self._counted("opening the lights"):
            with contextlib.ExitStack() as stack:
                try:
                    lights = OpenLights.open(replace(night.scene, psf=blur or night.scene.psf), stack)
                except NoLight as missing:
                    _log.warning(
                        "%s: no pixel has data, so that there will be no map of this date", night.name
                    )
                    self.report.of(night.name).status, error = "no data", missing
                    continue
                self._stack.push(stack.pop_all())
            lights.rest()
            found.append((night, complete, lights))
        if error is not None and not found:
            raise error
        _check_units([(night, lights) for night, _, lights in found])
        found = with_one_blur(found)
        first, _, lights = found[0]
        self._scene(first, lights).tell()
        return found

    def _scene(self, night: Night, lights: OpenLights) -> Scene:
        """Open the scene of one date."""
        from deeplight.engine.raster.scene import Scene

        return Scene(lights, self._layers(night, lights.layer.raster.grid), self._offset)

    def _layers(self, night: Night, grid: Grid) -> Beside:
        """The layers beside the lights, which dates on one grid share."""
        from deeplight.engine.raster.auxiliary import Beside

        beside = next((beside for known, beside in self._beside if known == grid), None)
        if beside is None:
            beside = Beside.open(night.scene, grid, self._stack, keep=self._keep)
            self._beside.append((grid, beside))
        return beside


def _check_units(found: Sequence[tuple[Night, OpenLights]]) -> None:
    """Raise InputError where the lights of two dates have different units, since such dates are not a series."""
    (first, lights), *others = found
    for night, other in others:
        if other.unit != lights.unit:
            one, two = (unit or "a unit that nothing says" for unit in (lights.unit, other.unit))
            raise InputError(
                f"the lights of {first.name} ({first.scene.ntl}) are in {one} and those of {night.name} "
                f"({night.scene.ntl}) in {two}: give dates in one unit, or say what they all are with `ntl_unit`"
            )


@contextlib.contextmanager
def _naming(night: Night) -> Iterator[None]:
    """Name the date in errors of its run."""
    try:
        yield
    except DeepLightError as error:
        error.args = (f"{night.name}: {error}",)
        raise
