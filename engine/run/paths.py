"""What computes a run's tiles: the model, and the path that pixels take to it and back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.forms import Conserving, Steps, Wanted
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.run.conserve import AROUND, EVEN_SHARE, POWERS
from deeplight.engine.run.options import UINT16_NODATA, UINT16_SCALE, RunOptions, band_count
from deeplight.engine.run.products import Products, model_outputs
from deeplight.engine.run.quality import extrapolated_from
from deeplight.engine.run.tiling import TilePlan, common_sides
from deeplight.engine.run.work import TileWork
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.manifest import Manifest

if TYPE_CHECKING:
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.device_dates import DatesOnDevice
    from deeplight.engine.run.suggested import SuggestedLights
    from deeplight.engine.runtime.backends.base import Backend


def open_model(
    options: RunOptions, artifact: Artifact, precision: str, threads: int, grid: Grid | None = None
) -> Backend:
    """The model in a precision, on the backend and device that were asked for. grid: of the scene's lights."""
    return open_backend(
        options.backend,
        artifact,
        precision=precision,
        device=options.device,
        threads=threads,
        compiling=options.compiling,
        pixels=0 if grid is None else grid.height * grid.width,
    )


def tile_work(
    options: RunOptions,
    scene: Scene,
    artifact: Artifact,
    backend: Backend,
    plan: TilePlan,
    threads: int,
    dates: DatesOnDevice | None = None,
    suggested: SuggestedLights | None = None,
) -> TileWork:
    """What decides pixels: on the device path where the backend has one and there are tiles, else on the host's. The
    model in fp32 is opened when a tile needs it. dates, suggested: what this scene shares with others, on the device
    path and on the host's."""
    manifest, given = artifact.manifest, scene.offset is not None
    work = TileWork(
        scene,
        backend,
        manifest,
        plan.halo,
        Products(options.bands, manifest, scene.ceiling, options.conserve_radiance),
        (lambda: open_in_fp32(options, artifact, threads, offset=given))
        if options.precision != "fp32"
        else None,
        suggested,
        common_sides(plan, manifest, scene.grid.shape) if backend.few_shapes and plan.core else None,
    )
    # programs of a device estimate the offset
    resident = backend.resident() if plan.core is not None and not given else None
    if resident is None:
        return work
    # read here, so that the host's path does without it
    from deeplight.engine.run.device_path import DevicePath
    from deeplight.engine.run.device_work import DeviceWork

    slots = tuple(int(slot in scene.dmo_slots) for slot in DMO_SLOTS)
    make = DevicePath if dates is None else dates.path
    path = make(resident, wanted_of(options, scene, manifest), slots)
    return DeviceWork(work, path, threads, options.beside, dates)


def wanted_of(options: RunOptions, scene: Scene, manifest: Manifest) -> Wanted:
    """What a device is asked for of each tile: the same as run.products makes on the host."""
    conserving = Conserving(POWERS, AROUND, EVEN_SHARE) if options.conserve_radiance else None
    holds, steps = (-math.inf, math.inf), None
    if options.dtype == "uint16":
        holds = (-UINT16_SCALE / 2, (UINT16_NODATA - 0.5) * UINT16_SCALE)
        steps = Steps(UINT16_SCALE, 0.0, UINT16_NODATA)
    return Wanted(
        bands=options.bands,
        count=band_count(options.bands),
        steps=steps,
        conserving=conserving,
        psf=(float(scene.psf[0]), float(scene.psf[1])),
        limits=(float(scene.limits[0]), float(scene.limits[1])),
        ceiling=scene.ceiling,
        radius=math.ceil(manifest.receptive_field_lr),
        far=extrapolated_from(manifest.d_max),
        holds=holds,
    )


def open_in_fp32(options: RunOptions, artifact: Artifact, threads: int, *, offset: bool = False) -> Backend:
    """The model in fp32 where it is asked to run, or on the CPU where that has only the reduced precision: for single
    tiles of whatever shape, which are not worth compiling. offset: see Backend.split."""
    try:
        found = open_model(replace(options, compiling=False), artifact, "fp32", threads)
    except InputError:
        found = open_backend("auto", artifact, device="cpu", threads=threads)
    if offset:
        found.split(1, threads, model_outputs(options.bands), offset=True)
    return found
