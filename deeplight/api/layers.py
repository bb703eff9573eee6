"""Layers that are in memory: arrays with a place, written to temporary GeoTIFFs that the library reads as any file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deeplight.engine.core.errors import DeepLightError, InputError

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

    from deeplight.engine.raster.grid import Grid

_STRIP = 256
"""Rows that are converted at once: what a copy needs in memory. A multiple of the file's tiles."""
_DTYPES = frozenset({"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"})


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """An array that says where it lies.

    values: (h, w) or (bands, h, w) of numbers; masked pixels of a masked array, and NaN, are nodata.
    grid: where it lies; or crs ("EPSG:4326", a rasterio CRS) and transform (an Affine, or its six numbers, from
    (column, row) of a pixel's upper-left corner to x, y). nodata: raw value without data. unit: such as "nW/cm²/sr".
    names: of the bands. scale: (factor, offset) that gives physical values.

    Nothing is checked before the layer is opened by `open_scene`.
    """

    values: Any
    grid: Grid | None = None
    crs: str | CRS | None = None
    transform: Affine | Sequence[float] | None = None
    nodata: float | None = None
    unit: str = ""
    names: Sequence[str] = ()
    scale: tuple[float, float] = (1.0, 0.0)

    def __repr__(self) -> str:
        crs = self.grid.crs if self.grid is not None else self.crs
        return f"Layer({'×'.join(map(str, self.values.shape))} {self.values.dtype}, {crs})"


LayerLike: TypeAlias = "str | Path | Layer | Any"
"""A path or a local GDAL dataset name, a `Layer`, or an xarray.DataArray in rioxarray's conventions."""


class LayerFiles:
    """Turns layers into names that the library can open; arrays go to GeoTIFFs in `folder`, made when one is needed.

    arrays: file that was written → parameter that gave the array. Arrays are copied in strips, so that memory is
    needed for one strip, and disk space in the folder for temporary files (TMPDIR) for the whole array.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.arrays: dict[str, str] = {}

    def name(self, parameter: str, layer: LayerLike | None) -> str | None:
        """The dataset name of a layer; None stays. Raises InputError for what is no layer."""
        if layer is None:
            return None
        if isinstance(layer, str | Path):
            return str(layer)
        if type(layer).__module__.partition(".")[0] == "xarray":
            from deeplight.api.xarrays import layer_of

            layer = layer_of(parameter, layer)
        if not isinstance(layer, Layer):
            raise InputError(_no_layer(parameter, layer))
        return self._written(parameter, layer)

    def daytime(self, layer: LayerLike | Mapping[str, LayerLike] | None) -> tuple[str | None, dict[str, str]]:
        """dmo: the name of one file, or names by slot."""
        if not isinstance(layer, Mapping):
            return self.name("dmo", layer), {}
        named = {slot: self.name(f'dmo["{slot}"]', part) for slot, part in layer.items()}
        return None, {slot: name for slot, name in named.items() if name is not None}

    def _written(self, parameter: str, layer: Layer) -> str:
        import tempfile

        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="deeplight-"))
        path = self.folder / f"{''.join(c if c.isalnum() else '_' for c in parameter).strip('_')}.tif"
        self.arrays[str(path)] = parameter
        try:
            write_layer(path, parameter, layer)
        except OSError as error:  # RasterioIOError is one too
            raise DeepLightError(
                f"the array given as {parameter} cannot be copied to {self.folder} ({error}): free some space there, "
                "or set TMPDIR to another folder"
            ) from error
        return str(path)


def _no_layer(parameter: str, given: object) -> str:
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return (
            f"{parameter} is an array, which does not say where it lies: give deeplight.Layer(array, grid=…), or "
            "deeplight.Layer(array, crs=…, transform=…)"
        )
    dates = ", or several dates to deeplight.refine_dates" if parameter == "ntl" else ""
    return (
        f"{parameter} is {type(given).__name__} and a path, a deeplight.Layer or an xarray.DataArray is needed: "
        f"give one of them{dates}"
    )


def write_layer(path: Path, parameter: str, layer: Layer) -> None:
    """Write an array as GeoTIFF. Its time of modification is a checksum of all pixels: equal arrays give equal files,
    which a resumed run takes for what they are. Raises InputError where the array is no raster."""
    import os

    import numpy as np
    import rasterio
    from rasterio.windows import Window

    values = layer.values
    shape = (1, *values.shape) if len(values.shape) == 2 else tuple(values.shape)
    dtype, nodata = _encoding(parameter, values, layer.nodata)
    crs, transform = _place(parameter, layer, shape)
    bands, height, width = shape
    header = {
        "driver": "GTiff",
        "tiled": True,
        "blockxsize": _STRIP,
        "blockysize": _STRIP,
        "BIGTIFF": "IF_SAFER",
    }
    checksum = 0
    with rasterio.open(
        path, "w", crs=crs, transform=transform, nodata=nodata, dtype=dtype,
        count=bands, height=height, width=width, **header,
    ) as file:  # fmt: skip
        file.scales, file.offsets = [layer.scale[0]] * bands, [layer.scale[1]] * bands
        if layer.unit:
            file.units = [layer.unit] * bands
        for band, name in enumerate(layer.names[:bands], 1):
            file.set_band_description(band, str(name))
        for row in range(0, height, _STRIP):
            strip = values[..., row : row + _STRIP, :]
            if isinstance(strip, np.ma.MaskedArray):
                strip = strip.filled(np.nan if nodata is None else nodata)
            pixels = np.ascontiguousarray(strip, dtype).reshape(bands, -1, width)
            checksum = zlib.crc32(pixels.data, checksum)
            file.write(pixels, window=Window(0, row, width, pixels.shape[1]))
    os.utime(path, (checksum, checksum))


def _encoding(parameter: str, values: Any, nodata: float | None) -> tuple[str, float | None]:
    """(type of the file's pixels, its nodata value)."""
    import numpy as np

    if len(values.shape) not in (2, 3) or 0 in values.shape:
        raise InputError(
            f"{parameter} is an array of shape {tuple(values.shape)} and (rows, columns) or (bands, rows, columns) is "
            "needed: give one of them, not empty"
        )
    dtype = np.dtype(values.dtype)
    name = {"bool": "uint8", "float16": "float32"}.get(dtype.name, dtype.name)
    if name not in _DTYPES:
        raise InputError(
            f"{parameter} is an array of type {dtype} and numbers of {', '.join(sorted(_DTYPES))} are needed: convert "
            "it with .astype"
        )
    if isinstance(values, np.ma.MaskedArray) and nodata is None and not name.startswith("float"):
        raise InputError(
            f"{parameter} is a masked array of whole numbers, which need a value for masked pixels: give "
            "deeplight.Layer(…, nodata=…)"
        )
    return name, nodata


def _place(parameter: str, layer: Layer, shape: Sequence[int]) -> tuple[Any, Affine | None]:
    """(CRS, transform) of a layer; what is not given stays open, and the library asks for it."""
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    if layer.grid is not None:
        if layer.crs is not None or layer.transform is not None:
            raise InputError(
                f"{parameter} has a grid, which says crs and transform already: leave these two out of deeplight.Layer"
            )
        if layer.grid.shape != tuple(shape[1:]):
            raise InputError(
                f"{parameter} is an array of {shape[1]}×{shape[2]} pixels and its grid has "
                f"{layer.grid.height}×{layer.grid.width}: give the grid of the array"
            )
        return layer.grid.crs, layer.grid.transform
    try:
        crs = None if layer.crs is None else CRS.from_user_input(layer.crs)
        transform = None if layer.transform is None else Affine(*tuple(layer.transform)[:6])
    except CRSError:
        raise InputError(
            f"{parameter} has crs={layer.crs!r}, which is no coordinate reference system; an example is "
            '"EPSG:4326"'
        ) from None
    except TypeError:
        raise InputError(
            f"{parameter} has transform={layer.transform!r} and the six numbers of an affine.Affine are needed: give "
            "(pixel width, 0, west, 0, -pixel height, north)"
        ) from None
    return crs, transform
