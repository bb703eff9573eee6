"""Where HR pixels lie in another raster: coordinate meshes, one per global block, with a checked error."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS


BLOCK = 512
"""HR pixels per side of a mesh. Meshes lie at multiples of it, so that a pixel's coordinates depend on no
window."""

SAME = 2.0**-20
"""Source pixels by which two places may differ and be one: a quarter of what a float32 fraction of a place is off."""

_CACHE_BYTES = 32 << 20
_PROBES = 25


@dataclass(frozen=True)
class Mesh:
    """Coordinates of one block of HR pixels in another raster.

    row, col: HR pixel of the first node. step: HR pixels between nodes. nodes: (2, n, n) float64, [0]
    source rows and [1] source columns at the centre of HR pixel (row + i · step, col + j · step); the value
    k is the centre of source pixel k. NaN where there is no such place. Between nodes the coordinates are
    bilinear.
    """

    row: int
    col: int
    step: int
    nodes: Doubles

    @property
    def window(self) -> Window:
        """The HR pixels of this block."""
        return Window(self.row, self.col, BLOCK, BLOCK)

    def at(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Doubles:
        """Coordinates (2, len(rows), len(cols)) of the HR pixels rows × cols, which must lie in this block.

        The order of operations is that of the native module, for equal bits.
        """
        i, ty = np.divmod(rows - self.row, self.step)
        j, tx = np.divmod(cols - self.col, self.step)
        u, v = (ty / self.step)[:, None], (tx / self.step)[None, :]
        upper, lower = self.nodes[:, i], self.nodes[:, i + 1]
        with np.errstate(invalid="ignore"):
            left = upper[:, :, j] + u * (lower[:, :, j] - upper[:, :, j])
            right = upper[:, :, j + 1] + u * (lower[:, :, j + 1] - upper[:, :, j + 1])
            found: Doubles = left + v * (right - left)
        return found

    def nodes_at(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Doubles:
        """As `at`, but a pixel on an edge of a cell depends on that edge alone, not on the cell behind it, which there
        need not be."""
        i, ty = np.divmod(rows - self.row, self.step)
        j, tx = np.divmod(cols - self.col, self.step)
        u, v = (ty / self.step)[:, None], (tx / self.step)[None, :]
        below, right = (np.minimum(k + 1, self.nodes.shape[1] - 1) for k in (i, j))
        upper, lower = self.nodes[:, i], self.nodes[:, below]
        with np.errstate(invalid="ignore"):
            down = np.where(u == 0, upper[:, :, j], upper[:, :, j] + u * (lower[:, :, j] - upper[:, :, j]))
            beside = upper[:, :, right] + u * (lower[:, :, right] - upper[:, :, right])
            beside = np.where(u == 0, upper[:, :, right], beside)
            return np.where(v == 0, down, down + v * (beside - down))

    def corners(self, part: Window) -> Doubles:
        """Coordinates that bound those of all pixels of `part` (inside this block): extremes lie at cells'
        corners."""
        return self.at(
            _ends(part.row, part.height, self.row, self.step),
            _ends(part.col, part.width, self.col, self.step),
        )

    def cells(self, part: Window) -> Doubles:
        """Boxes of the cells that `part` (inside this block) touches: (4, n) lowest row, lowest column, highest
        row, highest column of the pixels of `part` in each; cells outside the projection's domain left out."""
        low = high = self.corners(part)
        for axis, first, length, origin in (
            (1, part.row, part.height, self.row),
            (2, part.col, part.width, self.col),
        ):
            cell = (_ends(first, length, origin, self.step) - origin) // self.step
            starts = np.flatnonzero(np.diff(cell, prepend=-1))
            low, high = np.fmin.reduceat(low, starts, axis), np.fmax.reduceat(high, starts, axis)
        boxes: Doubles = np.concatenate([low, high]).reshape(4, -1)
        return boxes[:, np.isfinite(boxes).all(axis=0)]

    def holds(self, part: Window, step: int) -> bool:
        """Whether the coordinates of `part` (inside this block) are bilinear between nodes `step` apart, too."""
        if self.step >= step:
            return True
        ends = [(part.row - self.row, part.height), (part.col - self.col, part.width)]
        rows, cols = (
            slice(
                first // step * step // self.step,
                ((first + length - 1) // step + 1) * step // self.step + 1,
                step // 2 // self.step,
            )
            for first, length in ends
        )
        return bool((_cell_errors(self.nodes[:, rows, cols]) <= SAME).all())


def _ends(first: int, length: int, origin: int, step: int) -> NDArray[np.int64]:
    """The first and last pixel of a range in every cell that it touches."""
    last = first + length - 1
    starts = np.arange(origin + ((first - origin) // step + 1) * step, last + 1, step)
    return np.unique(np.concatenate([[first, last], starts, starts - 1]))


class Meshes:
    """The meshes of `hr` in `aux`, made when asked for and kept while they fit in a small cache. Thread-safe.

    step: HR pixels between nodes to begin with, a power of two up to BLOCK. A block halves it until, at the
    centres and edge midpoints of all cells, interpolated coordinates are within max_error of exact ones,
    measured in the smaller of an `aux` and an HR pixel; at a step of 1 they are exact. Both places are
    needed: between conformal projections, coordinates are harmonic and the error vanishes at centres. In a
    block that leaves the domain of the projection, cells that miss the bound or touch a place outside the
    domain are invalid instead.
    """

    def __init__(self, hr: Grid, aux: Grid, step: int = 32, max_error: float = 0.125) -> None:
        if step < 1 or step > BLOCK or step & (step - 1):
            raise ValueError(f"step must be a power of two from 1 to {BLOCK}, not {step}")
        if not max_error > 0:
            raise ValueError(f"max_error must be above 0, not {max_error}")
        self.hr, self.aux = hr, aux
        self._step = BLOCK if self._same_crs else step
        self._max_error = max_error
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Mesh] = OrderedDict()
        self._bytes = 0

    def covering(self, window: Window) -> list[Mesh]:
        """The meshes of all blocks that `window` touches, row by row."""
        if window.height <= 0 or window.width <= 0:
            return []
        rows = range(window.row // BLOCK, (window.row + window.height - 1) // BLOCK + 1)
        cols = range(window.col // BLOCK, (window.col + window.width - 1) // BLOCK + 1)
        return [self._block(row, col) for row in rows for col in cols]

    def coordinates(self, rows: Doubles, cols: Doubles) -> Doubles:
        """Exact places in `aux` of HR pixel positions (0 = centre of the first), arrays of one shape: (2,
        *shape)."""
        x, y = _apply(self.hr.transform, cols + 0.5, rows + 0.5)
        if not self._same_crs:
            x, y = project(self.hr.crs, self.aux.crs, x, y)
        if self._period:
            x = x - self._period * np.round((x - self._centre_x) / self._period)
        c, r = _apply(~self.aux.transform, x, y)
        return np.stack([r, c]) - 0.5

    @cached_property
    def _same_crs(self) -> bool:
        return bool(self.hr.crs == self.aux.crs)

    @cached_property
    def _period(self) -> float:
        return full_turn(self.aux.crs)

    @cached_property
    def _centre_x(self) -> float:
        west, _, east, _ = self.aux.bounds_xy
        return (west + east) / 2

    def _block(self, row: int, col: int) -> Mesh:
        with self._lock:
            if (row, col) in self._kept:
                self._kept.move_to_end((row, col))
                return self._kept[row, col]
        mesh = self._build(row * BLOCK, col * BLOCK)
        with self._lock:
            if (row, col) not in self._kept:
                self._kept[row, col] = mesh
                self._bytes += mesh.nodes.nbytes
            while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nodes.nbytes
        return mesh

    def _build(self, row: int, col: int) -> Mesh:
        step = self._step
        while step > 1:
            half = self._lattice(row, col, step / 2)
            nodes = np.ascontiguousarray(half[:, ::2, ::2])
            good = _cell_errors(half) <= self._max_error * _smaller_pixel(nodes, step)
            if good.all():
                return Mesh(row, col, step, nodes)
            if not np.isfinite(half).all():
                return Mesh(row, col, step, _without(nodes, ~good))
            step //= 2
            if step == 1:
                return Mesh(row, col, 1, half)
        return Mesh(row, col, 1, self._lattice(row, col, 1))

    def _lattice(self, row: int, col: int, spacing: float) -> Doubles:
        offsets = np.arange(0, BLOCK + spacing / 2, spacing)
        rows, cols = np.meshgrid(row + offsets, col + offsets, indexing="ij")
        return self.coordinates(rows, cols)


def full_turn(crs: CRS) -> float:
    """A full turn of longitude in the units of a CRS, 0 where its x is no longitude."""
    return float(2 * np.pi / crs.units_factor[1]) if crs.is_geographic else 0.0


def _apply(t: Affine, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def _cell_errors(half: Doubles) -> Doubles:
    """Largest error of bilinear interpolation at each cell's centre and edge midpoints, in source pixels.

    half: (2, 2n + 1, 2n + 1), nodes and midpoints. Returns (n, n); NaN where one of them is.
    """
    nodes = half[:, ::2, ::2]
    with np.errstate(invalid="ignore"):
        across = np.hypot(*(half[:, ::2, 1::2] - (nodes[:, :, :-1] + nodes[:, :, 1:]) / 2))
        down = np.hypot(*(half[:, 1::2, ::2] - (nodes[:, :-1] + nodes[:, 1:]) / 2))
        corners = nodes[:, :-1, :-1] + nodes[:, :-1, 1:] + nodes[:, 1:, :-1] + nodes[:, 1:, 1:]
        centre = np.hypot(*(half[:, 1::2, 1::2] - corners / 4))
    errors: Doubles = np.maximum.reduce([centre, across[:-1], across[1:], down[:, :-1], down[:, 1:]])
    return errors


def _smaller_pixel(nodes: Doubles, step: int) -> Doubles:
    """The shorter side of an HR pixel in each cell, or 1 where a source pixel is smaller; in source
    pixels."""
    with np.errstate(invalid="ignore"):
        down = np.hypot(*(nodes[:, 1:] - nodes[:, :-1]))[:, :-1] / step
        across = np.hypot(*(nodes[:, :, 1:] - nodes[:, :, :-1]))[:-1] / step
    sides: Doubles = np.minimum(np.minimum(down, across), 1.0)
    return sides


def _without(nodes: Doubles, bad: NDArray[np.bool_]) -> Doubles:
    """The nodes with the corners of bad cells set to NaN."""
    lost = np.zeros(nodes.shape[1:], np.bool_)
    for r in (slice(None, -1), slice(1, None)):
        for c in (slice(None, -1), slice(1, None)):
            lost[r, c] |= bad
    kept: Doubles = np.where(lost, np.nan, nodes)
    return kept


def project(source: CRS, target: CRS, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """Points from one CRS to another, same shape; NaN outside the domain of the projection.

    One point outside can make PROJ refuse a whole batch without saying which, so a refused batch is halved.
    Where evenly spaced samples are all refused, the batch is taken to lie outside.
    """
    flat_x, flat_y = np.ravel(x), np.ravel(y)
    out = _project_batch(source, target, flat_x, flat_y)
    if out is None and flat_x.size > 2 * _PROBES:
        probes = np.linspace(0, flat_x.size - 1, _PROBES).astype(np.int64)
        if all(_project_batch(source, target, flat_x[[k]], flat_y[[k]]) is None for k in probes):
            out = np.full((2, flat_x.size), np.nan)
    if out is None:
        out = _project_halves(source, target, flat_x, flat_y)
    out[:, ~np.isfinite(out).all(axis=0)] = np.nan
    return out[0].reshape(x.shape), out[1].reshape(x.shape)


def _project_halves(source: CRS, target: CRS, x: Doubles, y: Doubles) -> Doubles:
    out = _project_batch(source, target, x, y)
    if out is not None:
        return out
    if x.size == 1:
        return np.full((2, 1), np.nan)
    k = x.size // 2
    parts = [_project_halves(source, target, x[:k], y[:k]), _project_halves(source, target, x[k:], y[k:])]
    return np.concatenate(parts, axis=1)


def _project_batch(source: CRS, target: CRS, x: Doubles, y: Doubles) -> Doubles | None:
    """(2, N), or None where PROJ refuses."""
    from rasterio._err import CPLE_BaseError  # the error has no public name
    from rasterio.warp import transform

    try:
        return np.array(transform(source, target, x, y), np.float64)
    except CPLE_BaseError:
        return None
