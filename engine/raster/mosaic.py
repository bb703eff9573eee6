"""Pieces of one raster, as exports are delivered: files on one lattice that become one dataset, without a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplight.engine.raster.source import Raster

_OFF_LATTICE = 0.02
"""Pixels by which a corner may miss the lattice: what the decimals of an export lose, far below what is seen."""
_COMPARED = 1024
"""Pixels a side that are compared at a time where pieces overlap."""
_TYPES = {"uint8": "Byte", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64"}


def mosaic_vrt(what: str, pieces: Sequence[Raster]) -> str:
    """A VRT of open rasters, which must agree in all but their place. Where no piece is, its mask says no data.

    what: for messages. Raises InputError where they are not pieces of one raster: another CRS, pixel size, lattice,
    type, band, nodata, scale or unit, or other pixels where two overlap.
    """
    first = pieces[0]
    for other in pieces[1:]:
        for name, mine, theirs in _headers(first, other):
            if mine != theirs:
                raise InputError(
                    f"{what} are not pieces of one raster: {name} is {mine} in {first.name} and {theirs} in "
                    f"{other.name}; give pieces that differ in their place only"
                )
    places = _places(what, pieces)
    _check_overlaps(what, list(zip(pieces, places, strict=True)))
    return _xml(pieces, places)


def _headers(a: Raster, b: Raster) -> Iterator[tuple[str, object, object]]:
    """(name, value in a, value in b) of what pieces have in common."""
    yield "the CRS", a.grid.crs.to_string(), b.grid.crs.to_string()
    if not _same_steps(a, b):
        yield "the pixel size", _steps(a), _steps(b)
    yield "the number of bands", len(a.dtypes), len(b.dtypes)
    yield "the pixel type", a.dtypes, b.dtypes
    yield "the nodata value", [str(v) for v in a.nodata], [str(v) for v in b.nodata]
    yield "the scale", a.scales.tolist(), b.scales.tolist()
    yield "the offset", a.offsets.tolist(), b.offsets.tolist()
    yield "the unit", a.units, b.units
    yield "the names of the bands", a.band_names, b.band_names


def _same_steps(a: Raster, b: Raster) -> bool:
    """Whether a pixel's steps agree so well that over the larger piece no corner leaves the lattice."""
    length = max(a.grid.height, a.grid.width, b.grid.height, b.grid.width)
    size = math.hypot(a.grid.transform.a, a.grid.transform.d)
    steps = zip(a.grid.transform[:6], b.grid.transform[:6], strict=True)
    return all(abs(x - y) * length <= _OFF_LATTICE * size for k, (x, y) in enumerate(steps) if k % 3 != 2)


def _steps(raster: Raster) -> str:
    return ", ".join(f"{v:.12g}" for k, v in enumerate(raster.grid.transform[:6]) if k % 3 != 2)


def _places(what: str, pieces: Sequence[Raster]) -> list[Window]:
    """Each piece's window in the mosaic, whose first row and column are 0."""
    origin = pieces[0].grid.transform
    corners = []
    for piece in pieces:
        col, row = ~origin @ (piece.grid.transform.c, piece.grid.transform.f)
        if max(abs(col - round(col)), abs(row - round(row))) > _OFF_LATTICE:
            raise InputError(
                f"{what} are not pieces of one raster: {piece.name} lies {col % 1:.2f} columns and {row % 1:.2f} rows "
                f"off the pixels of {pieces[0].name}; give pieces on one lattice"
            )
        corners.append((round(row), round(col)))
    top, left = min(row for row, _ in corners), min(col for _, col in corners)
    return [
        Window(row - top, col - left, piece.grid.height, piece.grid.width)
        for piece, (row, col) in zip(pieces, corners, strict=True)
    ]


def _check_overlaps(what: str, placed: Sequence[tuple[Raster, Window]]) -> None:
    """Raises InputError where two pieces hold different pixels at one place."""
    for (a, at), (b, there) in combinations(placed, 2):
        for part in split(at.shared_with(there), _COMPARED):
            mine, theirs = (
                raster.read(Window(part.row - w.row, part.col - w.col, part.height, part.width), raster.bands)
                for raster, w in ((a, at), (b, there))
            )
            if not (_equal(mine[0], theirs[0]) and _equal(_known(mine[1], part), _known(theirs[1], part))):
                raise InputError(
                    f"{what}: {a.name} and {b.name} overlap and hold different pixels there, so that nobody knows "
                    "which ones are meant; give pieces of one date and one product"
                )


def _known(mask: NDArray[np.uint8] | None, part: Window) -> NDArray[np.bool_]:
    return np.ones(part.shape, np.bool_) if mask is None else mask != 0


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _xml(pieces: Sequence[Raster], places: Sequence[Window]) -> str:
    first, corner = pieces[0], places[0]
    height = max(w.row + w.height for w in places)
    width = max(w.col + w.width for w in places)
    a, b, _, d, e, _ = first.grid.transform[:6]
    x, y = first.grid.transform @ (-corner.col, -corner.row)
    place = ", ".join(repr(float(v)) for v in (x, a, b, y, d, e))
    tags = "".join(f"<MDI key={quoteattr(k)}>{escape(v)}</MDI>" for k, v in first.tags.items())
    bands = "".join(_band(first, band, pieces, places) for band in range(1, len(first.dtypes) + 1))
    mask = _sources(f"mask,{first.bands[0]}", pieces, places)
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(first.grid.crs.to_wkt())}</SRS>'
        f"<GeoTransform>{place}</GeoTransform><Metadata>{tags}</Metadata>{bands}"
        f'<MaskBand><VRTRasterBand dataType="Byte">{mask}</VRTRasterBand></MaskBand></VRTDataset>'
    )


def _band(first: Raster, band: int, pieces: Sequence[Raster], places: Sequence[Window]) -> str:
    i = band - 1
    kind = _TYPES.get(first.dtypes[i], first.dtypes[i].capitalize())
    nodata = first.nodata[i]
    header = "" if nodata is None else f"<NoDataValue>{nodata!r}</NoDataValue>"
    header += f"<Description>{escape(first.band_names[i])}</Description><UnitType>{escape(first.units[i])}</UnitType>"
    header += f"<Scale>{float(first.scales[i])!r}</Scale><Offset>{float(first.offsets[i])!r}</Offset>"
    header += "" if band in first.bands else "<ColorInterp>Alpha</ColorInterp>"
    sources = _sources(str(band), pieces, places)
    return f'<VRTRasterBand dataType="{kind}" band="{band}">{header}{sources}</VRTRasterBand>'


def _sources(band: str, pieces: Sequence[Raster], places: Sequence[Window]) -> str:
    """The pixels of a band (or its mask) from each piece."""
    parts = []
    for piece, w in zip(pieces, places, strict=True):
        size = f'xSize="{w.width}" ySize="{w.height}"'
        parts.append(
            f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(piece.path))}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{w.col}" yOff="{w.row}" {size}/></SimpleSource>'
        )
    return "".join(parts)
