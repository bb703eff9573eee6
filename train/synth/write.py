"""A country as files: six GeoTIFFs on four grids, written block by block, so that memory does not grow
with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetWriter
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterWindow

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import remove_sidecars
from deeplight.engine.core.progress import Progress
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import project
from deeplight.train.synth.country import Country, CountryConfig
from deeplight.train.synth.noise import fractal, stream

NAMES = ("ntl.tif", "ntl_hr.tif", "isp.tif", "offset.tif", "dmo.tif", "dem.tif")
"""The files of a scene."""

LON, LAT = 15.0, 48.0
"""Centre of a country, on the central meridian of UTM zone 33, unless it is so large that it would pass a pole or the
antimeridian."""
LR_DEG = 15 / 3600

DMO_SCALE, DMO_OFFSET = 0.0000275, -0.2
"""Landsat Collection 2 Level 2: reflectance = DN · 0.0000275 − 0.2; DN 0 is fill."""
NTL_NODATA, DEM_NODATA = -9999.0, -32768
_UTM, _WORLD = 32633, 4087
_LARGEST_IN_UTM = 16384
"""Side in LR px up to which DMO is in UTM, 34° to each side of its meridian; beyond, it is in the
equidistant cylindrical projection, which reaches the poles."""
_DEM_DEG = 3 / 3600
_MARGIN_LR = 4  # the auxiliary goes on a little beyond the NTL, for the displacement
_ROOM = 2 * _MARGIN_LR * LR_DEG  # to the poles and the antimeridian: the margin, and the DEM's half pixels
_LR_BLOCK = 64
_AUX_BLOCK = 512
_MESH = 32
_RADIANCE = "nW/cm²/sr"


@dataclass(frozen=True)
class Extent:
    """What is written of a country: `window` of it, in LR px. Everything has the place that it has in the whole."""

    config: CountryConfig
    window: Window

    @classmethod
    def of(cls, config: CountryConfig, window: Window | None = None) -> Extent:
        """A window, or the whole country. Raises InputError for a window that is empty or leaves it."""
        height, width = config.lr_height, config.lr_width
        if window is None:
            return cls(config, Window(0, 0, height, width))
        inside = window.clipped(height, width)
        if window != inside or not inside.height or not inside.width:
            raise InputError(
                f"the window of {window.height}x{window.width} LR pixels at row {window.row}, column {window.col} is "
                f"empty or leaves the country of {height}x{width}; give one inside it"
            )
        return cls(config, window)

    @property
    def country(self) -> Grid:
        """The NTL grid of the whole country: EPSG:4326, 15 arc-seconds, around (15° E, 48° N) where the globe
        allows it."""
        height, width = self.config.lr_height, self.config.lr_width
        west = min(max(LON - width // 2 * LR_DEG, -180 + _ROOM), 180 - _ROOM - width * LR_DEG)
        north = max(min(LAT + height // 2 * LR_DEG, 90 - _ROOM), -90 + _ROOM + height * LR_DEG)
        at = Affine(LR_DEG, 0.0, west, 0.0, -LR_DEG, north)
        return Grid(CRS.from_epsg(4326), at, height, width)

    @property
    def lr(self) -> Grid:
        """The NTL grid of the window."""
        whole, w = self.country, self.window
        return Grid(whole.crs, whole.transform @ Affine.translation(w.col, w.row), w.height, w.width)

    def in_country(self, window: Window) -> Window:
        """A window of `lr` as a window of the country."""
        return Window(window.row + self.window.row, window.col + self.window.col, window.height, window.width)


def _with_margin(lr: Grid) -> tuple[float, float, float, float]:
    west, south, east, north = lr.bounds_xy
    m = _MARGIN_LR * LR_DEG
    return west - m, south - m, east + m, north + m


def dmo_grid(extent: Extent) -> Grid:
    """The DMO grid: UTM 33N or equidistant cylindrical, 30 m, or 60 m where the country is larger than 2048 LR px."""
    side_lr = max(extent.config.lr_height, extent.config.lr_width)
    side = 30.0 if side_lr <= 2048 else 60.0
    crs = CRS.from_epsg(_UTM if side_lr <= _LARGEST_IN_UTM else _WORLD)
    lr = extent.lr
    west, south, east, north = transform_bounds(lr.crs, crs, *_with_margin(lr), densify_pts=99)
    west, north = np.floor(west / side) * side, np.ceil(north / side) * side
    height, width = int(np.ceil((north - south) / side)), int(np.ceil((east - west) / side))
    return Grid(crs, Affine(side, 0.0, west, 0.0, -side, north), height, width)


def dem_grid(lr: Grid) -> Grid:
    """The DEM grid: EPSG:4326, 3 arc-seconds, pixel centres on whole multiples as SRTM has them."""
    west, south, east, north = _with_margin(lr)
    west = (np.floor(west / _DEM_DEG) - 0.5) * _DEM_DEG
    north = (np.ceil(north / _DEM_DEG) + 0.5) * _DEM_DEG
    height, width = int(np.ceil((north - south) / _DEM_DEG)), int(np.ceil((east - west) / _DEM_DEG))
    return Grid(lr.crs, Affine(_DEM_DEG, 0.0, west, 0.0, -_DEM_DEG, north), height, width)


def write_country(
    config: CountryConfig, out: Path, *, overwrite: bool, progress: Progress, window: Window | None = None
) -> list[Path]:
    """Write the six files of `config`'s country into the folder `out`; returns their paths in the order of
    NAMES.

    window: write only this part, in LR px of the country. The files are written under temporary names and
    renamed when all are complete. Raises InputError where files are there already and `overwrite` is not set,
    where the folder cannot be written, or where `window` leaves the country.
    """
    extent = Extent.of(config, window)
    paths = _checked(out, overwrite)
    temporary = [path.with_name(f".{path.stem}.{os.getpid()}.tmp.tif") for path in paths]
    lr, dmo, dem = extent.lr, dmo_grid(extent), dem_grid(extent.lr)
    total = lr.height * lr.width * SCALE**2 + dmo.height * dmo.width + dem.height * dem.width
    country = Country(config)
    try:
        # A small block cache: every block is written once, so that more would only hide the growth of memory.
        with rasterio.Env(GDAL_CACHEMAX=64), progress:
            progress.start(total)
            _write_night(country, extent, temporary[:4], progress)
            _write_dmo(country, extent, dmo, temporary[4], progress)
            _write_dem(country, extent, dem, temporary[5], progress)
        for source, target in zip(temporary, paths, strict=True):
            remove_sidecars(target)
            source.replace(target)
    except OSError as error:
        raise DeepLightError(
            f"cannot write the country to {out} ({error}); free space or choose another folder"
        ) from error
    finally:
        for path in temporary:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return paths


def _checked(out: Path, overwrite: bool) -> list[Path]:
    paths = [out / name for name in NAMES]
    try:
        there = [path.name for path in paths if path.exists()]
    except OSError as error:
        raise InputError(f"{out} cannot be used ({error.strerror}); choose another `out`") from error
    if there and not overwrite:
        held = ", ".join(there)
        raise InputError(
            f"{out} already holds {held}; give `overwrite=True` to replace, or choose another folder"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {out} ({error.strerror}); choose another `out`"
        ) from error
    if not os.access(out, os.W_OK):
        raise InputError(f"the folder {out} cannot be written; choose another `out`")
    return paths


def _create(
    path: Path, grid: Grid, bands: int, dtype: str, nodata: float | None, block: int
) -> DatasetWriter:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "crs": grid.crs,
        "transform": grid.transform,
        "height": grid.height,
        "width": grid.width,
        "count": bands,
        "dtype": dtype,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "zstd",
        "zstd_level": 1,
        "predictor": 1 if dtype == "float32" else 2,
        "bigtiff": "IF_SAFER",
    }
    return rasterio.open(path, "w", **profile)


def _raster_window(window: Window) -> RasterWindow:
    return RasterWindow(window.col, window.row, window.width, window.height)


def ntl_missing(lr: Grid, window: Window) -> NDArray[np.bool_]:
    """Where the NTL of the country `lr` has no data: a corner, and an elliptical hole in the upper right."""
    rows = np.arange(window.row, window.row + window.height)[:, None]
    cols = np.arange(window.col, window.col + window.width)[None, :]
    side = min(lr.height, lr.width)
    corner = (lr.height - 1 - rows) + (lr.width - 1 - cols) < side / 12
    hole = ((rows - 0.2 * lr.height) / 0.6) ** 2 + (cols - 0.8 * lr.width) ** 2 < (side / 24) ** 2
    return np.asarray(corner | hole, np.bool_)


def _write_night(country: Country, extent: Extent, paths: list[Path], progress: Progress) -> None:
    whole, lr = extent.country, extent.lr
    hr = lr.finer()
    with contextlib.ExitStack() as stack:
        ntl, ntl_hr, isp, offset = (
            stack.enter_context(_create(path, grid, bands, "float32", NTL_NODATA, block))
            for path, grid, bands, block in zip(
                paths,
                (lr, hr, hr, lr),
                (1, 1, 1, 2),
                (_LR_BLOCK, _AUX_BLOCK, _AUX_BLOCK, _LR_BLOCK),
                strict=True,
            )
        )
        for dataset, names, unit in (
            (ntl, ("ntl",), _RADIANCE),
            (ntl_hr, ("ntl_hr",), _RADIANCE),
            (isp, ("isp",), "1"),
            (offset, ("offset_x", "offset_y"), "LR px"),
        ):
            dataset.descriptions = names
            dataset.units = (unit,) * len(names)
        for window in split(Window(0, 0, lr.height, lr.width), _LR_BLOCK):
            seen, light, built, true = country.night(extent.in_country(window))
            seen[ntl_missing(whole, extent.in_country(window))] = NTL_NODATA
            at, at_hr = _raster_window(window), _raster_window(window.scaled(SCALE))
            ntl.write(seen, 1, window=at)
            ntl_hr.write(light, 1, window=at_hr)
            isp.write(built, 1, window=at_hr)
            offset.write(true, window=at)
            progress.advance(light.size)


@dataclass(frozen=True)
class _Places:
    """Ground positions of a block's pixels: x, y (height, width) in HR px of the country, and the HR window
    needed to sample there.

    inside: whether a pixel lies on what is written or its margin.
    """

    x: Doubles
    y: Doubles
    inside: NDArray[np.bool_]
    window: Window

    def sampled(self, field: Floats) -> Floats:
        """A field on `window` at the positions, bilinear."""
        x, y = self.x - (self.window.col + 0.5), self.y - (self.window.row + 0.5)
        c, r = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        c, r = np.clip(c, 0, self.window.width - 2), np.clip(r, 0, self.window.height - 2)
        fx, fy = (x - c).astype(np.float32), (y - r).astype(np.float32)
        at, flat = r * self.window.width + c, field.ravel()
        top, low = flat[at], flat[at + self.window.width]
        top += (flat[at + 1] - top) * fx
        low += (flat[at + self.window.width + 1] - low) * fx
        return np.asarray(top + (low - top) * fy, np.float32)


def _lattice(first: int, count: int) -> tuple[Doubles, NDArray[np.int64], Doubles]:
    """Mesh node positions along an axis, and for each pixel centre the node before it and the weight of
    the next.
    """
    cells = -(-count // _MESH)
    t = (np.arange(count) + 0.5) / _MESH
    before = np.minimum(np.floor(t).astype(np.int64), cells - 1)
    return first + _MESH * np.arange(cells + 1, dtype=np.float64), before, t - before


def _places(extent: Extent, grid: Grid, block: Window) -> _Places | None:
    """Where the pixels of `block` of `grid` lie on the ground, through a coarse mesh; None where all lie
    outside.
    """
    rows, r, wr = _lattice(block.row, block.height)
    cols, c, wc = _lattice(block.col, block.width)
    a = grid.transform
    xs, ys = np.meshgrid(a.c + a.a * cols, a.f + a.e * rows)
    lr = extent.country
    lon, lat = project(grid.crs, lr.crs, xs, ys)
    inverse = ~lr.finer().transform
    mesh = np.stack([inverse.c + inverse.a * lon, inverse.f + inverse.e * lat])
    mesh = mesh[:, r] * (1 - wr)[:, None] + mesh[:, r + 1] * wr[:, None]
    x, y = mesh[:, :, c] * (1 - wc) + mesh[:, :, c + 1] * wc
    w = extent.window.grown(_MARGIN_LR).scaled(SCALE)
    inside = (x > w.col) & (x < w.col + w.width) & (y > w.row) & (y < w.row + w.height)
    if not inside.any():
        return None
    r0, c0 = int(np.floor(y[inside].min())) - 1, int(np.floor(x[inside].min())) - 1
    r1, c1 = int(np.ceil(y[inside].max())) + 2, int(np.ceil(x[inside].max())) + 2
    # beyond the projection's domain there is no position; any will do, for these pixels are not inside
    return _Places(np.nan_to_num(x), np.nan_to_num(y), inside, Window(r0, c0, r1 - r0, c1 - c0))


def cloud(seed: int, window: Window) -> Floats:
    """Cloud noise on an HR window in the ground frame; a cloud hides the ground where it exceeds 2 (about
    1 %).
    """
    return fractal(stream(seed, 70), {6: 0.75, 5: 0.45, 3: 0.1}, window)


def _write_dmo(country: Country, extent: Extent, grid: Grid, path: Path, progress: Progress) -> None:
    bands = len(DMO_SLOTS)
    with _create(path, grid, bands, "uint16", 0, _AUX_BLOCK) as dataset:
        dataset.descriptions = DMO_SLOTS
        dataset.scales, dataset.offsets = (DMO_SCALE,) * bands, (DMO_OFFSET,) * bands
        for block in split(Window(0, 0, grid.height, grid.width), _AUX_BLOCK):
            dn = np.zeros((bands, *block.shape), np.uint16)
            places = _places(extent, grid, block)
            if places is not None:
                clear = places.inside & (places.sampled(cloud(country.config.seed, places.window)) < 2.0)
                for band, field in enumerate(country.ground(places.window).dmo):
                    values = (places.sampled(field) - np.float32(DMO_OFFSET)) / np.float32(DMO_SCALE)
                    dn[band] = np.where(clear, np.clip(np.rint(values), 1, 65535), 0)
            dataset.write(dn, window=_raster_window(block))
            progress.advance(block.height * block.width)


def dem_missing(extent: Extent, grid: Grid, block: Window) -> NDArray[np.bool_]:
    """Where the country's DEM has a hole, an ellipse in the lower left. block: of `grid`, the DEM of the extent."""
    whole = dem_grid(extent.country)
    top = round((whole.transform.f - grid.transform.f) / _DEM_DEG) + block.row
    left = round((grid.transform.c - whole.transform.c) / _DEM_DEG) + block.col
    side = min(whole.height, whole.width)
    rows = np.arange(top, top + block.height)[:, None] - 0.7 * whole.height
    cols = np.arange(left, left + block.width)[None, :] - 0.25 * whole.width
    return np.asarray(rows**2 + (cols / 1.6) ** 2 <= (side / 60) ** 2, np.bool_)


def _write_dem(country: Country, extent: Extent, grid: Grid, path: Path, progress: Progress) -> None:
    with _create(path, grid, 1, "int16", DEM_NODATA, _AUX_BLOCK) as dataset:
        dataset.descriptions, dataset.units = ("elevation",), ("m",)
        for block in split(Window(0, 0, grid.height, grid.width), _AUX_BLOCK):
            metres = np.full(block.shape, DEM_NODATA, np.int16)
            places = _places(extent, grid, block)
            if places is not None:
                height = places.sampled(country.relief(places.window).elevation)
                known = places.inside & ~dem_missing(extent, grid, block)
                metres[known] = np.rint(height[known])
            dataset.write(metres, 1, window=_raster_window(block))
            progress.advance(block.height * block.width)


def described(config: CountryConfig, window: Window | None = None) -> Iterator[str]:
    """Lines for the log: what was made, on which grids."""
    extent = Extent.of(config, window)
    lr = extent.lr
    dmo, dem = dmo_grid(extent), dem_grid(lr)
    yield f"NTL {lr.height}×{lr.width} at 15″, truth {SCALE}× finer"
    yield f"DMO {dmo.height}×{dmo.width} at {dmo.transform.a:g} m in {dmo.crs.to_string()}"
    yield f"DEM {dem.height}×{dem.width} at 3″"
