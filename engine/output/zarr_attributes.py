"""What the arrays of a Zarr group say about themselves, by the Climate and Forecast conventions."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.spec import Quality
from deeplight.engine.output.acquired import Span
from deeplight.engine.raster.units import RADIANCE_UNIT

if TYPE_CHECKING:
    from deeplight.engine.output.packs import BandSpec, OutputSpec
    from deeplight.engine.raster.grid import Grid

DATES = "deeplight_dates"
"""Attribute of the group: date → tags of its map, or null where it is waiting."""
FLAGS_FILL = 255
"""Of bit flags, which stay below it."""
CF_UNITS = {RADIANCE_UNIT: "nW cm-2 sr-1", "probability": "1", "LR px": "1", "DN": "1", "": ""}
"""As UDUNITS spells them; other units stay."""
_NAMES = {"ntl": "nighttime lights"}
_RANGES = {"isp": (0.0, 1.0)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Axis = tuple[tuple[str, ...], NDArray[Any], dict[str, Any]]
"""Dimensions, values and attributes of a coordinate."""


def array_name(band: BandSpec) -> str:
    """The first word of a band's description: ntl, isp, offset_x, quality, ntl_low …"""
    return band.name.partition(" ")[0]


def type_of(spec: OutputSpec, band: BandSpec) -> str:
    """The data type of the array: that of the map, and bytes for bit flags, which must be integers by CF."""
    return "uint8" if band.flags else spec.dtype


def fill_of(spec: OutputSpec, band: BandSpec) -> float | int:
    """The value of pixels without data."""
    if band.flags:
        return FLAGS_FILL
    return int(spec.nodata) if spec.dtype == "uint16" else float(spec.nodata)


def group_attributes(spec: OutputSpec) -> dict[str, Any]:
    """The attributes of the group, without its dates."""
    return {
        "Conventions": "CF-1.8",
        "title": "Nighttime lights, refined 8×",
        "source": f"{spec.tags['DEEPLIGHT_MODEL']} in DeepLight {spec.tags['DEEPLIGHT_VERSION']}",
    }


def band_attributes(spec: OutputSpec, band: BandSpec) -> dict[str, Any]:
    """The attributes of an array over time, y and x."""
    found: dict[str, Any] = {
        "long_name": _NAMES.get(band.name, band.name),
        "units": CF_UNITS.get(band.unit, band.unit),
    }
    if band.flags:
        flags = list(Quality)
        found["flag_masks"] = [int(flag) for flag in flags]
        found["flag_meanings"] = " ".join(str(flag.name).lower() for flag in flags)
        found["valid_range"] = [0, sum(int(flag) for flag in flags)]
    elif spec.dtype == "uint16":
        found |= {"scale_factor": spec.scale, "add_offset": spec.offset}
        found["valid_range"] = list(spec.codec.steps)
    elif band.unit == spec.bands[0].unit:
        found["valid_min"] = 0.0
    elif band.name in _RANGES:
        found["valid_range"] = list(_RANGES[band.name])
    found["_FillValue"] = _fill_attribute(fill_of(spec, band))
    return {name: value for name, value in found.items() if value != ""}


def _fill_attribute(fill: float | int) -> int | str:
    """As xarray spells it in JSON, which has no NaN: of a float the bytes. Other readers go by the array's own fill
    value."""
    return fill if isinstance(fill, int) else base64.b64encode(struct.pack("<d", fill)).decode()


def time_axis(dates: Sequence[Span]) -> dict[str, Axis]:
    """The first second of each date, and the first of what follows it as its bound."""
    starts = [_seconds(first) for first, _ in dates]
    ends = [_seconds(last + timedelta(seconds=1)) for _, last in dates]
    said = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    named = {"standard_name": "time", "axis": "T", "bounds": "time_bnds", **said}
    bounds = np.array([starts, ends], np.int64).T
    return {
        "time": (("time",), bounds[:, 0], named),
        "time_bnds": (("time", "nv"), bounds, said),
    }


def _seconds(at: datetime) -> int:
    return int((at - _EPOCH).total_seconds())


def axes(grid: Grid) -> dict[str, Axis]:
    """The centres of the pixels along y and x; nothing for a rotated grid, where the pixels of a row differ in y."""
    t = grid.transform
    if t.b or t.d:
        return {}
    y = t.f + t.e * (np.arange(grid.height) + 0.5)
    x = t.c + t.a * (np.arange(grid.width) + 0.5)
    if grid.crs.is_geographic:
        said = (
            {"standard_name": "latitude", "units": "degrees_north"},
            {"standard_name": "longitude", "units": "degrees_east"},
        )
    else:
        unit = grid.crs.linear_units
        said = (
            {"standard_name": "projection_y_coordinate", "units": unit},
            {"standard_name": "projection_x_coordinate", "units": unit},
        )
    return {"y": (("y",), y, {**said[0], "axis": "Y"}), "x": (("x",), x, {**said[1], "axis": "X"})}


def cube_dimensions(grid: Grid, dates: Sequence[Span]) -> dict[str, dict[str, Any]]:
    """Time, y and x as the datacube extension of STAC says them. Those of a rotated grid have extents and no steps."""
    west, south, east, north = grid.bounds_xy
    steps, place = axes(grid), grid.crs.to_epsg() or grid.crs.to_wkt(version="WKT2_2019")

    def along(axis: str, low: float, high: float, step: float) -> dict[str, Any]:
        said = {"type": "spatial", "axis": axis, "extent": [low, high], "reference_system": place}
        return {**said, "step": step if steps else None}

    instants = [f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in (*(first for first, _ in dates), dates[-1][1])]
    return {
        "time": {"type": "temporal", "values": instants[:-1], "extent": [instants[0], instants[-1]]},
        "y": along("y", south, north, grid.transform.e),
        "x": along("x", west, east, grid.transform.a),
    }


def place_attributes(grid: Grid) -> Mapping[str, Any]:
    """The attributes of the variable that says where the grid lies, with GeoTransform as GDAL and rioxarray read it."""
    wkt = grid.crs.to_wkt(version="WKT2_2019")  # which CF asks for
    name = {"grid_mapping_name": "latitude_longitude"} if grid.crs.is_geographic else {}
    place = " ".join(repr(float(value)) for value in grid.transform.to_gdal())
    return {**name, "crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": place}
