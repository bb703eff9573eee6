"""What a raster's values are like, from one pass over its pixels: its ends, and how often they occur."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.convert import to_physical
from deeplight.engine.raster.layers import Layer

_FULL_SCAN_PIXELS, _DECLARED_SCAN_PIXELS = 1 << 27, 1 << 24
"""Rasters up to so many pixels are looked at whole; and integers that declare their fill value."""
_SCAN_SIDE = 2048


@dataclass(frozen=True)
class End:
    """The outermost raw value of one side and how many pixels have it; then the one next to it, None where there is
    no other value."""

    value: float
    count: int
    next: float | None
    next_count: int


@dataclass(frozen=True)
class Survey:
    """Of band 1 of a layer, raw values of pixels that are finite, not nodata and not masked.

    pixels: how many were looked at. low, high: the ends. whole: all are whole numbers.
    """

    pixels: int
    low: End
    high: End
    whole: bool

    @property
    def varied(self) -> bool:
        """Whether there are three values at least."""
        return self.low.next is not None and self.low.next != self.high.value


def survey(layer: Layer) -> Survey | None:
    """Looks at the whole raster; where it is very large at a diagonal of windows, and at others until a valid pixel is
    found. None where there is no valid pixel."""
    grid = layer.raster.grid
    windows = list(split(Window(0, 0, grid.height, grid.width), _SCAN_SIDE))
    declared = np.dtype(layer.raster.dtypes[layer.bands[0] - 1]).kind in "iu" and layer.nodata[0] is not None
    stride = -(-grid.height * grid.width // (_DECLARED_SCAN_PIXELS if declared else _FULL_SCAN_PIXELS))
    pixels, whole = 0, True
    lows: list[tuple[float, int]] = []
    highs: list[tuple[float, int]] = []
    for number, window in enumerate(windows):
        if pixels and number % stride:
            continue
        found = _known(layer, window)
        if not found.size:
            continue
        pixels += found.size
        whole = whole and (found.dtype.kind in "iu" or bool((found == np.rint(found)).all()))
        lows = sorted(_added([*lows, *_two(found, np.min)]))[:2]
        highs = sorted(_added([*highs, *_two(found, np.max)]), reverse=True)[:2]
    return Survey(pixels, _end(lows), _end(highs), whole) if pixels else None


def _known(layer: Layer, window: Window) -> NDArray[Any]:
    """Raw values (n,) of the pixels that have one."""
    raw, mask = layer.read_raw(window)
    # the pixels' own validity, before a scale that may overflow
    known = to_physical(raw[:1], [0.0], [0.0], layer.nodata[:1], mask)[1] != 0
    return np.asarray(raw[0][known])


def _two(pixels: NDArray[Any], outermost: Any) -> list[tuple[float, int]]:
    """The outermost value and the one next to it, with their counts."""
    found = []
    for _ in range(2):
        if pixels.size:
            value = outermost(pixels)
            others = pixels[pixels != value]
            found.append((float(value), pixels.size - others.size))
            pixels = others
    return found


def _added(pairs: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """Counts of equal values added up."""
    total: dict[float, int] = {}
    for value, count in pairs:
        total[value] = total.get(value, 0) + count
    return list(total.items())


def _end(pairs: list[tuple[float, int]]) -> End:
    (value, count), *rest = pairs
    return End(value, count, *(rest[0] if rest else (None, 0)))
