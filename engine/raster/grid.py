"""The output grid: the NTL grid subdivided exactly 8×. Same CRS, same corner, pixel-is-area."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from affine import Affine

from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from rasterio.crs import CRS


@dataclass(frozen=True)
class Grid:
    """A georeferenced pixel lattice. `transform` maps (col, row) at a pixel's upper-left corner to CRS (x, y)."""

    crs: CRS
    transform: Affine
    height: int
    width: int

    def finer(self, factor: int = SCALE) -> Grid:
        """This grid with every pixel cut into factor × factor; corners and CRS stay."""
        return Grid(
            self.crs,
            self.transform @ Affine.scale(1.0 / factor),
            self.height * factor,
            self.width * factor,
        )

    def part(self, window: Window) -> Grid:
        """The lattice of a window of pixels."""
        corner = self.transform @ Affine.translation(window.col, window.row)
        return Grid(self.crs, corner, window.height, window.width)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)

    @property
    def bounds_xy(self) -> tuple[float, float, float, float]:
        """(min x, min y, max x, max y) of the four corners, in the CRS's units."""
        corners = [self.transform @ (c, r) for c in (0, self.width) for r in (0, self.height)]
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        return min(xs), min(ys), max(xs), max(ys)
