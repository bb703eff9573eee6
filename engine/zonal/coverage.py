"""How much of each pixel of a window lies in each region, by exactextract.

exactextract knows north-up grids alone. It gets the pixels' own lattice, with sides of 1, and regions in pixels: which
part of a pixel a polygon covers does not change when both are sheared or turned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from deeplight.engine.core.arrays import Doubles
    from deeplight.engine.zonal.regions import Shapes

_MOST_CELLS = 1 << 21
"""Pixels of all regions that are held at once: 32 MB."""


@dataclass(frozen=True)
class Covered:
    """Pixels of some regions in a window, region after region. regions: (k,) their numbers. starts: (k,) where each
    one's pixels begin. cells: (n,) row · width + column in the window. share: (n,) of the pixel, 0 … 1."""

    regions: NDArray[np.int64]
    starts: NDArray[np.int64]
    cells: NDArray[np.int64]
    share: Doubles

    def sums(self, weights: Doubles) -> Doubles:
        """(k,) sums of (n,) weights by region."""
        return np.asarray(np.add.reduceat(weights, self.starts))


def covered(shapes: Shapes, window: Window) -> Iterator[Covered]:
    """The pixels of a window that regions cover, some regions at a time. shapes: (n,) as `Regions.on` gives them."""
    import shapely

    left, low, right, high = shapely.bounds(shapes).T
    meets = (right > window.col) & (left < window.col + window.width)
    meets &= (high > -(window.row + window.height)) & (low < -window.row)
    numbers = np.flatnonzero(meets)
    boxes = (np.minimum(right, window.col + window.width) - np.maximum(left, window.col) + 2)[numbers]
    boxes *= (np.minimum(high, -window.row) - np.maximum(low, -(window.row + window.height)) + 2)[numbers]
    for some in np.split(numbers, _breaks(boxes)):
        found = _extracted(shapes[some], some, window)
        if found is not None:
            yield found


def _breaks(sizes: Doubles) -> list[int]:
    """Where to cut a list so that each part has at most _MOST_CELLS, or one element."""
    breaks, total = [], 0.0
    for place, size in enumerate(sizes):
        if total and total + size > _MOST_CELLS:
            breaks.append(place)
            total = 0.0
        total += float(size)
    return breaks


def _extracted(shapes: Shapes, numbers: NDArray[np.int64], window: Window) -> Covered | None:
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    if not len(shapes):
        return None
    lattice = NumPyRasterSource(
        np.zeros(window.shape, np.uint8),
        xmin=window.col,
        xmax=window.col + window.width,
        ymin=-(window.row + window.height),
        ymax=-window.row,
    )
    features = exact_extract(
        lattice, _source()(shapes, numbers), ["cell_id", "coverage"], include_cols=["number"]
    )
    told = [f["properties"] for f in features]
    told = [t for t in told if t["cell_id"] is not None and len(t["cell_id"])]
    if not told:
        return None
    counts = [len(t["cell_id"]) for t in told]
    return Covered(
        np.array([t["number"] for t in told], np.int64),
        np.cumsum([0, *counts[:-1]]),
        np.concatenate([t["cell_id"] for t in told]),
        np.concatenate([t["coverage"] for t in told]),
    )


@cache
def _source() -> Any:
    """The class by which exactextract reads shapes, as WKB; made when it is needed, for exactextract is an extra."""
    import shapely
    from exactextract.feature import FeatureSource, JSONFeature

    class ShapeFeature(JSONFeature):  # type: ignore[misc]
        """One region."""

        def __init__(self, number: int, wkb: bytes) -> None:
            super().__init__({"type": "Feature", "properties": {"number": number}})
            self._wkb = wkb

        def geometry(self) -> bytes:
            return self._wkb

    class ShapeSource(FeatureSource):  # type: ignore[misc]
        """Some regions."""

        def __init__(self, shapes: Shapes, numbers: Sequence[int]) -> None:
            super().__init__()
            self._shapes, self._numbers = shapes, numbers

        def count(self) -> int:
            return len(self._shapes)

        def __iter__(self) -> Iterator[Any]:
            for number, shape in zip(self._numbers, self._shapes, strict=True):
                yield ShapeFeature(int(number), shapely.to_wkb(shape))

        def srs_wkt(self) -> None:
            return None

    return ShapeSource
