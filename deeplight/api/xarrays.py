"""xarray in rioxarray's conventions: a `spatial_ref` coordinate holds the CRS, x and y are pixel centres."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deeplight.api.layers import Layer
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from affine import Affine

    from deeplight.engine.raster.grid import Grid

_X, _Y = ("x", "lon", "longitude"), ("y", "lat", "latitude")
_UNEVEN = 1e-3
"""Pixels by which a coordinate may lie off an even grid: float32 degrees do."""


def layer_of(parameter: str, array: Any) -> Layer:
    """A DataArray as a layer. Raises InputError where its dimensions or coordinates are not those of a raster."""
    x, y = (next((d for d in array.dims if str(d).lower() in names), None) for names in (_X, _Y))
    if type(array).__name__ != "DataArray" or x is None or y is None or array.ndim > 3:
        kind = f"{type(array).__name__} of dimensions {tuple(array.sizes)}"
        raise InputError(
            f"{parameter} is a {kind} and a DataArray of (y, x) or (band, y, x) is needed: choose a variable, "
            "and with isel one time"
        )
    others = [d for d in array.dims if d not in (x, y)]
    array = array.transpose(*others, y, x)
    georeference = _georeference(array)
    attributes = {**array.encoding, **array.attrs}
    fill = array.attrs.get("_FillValue", array.attrs.get("nodata"))
    raw = "scale_factor" in array.attrs or "add_offset" in array.attrs
    return Layer(
        _Strips(array),
        crs=georeference.get("crs_wkt") or georeference.get("spatial_ref"),
        transform=_transform(parameter, array, x, y, georeference.get("GeoTransform")),
        nodata=None if fill is None else float(fill),
        unit=str(attributes.get("units", "")),
        names=_names(array, others),
        scale=(float(array.attrs.get("scale_factor", 1)), float(array.attrs.get("add_offset", 0)))
        if raw
        else (1.0, 0.0),
    )


class _Strips:
    """Pixels of a DataArray that are loaded when a strip is cut out, so that one of dask never is in memory whole."""

    def __init__(self, array: Any) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key: Any) -> Any:
        return self._array[key].values


def _georeference(array: Any) -> Mapping[str, Any]:
    """Attributes of the coordinate that holds the CRS."""
    named = array.encoding.get("grid_mapping") or array.attrs.get("grid_mapping") or "spatial_ref"
    found: Mapping[str, Any] = array.coords[named].attrs if named in array.coords else {}
    return found


def _names(array: Any, others: Sequence[Any]) -> tuple[str, ...]:
    """Names of the bands: long_name as rioxarray writes it, or the band coordinate where it holds texts."""
    told = array.attrs.get("long_name")
    if isinstance(told, list | tuple):
        return tuple(map(str, told))
    if others and others[0] in array.coords and array.coords[others[0]].dtype.kind in "UO":
        return tuple(map(str, array.coords[others[0]].values))
    if (
        others and others[0] in array.coords and array.coords[others[0]].dtype.kind == "M"
    ):  # times: a date a band
        return tuple(str(value)[:10] for value in array.coords[others[0]].values)
    return (told,) if isinstance(told, str) else ()


def _transform(parameter: str, array: Any, x: Any, y: Any, stored: str | None) -> Affine | None:
    """From the coordinates, which follow where the array was cut; else the stored one."""
    from affine import Affine

    own = None if stored is None else Affine.from_gdal(*map(float, str(stored).split()))
    if x not in array.coords or y not in array.coords:
        return own
    left, dx = _spacing(parameter, x, array.coords[x].values, None if own is None else own.a)
    top, dy = _spacing(parameter, y, array.coords[y].values, None if own is None else own.e)
    return Affine(dx, 0.0, left, 0.0, dy, top)


def _spacing(parameter: str, name: Any, centres: Any, stored: float | None) -> tuple[float, float]:
    """(outer edge, pixel size) of one axis."""
    import numpy as np

    centres = np.asarray(centres, np.float64)
    if len(centres) == 1 and stored is None:
        raise InputError(
            f"{parameter} has one pixel along {name}, which does not say how large it is: give at least two"
        )
    step = float(centres[-1] - centres[0]) / (len(centres) - 1) if len(centres) > 1 else float(stored or 0)
    even = centres[0] + step * np.arange(len(centres))
    if step == 0 or not np.abs(centres - even).max() <= _UNEVEN * abs(step):
        raise InputError(
            f"{parameter} has pixels along {name} that are not evenly spaced: bring it onto a regular grid first"
        )
    return float(centres[0]) - step / 2, step


def dataset_of(bands: Mapping[str, Any], units: Mapping[str, str], grid: Grid) -> Any:
    """An xarray.Dataset with a variable for each (h, w), or (2, h, w), array. Raises InputError without xarray."""
    try:
        xarray = import_module("xarray")
    except ImportError:
        raise InputError(
            f"to_xarray needs xarray, which is not installed: {install_command('xarray')}"
        ) from None
    t = grid.transform
    coordinates: dict[str, Any] = {"spatial_ref": _spatial_ref(xarray, grid)}
    if t.b == t.d == 0:
        import numpy as np

        coordinates["x"] = ("x", t.c + t.a * (np.arange(grid.width) + 0.5), {"axis": "X"})
        coordinates["y"] = ("y", t.f + t.e * (np.arange(grid.height) + 0.5), {"axis": "Y"})
    data = xarray.Dataset(coords=coordinates)
    for name, values in bands.items():
        dimensions = ("y", "x") if values.ndim == 2 else (_PARTS[name][0], "y", "x")
        if values.ndim == 3:
            data = data.assign_coords({_PARTS[name][0]: list(_PARTS[name][1])})
        attributes = {"units": units[name]} if units.get(name) else {}
        data[name] = (dimensions, values, attributes)
        data[name].encoding["grid_mapping"] = "spatial_ref"
    return data


_PARTS = {"offset": ("axis", ("x", "y")), "interval": ("end", ("low", "high"))}
"""First dimension of bands that have two parts, and its labels."""


def _spatial_ref(xarray: Any, grid: Grid) -> Any:
    text = grid.crs.to_wkt()
    place = " ".join(f"{v:.17g}" for v in grid.transform.to_gdal())
    return xarray.Variable((), 0, {"crs_wkt": text, "spatial_ref": text, "GeoTransform": place})
