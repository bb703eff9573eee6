"""What a user says about a raster's place, and its texts on the command line. Standard library only, until a CRS is
looked up."""

from __future__ import annotations

import math
from dataclasses import dataclass

Edges = tuple[float, float, float, float]
"""(west, south, east, north) in the units of a CRS."""


@dataclass(frozen=True)
class Placement:
    """What the user says about a raster's place. crs: such as EPSG:4326. bounds: (west, south, east, north) of the
    raster's outer edge in the CRS's units. None: what the file says."""

    crs: str | None = None
    bounds: Edges | None = None


def parse_crs(text: str) -> str:
    """`EPSG:4326`, a PROJ string or WKT, as given. Raises ValueError in one sentence where PROJ does not know it."""
    import rasterio
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        with rasterio.Env():  # else PROJ prints its own words
            crs = CRS.from_user_input(text)
    except CRSError:
        crs = None
    if not crs:
        raise ValueError(f"{text!r} is no coordinate reference system; an example is EPSG:4326")
    return text


def parse_bounds(text: str) -> Edges:
    """`WEST,SOUTH,EAST,NORTH` → four numbers. Raises ValueError in one sentence."""
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError:
        west = south = east = north = math.nan
    if not (-math.inf < west < east < math.inf and -math.inf < south < north < math.inf):
        raise ValueError(
            f"{text!r} is not WEST,SOUTH,EAST,NORTH, the raster's outer edges in the units of its CRS; "
            "an example is 5.5,49.4,6.6,50.2"
        )
    return west, south, east, north
