"""The whole of a large scene in one small picture: means of its LR pixels, and where a window of it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Overview:
    """values: (h, w) means over the valid ones of factor × factor LR pixels, NaN = none is. window: the part of the
    scene that is shown in full, in LR pixels."""

    values: Array
    factor: int
    window: Window


def overview(scene: Scene, window: Window, longest: int) -> Overview:
    """Means of the whole scene, at most `longest` a side. Reads it once, in strips."""
    height, width = scene.grid.height, scene.grid.width
    factor = -(-max(height, width) // longest)
    starts = np.arange(0, width, factor)
    rows = []
    for row in range(0, height, factor):
        values, valid = scene.read_ntl(Window(row, 0, min(factor, height - row), width))
        known = valid != 0
        total = np.add.reduceat(np.where(known, values, 0).sum(axis=0, dtype=np.float64), starts)
        count = np.add.reduceat(known.sum(axis=0), starts)
        rows.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return Overview(np.array(rows, np.float32), factor, window)
