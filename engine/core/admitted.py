"""Which raw values of a band are within the limits of its physical ones, without computing these again."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np

_LARGEST = np.finfo(np.float32).max
_ORDERED = range(-int(_LARGEST.view(np.int32)), int(_LARGEST.view(np.int32)) + 1)
"""A number for each finite float32, in their order."""


def admitted(gain: float, bias: float, limits: tuple[float, float] | None) -> tuple[float, float]:
    """Return the least and the largest finite float32 whose raw · gain + bias, in float32 with both roundings, is
    finite and within the limits; (inf, −inf) where there is none.

    A device may round once where the host rounds twice (fused multiply-add), which moves a value at a limit across it.
    Compared with these, a raw value is judged alike wherever that is done: rounding keeps order.
    """
    most = float(_LARGEST)
    low, high = (np.float32(min(max(v, -most), most)) for v in limits or (-most, most))
    with np.errstate(over="ignore"):
        slope, shift = np.float32(gain), np.float32(bias)

    def value(number: int) -> np.float32:
        with np.errstate(over="ignore"):
            return _float(number) * slope + shift

    if slope < 0:
        first = bisect_left(_ORDERED, True, key=lambda n: bool(value(n) <= high))
        end = bisect_left(_ORDERED, True, key=lambda n: bool(value(n) < low))
    else:
        first = bisect_left(_ORDERED, True, key=lambda n: bool(value(n) >= low))
        end = bisect_left(_ORDERED, True, key=lambda n: bool(value(n) > high))
    if first >= end:
        return math.inf, -math.inf
    return float(_float(_ORDERED[first])), float(_float(_ORDERED[end - 1]))


def _float(number: int) -> np.float32:
    """The float32 of this place in the order."""
    found: np.float32 = np.int32(abs(number)).view(np.float32)
    return -found if number < 0 else found
