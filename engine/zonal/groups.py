"""The dates of a Zarr group that deeplight-infer wrote, as maps of a table: the same numbers as of its GeoTIFFs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.spec import Quality
from deeplight.engine.output.acquired import parse_date
from deeplight.engine.output.dates_zarr import DatesZarr, require_zarr
from deeplight.engine.output.zarr_attributes import CF_UNITS
from deeplight.engine.raster.convert import to_physical
from deeplight.engine.raster.units import DN_UNIT, canonical
from deeplight.engine.zonal.maps import Map, known_unit

if TYPE_CHECKING:
    from deeplight.engine.core.arrays import Floats, Mask
    from deeplight.engine.core.windows import Window
    from deeplight.engine.zonal.options import ZonalOptions

_LIGHTS, _ENDS, _FLAGS = "ntl", ("ntl_low", "ntl_high"), "quality"


class GroupBands:
    """Arrays of one date in physical units. As raster.layers.Layer; its pixels are made physical by the same code."""

    def __init__(self, arrays: Sequence[Any], at: int) -> None:
        """arrays: over time, y and x. at: the number of the date."""
        self._arrays, self._at = arrays, at
        self._scale = [float(array.attrs.get("scale_factor", 1.0)) for array in arrays]
        self._offset = [float(array.attrs.get("add_offset", 0.0)) for array in arrays]
        self._fill = [float(array.fill_value) for array in arrays]

    def read_native(self, window: Window) -> tuple[Floats, Mask]:
        """See Layer.read_native."""
        rows = slice(window.row, window.row + window.height)
        cols = slice(window.col, window.col + window.width)
        try:
            raw = np.stack([array[self._at, rows, cols] for array in self._arrays])
        except (OSError, ValueError, RuntimeError) as error:  # what is damaged; codecs raise the latter two
            raise DeepLightError(f"{self._arrays[0].store_path} cannot be read: {error}") from error
        return to_physical(raw, self._scale, self._offset, self._fill)


def is_group(name: str) -> bool:
    """Whether the name is that of a Zarr group, or of a folder that should be one."""
    path = Path(name)
    return path.is_dir() and (path.suffix.lower() == ".zarr" or (path / "zarr.json").is_file())


def open_group(options: ZonalOptions, name: str) -> list[Map]:
    """A map for each date of the group. Raises InputError where it is no group of deeplight-infer, or lacks what is
    asked for."""
    require_zarr()
    given = [n for n in ("map_band", "map_scale", "map_nodata") if getattr(options, n) is not None]
    if given:
        raise InputError(f"`{given[0]}` is about rasters and {name} is a Zarr group: leave it out")
    group = DatesZarr.open(Path(name))
    if group is None:
        raise InputError(
            f"{name} is not a Zarr group of deeplight-infer: write its dates as GeoTIFFs, as in "
            'array.isel(time=0).rio.to_raster("2020-03.tif"), and give those'
        )
    names, grid = set(group.arrays()), group.grid
    has_interval = names.issuperset(_ENDS)
    if options.without and _FLAGS not in names:
        raise InputError(
            f"{name} has no quality array, which `without` needs: make the group with "
            '`bands=("quality",)`, or leave `without` out'
        )
    lights = group.array(_LIGHTS)
    ends = [group.array(end) for end in _ENDS] if has_interval else []
    flags = group.array(_FLAGS) if options.without else None
    told = options.map_unit or str(lights.attrs.get("units", ""))
    unit = known_unit(name, DN_UNIT if told == CF_UNITS[DN_UNIT] else canonical(told))
    return [
        Map(
            name=name,
            grid=grid,
            unit=unit,
            when=parse_date(key),
            has_interval=has_interval,
            without=options.without or Quality(0),
            _light=GroupBands([lights], at),
            _interval=GroupBands(ends, at) if ends else None,
            _quality=None if flags is None else GroupBands([flags], at),
        )
        for at, key in enumerate(group.keys)
        if group.tags(key) is not None
    ]
