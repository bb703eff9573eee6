"""The engine's device path without decoding: tiles that lie in page-locked memory → device → network → core → back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from bench.gpu.stage import StageSettings
from deeplight.engine.core.machine import available_cpus
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.source import CACHE_MB
from deeplight.engine.run import paths
from deeplight.engine.run.device_path import DevicePath
from deeplight.engine.run.device_work import DeviceTile, DeviceWork
from deeplight.engine.run.engine import Engine
from deeplight.engine.run.events import Events
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.planned import plan_scene
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.runtime.artifact import load_artifact

TILES = 60


def stream(folder: Path, settings: StageSettings, core: int, count: int = TILES) -> dict[str, Any]:
    """HR Mpix/s of the cores and of all that is computed, halos included, where the slots of a run are launched one
    after the other again and again, each once its result is back; and of one tile alone.

    folder: a scene of bench.gpu.scenes. core: of tiles, in LR pixels. Raises RuntimeError where there is no device path
    or something ran uncompiled.
    """
    layers = {name: str(folder / f"{name}.tif") for name in ("ntl", "dmo", "dem")}
    options = RunOptions(
        scene=SceneOptions(**layers),  # type: ignore[arg-type]
        out=folder / "never.tif",
        tiles=TileRequest(core),
        backend="torch",
        device=settings.device,
        precision=settings.dtypes[0],
        dtype="uint16",
    )
    artifact, threads = load_artifact(options.model), available_cpus()
    with (
        Scene.open(options.scene) as scene,
        paths.open_model(options, artifact, options.precision, threads, scene.grid) as backend,
        plan_scene(options, scene, Engine(artifact, backend, threads, Events(None), Silent())) as planned,
    ):
        work = planned.work
        if not isinstance(work, DeviceWork):
            raise RuntimeError(f"{backend.name} on {backend.device} has no device path")
        scene.prepare_reading(CACHE_MB)
        height, width = scene.grid.shape
        cores = split(Window(0, 0, height, width), planned.plan.core or core)
        with ThreadPoolExecutor(threads) as pool:
            read = list(pool.map(work.read, islice(cores, work.ring.count)))
        tiles_read = [tile for tile in read if isinstance(tile, DeviceTile) and tile.lease is not None]
        if not tiles_read:
            raise RuntimeError("no tile of the scene goes through the device")
        _through(work, tiles_read, len(tiles_read))  # a first time, which is not what a run is made of
        slots, begin = len(tiles_read), time.perf_counter()
        computed, finished = _through(work, tiles_read, count)
        seconds = time.perf_counter() - begin
        if fallbacks := work.fallbacks():
            raise RuntimeError(f"uncompiled: {fallbacks}")
        alone, device = work.meter.alone_px / work.meter.alone_s, work.path.device
    del work, planned, read, tiles_read  # and with them gigabytes that the processes after this may want
    device.release()
    return {
        "tiles": count,
        "slots": slots,
        "hr_mpix_per_s": finished * SCALE**2 / 1e6 / seconds,
        "hr_mpix_per_s_with_halo": computed * SCALE**2 / 1e6 / seconds,
        "hr_mpix_per_s_of_a_tile_alone": alone / 1e6,
    }


def _through(work: DeviceWork, tiles: Sequence[DeviceTile], count: int) -> tuple[int, int]:
    """Launch so many tiles, whose pixels stay in their slots, and wait for all of them. Returns the LR pixels that were
    computed, and those of cores."""
    path, launched = work.path, deque[DeviceTile]()
    computed = finished = 0
    for number in range(count):
        tile = tiles[number % len(tiles)]
        if len(launched) == len(tiles):
            _landed(path, launched.popleft())
        assert tile.lease is not None and tile.shape is not None and tile.window is not None
        path.launch(tile.lease.slot, tile.shape, tile.core, tile.window)
        launched.append(tile)
        computed += tile.window.height * tile.window.width
        finished += tile.core.height * tile.core.width
    for tile in launched:
        _landed(path, tile)
    return computed, finished


def _landed(path: DevicePath, tile: DeviceTile) -> None:
    assert tile.lease is not None
    with path.landed(tile.lease.slot, tile.core):
        pass
