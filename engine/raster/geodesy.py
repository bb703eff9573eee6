"""Ground area of pixels, for rates in km²/s. Good to a few parts in a thousand, not for measuring land."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid

_EARTH_RADIUS_KM = 6371.0072
"""Of the sphere with the WGS 84 ellipsoid's area (authalic radius)."""


def valid_area_km2(grid: Grid, window: Window, valid: NDArray[np.uint8]) -> float:
    """Area of the valid pixels of a window.

    valid: (height, width) of the window. In a geographic CRS a pixel spans fixed angles, so its area shrinks
    with the cosine of the latitude of its row; in a projected one it is nominal (length of a unit squared).
    """
    counts = np.count_nonzero(valid, axis=1).astype(np.float64)
    pixel = abs(grid.transform.determinant)
    if not grid.crs.is_geographic:
        unit_km = grid.crs.linear_units_factor[1] / 1000.0
        return float(counts.sum() * pixel * unit_km**2)
    t = grid.transform
    rows = window.row + np.arange(window.height) + 0.5
    latitude = np.radians(t.d * (window.col + window.width / 2) + t.e * rows + t.f)
    shrink = np.clip(np.cos(latitude), 0.0, 1.0)
    return float((counts * shrink).sum() * pixel * math.radians(1.0) ** 2 * _EARTH_RADIUS_KM**2)
