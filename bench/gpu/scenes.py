"""Two strips whose DMO and DEM lie on the HR grid: one hardly compresses, one as real reflectance does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from bench.cases import ARC, NORTH, WEST, Case, ntl_grid, patch, write_raster
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.raster.grid import Grid

SCENES = ("incompressible", "realistic")
BANDS = len(DMO_SLOTS)


def make(name: str, strip: tuple[int, int], folder: Path) -> float:
    """Write ntl.tif, dmo.tif and dem.tif of a strip in LR pixels; returns how many times dmo.tif is smaller than its
    pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case(*strip)
    coarse = ntl_grid(case)
    fine = ARC / SCALE
    grid = Grid(coarse.crs, Affine(fine, 0, WEST, 0, -fine, NORTH), SCALE * strip[0], SCALE * strip[1])
    lights = patch(1, seed=1)
    lights = np.where(lights > 0.7, np.exp(9 * (lights - 0.7)) - 1, 0.1 * lights).astype(np.float32)
    write_raster(folder / "ntl.tif", coarse, lights, "zstd")
    dmo = write_raster(folder / "dmo.tif", grid, _bands(name), "zstd", names=DMO_SLOTS, scale=1e-4)
    write_raster(folder / "dem.tif", grid, (patch(1, seed=3) * 1200).astype(np.int16), "zstd")
    return round(2 * BANDS * grid.height * grid.width / dmo.stat().st_size, 2)


def _bands(name: str) -> NDArray[np.uint16]:
    content = patch(BANDS, seed=2)
    if name == "incompressible":
        return np.random.default_rng(2).integers(300, 10_000, content.shape, dtype=np.uint16)
    # steps of 0.0016 make it compress to about half
    return (content * 3000 + 300).astype(np.uint16) // 16 * 16
