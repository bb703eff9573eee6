"""Copies of rasters with all that their headers say: what messages advise where a file cannot be used as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.dataset_names import locate
from deeplight.engine.raster.mosaic import mosaic_vrt
from deeplight.engine.raster.source import DRIVERS, open_raster
from deeplight.train.clips.blackmarble import replacing

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

    from deeplight.engine.core.progress import Progress

_BLOCK = 256
_STRIP = 2048
_LONLAT = "EPSG:4326"
LOGARITHMS: dict[str, Callable[[Doubles], Doubles]] = {
    "log10": lambda x: np.power(10.0, x),
    "ln": np.exp,
    "db": lambda x: np.power(10.0, x / 10.0),
}
"""Scales that can be undone."""


@dataclass(frozen=True)
class Change:
    """What a copy does not take over. band: the only one copied. nodata: another raw value that becomes missing.
    undo: one of LOGARITHMS; the copy holds physical values. like: a raster whose grid the copy gets, each of its pixels
    cut `cut` times a side. mean: a pixel becomes the mean of the pixels below it, in place of the nearest one."""

    band: int | None = None
    nodata: float | None = None
    undo: str | None = None
    like: str | None = None
    cut: int = 1
    mean: bool = False


def copy_raster(name: str, out: Path, change: Change, progress: Progress) -> None:
    """Write a tiled GeoTIFF with the pixels and the header of a raster, or of a pattern's pieces.

    A raster that only control points place is warped to longitude and latitude. Raises InputError for what cannot be
    copied, DeepLightError where pixels cannot be read or the disk refuses.
    """
    import rasterio
    from rasterio.errors import RasterioError

    with ExitStack() as stack:
        source = _placed(_opened(name, out, stack), name, change, stack)
        bands = _bands(source, name, change.band)
        masked = any(flag.name in ("per_dataset", "alpha") for flag in source.mask_flag_enums[bands[0] - 1])
        stack.enter_context(rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True))
        temporary = stack.enter_context(replacing(out))
        stack.enter_context(progress)
        progress.start(source.height * source.width)
        copy = stack.enter_context(rasterio.open(temporary, "w", **_profile(source, bands, change)))
        _describe(source, copy, bands, change)
        for window in split(Window(0, 0, source.height, source.width), _STRIP):
            at = ((window.row, window.row + window.height), (window.col, window.col + window.width))
            try:
                copy.write(_pixels(source, bands, at, change), window=at)
                if masked:
                    copy.write_mask(source.read_masks(bands[0], window=at), window=at)
            except RasterioError as error:
                raise DeepLightError(f"{name} cannot be read ({error}); fetch or write it again") from error
            progress.advance(window.height * window.width)


def _opened(name: str, out: Path, stack: ExitStack) -> DatasetReader:
    """A raster, or a pattern's pieces as one."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import DatasetReader, MemoryFile

    located = locate(name, "input raster")
    if any(out.exists() and file.samefile(out) for file in located.files):
        raise InputError(f"{out} is the raster to be copied, which stays as it is: choose another name")
    if located.pieces:
        pieces = [stack.enter_context(open_raster(str(p), "input")) for p in located.pieces]
        text = mosaic_vrt(f"input rasters {name}", pieces).encode()
        return stack.enter_context(stack.enter_context(MemoryFile(text, ext=".vrt")).open())
    stack.enter_context(rasterio.Env())
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    try:
        dataset = DatasetReader(located.dataset, driver=list(DRIVERS), sharing=False)
        if dataset.driver == "netCDF" and dataset.transform.is_identity:
            dataset.close()  # GDAL turns the rows of a file without coordinates around, which open_raster does not
            stack.enter_context(rasterio.Env(GDAL_NETCDF_BOTTOMUP="NO"))
            dataset = DatasetReader(located.dataset, driver=list(DRIVERS), sharing=False)
        return stack.enter_context(dataset)
    except RasterioError as error:
        raise InputError(f"input raster {name} cannot be opened ({error}); give a raster file") from error


def _placed(source: DatasetReader, name: str, change: Change, stack: ExitStack) -> DatasetReader:
    """The raster on the grid that is asked for; on longitude and latitude where control points alone place it."""
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    warped: dict[str, Any] = {}
    crs = source.crs
    if source.gcps[0] and source.transform.is_identity:
        crs, warped = source.gcps[1], {"crs": _LONLAT}
    if change.like is not None:
        with open_raster(change.like, "grid") as like:
            grid = like.grid.finer(change.cut)
        warped = {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
    if not warped:
        return source
    if crs is None:
        raise InputError(f"input raster {name} has no CRS, so that it cannot be warped; give one that has")
    if source.nodata is None:  # what lies outside of it must not count as 0
        warped |= {"nodata": np.nan, "dtype": str(np.promote_types(_common(source.dtypes), np.float32))}
    how = Resampling.average if change.mean else Resampling.nearest
    return stack.enter_context(WarpedVRT(source, src_crs=crs, resampling=how, **warped))


def _common(dtypes: tuple[str, ...]) -> np.dtype[Any]:
    return np.result_type(*dtypes)


def _bands(source: DatasetReader, name: str, band: int | None) -> list[int]:
    """The bands to copy: one, or all that hold data."""
    from rasterio.enums import ColorInterp

    if not source.count:
        raise InputError(
            f"input raster {name} holds no bands; give a file, or one of its datasets, with pixels"
        )
    if band is not None:
        if band not in source.indexes:
            raise InputError(
                f"input raster {name} has {source.count} bands and no band {band}; correct `band`"
            )
        return [band]
    pairs = zip(source.indexes, source.colorinterp, strict=True)
    return [b for b, kind in pairs if kind != ColorInterp.alpha] or list(source.indexes)


def _profile(source: DatasetReader, bands: list[int], change: Change) -> dict[str, Any]:
    nodata = source.nodatavals[bands[0] - 1]
    dtype = str(_common(tuple(source.dtypes[b - 1] for b in bands)))
    if change.undo is not None:
        dtype, nodata = "float32", np.nan
    elif nodata is None:
        nodata = change.nodata
    return {
        "driver": "GTiff", "count": len(bands), "dtype": dtype, "nodata": nodata, "crs": source.crs,
        "transform": source.transform, "width": source.width, "height": source.height, "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "IF_SAFER",
    }  # fmt: skip


def _describe(source: DatasetReader, copy: Any, bands: list[int], change: Change) -> None:
    """Take over what the header says about values; of undone logarithms the unit is another."""
    copy.update_tags(**source.tags())
    copy.descriptions = [source.descriptions[b - 1] for b in bands]
    for number, band in enumerate(bands, 1):
        tags = {k: v for k, v in source.tags(band).items() if not k.startswith("STATISTICS_")}
        if change.undo is not None:
            tags.pop("units", None)
        copy.update_tags(number, **tags)
    if change.undo is None:
        copy.scales = [source.scales[b - 1] for b in bands]
        copy.offsets = [source.offsets[b - 1] for b in bands]
        copy.units = [source.units[b - 1] or "" for b in bands]


def _pixels(
    source: DatasetReader, bands: list[int], at: tuple[tuple[int, int], tuple[int, int]], change: Change
) -> NDArray[Any]:
    raw: NDArray[Any] = source.read(bands, window=at)
    declared = source.nodatavals[bands[0] - 1]
    if change.nodata is not None and declared is not None:
        raw[raw == change.nodata] = declared
    if change.undo is None:
        return raw
    scale, offset = (
        np.array([values[b - 1] for b in bands])[:, None, None] for values in (source.scales, source.offsets)
    )
    missing = source.read_masks(bands, window=at) == 0
    with np.errstate(over="ignore"):
        values = LOGARITHMS[change.undo](raw * scale + offset)
    return np.where(missing, np.nan, values).astype(np.float32)
