"""Named sizes and the rasters that the benchmarks read, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterWindow

from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.scene import SceneOptions

ARC = 15 / 3600
WEST, NORTH = 10.0, 22.0
MERCATOR = CRS.from_epsg(3857)
BLOCK = 512
PATCH = 2048


@dataclass(frozen=True)
class Case:
    """The size of a scene in LR pixels."""

    height: int
    width: int

    @property
    def hr_mpix(self) -> float:
        """The size of the output in millions of pixels."""
        return self.height * self.width * 64 / 1e6


CASES = {
    "host": Case(320, 320),
    "small": Case(256, 256),
    "middle": Case(512, 512),
    "four times": Case(1024, 1024),
}

TILES = (68, 100, 164)
"""Sides in LR pixels of the tiles on which backends are measured: cores of 32, 64 and 128 with the halo of `tiny`."""
BATCHES = (1, 2, 4)
"""Batch sizes for the smallest tile."""


def ntl_grid(case: Case) -> Grid:
    """Return the LR grid of a case: 15″, from 10° east and 22° north."""
    return Grid(CRS.from_epsg(4326), Affine(ARC, 0, WEST, 0, -ARC, NORTH), case.height, case.width)


def write_case(
    folder: Path, case: Case, compress: str = "zstd", layers: tuple[str, ...] = ("ntl", "dmo", "dem")
) -> SceneOptions:
    """Write NTL (15″, float32), DMO (Mercator, 58 m, 7 × uint16) and DEM (3″, int16) of any size, in little memory.

    The content is one patch of texture and noise, which is repeated; the noise keeps it from compressing too well.
    compress: the codec as GDAL names it. layers: which of the files are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "ntl" in layers:
        lights = patch(1, seed=1)
        lights = np.where(lights > 0.7, np.exp(9 * (lights - 0.7)) - 1, 0.1 * lights).astype(np.float32)
        write_raster(folder / "ntl.tif", ntl_grid(case), lights, compress)
    if "dmo" in layers:
        slots = (patch(7, seed=2) * 3000 + 300).astype(np.uint16)
        write_raster(folder / "dmo.tif", _dmo_grid(case), slots, compress, names=DMO_SLOTS, scale=1e-4)
    if "dem" in layers:
        relief = (patch(1, seed=3) * 1200).astype(np.int16)
        write_raster(folder / "dem.tif", _dem_grid(case), relief, compress)
    return layers_in(folder)


def layers_in(folder: Path) -> SceneOptions:
    """Return the scene of ntl.tif, dmo.tif and dem.tif in a folder."""
    return SceneOptions(str(folder / "ntl.tif"), str(folder / "dmo.tif"), str(folder / "dem.tif"))


def _dmo_grid(case: Case) -> Grid:
    """A grid in Mercator that covers slightly more than the case."""
    west, south, east, north = WEST, NORTH - case.height * ARC, WEST + case.width * ARC, NORTH
    x0, y0, x1, y1 = transform_bounds(ntl_grid(case).crs, MERCATOR, west, south, east, north)
    pixel = 57.9
    rows, cols = (int((length + 600) / pixel) + 1 for length in (y1 - y0, x1 - x0))
    return Grid(MERCATOR, Affine(pixel, 0, x0 - 300, 0, -pixel, y1 + 300), rows, cols)


def _dem_grid(case: Case) -> Grid:
    """A grid with five pixels along each LR pixel, and one LR pixel more on each side."""
    fine = ARC / 5
    transform = Affine(fine, 0, WEST - fine, 0, -fine, NORTH + fine)
    return Grid(ntl_grid(case).crs, transform, 5 * case.height + 2, 5 * case.width + 2)


def patch(bands: int, seed: int) -> NDArray[np.float32]:
    """Return (bands, side, side) in 0 … 1: waves of several lengths that close over the patch, and noise."""
    rng = np.random.default_rng(seed)
    place = np.linspace(0, 2 * np.pi, PATCH, endpoint=False, dtype=np.float32)
    total = np.zeros((bands, PATCH, PATCH), np.float32)
    for band in total:
        for waves in (3, 7, 19, 53):
            a, b = rng.integers(1, waves, 2)
            band += np.sin(a * place + rng.random() * 6)[:, None] * np.cos(b * place + rng.random() * 6)
        band += rng.normal(0, 0.15, band.shape).astype(np.float32)
    return np.clip(total / 8 + 0.5, 0, 1)


def write_raster(
    path: Path,
    grid: Grid,
    content: NDArray[np.generic],
    compress: str,
    names: tuple[str, ...] = (),
    scale: float = 1,
) -> Path:
    """Write a tiled GeoTIFF of `content` (bands, h, w), repeated over the grid."""
    header = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": len(content),
        "dtype": content.dtype,
        "crs": grid.crs,
        "transform": grid.transform,
        "compress": compress,
        "interleave": "band",
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "bigtiff": "if_safer",
        "num_threads": "all_cpus",
    }
    if compress == "zstd":
        header["zstd_level"] = 1
    with rasterio.open(path, "w", **header) as file:
        if names:
            file.descriptions = names
            file.scales = (scale,) * len(names)
        for row in range(0, grid.height, PATCH):
            for col in range(0, grid.width, PATCH):
                h, w = min(PATCH, grid.height - row), min(PATCH, grid.width - col)
                file.write(content[:, :h, :w], window=RasterWindow(col, row, w, h))
    return path
