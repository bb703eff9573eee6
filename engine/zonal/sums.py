"""One pass over the maps of a grid: what each region holds on each date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.geodesy import pixel_areas_km2
from deeplight.engine.zonal.coverage import Covered, covered
from deeplight.engine.zonal.maps import Map, MapPixels
from deeplight.engine.zonal.regions import Shapes

_SIDE = 1024
"""Pixels a side of the windows that are read: two blocks of the maps that deeplight-infer writes."""
ENDS = ("", "low", "high")
"""The radiance and the ends of its interval."""


@dataclass(frozen=True)
class Sums:
    """Of n regions on t dates. Pixels count with the share of them that lies in the region.

    inside_km2: (n,) area of the region in the grid. pixels, data_km2, left_out_km2: (n, t) pixels and area with data,
    area left out for flags. light_px, light_km2, lit_km2: (3, n, t) for each of ENDS: Σ radiance, Σ radiance · km²,
    area from the threshold on; NaN for ends that a map does not have.
    """

    inside_km2: Doubles
    pixels: Doubles
    data_km2: Doubles
    left_out_km2: Doubles
    light_px: Doubles
    light_km2: Doubles
    lit_km2: Doubles

    @classmethod
    def zeros(cls, regions: int, dates: int) -> Sums:
        """Before anything is added."""
        one, three = (regions, dates), (len(ENDS), regions, dates)
        return cls(np.zeros(regions), *(np.zeros(shape) for shape in (one, one, one, three, three, three)))


def add_up(
    shapes: Shapes,
    maps: Sequence[Map],
    threshold: float,
    advance: Callable[[int], None] = lambda pixels: None,
) -> Sums:
    """What regions hold of maps that share one grid.

    shapes: (n,) in pixels of the grid, see `Regions.on`. Memory holds one window of one map and the regions' pixels
    in it, whatever the number of dates. advance: is told the pixels of each window that is done.
    """
    grid = maps[0].grid
    sums = Sums.zeros(len(shapes), len(maps))
    for window in split(Window(0, 0, *grid.shape), _SIDE):
        areas: Doubles | None = None
        for part in covered(shapes, window):
            areas = pixel_areas_km2(grid, window).ravel() if areas is None else areas
            area = part.share * areas[part.cells]
            sums.inside_km2[part.regions] += part.sums(area)
            for date, source in enumerate(maps):
                _add(sums, date, part, area, source.read(window), threshold)
        advance(window.height * window.width)
    for date, source in enumerate(maps):
        if not source.has_interval:
            for kept in (sums.light_px, sums.light_km2, sums.lit_km2):
                kept[1:, :, date] = np.nan
    return sums


def _add(sums: Sums, date: int, part: Covered, area: Doubles, lights: MapPixels, threshold: float) -> None:
    """One map's pixels. area: (n,) of the covered parts of pixels, in km²."""

    def of(values: NDArray[np.generic]) -> Doubles:
        return np.asarray(values.ravel()[part.cells], np.float64)

    def add(total: Doubles, weights: Doubles) -> None:
        total[part.regions, date] += part.sums(weights)

    known = of(lights.valid)
    area_known = area * known
    share_known = part.share * known
    add(sums.pixels, share_known)
    add(sums.data_km2, area_known)
    if lights.left_out.any():
        add(sums.left_out_km2, area * of(lights.left_out))
    for end, values in enumerate((lights.values, lights.low, lights.high)):
        if values is not None:
            light = of(values)
            add(sums.light_px[end], share_known * light)
            add(sums.light_km2[end], area_known * light)
            add(sums.lit_km2[end], area_known * (light >= threshold))
