"""Numbers that stand for missing pixels and were not declared: known ones, and plateaus far outside of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.raster.survey import End, Survey

BLACK_MARBLE_FILL, DMSP_FILL, DMSP_MOST = 65535.0, 255.0, 63.0
_TENTHS = 1.0, 0.1, 0.01
"""A product's scale may have been applied to its fill value."""
_ENDS_OF_TYPES = tuple(
    v * k for v in (BLACK_MARBLE_FILL, 32767.0, 2147483647.0, 4294967295.0) for k in _TENTHS
)
"""One such pixel is enough: no light is by chance exactly the end of a type."""
_FILLS_ABOVE = (DMSP_FILL, 999.0, 9999.0, 999.9, 99999.0, 999999.0)
_FILLS_BELOW = (
    -99.0,
    *(v * k for v in (-9999.0, -999.0, -32767.0, -32768.0, -2147483647.0, -2147483648.0) for k in _TENTHS),
)
_NOISE = -3.0
"""nW/cm²/sr; noise of VIIRS reaches about −1.5."""
_MINUS_ONE = -0.9
"""nW/cm²/sr; −1 as a fill value. In tenths or hundredths of nW/cm²/sr a raw −1 is noise."""
_SEVERAL, _MANY, _MANY_SHARE = 9, 32, 0.01
"""Pixels of one value: too many for chance; and so many, also as a share, that an unknown number is refused."""
_FAR, _APART, _MORE = 3.0, 1.2, 3
"""How many times larger than the next value a plateau is; a known fill; and how many times more often it occurs than
the next value, so that pixels that were only repeated (an enlarged raster) are none."""


@dataclass(frozen=True)
class Fill:
    """A raw value that stands for missing pixels. count: pixels, of those looked at. clear: it does so without doubt;
    otherwise it is likely. nearest: the closest other value, where it was looked for."""

    value: float
    count: int
    clear: bool
    nearest: float | None = None


def find_fill(seen: Survey, sample: NDArray[Any], scale: float, offset: float) -> Fill | None:
    """The undeclared fill value of NTL, if there is one.

    sample: raw values (n,) of some valid pixels. scale, offset: raw → nW/cm²/sr; with a factor below 0 nothing is
    known.
    """
    if scale <= 0:
        return None
    return (
        _above(seen, scale, offset)
        or _below(seen, scale, offset)
        or (None if seen.whole else _between(sample, seen.pixels))
    )


def _is_one_of(value: float, numbers: tuple[float, ...]) -> bool:
    """Equal as far as float32 tells."""
    return any(np.float32(value) == np.float32(number) for number in numbers)


def _above(seen: Survey, scale: float, offset: float) -> Fill | None:
    end = seen.high
    found = Fill(end.value, end.count, True, end.next)
    rest = -np.inf if end.next is None else end.next
    if _is_one_of(end.value, _ENDS_OF_TYPES):
        black_marble = seen.whole and end.value == BLACK_MARBLE_FILL
        return found if black_marble or end.value > _APART * rest else None
    counts = seen.whole and (scale, offset) == (1.0, 0.0)
    if counts and end.value == DMSP_FILL:
        return found if end.next is not None and rest <= DMSP_MOST else None
    if end.next is None or not _is_plateau(end):
        return None
    # bytes end at 255 in pictures too
    known = _is_one_of(end.value, _FILLS_ABOVE[1:] if seen.whole else _FILLS_ABOVE)
    if known and (not seen.whole or end.value > _APART * rest):
        return found
    value, nearest = end.value * scale + offset, end.next * scale + offset
    far = nearest > 0 and value > _FAR * nearest and (not counts or value > DMSP_FILL)
    return _unknown(seen, end) if far else None


def _below(seen: Survey, scale: float, offset: float) -> Fill | None:
    end = seen.low
    if end.next is None:
        return None
    found = Fill(end.value, end.count, True, end.next)
    value, nearest = end.value * scale + offset, end.next * scale + offset
    if value < _NOISE and _is_one_of(end.value, _FILLS_BELOW):
        return found
    if not _is_plateau(end):
        return None
    if end.value == -1.0 and end.next > -0.5 and value <= _MINUS_ONE:
        return found
    return _unknown(seen, end) if value < _NOISE and value < _FAR * min(nearest, 0.0) else None


def _between(sample: NDArray[Any], pixels: int) -> Fill | None:
    """A known fill value that brighter pixels hide, or one below it that darker ones do."""
    for number in (*_ENDS_OF_TYPES, *_FILLS_ABOVE, *(n for n in _FILLS_BELOW if n < _NOISE)):
        count = int(np.count_nonzero(sample.astype(np.float32) == np.float32(number)))
        # of a small raster the sample holds pixels several times, of a large one a few
        expected = round(count * pixels / sample.size) if count else 0
        if min(count, expected) >= _SEVERAL:
            return Fill(number, expected, True)
    return None


def _is_plateau(end: End) -> bool:
    """Zeros beside it are many in any scene."""
    return end.count >= _SEVERAL and (end.next == 0 or end.count >= _MORE * end.next_count)


def _unknown(seen: Survey, end: End) -> Fill:
    many = end.count >= max(_MANY, _MANY_SHARE * seen.pixels)
    return Fill(end.value, end.count, many, end.next)
