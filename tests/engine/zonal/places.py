"""Maps and files of regions for tests, and what a region holds, counted point by point."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from affine import Affine

from tests.scenes import write_raster

UNIT = "nW/cm²/sr"
LATLON = ("EPSG:4326", Affine(0.01, 0.0, 15.0, 0.0, -0.015, 62.0))
ROTATED = ("EPSG:32633", Affine(400.0, 150.0, 5.0e5, -120.0, -500.0, 6.9e6))
SHAPE = (23, 31)


def light(seed: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Radiances over two orders of magnitude, with holes."""
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(0.5, 1.2, shape)).astype(np.float32)
    values[3:6, 8:12] = np.nan
    return values


def write_map(
    path: Path, place: tuple[str, Affine] = LATLON, values: np.ndarray | None = None, **more: Any
) -> Path:
    """Write a map with one band as deeplight-infer does, or with several bands for `names`."""
    pixels = light() if values is None else values
    count = 1 if pixels.ndim == 2 else len(pixels)
    given = {"nodata": float("nan"), "units": [UNIT] * count, **more}
    return write_raster(path, pixels, place[0], place[1], **given)


def write_regions(
    path: Path, shapes: Mapping[Any, Any], crs: str | None = "EPSG:4326", column: str = "name", **more: Any
) -> Path:
    """Write a vector file with the names in a column."""
    warnings.filterwarnings("ignore", "'crs' was not provided")
    kinds = {shape.geom_type for shape in shapes.values()}
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(list(shapes.values()), object)),
        [np.array(list(shapes), object if isinstance(next(iter(shapes)), str) else None)],
        [column],
        crs=crs,
        geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown",
        **more,
    )
    return path


def on_pixels(place: tuple[str, Affine], *corners: tuple[float, float]) -> Any:
    """A polygon in the CRS of a grid with its corners at (column, row)."""
    return shapely.Polygon([place[1] @ corner for corner in corners])


@dataclass(frozen=True)
class Counted:
    """The content of a region. area_km2: its area within the map. data_km2: its area with data."""

    area_km2: float
    data_km2: float
    pixels: float
    light_px: float
    light_km2: float
    lit_km2: float


def counted(file: Path, shape: Any, crs: str, points: int, threshold: float = 1.0) -> Counted:
    """The reference: points × points of every pixel lie in the region or not; areas of pixels are on the ellipsoid."""
    with rasterio.open(file) as raster:
        values, place, target = raster.read(1), raster.transform, raster.crs
    (height, width), within = values.shape, (np.arange(points) + 0.5) / points
    cols, rows = np.meshgrid(*((np.arange(n)[:, None] + within).ravel() for n in (width, height)))
    there = pyproj.Transformer.from_crs(target, crs, always_xy=True).transform(*(place @ (cols, rows)))
    inside = shapely.contains_xy(shape, *there).reshape(height, points, width, points)
    share = inside.mean(axis=(1, 3))
    cols, rows = np.meshgrid(np.arange(width + 1), np.arange(height + 1))
    edges = pyproj.Transformer.from_crs(target, 4326, always_xy=True).transform(*(place @ (cols, rows)))
    geod, area = pyproj.Geod(ellps="WGS84"), np.zeros(values.shape)
    for row, col in np.ndindex(values.shape):
        lon, lat = (e[[row, row + 1, row + 1, row], [col, col, col + 1, col + 1]] for e in edges)
        area[row, col] = abs(geod.polygon_area_perimeter(lon, lat)[0]) / 1e6
    known, v = np.isfinite(values), np.nan_to_num(values)
    return Counted(
        (share * area).sum(),
        (share * area * known).sum(),
        (share * known).sum(),
        (share * known * v).sum(),
        (share * area * known * v).sum(),
        (share * area * known * (v >= threshold)).sum(),
    )
