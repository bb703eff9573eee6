"""`zonal`: maps and regions → a table, as deeplight-zonal makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.api import arguments
from deeplight.api.running import Run
from deeplight.api.stacks import Dates
from deeplight.api.telling import Teller, progress_of
from deeplight.api.wording import arrays_named
from deeplight.engine.core.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

    from deeplight.engine.output.acquired import Span

Map = str | Path | Run


def zonal(
    maps: Map | Dates | Sequence[Map] | Mapping[str, Map],
    regions: str | Path,
    *,
    by: str | None = None,
    layer: str | None = None,
    dates: Sequence[str] | None = None,
    threshold: float = 1.0,
    without: str | Sequence[str] = (),
    map_unit: str | None = None,
    map_band: int | None = None,
    map_scale: float | tuple[float, float] | None = None,
    map_nodata: float | None = None,
    allow_remote: bool = False,
    progress: bool | Teller | None = None,
) -> DataFrame:
    """Sums, means and lit area of maps, by region and date. Needs the packages of `pip install deeplight[zonal]`.

    Args:
        maps: What `refine` or `refine_dates` returned, a Zarr group of the latter, or any raster of lights: one,
            several of different dates, or {date: map}.
        regions: A vector file with polygons, in any CRS.
        by: Column with the regions' names, each of which occurs once; None: the features' numbers.
        layer: Of the vector file, where it has several.
        dates: Of the maps, in their order, as "2019", "2020-03", "2021-06-30" or "2020-01-01/2020-03-31"; None: from
            the maps' metadata and names.
        threshold: A pixel is lit from this radiance on.
        without: Names of quality flags, or "any": pixels that have one count as missing.
        map_unit: "nW/cm²/sr" or "DN", where maps do not say it.
        map_band, map_scale, map_nodata: Band, F or (F, OFFSET), and raw value without data, in place of the files'.
        allow_remote: Let maps be URLs and /vsi names.
        progress: True for a line of text every few seconds; or a function of share (0 to 1) and text.

    Returns:
        A pandas.DataFrame with a row for each region and date; docs/zonal.md says what each column is.

    Raises:
        InputError: The request cannot be met.
        DeepLightError: A map cannot be read.
    """
    given = {name: value for name, value in locals().items() if name not in ("maps", "dates", "progress")}
    return _table(maps, dates, progress, given)


def _table(
    maps: Map | Dates | Sequence[Map] | Mapping[str, Map],
    dates: Sequence[str] | None,
    progress: bool | Teller | None,
    given: dict[str, Any],
) -> DataFrame:
    """Do what `zonal` does, with its options in `given`."""
    with arrays_named():
        from deeplight.engine.core.spec import Quality
        from deeplight.engine.raster.units import canonical
        from deeplight.engine.zonal.options import ZonalOptions, parse_flags
        from deeplight.engine.zonal.table import zonal_table

        names, spans = _maps(maps, dates)
        without, unit = given["without"], given["map_unit"]
        flags = without if isinstance(without, str) else ",".join(without)
        chosen = {
            "regions": arguments.path("regions", given["regions"]),
            "threshold": float(given["threshold"]),
            "without": _parsed(parse_flags, flags) if flags else Quality(0),
            "map_scale": arguments.scale("map_scale", given["map_scale"]),
            "map_unit": None if unit is None else canonical(unit),
        }
        options = ZonalOptions(maps=names, dates=spans, **{**given, **chosen})
        return zonal_table(options, progress_of(progress))


def _maps(
    maps: Map | Dates | Sequence[Map] | Mapping[str, Map], dates: Sequence[str] | None
) -> tuple[list[str], list[Span] | None]:
    """Names of the maps, and the dates that are given."""
    if isinstance(maps, Dates):
        maps = list(maps.maps.values()) or maps.folder  # which is a Zarr group
    if isinstance(maps, Mapping):
        if dates is not None:
            raise InputError(
                "maps is a mapping, whose keys are dates, and dates are given too: leave one out"
            )
        maps, dates = list(maps.values()), [str(date) for date in maps]
    several = [maps] if isinstance(maps, str | Path | Run) else list(maps)
    names = [str(m.path if isinstance(m, Run) else arguments.path("maps", m)) for m in several]
    return names, arguments.dates(dates)


def _parsed(parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(str(error)) from None
