"""The polygons of a vector file: their names, their ground areas, their outlines in the pixels of a map."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.wording import mention
from deeplight.engine.raster.extents import same_crs
from deeplight.engine.raster.geodesy import equal_area, step_x
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import project

if TYPE_CHECKING:
    from rasterio.crs import CRS

_log = logging.getLogger(__name__)

Shapes = NDArray[np.object_]
"""Geometries of shapely, (n,)."""

_PIECES = 64
"""Parts into which the diagonal of a region's box is cut at least, where straight lines become curves: an arc of such a
part leaves its chord by less than a hundred-thousandth of the diagonal in the projections that maps are in."""
_LATTICE = 65
_MARGIN = 0.02
"""Of a map's extent, that regions keep beyond it when they are cut: more than a lattice of so many points can miss."""
_NAMED = 5
"""Regions or columns that a message names."""


@dataclass(frozen=True)
class Regions:
    """Regions of one file. names: (n,) each once. shapes: (n,) polygons in `crs`. areas_km2: (n,) on the ground."""

    file: str
    names: NDArray[Any]
    shapes: Shapes
    crs: CRS
    areas_km2: Doubles

    def __len__(self) -> int:
        return len(self.names)

    def on(self, grid: Grid) -> Shapes:
        """The regions in pixels of a grid, (n,): x to the right in columns, y up in −rows; empty where one does not
        meet the grid. Lines are straight in the regions' own CRS, and curves on the grid where its CRS bends them."""
        import shapely

        shapes = _cut(self.shapes, self.crs, grid)
        same = same_crs(self.crs, grid.crs, grid)
        back = ~grid.transform

        def pixels(points: Doubles) -> Doubles:
            x, y = points.T if same else project(self.crs, grid.crs, *points.T)
            return np.stack([back.a * x + back.b * y + back.c, -(back.d * x + back.e * y + back.f)], axis=1)

        placed = shapely.transform(shapes if same else _fine(shapes), pixels)
        lost = ~np.isfinite(shapely.area(placed))
        if lost.any():
            raise InputError(
                f"{_some(self.names[lost])} of {self.file} cannot be brought into {grid.crs.to_string()}, the CRS of "
                "the map: cut the regions to the map's surroundings first"
            )
        return np.asarray(placed)


def require_packages() -> None:
    """Raises InputError where a package of the extra [zonal] is missing."""
    for package in ("exactextract", "pandas", "pyarrow", "pyogrio", "shapely"):
        if find_spec(package) is None:
            raise InputError(
                f"tables by region need {package}, which is not installed: {install_command('zonal')}"
            )


def read_regions(file: Path, column: str | None = None, layer: str | None = None) -> Regions:
    """The polygons of a vector file. column: that holds their names, each of which occurs once; None: the features'
    numbers. layer: where the file has several.

    Raises InputError for what cannot be used, one sentence with the remedy.
    """
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    # a local file that names remote ones (VRT) does not reach them, as with rasters
    pyogrio.set_gdal_config_options({"CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none"})
    if not file.exists():
        raise InputError(
            f"the regions {file} do not exist: give a vector file, such as GeoPackage or GeoJSON"
        )
    try:
        layer = _layer(file, layer)
        return _read(file, column, layer)
    except (DataLayerError, DataSourceError) as error:
        reason = " ".join(str(error).partition(";")[0].split()).rstrip(
            "."
        )  # then how to name a driver, in its terms
        raise InputError(
            f"the regions {file} cannot be opened ({reason}); give a vector file with polygons, such as GeoPackage, "
            "GeoJSON or a shapefile"
        ) from error


def _layer(file: Path, wanted: str | None) -> str:
    """The layer that is asked for, or the only one that may hold polygons."""
    import pyogrio

    layers = {str(name): str(kind) for name, kind in pyogrio.list_layers(file)}
    shaped = [
        name
        for name, kind in layers.items()
        if "Polygon" in kind or kind in ("Unknown", "GeometryCollection")
    ]
    if wanted is not None:
        if wanted not in layers:
            raise InputError(
                f"the regions {file} have no layer {wanted}; their layers are {', '.join(layers)}"
            )
        return wanted
    if not shaped:
        kinds = ", ".join(sorted(set(layers.values()) - {"None"})) or "no geometries"
        raise InputError(f"the regions {file} hold {kinds} and no polygons: give a file with polygons")
    if len(shaped) > 1:
        raise InputError(
            f"the regions {file} have {len(shaped)} layers of polygons ({_some(shaped)}); choose, for example with "
            f"{mention(layer=shaped[0])}"
        )
    return shaped[0]


def _read(file: Path, column: str | None, layer: str) -> Regions:
    import pyogrio
    import shapely
    from rasterio.crs import CRS

    columns = list(pyogrio.read_info(file, layer=layer)["fields"])
    if column is not None and column not in columns:
        raise InputError(
            f"the regions {file} have no column {column}; their columns are {_some(columns) or 'none'}: correct `by`"
        )
    wanted = [] if column is None else [column]
    about, numbers, wkb, values = pyogrio.raw.read(file, layer=layer, columns=wanted, return_fids=True)
    if about["crs"] is None:
        raise InputError(
            f"the regions {file} have no CRS, so nothing says where they lie: give a file that has one (a shapefile "
            "needs its .prj beside it)"
        )
    shapes = _polygons(file, shapely.from_wkb(wkb))
    names = np.asarray(numbers) if column is None else _checked_names(file, column, values[0])
    crs = CRS.from_user_input(about["crs"])
    return Regions(str(file), names, shapes, crs, _areas_km2(shapes, crs))


def _polygons(file: Path, shapes: Shapes) -> Shapes:
    """The shapes, where all are polygons; those that cross themselves are mended."""
    import shapely

    kinds = shapely.get_type_id(shapes)
    flat = np.isin(kinds, (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    if not len(shapes):
        raise InputError(f"the regions {file} hold no features: give a file with polygons")
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    if empty.all() or (~flat & ~empty).any():
        other = "nothing" if empty.all() else shapes[int(np.argmax(~flat & ~empty))].geom_type
        raise InputError(
            f"the regions {file} hold {other} where polygons are needed: give polygons, for example points with a "
            "buffer"
        )
    shapes = np.where(empty, shapely.Polygon(), shapely.force_2d(shapes))
    crossed = ~shapely.is_valid(shapes)
    if crossed.any():
        mended = shapely.make_valid(shapes[crossed], method="structure", keep_collapsed=False)
        _log.warning(
            "%s: %d of %d regions have outlines that cross themselves, and are taken as GEOS mends them",
            file,
            int(crossed.sum()),
            len(shapes),
        )
        shapes[crossed] = mended
    return np.asarray(shapes)


def _checked_names(file: Path, column: str, values: NDArray[Any]) -> NDArray[Any]:
    """A column in which each value occurs once."""
    missing = np.array([v is None or v != v for v in values])
    if missing.any():
        raise InputError(
            f"the column {column} of {file} is empty in {int(missing.sum())} of {len(values)} regions: name them, or "
            "choose another column with `by`"
        )
    unique, counts = np.unique(values.astype(str), return_counts=True)
    if len(unique) < len(values):
        twice = unique[counts > 1]
        raise InputError(
            f"the column {column} of {file} names {len(twice)} regions more than once ({_some(twice)}): choose a "
            "column in which each name occurs once with `by`, or dissolve the regions first"
        )
    return values


def _some(names: Any) -> str:
    """Some names, for a message."""
    shown = [str(name) for name in names[:_NAMED]]
    return ", ".join(shown) + (", …" if len(names) > _NAMED else "")


def _fine(shapes: Shapes) -> Shapes:
    """The same shapes with more points on their lines."""
    import shapely

    left, low, right, high = shapely.bounds(shapes).T
    diagonal = np.nan_to_num(np.hypot(right - left, high - low))
    return np.asarray(shapely.segmentize(shapes, np.where(diagonal > 0, diagonal / _PIECES, 1.0)))


def _areas_km2(shapes: Shapes, crs: CRS) -> Doubles:
    """Ground areas: what outer rings hold less what their holes do, each by the trapezoids under its lines."""
    import shapely

    parts, owner = shapely.get_parts(_fine(shapes), return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    if not len(points):
        return np.zeros(len(shapes))
    x, y = equal_area(crs, *points.T)
    within = ring[1:] == ring[:-1]
    under = np.where(within, step_x(np.diff(x)) * (y[1:] + y[:-1]) / 2, 0.0)
    sizes = np.abs(np.bincount(ring[1:], under, minlength=len(rings)))
    outer = np.concatenate([[True], part[1:] != part[:-1]])
    signed = np.where(outer, sizes, -sizes)
    return np.asarray(np.bincount(owner[part], signed, minlength=len(shapes)) / 1e6)


def _cut(shapes: Shapes, crs: CRS, grid: Grid) -> Shapes:
    """The shapes without what lies far from a grid, where projections end; where degrees go round the globe, moved
    beside it."""

    rows, cols = np.meshgrid(*(np.linspace(0, n, _LATTICE) for n in grid.shape), indexing="ij")
    a, b, c, d, e, f = grid.transform[:6]
    x, y = project(grid.crs, crs, a * cols + b * rows + c, d * cols + e * rows + f)
    if not np.isfinite(x).all():
        return shapes
    turns: tuple[float, ...] = (0.0,)
    if crs.is_geographic:
        x = np.unwrap(np.unwrap(x, period=360.0, axis=1), period=360.0, axis=0)
        turns = (-360.0, 0.0, 360.0)
    wide, high = np.ptp(x) * _MARGIN, np.ptp(y) * _MARGIN
    box = (x.min() - wide, y.min() - high, x.max() + wide, y.max() + high)
    if crs.is_geographic and not grid.crs.is_geographic and np.ptp(x) >= 360.0:  # around a pole
        box, turns = (-720.0, box[1], 720.0, box[3]), (0.0,)
    return _near(shapes, box, turns)


def _near(shapes: Shapes, box: tuple[float, ...], turns: tuple[float, ...]) -> Shapes:
    import shapely

    pieces = np.full((len(turns), len(shapes)), shapely.Polygon(), object)
    for turn, piece in zip(turns, pieces, strict=True):
        moved = _moved(shapes, turn) if turn else shapes
        left, low, right, high = shapely.bounds(moved).T
        meets = (left < box[2]) & (right > box[0]) & (low < box[3]) & (high > box[1])
        inside = meets & (left >= box[0]) & (right <= box[2]) & (low >= box[1]) & (high <= box[3])
        piece[inside] = moved[inside]
        cut = meets & ~inside
        piece[cut] = shapely.intersection(moved[cut], shapely.box(*box))
    several = (~shapely.is_empty(pieces)).sum(axis=0) > 1
    found = pieces[np.argmin(shapely.is_empty(pieces), axis=0), np.arange(len(shapes))]
    found[several] = shapely.union_all(pieces[:, several], axis=0)
    return np.asarray(found)


def _moved(shapes: Shapes, degrees: float) -> Shapes:
    """The shapes, so much further east."""
    import shapely

    return np.asarray(shapely.transform(shapes, lambda points: points + np.array([degrees, 0.0])))
