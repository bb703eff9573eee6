"""Two strips whose DMO and DEM lie on the HR grid: one hardly compresses, one as real reflectance does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from tifffile import TiffFile, TiffWriter

from bench.cases import ARC, BLOCK, NORTH, PATCH, WEST, Case, ntl_grid, patch, write_raster
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.raster.grid import Grid

SCENES = ("incompressible", "realistic")
BANDS = len(DMO_SLOTS)
ABOUT = (33550, 33922, 34735, 34736, 34737, 42112)
"""Tags that say where a raster lies, and GDAL's own: names and scales of bands."""


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
    first = replace(grid, height=min(grid.height, PATCH), width=min(grid.width, PATCH))
    part = write_raster(folder / "part.tif", first, _bands(name), "zstd", names=DMO_SLOTS, scale=1e-4)
    dmo = repeated(part, grid, folder / "dmo.tif")
    part = write_raster(folder / "part.tif", first, (patch(1, seed=3) * 1200).astype(np.int16), "zstd")
    repeated(part, grid, folder / "dem.tif")
    part.unlink()
    return round(2 * BANDS * grid.height * grid.width / dmo.stat().st_size, 2)


def repeated(part: Path, grid: Grid, path: Path) -> Path:
    """Write a raster of a grid that repeats its first rows and columns, at most PATCH of each, which `part` holds.

    Compressed blocks are copied. To compress each of them anew takes GDAL minutes where the strip is long enough to
    keep many readers busy.
    """
    content = part.read_bytes()
    with TiffFile(part) as file:
        page = file.pages.first
        blocks = [
            content[at : at + size] for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
        about = [(t.code, t.dtype, t.count, t.value) for t in page.tags if t.code in ABOUT]
        rows, cols = (-(-side // BLOCK) for side in (page.imagelength, page.imagewidth))
        dtype = page.dtype
    bands = len(blocks) // (rows * cols)

    def in_order() -> Iterator[bytes]:
        for band in range(bands):
            for row in range(-(-grid.height // BLOCK)):
                for col in range(-(-grid.width // BLOCK)):
                    yield blocks[(band * rows + row % rows) * cols + col % cols]

    with TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            in_order(),
            shape=(bands, grid.height, grid.width),
            dtype=dtype,
            tile=(BLOCK, BLOCK),
            compression="zstd",
            planarconfig="separate" if bands > 1 else None,
            photometric="minisblack",
            metadata=None,
            extratags=about,
        )
    return path


def _bands(name: str) -> NDArray[np.uint16]:
    content = patch(BANDS, seed=2)
    if name == "incompressible":
        return np.random.default_rng(2).integers(300, 10_000, content.shape, dtype=np.uint16)
    # steps of 0.0016 make it compress to about half
    return (content * 3000 + 300).astype(np.uint16) // 16 * 16
