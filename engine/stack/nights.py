"""Find the dates of the given lights: files on one grid are dates, files side by side are pieces of one date."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.wording import counted, mention, of_role
from deeplight.engine.output.acquired import Span, shown_span
from deeplight.engine.output.taken import band_date, taken
from deeplight.engine.raster.dataset_names import common_pattern, matching
from deeplight.engine.raster.extents import overlap, same_grid
from deeplight.engine.raster.names import is_coverage
from deeplight.engine.raster.remedies import copied, quoted
from deeplight.engine.raster.source import open_raster

if TYPE_CHECKING:
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.raster.scene import SceneOptions

_ONE_PLACE = 0.5
"""Share of a grid above which another one lies on its ground, and not beside it."""
_LONG = 40
"""Characters of a CRS that are too many for a message."""
_EXAMPLE = '`dates=("2019", "2020-03", "2021-06-30")` (one for each date, in order)'


@dataclass(frozen=True)
class Night:
    """One date of the lights. scene: the options of a run over this date alone. when: None where it is not known. told:
    whether `when` was given by the user, which counts more than what the files say."""

    scene: SceneOptions
    when: Span | None
    told: bool

    @property
    def name(self) -> str:
        """The date as it is written in file names; "" where it is not known."""
        return _named(self.when)


@dataclass(frozen=True)
class Piece:
    """A file, or one band of a file whose bands are dates. bands: how many bands of lights the file has if none was
    chosen."""

    file: str
    band: int | None
    when: Span | None
    grid: Grid
    bands: int = 1

    @property
    def what(self) -> str:
        """What messages call it."""
        return self.file if self.band is None else f"band {self.band} of {self.file}"


def read_pieces(names: Sequence[str], options: SceneOptions, dates: int, role: str = "NTL") -> list[Piece]:
    """Return the files behind names, patterns (sorted) and dataset names; of a file whose bands are dates, its bands.

    options: of the scene; their `ntl` is not used. dates: how many dates the user gave. role: "NTL", or "NTL-valid" for
    counts of observations. Raises InputError where a file is given twice or cannot be opened.
    """
    files = [file for name in names for file in matching(name) or [name]]
    twice = next((file for k, file in enumerate(files) if file in files[:k]), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice as `{of_role(role)}`: give each file once")
    return [piece for file in files for piece in _pieces_of(file, options, dates, role)]


def find_nights(
    pieces: Sequence[Piece], names: Sequence[str], options: SceneOptions, dates: Sequence[Span] | None
) -> list[Night]:
    """Return the dates of the lights in order; a single one where the files are one raster or pieces of one.

    pieces: from `read_pieces` with the same names and options. dates: given by the user, one for each piece in their
    order, or one for all pieces that lie side by side.
    Raises InputError where dates are not known or occur twice, and where the files can be understood in two ways.
    """
    told = dates is not None
    if dates is not None:
        pieces = _dated(pieces, dates)
    places = _places(pieces)
    if len(pieces) > 1 and len(set(places)) == 1:
        _check_known(pieces)
        nights = [[piece] for piece in pieces]
    elif len({piece.when for piece in pieces}) == 1 or _undated_pieces(pieces, places):
        nights = [list(pieces)]
    else:
        nights = _mosaics(pieces, places)
    found = [_night(night, names, options, told) for night in nights]
    return sorted(found, key=lambda night: night.when[0].timestamp() if night.when else 0.0)


def _pieces_of(file: str, options: SceneOptions, dates: int, role: str) -> list[Piece]:
    """The file as one piece, or its bands if they are dates: if each names a date, or the user gave as many dates."""
    with open_raster(file, role, options.allow_remote, options.placement("ntl")) as raster:
        if options.ntl_band is not None or raster.count == 1:
            band = options.ntl_band if options.ntl_band in raster.bands else None
            return [Piece(file, None, taken(raster, band), raster.grid)]
        counts = [b for b in raster.bands if is_coverage("", raster.band_names[b - 1])]
        lights = (role == "NTL-valid" and counts) or [b for b in raster.bands if b not in counts]
        own = [band_date(raster, b) for b in lights]
        if (None not in own and len(set(own)) == len(own) > 1) or dates == len(lights):
            return [Piece(file, b, when, raster.grid) for b, when in zip(lights, own, strict=True)]
        return [Piece(file, None, taken(raster), raster.grid, len(lights))]


def check_dated_bands(pieces: Sequence[Piece]) -> None:
    """Raise InputError where a file has several bands whose dates are not known, since each map needs a name."""
    piece = next((piece for piece in pieces if piece.bands > 1), None)
    if piece is not None:
        raise InputError(
            f"{piece.file} has {piece.bands} bands of lights and does not say a date of its own for each: say them, as "
            f"in {_EXAMPLE}, or choose one band with `ntl_band`"
        )


def _dated(pieces: Sequence[Piece], dates: Sequence[Span]) -> list[Piece]:
    """Return the pieces with the dates that the user gave."""
    if len(dates) == 1 and len(set(_places(pieces))) == len(pieces):
        return [replace(piece, when=dates[0]) for piece in pieces]
    if len(pieces) == 1 and pieces[0].bands > 1:
        raise InputError(
            f"{pieces[0].file} has {pieces[0].bands} bands of lights and {counted(len(dates), 'dates')} "
            f"{'is' if len(dates) == 1 else 'are'} given: give `dates` one for each band, in the same order, or choose "
            "one band with `ntl_band`"
        )
    if len(dates) != len(pieces):
        raise InputError(
            f"{counted(len(pieces), 'rasters')} of lights {'is' if len(pieces) == 1 else 'are'} given and "
            f"{counted(len(dates), 'dates')}: give `dates` one for each, in the same order"
        )
    return [replace(piece, when=when) for piece, when in zip(pieces, dates, strict=True)]


def _places(pieces: Sequence[Piece]) -> list[int]:
    """The place of each piece, as the number of the first piece on the same grid."""
    places: list[int] = []
    for k, piece in enumerate(pieces):
        firsts = (j for j in range(k) if places[j] == j)
        places.append(next((j for j in firsts if same_grid(pieces[j].grid, piece.grid)), k))
    return places


def _undated_pieces(pieces: Sequence[Piece], places: Sequence[int]) -> bool:
    """Whether all files are pieces of one date: no two lie at one place, and not all of them name a date."""
    return len(set(places)) == len(pieces) and any(piece.when is None for piece in pieces)


def _check_known(pieces: Sequence[Piece]) -> None:
    """Raise InputError where a date is not known, or occurs twice at one place."""
    unknown = next((piece for piece in pieces if piece.when is None), None)
    if unknown is not None:
        raise InputError(
            f"NTL rasters on one grid are dates, and neither the name nor the metadata of {unknown.what} says when it "
            f"was taken: say it for all, as in {_EXAMPLE}"
        )
    seen: dict[Span | None, Piece] = {}
    for piece in pieces:
        first = seen.setdefault(piece.when, piece)
        if first is not piece:
            raise InputError(
                f"{first.what} and {piece.what} are on one grid and have the same date, {_shown(piece)}: leave one "
                f"out, or say other dates, as in {_EXAMPLE}"
            )


def _named(when: Span | None) -> str:
    """A date as it is written in file names."""
    return "" if when is None else shown_span(when, "_")


def _shown(piece: Piece) -> str:
    return "" if piece.when is None else shown_span(piece.when)


def _mosaics(pieces: Sequence[Piece], places: Sequence[int]) -> list[list[Piece]]:
    """Return the pieces of each date. Raise InputError unless they lie at the same places on every date."""
    _check_known([piece for piece in pieces if piece.when is None][:1])
    by_place: dict[int, list[Piece]] = defaultdict(list)
    by_date: dict[Span | None, dict[int, Piece]] = defaultdict(dict)
    for piece, place in zip(pieces, places, strict=True):
        by_place[place].append(piece)
        by_date[piece.when][place] = piece
    for group in by_place.values():
        _check_known(group)
    for there in by_date.values():
        missing = next((place for place in by_place if place not in there), None)
        if missing is not None:
            _check_apart(by_place[missing][0], list(there.values()))
            raise InputError(_two_readings(by_place, len(by_date), there, by_place[missing][0]))
    return [list(there.values()) for there in by_date.values()]


def _check_apart(piece: Piece, others: Sequence[Piece]) -> None:
    """Raise InputError where a piece covers the ground of one of the others, so that they are dates on two grids."""
    for other in others:
        met = overlap(other.grid, piece.grid), overlap(piece.grid, other.grid)
        if max(0.0 if part is None else part.share for part in met) > _ONE_PLACE:
            command = copied(piece.file, f"on_grid_{_named(piece.when)}.tif", f"--like {quoted(other.file)}")
            raise InputError(
                f"{piece.what} ({_told(piece)}) and {other.what} ({_told(other)}) show the same ground on two grids, "
                f"and dates need one grid: bring it there first, as with {command}"
            )


def _told(piece: Piece) -> str:
    """A grid in a few words."""
    grid, crs = piece.grid, piece.grid.crs.to_string()
    corner = f"{grid.transform.c:.8g}, {grid.transform.f:.8g}"
    return (
        f"{grid.height}×{grid.width} pixels from {corner}, {crs if len(crs) < _LONG else 'a CRS of its own'}"
    )


def _two_readings(
    by_place: dict[int, list[Piece]], dates: int, there: dict[int, Piece], missing: Piece
) -> str:
    """The message for files of several places and dates in which a place lacks some of the dates."""
    date = _shown(next(iter(there.values())))
    one = f"pieces of one raster (then say one date for all: {mention(dates=date[:4])})"
    if any(len(group) > 1 for group in by_place.values()):
        one = f"dates of one place (then leave out {missing.what}, which lies elsewhere)"
    return (
        f"the NTL rasters lie on {len(by_place)} grids and have {dates} dates, which can mean two things: {one}, or "
        f"dates that are each a mosaic (then every date needs all pieces, and {date} has none where {missing.what} "
        "is); give files that can be read in one way"
    )


def _night(pieces: Sequence[Piece], names: Sequence[str], options: SceneOptions, told: bool) -> Night:
    """The date that these pieces make, with the options of a run over it alone."""
    files = [piece.file for piece in pieces]
    band = pieces[0].band if pieces[0].band is not None else options.ntl_band
    when = pieces[0].when if len({piece.when for piece in pieces}) == 1 else None
    if len(files) == 1:
        return Night(replace(options, ntl=files[0], ntl_band=band), when, told)
    pattern = names[0] if len(names) == 1 and matching(names[0]) == files else common_pattern(files)
    if pattern is None:
        raise InputError(
            f"{files[0]} and {len(files) - 1} more are pieces of one raster and no pattern finds them alone: put the "
            "pieces of each date into a folder of their own, or give them names with the same beginning"
        )
    if len({piece.band for piece in pieces}) > 1:
        raise InputError(
            f"{files[0]} and other pieces of one raster have {_shown(pieces[0])} in different bands: give pieces with "
            "the same dates in the same order"
        )
    return Night(replace(options, ntl=pattern, ntl_band=band), when, told)
