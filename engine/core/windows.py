"""Windows in LR pixels: cores that partition a region, and the halo around them. Pure arithmetic, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Window:
    """A half-open rectangle of pixels: rows [row, row + height), columns [col, col + width). May leave the raster."""

    row: int
    col: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)

    def grown(self, halo: int) -> Window:
        """This window with `halo` pixels more on each side."""
        return Window(self.row - halo, self.col - halo, self.height + 2 * halo, self.width + 2 * halo)

    def scaled(self, factor: int) -> Window:
        """The same ground on a grid `factor` times finer."""
        return Window(self.row * factor, self.col * factor, self.height * factor, self.width * factor)

    def clipped(self, height: int, width: int) -> Window:
        """The part inside a raster of height × width; zero-sized where there is none."""
        r0, c0 = min(max(self.row, 0), height), min(max(self.col, 0), width)
        r1 = min(max(self.row + self.height, r0), height)
        c1 = min(max(self.col + self.width, c0), width)
        return Window(r0, c0, r1 - r0, c1 - c0)

    def shared_with(self, other: Window) -> Window:
        """What both hold; zero-sized where that is nothing."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        bottom = min(self.row + self.height, other.row + other.height)
        right = min(self.col + self.width, other.col + other.width)
        return Window(row, col, max(0, bottom - row), max(0, right - col))

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Row and column slices of this window inside an array that covers `outer`.

        Raises ValueError where this window leaves `outer`.
        """
        r, c = self.row - outer.row, self.col - outer.col
        if r < 0 or c < 0 or r + self.height > outer.height or c + self.width > outer.width:
            raise ValueError(f"{self} is not inside {outer}")
        return slice(r, r + self.height), slice(c, c + self.width)


def split(region: Window, side: int) -> Iterator[Window]:
    """Cores of at most side × side that partition `region`, row by row; the last of each row and column is smaller."""
    if side < 1:
        raise ValueError(f"side must be ≥ 1, not {side}")
    for row in range(region.row, region.row + region.height, side):
        height = min(side, region.row + region.height - row)
        for col in range(region.col, region.col + region.width, side):
            yield Window(row, col, height, min(side, region.col + region.width - col))


def core_share(core: int, halo: int) -> float:
    """Share of the computed pixels that is kept: (core / (core + 2·halo))²."""
    return (core / (core + 2 * halo)) ** 2
