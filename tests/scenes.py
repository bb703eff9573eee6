"""Small synthetic rasters for tests, each on its own grid. Most are samples of one field that is known everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.scene import Scene, SceneOptions

ARC = 15 / 3600
"""VIIRS' pixel in degrees."""
WEST, NORTH = 6.0, 50.0
UTM = "EPSG:32632"
NTL = np.linspace(0.0, 40.0, 13 * 17, dtype=np.float32).reshape(13, 17)
REFLECTANCE = 0.3


def write_raster(
    path: Path,
    values: ArrayLike,
    crs: str | None = "EPSG:4326",
    transform: Affine | None = None,
    *,
    nodata: float | None = None,
    scales: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    mask: ArrayLike | None = None,
    **profile: Any,
) -> Path:
    """Writes (H, W) or (C, H, W) as a raster, by default a GeoTIFF with its corner at (WEST, NORTH) in 15″
    pixels."""
    pixels = np.asarray(values)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    count, height, width = pixels.shape
    header = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        **profile,
    }
    place = north_up() if transform is None else transform
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", crs=crs, transform=place, nodata=nodata, **header) as file,
    ):
        file.write(pixels)
        if scales is not None:
            file.scales = scales
        if offsets is not None:
            file.offsets = offsets
        if units is not None:
            file.units = units
        for band, name in enumerate(names or (), start=1):
            file.set_band_description(band, name)
        if mask is not None:
            file.write_mask(np.asarray(mask, bool))
    return path


def north_up(pixel: float = ARC, west: float = WEST, north: float = NORTH) -> Affine:
    """A transform with square pixels and its upper-left corner at (west, north)."""
    return Affine(pixel, 0.0, west, 0.0, -pixel, north)


def centres_xy(transform: Affine, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """CRS coordinates (H, W) of all pixel centres."""
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    a, b, c, d, e, f = transform[:6]
    return a * cols + b * rows + c, d * cols + e * rows + f


def field(lon: NDArray[np.float64], lat: NDArray[np.float64], phase: float = 0.0) -> NDArray[np.float64]:
    """A smooth field in 0.1 … 0.5 with a wavelength of about 0.05° (12 LR pixels), different for each
    phase."""
    return 0.3 + 0.1 * np.sin(125 * (lon - WEST) + phase) + 0.1 * np.cos(110 * (lat - NORTH) + 2 * phase)


def field_on(crs: str, transform: Affine, height: int, width: int, phase: float = 0.0) -> NDArray[np.float64]:
    """`field` at the pixel centres (H, W) of a grid in any CRS."""
    xs, ys = centres_xy(transform, height, width)
    if CRS.from_user_input(crs) != CRS.from_epsg(4326):
        lon, lat = transform_points(crs, "EPSG:4326", xs.ravel(), ys.ravel())
        xs, ys = np.reshape(lon, xs.shape), np.reshape(lat, ys.shape)
    return field(xs, ys, phase)


@dataclass(frozen=True)
class SceneFiles:
    """Paths of a synthetic scene: NTL 15″ float32, DMO of seven bands in UTM as scaled uint16, DEM 3″
    int16."""

    ntl: Path
    dmo: Path
    dem: Path


def write_scene(folder: Path, height: int = 21, width: int = 27, dmo_pixel: float = 40.0) -> SceneFiles:
    """Writes a scene whose layers lie on three grids; NTL has a nodata corner and negatives, DMO and DEM have
    holes.

    dmo_pixel: metres; an HR pixel is about 37 × 58 m.
    """
    rng = np.random.default_rng(7)
    ntl = (rng.gamma(0.5, 8.0, (height, width)) - 0.3).astype(np.float32)
    ntl[: height // 4, : width // 4] = -999.0
    east, south = WEST + width * ARC, NORTH - height * ARC
    xs, ys = transform_points("EPSG:4326", UTM, [WEST, east, WEST, east], [NORTH, NORTH, south, south])
    place = Affine(dmo_pixel, 0.0, min(xs) - 300.0, 0.0, -dmo_pixel, max(ys) + 200.0)
    rows, cols = int((place.f - min(ys)) / dmo_pixel) + 5, int((max(xs) - place.c) / dmo_pixel) + 5
    fields = np.stack([field_on(UTM, place, rows, cols, k) for k in range(7)])
    dmo = (np.rint(fields * 10000) + 1000).astype(np.uint16)  # encoded as Sentinel-2 has been since 2022
    dmo[:, rows // 2 : rows // 2 + 20, cols // 3 : cols // 3 + 25] = 0
    dem_place = north_up(3 / 3600, WEST - 0.002, NORTH + 0.003)
    dem = np.rint(field_on("EPSG:4326", dem_place, height * 5 + 8, width * 5 + 6) * 1000).astype(np.int16)
    dem[10:14, 20:30] = -32768
    slots = ["coastal", "blue", "green", "red", "nir", "swir1", "swir2"]
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    return SceneFiles(
        write_raster(folder / "ntl.tif", ntl, nodata=-999.0, units=["nW/cm²/sr"]),
        write_raster(
            folder / "dmo.tif",
            dmo,
            UTM,
            place,
            nodata=0,
            scales=[1e-4] * 7,
            offsets=[-0.1] * 7,
            names=slots,
            **tiles,
        ),
        write_raster(folder / "dem.tif", dem, transform=dem_place, nodata=-32768),
    )


def options(files: SceneFiles, **changes: Any) -> SceneOptions:
    """All three layers of a synthetic scene, with some options changed."""
    return replace(SceneOptions(str(files.ntl), str(files.dmo), str(files.dem)), **changes)


def open_error(request: SceneOptions) -> str:
    """The message of the InputError that opening must raise, which must be one sentence."""
    with pytest.raises(InputError) as error:
        Scene.open(request).close()
    message = str(error.value)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


def ntl_file(folder: Path, values: NDArray[Any] = NTL, **header: Any) -> str:
    return str(write_raster(folder / "ntl.tif", values, **header))


def dmo_file(folder: Path, values: NDArray[Any] | None = None, **header: Any) -> str:
    """Four named bands, in one LR pixel more on each side than the default NTL has, unless given
    otherwise."""
    values = np.full((4, 15, 19), REFLECTANCE, np.float32) if values is None else values
    header = {
        "names": ["blue", "green", "red", "nir"],
        "transform": north_up(ARC, WEST - ARC, NORTH + ARC),
        **header,
    }
    return str(write_raster(folder / "dmo.tif", values, **header))
