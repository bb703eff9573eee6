"""The table: a row for each region and date, columns that say their units."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.files import write_file
from deeplight.engine.core.progress import Progress, Silent
from deeplight.engine.raster.units import DN_UNIT, RADIANCE_UNIT
from deeplight.engine.zonal.maps import Map
from deeplight.engine.zonal.options import ZonalOptions
from deeplight.engine.zonal.regions import Regions, read_regions, require_packages
from deeplight.engine.zonal.series import open_maps
from deeplight.engine.zonal.sums import ENDS, Sums, add_up

if TYPE_CHECKING:
    from pandas import DataFrame

    from deeplight.engine.raster.grid import Grid

_log = logging.getLogger(__name__)

IN_COLUMNS = {RADIANCE_UNIT: "nW_cm2_sr", DN_UNIT: "DN"}
"""Unit → how columns spell it."""
_DIGITS = "%.9g"
"""Of numbers in CSV: shares of pixels are right to about 1e-7. Parquet holds them as they are."""
_NOTHING = 1e-6
"""Share of a region up to which it holds nothing: what rounding leaves of pixels beyond its outline."""
_WHOLE = 0.999
"""Share of a region in the map from which it counts as whole: less is what two ways to measure an area differ by."""


def zonal_table(options: ZonalOptions, progress: Progress | None = None) -> DataFrame:
    """The table of the maps by region and date, sorted by date and then as the file of regions is.

    Raises InputError for what cannot be used, DeepLightError where a map cannot be read.
    """
    require_packages()
    progress = progress or Silent()
    regions = read_regions(options.regions, options.by, options.layer)
    with ExitStack() as stack:
        maps = open_maps(options, stack)
        shapes = [(group, regions.on(group[0].grid)) for group in _by_grid(maps)]
        _check_meeting(regions, options, shapes)
        found: dict[int, tuple[Sums, int]] = {}
        each: list[Sums] = []
        with progress:
            total = sum(group[0].grid.height * group[0].grid.width for group, _ in shapes)
            progress.start(total, "pixels", "adding up")
            for group, placed in shapes:
                sums = add_up(placed, group, options.threshold, progress.advance)
                found |= {id(m): (sums, date) for date, m in enumerate(group)}
                each.append(sums)
        table = _joined([_rows(regions, m, *found[id(m)], options) for m in maps])
    _say_what_is_missing(regions, each)
    return table


def _by_grid(maps: Sequence[Map]) -> list[list[Map]]:
    """Maps that share a grid share the regions' pixels."""
    groups: dict[Grid, list[Map]] = {}
    for m in maps:
        groups.setdefault(m.grid, []).append(m)
    return list(groups.values())


def _check_meeting(regions: Regions, options: ZonalOptions, shapes: Sequence[tuple[list[Map], Any]]) -> None:
    """Raises InputError where no region meets a map."""
    import shapely

    for group, placed in shapes:
        grid = group[0].grid
        if not shapely.intersects(placed, shapely.box(0, -grid.height, grid.width, 0)).any():
            left, low, right, high = shapely.total_bounds(regions.shapes)
            west, south, east, north = grid.bounds_xy
            raise InputError(
                f"no region of {options.regions} meets {group[0].name}: the regions lie in x {left:.6g}…{right:.6g}, y "
                f"{low:.6g}…{high:.6g} of {regions.crs.to_string()}, the map in x {west:.6g}…{east:.6g}, y "
                f"{south:.6g}…{north:.6g} of {grid.crs.to_string()}; give the regions of this place"
            )


def _rows(regions: Regions, m: Map, sums: Sums, date: int, options: ZonalOptions) -> DataFrame:
    """One map's rows."""
    import pandas

    unit = IN_COLUMNS[m.unit]
    data = np.where(_has_data(sums)[:, date], sums.data_km2[:, date], 0.0)
    # nothing is known of regions without data; zero would be darkness
    known = np.where(data > 0, 1.0, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside, left_out = sums.inside_km2, sums.left_out_km2[:, date]
        columns: dict[str, Any] = {
            "region": regions.names,
            "date": np.datetime64(m.when[0].replace(tzinfo=None), "s")
            if m.when
            else np.datetime64("NaT", "s"),
            "date_last": np.datetime64(m.when[1].date(), "s") if m.when else np.datetime64("NaT", "s"),
            "map": m.name,
            "area_km2": regions.areas_km2,
            "share_in_map": np.minimum(inside / regions.areas_km2, 1.0),
            "share_with_data": np.minimum(data / inside, 1.0),
            "data_area_km2": data,
            "pixels": np.where(data > 0, sums.pixels[:, date], 0.0),
        }
        if options.without:
            columns["share_left_out"] = np.minimum(left_out / inside, 1.0)
        columns[f"lit_from_{unit}"] = options.threshold
        for end, name in enumerate(ENDS):
            if end and not m.has_interval:
                continue
            of = f"_{name}" if name else ""
            columns |= {
                f"sum{of}_{unit}_pixels": sums.light_px[end, :, date] * known,
                f"sum{of}_{unit}_km2": sums.light_km2[end, :, date] * known,
                f"mean{of}_{unit}": sums.light_km2[end, :, date] / data * known,
                f"lit_area{of}_km2": sums.lit_km2[end, :, date] * known,
                f"lit_share{of}": sums.lit_km2[end, :, date] / data * known,
            }
    return pandas.DataFrame(columns)


def _has_data(sums: Sums) -> NDArray[np.bool_]:
    """(n, t): whether a region holds a pixel with data."""
    return np.asarray(sums.data_km2 > _NOTHING * sums.inside_km2[:, None])


def _joined(parts: list[DataFrame]) -> DataFrame:
    import pandas

    return parts[0] if len(parts) == 1 else pandas.concat(parts, ignore_index=True)


def _say_what_is_missing(regions: Regions, sums: Sequence[Sums]) -> None:
    """Log lines about regions that leave the maps, and about those without data."""
    count = len(regions)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.max([s.inside_km2 / regions.areas_km2 for s in sums], axis=0)
    outside, cut = int((~(share > _NOTHING)).sum()), int(((share > _NOTHING) & (share < _WHOLE)).sum())
    if outside:
        _log.warning("%d of %d regions lie outside of the maps: their sums are missing", outside, count)
    if cut:
        _log.warning(
            "%d of %d regions leave the maps: share_in_map says how much of each is inside, and sums are of that",
            cut,
            count,
        )
    inside = share > _NOTHING
    empty = sum(int((~_has_data(s) & inside[:, None]).sum()) for s in sums)
    if empty:
        _log.warning(
            "%d rows of regions inside of the maps have no pixel with data: their sums are missing", empty
        )


def table_text(table: DataFrame) -> str:
    """The table as CSV."""
    text: str = table.to_csv(index=False, float_format=_DIGITS, date_format="%Y-%m-%d", lineterminator="\n")
    return text


def write_table(table: DataFrame, path: Path) -> None:
    """Write the table as .csv (UTF-8) or .parquet, whole or not at all. Raises DeepLightError where the disk
    refuses."""
    if path.suffix.lower() == ".parquet":
        buffer = io.BytesIO()
        table.to_parquet(buffer, engine="pyarrow", index=False)
        write_file(path, [buffer.getvalue()])
    else:
        write_file(path, [table_text(table).encode()])
