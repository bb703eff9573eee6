"""Where grids lie and how they meet, found on coarse lattices of points; no pixel is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import Meshes, project

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rasterio.crs import CRS

Bounds = tuple[float, float, float, float]
"""(west, south, east, north) in degrees."""

_LATTICE = 48
_SAME_PX = 0.01
"""Pixels by which two ways to write a CRS, or the corners in two headers, may differ: what their decimals lose."""


@dataclass(frozen=True)
class Overlap:
    """How a layer's grid meets the NTL grid.

    share: part of the NTL grid that it covers, 0 … 1, to about 1/48 along each axis; may be 0 for a small
    layer. centre: (row, col) of an NTL position, 0 = centre of the first pixel, near the middle of the part
    they share. window: the layer's pixels in the bounding box of that part, inside the layer's raster.
    """

    share: float
    centre: tuple[float, float]
    window: Window


def lonlat_bounds(grid: Grid) -> Bounds | None:
    """The grid's extent from a lattice over it; None where no point of it is on the globe."""
    from rasterio.crs import CRS

    edges = np.linspace(0.0, 1.0, 17)
    rows, cols = np.meshgrid(edges * grid.height, edges * grid.width, indexing="ij")
    a, b, c, d, e, f = grid.transform[:6]
    lon, lat = project(grid.crs, CRS.from_epsg(4326), a * cols + b * rows + c, d * cols + e * rows + f)
    on_globe = np.isfinite(lon) & (np.abs(lat) <= 90.0 + 1e-6) & (np.abs(lon) <= 720.0)
    if not on_globe.any():
        return None
    lon, lat = lon[on_globe], lat[on_globe]
    return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())


def same_crs(a: CRS, b: CRS, grid: Grid) -> bool:
    """Whether two CRSs put the grid's corners and middle at the same places, however written: EPSG:4326, OGC:CRS84
    and +proj=longlat +datum=WGS84 are one. grid: in either of them."""
    if a == b:
        return True
    corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)]
    points = np.array([grid.transform @ (c * grid.width, r * grid.height) for c, r in corners])
    there = np.stack(project(a, b, points[:, 0], points[:, 1]), axis=1)
    known = np.isfinite(there).all(axis=1)
    pixel = np.hypot(grid.transform.a, grid.transform.d)
    return bool(known.any() and (np.abs(there - points)[known] <= _SAME_PX * pixel).all())


def same_grid(a: Grid, b: Grid) -> bool:
    """Whether two grids are one, but for what rounding in the headers of one product loses."""
    if a == b:
        return True
    if a.shape != b.shape:
        return False
    corners = ((0, 0), (a.width, 0), (0, a.height))
    moved = (
        abs(x - y)
        for corner in corners
        for x, y in zip(~a.transform @ (b.transform @ corner), corner, strict=True)
    )
    return max(moved) <= _SAME_PX and same_crs(a.crs, b.crs, a)


def format_bounds(bounds: Bounds | None) -> str:
    """For messages, such as: longitude 5.74…6.53, latitude 49.45…50.18."""
    if bounds is None:
        return "no place on the globe"
    west, south, east, north = bounds
    return f"longitude {west:.2f}…{east:.2f}, latitude {south:.2f}…{north:.2f}"


def overlap(ntl: Grid, aux: Grid) -> Overlap | None:
    """How `aux` meets `ntl`; None where they do not meet."""
    rows, cols = _positions(ntl)
    places = Meshes(ntl, aux).coordinates(rows, cols)
    inside = _inside(places, aux)
    share = float(inside.mean())
    if not inside.any():
        # A layer that falls between the lattice's points is found from its own side.
        places = np.stack(_positions(aux))
        rows, cols = Meshes(aux, ntl).coordinates(places[0], places[1])
        inside = _inside(np.stack([rows, cols]), ntl)
    if not inside.any():
        return None
    places, rows, cols = places[:, inside], rows[inside], cols[inside]
    middle = int(np.argmin(((places - places.mean(axis=1, keepdims=True)) ** 2).sum(axis=0)))
    low, high = np.floor(places.min(axis=1) + 0.5), np.floor(places.max(axis=1) + 0.5)
    height, width = (high - low + 1).astype(int).tolist()
    window = Window(int(low[0]), int(low[1]), height, width).clipped(aux.height, aux.width)
    return Overlap(share, (float(rows[middle]), float(cols[middle])), window)


def _positions(grid: Grid) -> tuple[Doubles, Doubles]:
    """Rows and columns (n², each) of evenly spaced positions, 0 = centre of the first pixel."""
    fractions = (np.arange(_LATTICE) + 0.5) / _LATTICE
    rows, cols = np.meshgrid(fractions * grid.height, fractions * grid.width, indexing="ij")
    return rows.ravel() - 0.5, cols.ravel() - 0.5


def _inside(places: Doubles, grid: Grid) -> NDArray[np.bool_]:
    last = np.array([[grid.height], [grid.width]]) - 0.5
    return np.asarray(np.all((places >= -0.5) & (places < last), axis=0), np.bool_)
