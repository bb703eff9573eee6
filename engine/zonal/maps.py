"""A map of a table: which of its bands are read, in which unit, and when it was taken."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats, Mask
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import Quality
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import mention
from deeplight.engine.output.acquired import Span
from deeplight.engine.output.taken import taken
from deeplight.engine.raster.layers import Layer
from deeplight.engine.raster.names import is_coverage
from deeplight.engine.raster.radiance import check_ntl
from deeplight.engine.raster.single import chosen_band
from deeplight.engine.raster.source import Raster, open_raster
from deeplight.engine.raster.units import DN_UNIT, RADIANCE_UNIT, canonical

if TYPE_CHECKING:
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.zonal.options import ZonalOptions

OWN = "DEEPLIGHT_VERSION"
"""A tag of maps that deeplight-infer has written: their inputs were checked then."""
_ROLE = "map"


@dataclass(frozen=True)
class MapPixels:
    """Pixels of a window of one map, each (h, w): values, where they are known, and where flags of the quality band
    take a known one out. low, high: the ends of its interval, None where the map has none."""

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    left_out: NDArray[np.bool_]
    low: NDArray[np.float32] | None
    high: NDArray[np.float32] | None


class Bands(Protocol):
    """Bands of a map, as Layer and GroupBands."""

    def read_native(self, window: Window) -> tuple[Floats, Mask]:
        """Physical values (C, h, w), 0 where invalid, and mask (h, w) of a window in the map."""
        ...


@dataclass(frozen=True)
class Map:
    """One open map of one date. unit: RADIANCE_UNIT or DN_UNIT. when: None where nothing says it."""

    name: str
    grid: Grid
    unit: str
    when: Span | None
    has_interval: bool
    without: Quality
    _light: Bands
    _interval: Bands | None
    _quality: Bands | None

    def read(self, window: Window) -> MapPixels:
        """The pixels of a window, which lies in the map."""
        values, valid = self._light.read_native(window)
        known = valid != 0
        left_out = np.zeros(known.shape, bool)
        if self._quality is not None:
            flags, told = self._quality.read_native(window)
            left_out = known & ((np.rint(flags[0]).astype(np.int64) & int(self.without)) != 0) & (told != 0)
        low = high = None
        if self._interval is not None:
            low, high = self._interval.read_native(window)[0]
        return MapPixels(values[0], known & ~left_out, left_out, low, high)


def open_map(options: ZonalOptions, name: str, stack: ExitStack) -> Map:
    """A raster as a map. Raises InputError for what is none."""
    raster = stack.enter_context(open_raster(name, _ROLE, options.allow_remote))
    own = OWN in raster.tags
    lights = _band(raster, "ntl") if options.map_band is None else None
    band = chosen_band(raster, options.map_band) if lights is None else lights
    light = Layer(raster, (band,), options.map_scale, options.map_nodata)
    ends = [_band(raster, end) for end in ("ntl_low", "ntl_high")]
    both = [end for end in ends if end is not None]
    interval = Layer(raster, both, options.map_scale, options.map_nodata) if len(both) == 2 else None
    return Map(
        name=name,
        grid=raster.grid,
        unit=_unit(light, options, own),
        when=taken(raster),
        has_interval=interval is not None,
        without=options.without,
        _light=light,
        _interval=interval,
        _quality=_quality(raster, options),
    )


def _band(raster: Raster, name: str) -> int | None:
    """The band whose description begins with a word."""
    return next((b for b in raster.bands if raster.band_names[b - 1].partition(" ")[0] == name), None)


def _quality(raster: Raster, options: ZonalOptions) -> Layer | None:
    """The band of flags, where some are asked for. Its numbers are never scaled."""
    if not options.without:
        return None
    band = _band(raster, "quality")
    if band is None:
        raise InputError(
            f"{raster.what} has no quality band, which `without` needs: make the map with "
            '`bands=("quality",)`, or leave `without` out'
        )
    return Layer(raster, (band,))


def _unit(light: Layer, options: ZonalOptions, own: bool) -> str:
    """Of the values; evidence is weighed unless deeplight-infer has done it. Raises InputError where they are no
    light."""
    raster, band = light.raster, light.bands[0]
    told = options.map_unit if options.map_unit is not None else raster.units[band - 1]
    unit = canonical(told)
    if not own:
        if options.map_scale is None and is_coverage(
            "" if raster.path is None else raster.path.name, raster.band_names[band - 1]
        ):
            raise InputError(
                f"{raster.what} is called as a count of observations would be: give a map of lights"
            )
        if check_ntl(light, told, options.map_unit is not None).digital:
            unit = unit or DN_UNIT
    return known_unit(raster.what, unit)


def known_unit(what: str, unit: str) -> str:
    """The unit, which tables can be of. Raises InputError where they cannot."""
    if unit in (RADIANCE_UNIT, DN_UNIT):
        return unit
    says = f"is in {unit}" if unit else "does not say its unit"
    raise InputError(
        f"{what} {says}, and tables are of {RADIANCE_UNIT} or {DN_UNIT}: say which its values are, as in "
        f"{mention(map_unit=RADIANCE_UNIT)}"
    )
