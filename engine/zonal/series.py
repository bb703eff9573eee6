"""The maps of a table, in one unit and each of its own date."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import counted
from deeplight.engine.zonal.groups import is_group, open_group
from deeplight.engine.zonal.maps import Map, open_map

if TYPE_CHECKING:
    from deeplight.engine.output.acquired import Span
    from deeplight.engine.zonal.options import ZonalOptions


def open_maps(options: ZonalOptions, stack: ExitStack) -> list[Map]:
    """The maps in the order of their dates; of a Zarr group one for each date. Raises InputError for what is no map,
    and for dates that are not known where there are several maps, or occur twice."""
    if not options.maps:
        raise InputError("no map is given: name the rasters, one for each date")
    maps = [
        found
        for name in options.maps
        for found in (open_group(options, name) if is_group(name) else [open_map(options, name, stack)])
    ]
    if options.dates is not None:
        if len(options.dates) != len(maps):
            raise InputError(
                f"{counted(len(maps), 'maps')} and {counted(len(options.dates), 'dates')} are given: give "
                "`dates` one for each map, in the same order"
            )
        maps = [replace(m, when=when) for m, when in zip(maps, options.dates, strict=True)]
    units = sorted({m.unit for m in maps})
    if len(units) > 1:
        named = ", ".join(f"{next(m.name for m in maps if m.unit == unit)} in {unit}" for unit in units)
        raise InputError(f"the maps are in different units ({named}): make a table of each")
    _check_dates(maps)
    return sorted(maps, key=lambda m: m.when[0].timestamp() if m.when else 0.0)


def _check_dates(maps: Sequence[Map]) -> None:
    example = '`dates=["2019", "2020-03", "2021-06-30"]` (one for each map, in order)'
    unknown = [m.name for m in maps if m.when is None]
    if unknown and len(maps) > 1:
        raise InputError(
            f"neither the name nor the metadata of {unknown[0]} says when it was taken: say it for all maps, as in "
            f"{example}"
        )
    seen: dict[Span, str] = {}
    for m in maps:
        if m.when is None:
            continue
        if m.when in seen:
            raise InputError(
                f"{seen[m.when]} and {m.name} have the same date, {m.when[0]:%Y-%m-%d}: leave one out, or say other "
                f"dates, as in {example}"
            )
        seen[m.when] = m.name
