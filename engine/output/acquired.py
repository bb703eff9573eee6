"""When a nighttime-light raster was taken, as its metadata or the names that the products use say; and dates as people
write them."""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

Span = tuple[datetime, datetime]
"""First and last second, UTC."""

_TAG_PAIRS = (("RangeBeginningDate", "RangeEndingDate"), ("time_coverage_start", "time_coverage_end"))
"""As HDF-EOS (Black Marble) and netCDF files (ACDD) write them; GDAL puts a group's name before them."""
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_RANGE = re.compile(r"(?<!\d)(\d{8})-(\d{8})(?!\d)")
_BLACK_MARBLE = re.compile(r"VNP46A([1-4])\.A(\d{4})(\d{3})(?!\d)", re.IGNORECASE)
_DMSP = re.compile(r"(?<![A-Za-z0-9])F1\d((?:19|20)\d{2})(?!\d)")
_DAY = re.compile(
    r"(?<!\d)(?P<year>19[89]\d|20\d\d)(?P<sep>[-_.]?)(?P<month>0[1-9]|1[0-2])(?:(?P=sep)(?P<day>0[1-9]|[12]\d|3[01]))?(?!\d)"
)
"""2020-03-15, 20200315, 2020-03, 202003; not the months of 2012-2020."""
_YEAR = re.compile(r"(?<![\dA-Za-z])((?:19[89]|20[0-9])\d)(?!\d)(?![-_.]\d{1,2}(?!\d))")
"""Not of 2020_1, which may be a month or a part."""


def shown_span(when: Span, between: str = " – ") -> str:
    """A time for people: 2020, 2020-03, 2020-03-15, or the first and the last day with `between` between them."""
    first, last = (at.date() for at in when)
    if when == _year(first.year):
        return f"{first.year}"
    if first.day == 1 and last == first.replace(day=calendar.monthrange(first.year, first.month)[1]):
        return f"{first:%Y-%m}"
    return f"{first}" if first == last else f"{first}{between}{last}"


def time_tags(when: Span | None) -> dict[str, str]:
    """Metadata items that say it, as `acquired` reads them."""
    if when is None:
        return {}
    return {key: f"{at:%Y-%m-%dT%H:%M:%SZ}" for key, at in zip(_TAG_PAIRS[-1], when, strict=True)}


def acquired(name: str, tags: Mapping[str, str]) -> Span | None:
    """The time that a raster covers; None where neither its metadata nor its file name says.

    name: of the file, without its folder. tags: metadata items of the dataset.
    """
    for first, last in _TAG_PAIRS:
        found = _tag_date(tags, first), _tag_date(tags, last)
        if found[0] and found[1]:
            return whole_days(found[0], found[1])
    try:
        return _from_name(name)
    except (ValueError, OverflowError):  # digits that are no date
        return None


def _tag_date(tags: Mapping[str, str], name: str) -> datetime | None:
    for key, value in tags.items():
        match = _DATE.search(value) if key.endswith(name) else None
        if match:
            try:
                return datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC)
            except ValueError:
                return None
    return None


def _from_name(name: str) -> Span | None:
    if match := _RANGE.search(name):
        first, last = (datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC) for text in match.groups())
        return whole_days(first, last)
    if match := _BLACK_MARBLE.search(name):
        day = datetime(int(match[2]), 1, 1, tzinfo=UTC) + timedelta(days=int(match[3]) - 1)
        if match[1] == "3":
            return whole_days(day, day.replace(day=calendar.monthrange(day.year, day.month)[1]))
        return _year(day.year) if match[1] == "4" else whole_days(day, day)
    if match := _DMSP.search(name):
        return _year(int(match[1]))
    if match := _DAY.search(name):
        return _written(match)
    match = _YEAR.search(name)
    return _year(int(match[1])) if match else None


def parse_dates(text: str) -> tuple[Span, ...]:
    """`2019,2020-03,2021-06-30,2020-01-01/2020-03-31` → the time that each one covers. Raises ValueError in one
    sentence."""
    return tuple(parse_date(part) for part in text.split(","))


def parse_date(text: str) -> Span:
    """One year, month, day or range of two of these. Raises ValueError in one sentence."""
    try:
        first, _, last = (part.strip() for part in text.strip().partition("/"))
        return whole_days(_one(first)[0], _one(last or first)[1])
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text.strip()!r} is no date: give a year, a month or a day, as in 2019, 2020-03 or 2021-06-30, or the "
            "first and the last of a range, as in 2020-01-01/2020-03-31"
        ) from None


def _one(text: str) -> Span:
    """A year, month or day. Raises ValueError where it is none of them."""
    if re.fullmatch(r"(?:19|20)\d\d", text):
        return _year(int(text))
    match = _DAY.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return _written(match)


def _written(match: re.Match[str]) -> Span:
    """The month or day of a match of _DAY."""
    year, month = int(match["year"]), int(match["month"])
    if match["day"]:
        day = datetime(year, month, int(match["day"]), tzinfo=UTC)
        return whole_days(day, day)
    last = calendar.monthrange(year, month)[1]
    return whole_days(datetime(year, month, 1, tzinfo=UTC), datetime(year, month, last, tzinfo=UTC))


def _year(year: int) -> Span:
    return whole_days(datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, tzinfo=UTC))


def whole_days(first: datetime, last: datetime) -> Span:
    """From the first second of one day to the last of another. Raises ValueError where they are in the wrong
    order."""
    if last < first:
        raise ValueError(f"{last} is before {first}")
    return first.replace(hour=0, minute=0, second=0, microsecond=0), last.replace(
        hour=23, minute=59, second=59, microsecond=0
    )
