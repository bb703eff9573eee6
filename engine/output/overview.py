"""What of a large scene is shown: all of it in small, and its brightest part in full."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene

_CELL = 10
"""LR pixels a side of the cells from which the brightest square is found."""


@dataclass(frozen=True)
class Overview:
    """values: (h, w) means over the valid ones of factor × factor LR pixels, NaN = none is. window: the part of the
    scene that is shown in full, in LR pixels."""

    values: Floats
    factor: int
    window: Window


def overview(scene: Scene, window: Window, longest: int) -> Overview:
    """Means of the whole scene, at most `longest` a side. Reads it once, in strips."""
    factor = -(-max(scene.grid.shape) // longest)
    return Overview(means(scene, factor), factor, window)


def means(scene: Scene, factor: int) -> Floats:
    """Means over the valid ones of factor × factor LR pixels of the whole scene, NaN where none is."""
    height, width = scene.grid.shape
    starts = np.arange(0, width, factor)
    rows = []
    for row in range(0, height, factor):
        values, valid = scene.read_ntl(Window(row, 0, min(factor, height - row), width))
        known = valid != 0
        total = np.add.reduceat(np.where(known, values, 0).sum(axis=0, dtype=np.float64), starts)
        count = np.add.reduceat(known.sum(axis=0), starts)
        rows.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return np.array(rows, np.float32)


def brightest(scene: Scene, side: int) -> Window:
    """The square of `side` LR pixels with the highest sum of lights, to 10 pixels; less where the scene is smaller."""
    height, width = scene.grid.shape
    cells = []
    for row in range(0, height, _CELL):
        values, _ = scene.read_ntl(Window(row, 0, min(_CELL, height - row), width))
        sums = np.maximum(values, 0).sum(axis=0, dtype=np.float64)
        cells.append(np.add.reduceat(sums, np.arange(0, width, _CELL)))
    total = np.pad(np.cumsum(np.cumsum(cells, axis=0), axis=1), ((1, 0), (1, 0)))
    n = max(side // _CELL, 1)
    rows, cols = min(n, total.shape[0] - 1), min(n, total.shape[1] - 1)
    sums = total[rows:, cols:] - total[:-rows, cols:] - total[rows:, :-cols] + total[:-rows, :-cols]
    row, col = (int(i) * _CELL for i in np.unravel_index(np.argmax(sums), sums.shape))
    h, w = min(side, height), min(side, width)
    return Window(min(row, height - h), min(col, width - w), h, w)


def read_map(result: Path, window: Window) -> Floats:
    """Band 1 of a finished output over an LR window, physical, (8h, 8w), NaN = nodata."""
    import rasterio

    hr = window.scaled(SCALE)
    pixels = ((hr.row, hr.row + hr.height), (hr.col, hr.col + hr.width))
    with rasterio.open(result) as dataset:
        return _physical(dataset, dataset.read(1, window=pixels, masked=True))


def read_map_means(result: Path, factor: int) -> Floats:
    """Means of factor × factor pixels of band 1 of a finished output, from its overviews; physical, NaN = nodata."""
    import rasterio
    from rasterio.enums import Resampling

    with rasterio.open(result) as dataset:
        shape = (-(-dataset.height // factor), -(-dataset.width // factor))
        return _physical(
            dataset, dataset.read(1, out_shape=shape, resampling=Resampling.average, masked=True)
        )


def _physical(dataset: Any, band: Any) -> Floats:
    values = band.astype(np.float32) * np.float32(dataset.scales[0]) + np.float32(dataset.offsets[0])
    return np.asarray(np.ma.filled(values, np.nan), np.float32)
