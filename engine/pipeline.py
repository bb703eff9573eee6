"""Rasters → grid → tiles → reader → backend → cropped core → packs → COG: the module that joins them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.artifact import Manifest, load_artifact
from deeplight.engine.backends import open_backend
from deeplight.engine.errors import DeepLightError
from deeplight.engine.filling import PackFiller
from deeplight.engine.geodesy import valid_area_km2
from deeplight.engine.machine import available_cpus, bytes_moved
from deeplight.engine.options import RunOptions
from deeplight.engine.parts import check_space, claimed_parts
from deeplight.engine.preparation import (
    check_complete,
    check_request,
    output_spec,
    plan_run,
    valid_share,
)
from deeplight.engine.progress import Progress, Silent
from deeplight.engine.report import RunReport, Tally, make_report, write_report
from deeplight.engine.spec import SCALE
from deeplight.engine.stream import Stage, run_stages
from deeplight.engine.tiles import Window
from deeplight.engine.tiling import TilePlan, cores, tile_window

if TYPE_CHECKING:
    from deeplight.engine.backends.base import Backend
    from deeplight.engine.packs import PackStore
    from deeplight.engine.scene import Scene

_READERS, _WRITERS = 2, 2
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """A core on its way through the stages.

    lr, valid: its NTL (h, w), physical, and mask. window, inputs: what the model is given; None where
    the core is all nodata. pixels: the result, (bands, 8h, 8w), NaN = nodata.
    """

    core: Window
    lr: Array
    valid: NDArray[np.uint8]
    window: Window | None = None
    inputs: dict[str, Array] | None = None
    pixels: Array | None = None


def infer(options: RunOptions, progress: Progress | None = None) -> RunReport | None:
    """Run a model over a scene and write the Cloud-Optimized GeoTIFF `options.out`.

    Returns the report; None where --resume finds the output complete. Raises DeepLightError (InputError
    before anything is written); after an interruption the finished packs stay beside the output for --resume.
    """
    from deeplight.engine.cog import assemble
    from deeplight.engine.packs import PackStore, required_bytes
    from deeplight.engine.scene import Scene

    progress = progress or Silent()
    complete = check_request(options)
    moved = bytes_moved()
    began = time.perf_counter()
    artifact = load_artifact(options.model)
    threads = options.threads or available_cpus()
    with (
        Scene.open(options.scene) as scene,
        open_backend(
            options.backend, artifact, precision=options.precision, device=options.device, threads=threads
        ) as backend,
    ):
        record, plan = plan_run(options, scene, artifact, backend, threads)
        spec = output_spec(options, scene, artifact, backend, plan)
        if complete:
            check_complete(options.out, spec)
            progress.log(f"{options.out} is complete already")
            draw(options, scene)
            return None
        typical = required_bytes(spec, plan.pack * SCALE)[1]
        check_space(options.out, int(typical * valid_share(scene)))
        with claimed_parts(options.out, record, options.mode) as folder:
            store = PackStore(folder, spec, plan.pack * SCALE)
            run = Run(scene, backend, artifact.manifest, plan, store, options.bands, threads, progress)
            stream_s = run.stream()
            progress.log("assembling the output")
            start = time.perf_counter()
            assemble(store, options.out)
            assemble_s = time.perf_counter() - start
        seconds = {"total": time.perf_counter() - began, "stream": stream_s, "assemble": assemble_s}
        report = make_report(options, run, artifact, seconds, moved)
        draw(options, scene)
    if options.report is not None:
        write_report(report, options.report)
    return report


def draw(options: RunOptions, scene: Scene) -> None:
    """The quicklook, where one is asked for."""
    if options.quicklook is not None:
        from deeplight.engine.quicklook import write_quicklook

        write_quicklook(scene, options.out, options.quicklook)


class Run:
    """One pass over the packs that are not done yet."""

    def __init__(
        self,
        scene: Scene,
        backend: Backend,
        manifest: Manifest,
        plan: TilePlan,
        store: PackStore,
        bands: Sequence[str],
        threads: int,
        progress: Progress,
    ) -> None:
        self.scene, self.backend, self.manifest, self.plan = scene, backend, manifest, plan
        self.outputs = ("ntl_hr", *bands)
        self.threads = threads
        self.progress = progress
        self.tally = Tally()
        self.stages = [
            Stage("read", self.read, _READERS if plan.core else 1),
            Stage("infer", self.compute),
            Stage("write", self.write, _WRITERS if plan.core else 1),
        ]
        self.filler = PackFiller(store)

    def stream(self) -> float:
        """Compute and store all packs that are missing; returns the seconds it took."""
        start = time.perf_counter()
        done, total = self.filler.done_px, self.filler.total_px
        if done:
            self.progress.log(f"resuming: {done / total:.0%} of the output is done")
        with self.progress:
            self.progress.start(total - done)
            run_stages(self.jobs(), self.stages, depth=1, on_stop=self.backend.cancel)
        return time.perf_counter() - start

    def jobs(self) -> Iterator[Window]:
        """Cores in LR pixels, pack by pack, so that few packs are open at once."""
        if self.plan.core is None:
            if self.filler.pending:
                yield Window(0, 0, self.scene.grid.height, self.scene.grid.width)
            return
        for pack in self.filler.pending_windows(self.plan.pack):
            yield from cores(pack, self.plan)

    def read(self, core: Window) -> Tile:
        """Everything the model needs for a core, unless the core holds no data."""
        lr, valid = self.scene.read_ntl(core)
        if not valid.any():
            return Tile(core, lr, valid)
        window = tile_window(core, self.plan.halo, self.manifest)
        return Tile(core, lr, valid, window, self.scene.read_inputs(window))

    def compute(self, tile: Tile) -> Tile:
        """The model's outputs over the core, the halo cut off."""
        if tile.window is None or tile.inputs is None:
            return tile
        outputs = self.backend.run(tile.inputs, self.outputs)
        rows, cols = tile.core.slices_in(tile.window)
        hr_rows, hr_cols = tile.core.scaled(SCALE).slices_in(tile.window.scaled(SCALE))
        bands = []
        for name in self.outputs:
            if outputs[name].shape[-2:] == tile.window.shape:
                bands.append(np.repeat(np.repeat(outputs[name][0, :, rows, cols], SCALE, 1), SCALE, 2))
            else:
                bands.append(outputs[name][0, :, hr_rows, hr_cols])
        return Tile(tile.core, tile.lr, tile.valid, tile.window, None, np.concatenate(bands))

    def write(self, tile: Tile) -> None:
        """Check the numbers, mask what is nodata in NTL, hand the core to its pack."""
        size = tile.core.height * tile.core.width
        if tile.window is None or tile.pixels is None:
            self.filler.add(tile.core.scaled(SCALE), None)
            self.tally.skip()
        else:
            pixels = masked(tile.pixels, tile.valid, tile.core, self.manifest.name)
            self.filler.add(tile.core.scaled(SCALE), pixels)
            self.tally.add(
                tile.lr,
                tile.valid,
                float(np.nansum(pixels[0], dtype=np.float64)),
                tile.window.height * tile.window.width,
                valid_area_km2(self.scene.grid, tile.core, tile.valid),
            )
        self.progress.advance(size * SCALE**2)


def masked(pixels: Array, valid: NDArray[np.uint8], core: Window, model: str) -> Array:
    """`pixels` (bands, 8h, 8w) with NaN wherever the LR mask `valid` (h, w) is 0.

    Raises DeepLightError, naming the tile, where a valid pixel is not finite or its radiance is below zero.
    """
    hr_valid = np.repeat(np.repeat(valid != 0, SCALE, 0), SCALE, 1)
    result = np.where(hr_valid, pixels, np.float32(np.nan))
    finite = np.isfinite(result).all(axis=0)
    if not np.array_equal(finite, hr_valid) or np.nanmin(result[0]) < 0:
        raise DeepLightError(
            f"{model} gave values that are not finite or below zero in the tile at row {core.row}, "
            f"column {core.col} of {core.height}×{core.width} LR pixels: "
            f"check the scales of the inputs there, or use another model or --precision fp32"
        )
    return result
