"""Ground area of pixels: quickly for rates in km²/s, and exactly for tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import project

if TYPE_CHECKING:
    from rasterio.crs import CRS

_EARTH_RADIUS_KM = 6371.0072
"""Of the sphere with the WGS 84 ellipsoid's area (authalic radius)."""


def valid_area_km2(grid: Grid, window: Window, valid: NDArray[np.uint8]) -> float:
    """Area of the valid pixels of a window, to a few parts in a thousand: not for measuring land.

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


_EQUAL_AREA = 6933
"""EPSG: WGS 84 / NSIDC EASE-Grid 2.0 Global, cylindrical and of equal area on the ellipsoid."""
_ROUND_M = 2 * 17367530.4451615
"""Its width: what x changes by at the antimeridian."""
_STEP = 16
"""Pixels between the points at which the area of a pixel is computed; between them it is interpolated, which is right
to 5e-6 for pixels up to a kilometre."""


def equal_area(crs: CRS, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """Points (any shape) in metres of a projection in which areas are those of the ground; NaN outside of `crs`'s
    domain.

    Differences of x are to be taken with `step_x`.
    """
    from rasterio.crs import CRS

    return project(crs, CRS.from_epsg(_EQUAL_AREA), x, y)


def step_x(dx: Doubles) -> Doubles:
    """Differences of `equal_area`'s x, those across the antimeridian the short way round."""
    return np.asarray(dx - _ROUND_M * np.round(dx / _ROUND_M))


def pixel_areas_km2(grid: Grid, window: Window) -> Doubles:
    """Ground area of each pixel of a window, (h, w), on the ellipsoid, in any CRS; 0 off the globe.

    Right to 5e-6. `valid_area_km2` is faster, and right to a few parts in a thousand.
    """
    rows, cols = _points(window.row, window.height), _points(window.col, window.width)
    at_rows = np.asarray(window.row + np.arange(window.height) + 0.5, np.float64)
    at_cols = np.asarray(window.col + np.arange(window.width) + 0.5, np.float64)
    areas = _areas_at(grid, rows, cols)
    if not np.isfinite(areas).all():  # near the edge of the globe: every pixel on its own
        return np.nan_to_num(_areas_at(grid, at_rows, at_cols), nan=0.0)
    along = np.stack([np.interp(at_cols, cols, line) for line in areas])
    k = np.clip(np.searchsorted(rows, at_rows) - 1, 0, len(rows) - 2)
    share = ((at_rows - rows[k]) / (rows[k + 1] - rows[k]))[:, None]
    return np.asarray(along[k] * (1 - share) + along[k + 1] * share)


def _points(start: int, size: int) -> Doubles:
    """Edges of pixels, _STEP apart or less, with both ends."""
    return np.asarray(np.linspace(start, start + size, -(-size // _STEP) + 1), np.float64)


def _areas_at(grid: Grid, rows: Doubles, cols: Doubles) -> Doubles:
    """Areas (n, m) in km² of pixels whose centres lie at these rows and columns (pixel edges are whole numbers)."""
    r, c = (a[None] for a in np.meshgrid(rows, cols, indexing="ij"))
    offset = np.array([0.5, -0.5, 0.0, 0.0])[:, None, None]
    down, right = r + offset, c + offset[[2, 3, 0, 1]]
    a, b, x0, d, e, y0 = grid.transform[:6]
    x, y = equal_area(grid.crs, a * right + b * down + x0, d * right + e * down + y0)
    dx, dy = step_x(x[::2] - x[1::2]), y[::2] - y[1::2]
    return np.asarray(np.abs(dx[0] * dy[1] - dx[1] * dy[0]) / 1e6)
