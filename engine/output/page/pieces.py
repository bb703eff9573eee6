"""Pixels of a page: rectangles of codes of 16 bits, small enough to be sent by mail, true to four digits."""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.output.overview import brightest, means, read_map, read_map_means

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene

MOST_PIXELS = 3_000_000
"""HR pixels of a page, all dates together: about 6 MB of the file."""
LEAST_PIXELS = 250_000
"""Of each date, however many there are."""
_CODES = 65534
"""Steps between the codes of the smallest and the largest value; 0 is nodata."""


@dataclass(frozen=True)
class PagePiece:
    """Values (h, w), NaN = nodata, of squares of factor × factor HR pixels, the first at (row, col) of the HR grid."""

    values: Floats
    row: int
    col: int
    factor: int


@dataclass(frozen=True)
class PageNight:
    """What a page shows of one date. name: the date, "" where it is not known. facts: (name, text) of the run. lr, hr:
    pieces, the later the finer."""

    name: str
    facts: list[tuple[str, str]]
    lr: list[PagePiece]
    hr: list[PagePiece]


@dataclass(frozen=True)
class Codes:
    """Value → code: 1 + (asinh(value / soft) − low) / step, rounded; 0 for NaN."""

    soft: float
    low: float
    step: float

    @classmethod
    def of(cls, nights: list[PageNight], soft: float) -> Codes:
        """For the values of all pieces. soft: below it steps are even, above it they are even shares of the value."""
        seen = [p.values[np.isfinite(p.values)] for night in nights for p in night.lr + night.hr]
        low = min((float(v.min()) for v in seen if v.size), default=0.0)
        high = max((float(v.max()) for v in seen if v.size), default=1.0)
        first, last = math.asinh(low / soft), math.asinh(high / soft)
        return cls(soft, first, max(last - first, 1e-9) / _CODES)

    def packed(self, values: Floats) -> str:
        """Codes as the page's script reads them: differences along rows, high bytes before low ones, deflated."""
        t = np.arcsinh(values.astype(np.float64) / self.soft)
        codes = np.where(np.isfinite(t), 1 + np.rint((np.nan_to_num(t) - self.low) / self.step), 0)
        steps = np.diff(codes.astype(np.int64), axis=1, prepend=0).astype(np.uint16)
        planes = np.stack([steps >> 8, steps & 255]).astype(np.uint8)
        return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()


def as_json(piece: PagePiece, codes: Codes) -> dict[str, Any]:
    """A piece as the page's script reads it."""
    height, width = piece.values.shape
    place = {"row": piece.row, "col": piece.col, "factor": piece.factor, "h": height, "w": width}
    return {**place, "data": codes.packed(piece.values)}


def pieces_of(scene: Scene, result: Path, dates: int = 1) -> tuple[list[PagePiece], list[PagePiece]]:
    """(LR pieces, HR pieces) of one date: all of a map that is small enough; of others means of all of it, and its
    brightest square in full.

    dates: how many share the page.
    """
    most = max(MOST_PIXELS // dates, LEAST_PIXELS)
    height, width = scene.grid.height, scene.grid.width
    if height * width * SCALE**2 <= most:
        whole = Window(0, 0, height, width)
        return [_lr(scene, whole)], [_hr(result, whole)]
    factor = 2
    while math.ceil(height * SCALE / factor) * math.ceil(width * SCALE / factor) > most / 2:
        factor *= 2
    coarse = max(1, factor // SCALE)
    side = math.isqrt(most // 2) // SCALE
    window = brightest(scene, side)
    lr = [PagePiece(means(scene, coarse), 0, 0, coarse * SCALE)]
    if coarse > 1:
        lr.append(_lr(scene, window))
    return lr, [PagePiece(read_map_means(result, factor), 0, 0, factor), _hr(result, window)]


def _lr(scene: Scene, window: Window) -> PagePiece:
    values, valid = scene.read_ntl(window)
    known = np.where(valid != 0, values, np.float32(np.nan))
    return PagePiece(known, window.row * SCALE, window.col * SCALE, SCALE)


def _hr(result: Path, window: Window) -> PagePiece:
    return PagePiece(read_map(result, window), window.row * SCALE, window.col * SCALE, 1)
