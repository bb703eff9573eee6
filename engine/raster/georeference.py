"""Where a raster lies: its own CRS and geotransform, or what `ntl_crs`, `ntl_bounds` and their like say instead."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from affine import Affine

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import of_role
from deeplight.engine.raster.extents import lonlat_bounds, same_crs
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.placement import Edges, Placement
from deeplight.engine.raster.remedies import copied, copy_as_geotiff, quoted

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader

PLACED = ("NTL", "DMO", "DEM")
"""Roles with options for their CRS and their bounds."""
_SAME_PX = 0.01
"""Pixels by which given bounds may differ from a file's own at a corner: what decimal degrees with some digits lose."""
_LEAST_PIXEL_M = 0.1
"""Metres. Smaller pixels beside the origin of a projected CRS are degrees: 15″ is 0.004."""
_BLACK_MARBLE = re.compile(r"_Grid_DNB|VIIRS_Grid|(?:^|[./_])h\d\dv\d\d[._].*\.(?:h5|hdf|he5)", re.IGNORECASE)
"""What names of Black Marble tiles, or of the datasets in them, have in common."""

_OF_PLACE = {"lat", "latitude", "lon", "longitude", "x", "y"}
"""Names of dimensions, or their axes, that are rows or columns."""
_NETCDF = re.compile(r"\.nc4?(?:$|[:\"])|^netcdf:", re.IGNORECASE)


def checked_grid(what: str, name: str, role: str, dataset: DatasetReader, placement: Placement) -> Grid:
    """The grid of an open raster: the file's own, or `placement` where the file has none that can be used.

    what, name, role: of the raster, for messages. Raises InputError where it cannot be placed on the globe, and
    where `placement` contradicts a file that can.
    """
    _check_order(what, dataset)
    height, width = dataset.height, dataset.width
    own = None if dataset.transform.is_identity else dataset.transform
    if own is None and not (placement.bounds and not _warpable(dataset)):
        raise InputError(_no_transform(what, name, role, dataset, placement))
    usable = own is not None and all(math.isfinite(v) for v in own[:6]) and own.determinant != 0
    if not usable and placement.bounds is None:
        assert own is not None
        raise InputError(
            f"{what} has a geotransform that cannot be inverted {own[:6]}; "
            f"say where its edges lie: {_how(role, name, '', 'bounds')}"
        )
    crs = _crs(what, name, role, dataset, placement)
    if not usable and crs.is_geographic:
        _check_degrees(role, placement)
    grid = Grid(
        crs, own if usable and own is not None else _spread(placement.bounds, height, width), height, width
    )
    if _fits(grid):
        _check_agreement(what, role, dataset, grid, placement)
        return grid
    given = _given(dataset, placement, height, width, grid)
    if given is None:
        raise InputError(
            f"{what} cannot be placed on the globe: its CRS and its coordinates "
            f"(from x = {grid.transform.c:g}, y = {grid.transform.f:g}) do not fit together; "
            f"say which CRS the coordinates are in: {_how(role, name, 'crs', '')}"
        )
    return given


def _check_order(what: str, dataset: DatasetReader) -> None:
    """Raises InputError for a netCDF variable whose rows or columns are not its last two dimensions: GDAL makes bands
    of the first ones."""
    tags = dataset.tags()
    first = tags.get("NETCDF_DIM_EXTRA", "").strip("{}").split(",")
    place = next((d for d in first if {d.lower(), tags.get(f"{d}#axis", "").lower()} & _OF_PLACE), None)
    if place is not None:
        raise InputError(
            f"{what} is stored with {place} before its last two dimensions, which are to be rows and columns: write it "
            'in the order of time, y, x, as with xarray: ds.transpose("time", "lat", "lon").to_netcdf("ordered.nc")'
        )


def _crs(what: str, name: str, role: str, dataset: DatasetReader, placement: Placement) -> CRS:
    """The file's CRS, else the one given."""
    from rasterio.crs import CRS

    if dataset.crs is not None:
        return dataset.crs
    if placement.crs is None:
        raise InputError(f"{what} has no CRS; say which it is: {_how(role, name, 'crs', '')}")
    return CRS.from_user_input(placement.crs)


def _check_degrees(role: str, placement: Placement) -> None:
    """Raises InputError for edges that are no longitudes and latitudes."""
    assert placement.bounds is not None
    west, south, east, north = placement.bounds
    if west < -360 or east > 360 or east - west > 360 or south < -90 or north > 90:
        edges = ", ".join(f"{v:.9g}" for v in placement.bounds)
        raise InputError(
            f"`{of_role(role, 'bounds')}=({edges})` are no longitudes and latitudes: correct them, or say with "
            f"`{of_role(role, 'crs')}` which CRS they are in"
        )


def _fits(grid: Grid) -> bool:
    """Whether the CRS places the coordinates on the globe, and they are not degrees under a CRS in metres."""
    if not (grid.crs.is_geographic or grid.crs.is_projected) or lonlat_bounds(grid) is None:
        return False
    west, south, east, north = grid.bounds_xy
    if grid.crs.is_geographic or max(abs(west), abs(east)) > 360.0 or max(abs(south), abs(north)) > 90.0:
        return True
    width = math.hypot(grid.transform.a, grid.transform.d)
    return bool(width * grid.crs.linear_units_factor[1] >= _LEAST_PIXEL_M)


def _given(dataset: DatasetReader, placement: Placement, height: int, width: int, grid: Grid) -> Grid | None:
    """The grid with what was given in place of what the file says; None where that is not on the globe either."""
    from rasterio.crs import CRS

    crs = grid.crs if placement.crs is None else CRS.from_user_input(placement.crs)
    transform = grid.transform if placement.bounds is None else _spread(placement.bounds, height, width)
    other = Grid(crs, transform, height, width)
    return other if other != grid and _fits(other) else None


def _check_agreement(what: str, role: str, dataset: DatasetReader, grid: Grid, placement: Placement) -> None:
    """Raises InputError where the file has a usable CRS or place of its own and another one was given."""
    from rasterio.crs import CRS

    crs, bounds = of_role(role, "crs"), of_role(role, "bounds")
    if placement.crs is not None and not same_crs(grid.crs, CRS.from_user_input(placement.crs), grid):
        raise InputError(
            f"{what} says that its CRS is {grid.crs.to_string()} and `{crs}` says {placement.crs}: "
            f"leave out `{crs}`, which is for files without a CRS"
        )
    if placement.bounds is None:
        return
    wanted = _spread(placement.bounds, grid.height, grid.width)
    corners = ((0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height))
    apart = max(math.dist(~grid.transform @ (wanted @ corner), corner) for corner in corners)
    if apart > _SAME_PX:
        left, bottom, right, top = grid.bounds_xy
        raise InputError(
            f"{what} says that it lies within {left:.9g},{bottom:.9g},{right:.9g},{top:.9g} and `{bounds}` says "
            f"{','.join(f'{v:.9g}' for v in placement.bounds)}: leave out `{bounds}`, which is for files "
            "without a place"
        )


def _spread(bounds: Edges | None, height: int, width: int) -> Affine:
    """The north-up transform whose outer edges are `bounds`."""
    assert bounds is not None
    west, south, east, north = bounds
    return Affine((east - west) / width, 0.0, west, 0.0, (south - north) / height, north)


def _warpable(dataset: DatasetReader) -> bool:
    """Whether a file without a geotransform says in another way where its pixels lie."""
    return bool(dataset.gcps[0]) or dataset.rpcs is not None or bool(dataset.tags(ns="GEOLOCATION"))


def _no_transform(what: str, name: str, role: str, dataset: DatasetReader, placement: Placement) -> str:
    if dataset.gcps[0]:
        return (
            f"{what} is georeferenced by ground control points only; "
            f"warp it onto a grid first: {copied(name, 'warped.tif')}"
        )
    if dataset.rpcs is not None or dataset.tags(ns="GEOLOCATION"):
        by = "an RPC camera model" if dataset.rpcs is not None else "geolocation arrays"
        return (
            f"{what} is georeferenced by {by} only; give it on a grid with a CRS, as a GeoTIFF: programs such as QGIS "
            "or gdalwarp, which DeepLight does not bring, can warp it"
        )
    if is_black_marble(name):
        return black_marble(what, name)
    crs = "" if dataset.crs is not None or placement.crs else "crs"
    return f"{what} is not georeferenced; say where it lies: {_how(role, name, crs, 'bounds')}"


def is_black_marble(name: str) -> bool:
    """Whether a file's or dataset's name is that of a Black Marble tile as NASA delivers it."""
    return _BLACK_MARBLE.search(name) is not None


def black_marble(what: str, name: str) -> str:
    """The sentence that leads to the converter. name: of the file, or of a dataset in it."""
    found = re.search(r'^(?:HDF5:)?"?(.+?\.(?:h5|hdf|he5))', name, re.IGNORECASE)
    file = quoted(found[1] if found else name)
    return (
        f"{what} is a Black Marble tile, which says where it lies in its name alone; "
        f"convert it first: deeplight-data blackmarble {file} --out blackmarble.tif"
    )


def _how(role: str, name: str, crs: str, bounds: str) -> str:
    """How to say what a file does not: options, or a copy that says it. The user's own file is left as it is."""
    if role in PLACED:
        values = {"crs": '"EPSG:4326"', "bounds": "(WEST, SOUTH, EAST, NORTH)"}
        added = ", ".join(f"{of_role(role, part)}={values[part]}" for part in (crs, bounds) if part)
        return f"add `{added}`" + (" (or the code of its own CRS)" if crs else "")
    edits = [
        ("--crs EPSG:4326", crs),
        ("--transform '[pixel width, 0, west, 0, -pixel height, north]'", bounds),
    ]
    edit = " ".join(text for text, part in edits if part)
    # GDAL would turn the rows of a netCDF file without coordinates around
    order = "GDAL_NETCDF_BOTTOMUP=NO " if bounds and _NETCDF.search(name) else ""
    copy = f"{order}{copy_as_geotiff(name, 'placed.tif')}"
    return f"write a copy and give that: {copy} && rio edit-info {edit} placed.tif"
