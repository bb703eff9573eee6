"""Is a layer elevation in metres? Its unit, and whether land can be so high, so flat or so steep."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.extents import lonlat_bounds
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.source import Raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

ELEVATIONS = -500.0, 9000.0
"""Metres; land lies between the Dead Sea's shore (−430 and falling) and Mount Everest (8849). What a file has beyond is
an undeclared void or the sea floor, which the network has never seen: missing."""
_UNITS = (
    ("feet", 0.3048, "ft foot feet us-ft ftus us_survey_foot us_survey_feet"),
    ("kilometres", 1000.0, "km kilometre kilometer kilometres kilometers"),
    ("decimetres", 0.1, "dm decimetre decimeter decimetres decimeters"),
    ("centimetres", 0.01, "cm centimetre centimeter centimetres centimeters"),
    ("millimetres", 0.001, "mm millimetre millimeter millimetres millimeters"),
)
"""Name, metres, spellings. The US survey foot is longer by 2 millionths: 2 cm on Mount Everest."""
_SMALLER = "0.1 for decimetres, 0.01 for centimetres, 0.001 for millimetres"
_SEVERAL = 9
"""So many different values above the highest mountain are no fill but another unit."""
_NO_FILL = 1e8
"""Larger values are fill of any type, not heights in millimetres."""
_DEGREE_M = 111_320.0
_STEEP = 1.0
"""Metres per metre: half of all neighbours steeper than 45° are found in no land. At pixels of 30 m the Himalayas'
median is about half of it."""
_ENOUGH = 64
"""Pixels from which the range and the slope say something."""


def check_unit(raster: Raster, band: int) -> None:
    """Raises InputError, with the factor, where the file says that its elevations are in another unit than metres."""
    unit = raster.units[band - 1].strip().lower().replace(" ", "_")
    for name, metres, spellings in _UNITS:
        if unit in spellings.split():
            factor, offset = (
                f"{metres * v:.12g}" for v in (raster.scales[band - 1], raster.offsets[band - 1])
            )
            scale = factor if offset == "0" else f"({factor}, {offset})"
            raise InputError(f"{raster.what} is in {name} and metres are needed; add `dem_scale={scale}`")


def check_elevation(layer: AuxLayer) -> None:
    """Raises InputError where sampled pixels cannot be elevations in metres; logs which share cannot, which is then
    taken as missing (layer.limits), and what is likely another unit."""
    assert layer.limits is not None
    low, high = layer.limits
    _, values, mask = layer.sample(layer.overlap.window)
    known = mask != 0
    heights = values[0][known]
    if not heights.size:
        _log.warning("%s: no valid pixel among those sampled", layer.raster.what)
        return
    above = np.unique(heights[(heights > high) & (heights < _NO_FILL)])
    if above.size >= _SEVERAL:
        raise InputError(
            f"{layer.raster.what} holds {above.size} different elevations above {high:g} m in the sample, up to "
            f"{above[-1]:.6g}, and no land is so high; give elevations in metres, or their scale with "
            f"`dem_scale=F or (F, OFFSET)` ({_SMALLER})"
        )
    beyond = heights[(heights < low) | (heights > high)]
    span = f"outside {low:g}…{high:g} m (such as {beyond[0]:.6g})" if beyond.size else ""
    if beyond.size == heights.size:
        raise InputError(
            f"{layer.raster.what}: all sampled elevations are {span}; give elevations in metres, or their scale and "
            "the value of voids with `dem_scale=F or (F, OFFSET)` and `dem_nodata=VALUE`"
        )
    if beyond.size:
        _log.warning(
            "%s: %.2g %% of the sampled elevations are %s and are treated as missing",
            layer.raster.what,
            100 * beyond.size / heights.size,
            span,
        )
    if not layer.scale_given:
        for doubt in _doubts(layer, values[0], known & (values[0] >= low) & (values[0] <= high)):
            _log.warning("%s %s", layer.raster.what, doubt)


def _doubts(layer: AuxLayer, values: NDArray[np.float32], known: NDArray[np.bool_]) -> Iterator[str]:
    """What speaks for another unit. values, known: (N,), neighbours along rows side by side."""
    heights = values[known]
    if heights.size < _ENOUGH:
        return
    least, largest = float(heights.min()), float(heights.max())
    whole = bool((heights == np.rint(heights)).all())
    if 0 <= least < largest < ELEVATIONS[1] / 1000 and not whole:
        yield (
            f"has elevations of {least:.3g} to {largest:.3g} m only; if they are in kilometres, pass `dem_scale=1000`, "
            "and if they are metres, `dem_scale=1`"
        )
    both = known[1:] & known[:-1]
    slopes = np.abs(np.diff(values))[both] / _pixel_metres(layer.raster.grid)
    slope = float(np.median(slopes)) if slopes.size else 0.0
    if slope > _STEEP:
        yield (
            f"would be steeper than land is: half of its neighbouring pixels rise by more than {slope:.2g} m per "
            f"metre; if it is not in metres, pass `dem_scale=F or (F, OFFSET)` ({_SMALLER})"
        )


def _pixel_metres(grid: Grid) -> float:
    """About the width of a pixel."""
    width = math.hypot(grid.transform.a, grid.transform.d)
    if not grid.crs.is_geographic:
        return float(width * grid.crs.linear_units_factor[1])
    bounds: Any = lonlat_bounds(grid)
    return width * _DEGREE_M * max(math.cos(math.radians((bounds[1] + bounds[3]) / 2)), 0.01)
