"""The outline of a grid as GeoJSON in longitude and latitude, cut at the antimeridian."""

from __future__ import annotations

from typing import Any

import numpy as np

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import project

_PER_EDGE = 16
_DIGITS = 7
"""Of a degree: a centimetre."""


def footprint(grid: Grid) -> tuple[dict[str, Any], list[float]]:
    """(geometry, bbox) of a grid. A bbox across the antimeridian has its west greater than its east, as GeoJSON
    (RFC 7946) asks; a grid around a pole gets the cap down to its lowest latitude."""
    lon, lat = _outline(grid)
    turn = lon[-1] - lon[0]
    if abs(turn) > 180:
        return _cap(lat, grid)
    middle = np.round((lon.min() + lon.max()) / 2 / 360) * 360
    ring = np.stack([lon - middle, lat], axis=1)
    west, east = float(ring[:, 0].min()), float(ring[:, 0].max())
    south, north = _rounded(float(lat.min())), _rounded(float(lat.max()))
    if east - west >= 360:
        return _polygon(_rectangle(-180, south, 180, north)), [-180.0, south, 180.0, north]
    parts = [_clipped(ring, limit=180.0, keep=-1), _clipped(ring, limit=180.0, keep=1)]
    if west < -180:
        parts = [_clipped(ring, limit=-180.0, keep=1), _clipped(ring, limit=-180.0, keep=-1)]
    rings = [_wrapped(part) for part in parts if len(part) > 2]
    bbox = [_rounded(_inside(west)), south, _rounded(_inside(east)), north]
    if len(rings) == 1:
        return _polygon(rings[0]), bbox
    return {"type": "MultiPolygon", "coordinates": [[_closed(r)] for r in rings]}, bbox


def _outline(grid: Grid) -> tuple[Doubles, Doubles]:
    """Longitudes (unwrapped) and latitudes (n,) around the grid, the first point repeated at the end."""
    from rasterio.crs import CRS

    count = 1 if grid.crs.is_geographic else _PER_EDGE  # edges are straight in degrees, or curves
    edge = np.linspace(0.0, 1.0, count, endpoint=False)
    zero, one = np.zeros(count), np.ones(count)
    cols = np.concatenate([edge, one, 1 - edge, zero, [0.0]]) * grid.width
    rows = np.concatenate([zero, edge, one, 1 - edge, [0.0]]) * grid.height
    a, b, c, d, e, f = grid.transform[:6]
    lon, lat = project(grid.crs, CRS.from_epsg(4326), a * cols + b * rows + c, d * cols + e * rows + f)
    known = np.isfinite(lon) & np.isfinite(lat)
    if grid.crs.is_geographic:  # a grid wider than half a turn must not be folded
        return lon[known], np.clip(lat[known], -90, 90)
    return np.unwrap(lon[known], period=360.0), np.clip(lat[known], -90, 90)


def _cap(lat: Doubles, grid: Grid) -> tuple[dict[str, Any], list[float]]:
    north = float(lat.mean()) > 0
    south_edge, north_edge = (float(lat.min()), 90.0) if north else (-90.0, float(lat.max()))
    bbox = [-180.0, _rounded(south_edge), 180.0, _rounded(north_edge)]
    return _polygon(_rectangle(*bbox)), bbox


def _rectangle(west: float, south: float, east: float, north: float) -> Doubles:
    return np.array([[west, south], [east, south], [east, north], [west, north], [west, south]], np.float64)


def _clipped(ring: Doubles, limit: float, keep: int) -> Doubles:
    """The part of a closed ring (n, 2) where keep · (longitude − limit) ≥ 0 (Sutherland and Hodgman, 1974)."""
    side = keep * (ring[:, 0] - limit)
    points: list[Doubles] = []
    for k in range(len(ring) - 1):
        if side[k] >= 0:
            points.append(ring[k])
        if (side[k] > 0) != (side[k + 1] > 0) and side[k] != 0 and side[k + 1] != 0:
            points.append(ring[k] + (ring[k + 1] - ring[k]) * (side[k] / (side[k] - side[k + 1])))
    if not points or max(keep * (p[0] - limit) for p in points) <= 0:
        return np.empty((0, 2))
    return np.array([*points, points[0]])


def _wrapped(ring: Doubles) -> Doubles:
    """A ring that lies on one side of the antimeridian, moved into −180 … 180."""
    shift = 360.0 * np.round(ring[:, 0].mean() / 360.0)
    moved: Doubles = ring - np.array([shift, 0.0])
    return moved


def _inside(lon: float) -> float:
    return (lon + 180.0) % 360.0 - 180.0 if not -180 <= lon <= 180 else lon


def _polygon(ring: Doubles) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [_closed(ring)]}


def _closed(ring: Doubles) -> list[list[float]]:
    """Counter-clockwise, as RFC 7946 asks of outer rings."""
    x, y = ring[:, 0], ring[:, 1]
    area = float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
    return [[_rounded(float(u)), _rounded(float(v))] for u, v in (ring if area > 0 else ring[::-1])]


def _rounded(degrees: float) -> float:
    return round(degrees, _DIGITS)
