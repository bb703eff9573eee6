"""One alignment for all dates: the offset that the network estimates from the mean of their lights.

It is for products whose misregistration is the same on every date, and whose single dates are too dim or too noisy to
align by. Maps that are made with it differ from those of single runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.spec import OFFSET
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.shared_offset import SharedOffset
from deeplight.engine.run.tiling import tile_window

if TYPE_CHECKING:
    from deeplight.engine.core.arrays import Floats, Mask
    from deeplight.engine.raster.buffers import Scratch
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.raster.layers import Layer
    from deeplight.engine.raster.lights import ObservedLayer
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.runtime.backends.base import Backend
    from deeplight.engine.runtime.manifest import Manifest

CORE = 128
"""LR pixels a side of a tile: the same for any memory, so that a resumed run gets the same bits."""


class MeanLights:
    """The mean of the lights of several dates, pixel by pixel over the dates that are valid there. As Layer."""

    observed = None

    def __init__(self, dates: Sequence[Layer]) -> None:
        """dates: on one grid, in one unit."""
        self._dates, self.raster = dates, dates[0].raster

    def read_native(self, window: Window, scratch: Scratch | None = None) -> tuple[Floats, Mask]:
        """See Layer.read_native."""
        total, count = np.zeros((1, *window.shape)), np.zeros(window.shape, np.int64)
        for layer in self._dates:
            values, valid = layer.read_native(window, scratch)
            total += values  # 0 where invalid
            count += valid != 0
        return (total / np.maximum(count, 1)).astype(np.float32), (count > 0).astype(np.uint8)


def mean_of(dates: Sequence[ObservedLayer]) -> ObservedLayer:
    """The mean of the dates, for a scene to read."""
    return cast("ObservedLayer", MeanLights(dates))


def estimated(
    scene: Scene, backend: Backend, manifest: Manifest, advance: Callable[[int], None]
) -> SharedOffset:
    """The offset over the whole scene, 0 where the lights are invalid in a whole tile. scene: of the mean of the
    lights. advance: is told the LR pixels of each tile."""
    grid = scene.grid
    found = np.zeros((OFFSET.channels, *grid.shape), np.float32)
    for core in split(Window(0, 0, *grid.shape), CORE):
        if scene.any_valid(core):
            window = tile_window(core, manifest.halo_lr, manifest, grid.shape)
            offset = backend.run(scene.read_inputs(window), (OFFSET.name,))[OFFSET.name][0]
            rows, cols = core.slices_in(window)
            there = core.slices_in(Window(0, 0, *grid.shape))
            found[:, there[0], there[1]] = offset[:, rows, cols]
        advance(core.height * core.width)
    return SharedOffset(found)


def write_offset(path: Path, offset: SharedOffset, grid: Grid, *, keep: bool) -> None:
    """Write the offset as a GeoTIFF. keep: one that is there already must have these values; raises InputError where it
    has others, since maps were made with it. Raises DeepLightError where the disk refuses."""
    import rasterio
    from rasterio.errors import RasterioIOError

    if keep and path.exists():
        try:
            with rasterio.open(path) as earlier:
                same = np.array_equal(earlier.read(), offset.values)
        except RasterioIOError:
            same = False
        if not same:
            raise InputError(
                f"{path} is the alignment of other dates, layers or another model: use `overwrite=True` to make all "
                "maps again"
            )
        return
    with rasterio.MemoryFile() as memory:
        profile = {"driver": "GTiff", "dtype": "float32", "compress": "deflate", "predictor": 3}
        place = {"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width}
        with memory.open(count=OFFSET.channels, **profile, **place) as file:
            file.write(offset.values)
            file.descriptions = ("offset_x (LR pixels)", "offset_y (LR pixels)")
        write_file(path, [memory.read()])
