"""When the lights of an open raster were taken: of a file with a date a band its own, else what the whole file says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deeplight.engine.output.acquired import Span, acquired, whole_days

if TYPE_CHECKING:
    from deeplight.engine.raster.source import Raster

_SINCE = re.compile(
    r"(days?|hours?|hrs?|h|minutes?|mins?|seconds?|secs?|s|d)\s+since\s+(\d{4})-(\d{1,2})-(\d{1,2})"
    r"(?:[T ]+(\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.\d*)?)?)?\s*(?:Z|UTC|GMT|\+?00?:?00)?",
    re.IGNORECASE,
)
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_REAL_CALENDARS = ("", "standard", "gregorian", "proleptic_gregorian")
"""Calendars of CF whose days are those of datetime, after 1582."""
_DIMENSION = "NETCDF_DIM_"
_SOURCE = re.compile(r"<SourceFilename[^>]*>([^<]+)</SourceFilename>")


def taken(raster: Raster, band: int | None = None) -> Span | None:
    """The time that an open raster covers, or one 1-based band of a file that has a date a band; None where nothing
    says it."""
    if band is not None and raster.count > 1:
        own = band_date(raster, band)
        if own is not None:
            return own
    name = Path(raster.name).name if raster.path is None else raster.path.name
    found = acquired(name, raster.tags)
    return on_axis(raster.tags, raster.band_tags[0]) if found is None and raster.count == 1 else found


def band_date(raster: Raster, band: int) -> Span | None:
    """What one band of several says of its own date, by the best witness: its place on the time axis, its metadata, its
    description, the file that a VRT has it from. None where nothing does."""
    tags = raster.band_tags[band - 1]
    found = on_axis(raster.tags, tags) or acquired(raster.band_names[band - 1], tags)
    files = {PurePosixPath(name).name for name in _SOURCE.findall(raster.band_sources[band - 1])}
    return acquired(files.pop(), {}) if found is None and len(files) == 1 else found


def on_axis(tags: Mapping[str, str], band_tags: Mapping[str, str]) -> Span | None:
    """The day of a band on a netCDF file's time axis; None where there is no axis, or it cannot be read.

    tags: of the dataset, with `time#units` and `time#calendar` as CF has them. band_tags: with `NETCDF_DIM_time`.
    """
    for key, value in band_tags.items():
        dimension = key.removeprefix(_DIMENSION)
        match = _SINCE.fullmatch(tags.get(f"{dimension}#units", "").strip()) if dimension != key else None
        if match and tags.get(f"{dimension}#calendar", "").lower() in _REAL_CALENDARS:
            return _day(match, value)
    return None


def _day(since: re.Match[str], value: str) -> Span | None:
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in since.groups()[1:])
        start = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        steps = float(value)
        if not math.isfinite(steps):
            return None
        at = start + timedelta(seconds=steps * _SECONDS[since[1][0].lower()])
    except (ValueError, OverflowError):
        return None
    return whole_days(at, at)
