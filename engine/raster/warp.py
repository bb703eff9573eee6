"""Other rasters on the HR grid: masked bilinear resampling through a coordinate mesh, and decimation by
area mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles, Floats, Mask
from deeplight.engine.core.windows import Window
from deeplight.engine.raster import accel
from deeplight.engine.raster.convert import as_mask
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import SAME, Mesh, Meshes, full_turn

HALF = np.float32(0.499999)
"""Sum of weights from which a resampled pixel is valid: one half, less the rounding of four float32
weights."""

_LEAST_GAP = 16
"""Columns between two source windows from which they are read one by one."""


class Warper:
    """Brings pixels of `aux` to the pixel centres of `hr`.

    The value at an HR pixel has the same bits whatever window it is asked in, with the native module and
    without. step, max_error: see deeplight.engine.raster.mesh.Meshes. threads: of one call of `resample`, native
    module only.
    """

    def __init__(
        self, hr: Grid, aux: Grid, *, step: int = 32, max_error: float = 0.125, threads: int = 1
    ) -> None:
        self.hr, self.aux = hr, aux
        self._threads = threads
        self._meshes = Meshes(hr, aux, step, max_error)

    def source_window(self, hr_window: Window) -> Window | None:
        """The pixels of `aux` that `resample` needs for `hr_window`; None where they do not meet."""
        meshes = self._meshes.covering(hr_window)
        met = [mesh.corners(mesh.window.shared_with(hr_window)).reshape(2, -1) for mesh in meshes]
        places = np.concatenate([np.empty((2, 0)), *met], axis=1)
        places = places[:, np.isfinite(places).all(axis=0)]
        return self._window(places, places) if places.size else None

    def source_windows(self, hr_window: Window) -> list[Window]:
        """As source_window, in two windows far apart where `hr_window` lies on both sides of a place where the
        columns of `aux` start again, such as the antimeridian.

        Every HR pixel has all its neighbours in one window and none in the other: `resample` both and add.
        """
        window = self.source_window(hr_window)
        gap = max(_LEAST_GAP, self.aux.width // 4)
        if window is None or window.width <= gap:
            return [] if window is None else [window]
        meshes = self._meshes.covering(hr_window)
        boxes = np.concatenate([mesh.cells(mesh.window.shared_with(hr_window)) for mesh in meshes], axis=1)
        boxes = boxes[:, np.argsort(boxes[1], kind="stable")]
        gaps = boxes[1, 1:] - np.maximum.accumulate(boxes[3])[:-1]
        if not gaps.size or gaps.max() <= gap:
            return [window]
        cut = int(np.argmax(gaps)) + 1
        parts = [self._window(b[:2], b[2:]) for b in (boxes[:, :cut], boxes[:, cut:])]
        return [part for part in parts if part is not None]

    def nodes(self, hr_window: Window, step: int) -> Doubles | None:
        """Places in `aux` of every `step`-th HR pixel of `hr_window`, and of the first beyond it: (2, n, m), rows and
        columns, NaN where there is none. Between them coordinates are bilinear, and those of the meshes; None where
        that cannot be, since a mesh has nodes closer to each other for a reason, or two of them differ at their border.

        step: a power of two that divides the window's corner and sides.
        """
        found = np.full((2, hr_window.height // step + 1, hr_window.width // step + 1), np.nan)
        written = np.zeros(found.shape[1:], np.bool_)
        for mesh in self._meshes.covering(hr_window):
            part = mesh.window.shared_with(hr_window)
            if not mesh.holds(part, step):
                return None
            rows, cols = (
                np.arange(first, first + length + 1, step)
                for first, length in ((part.row, part.height), (part.col, part.width))
            )
            i, j = (part.row - hr_window.row) // step, (part.col - hr_window.col) // step
            here = (slice(i, i + rows.size), slice(j, j + cols.size))
            nodes, there = mesh.nodes_at(rows, cols), found[:, *here]
            same = (np.abs(there - nodes) <= SAME) | (np.isnan(there) & np.isnan(nodes))
            if (written[here] & ~same.all(axis=0)).any():  # at a border with a mesh that came before
                return None
            there[:], written[here] = nodes, True
        return found

    def _window(self, lowest: Doubles, highest: Doubles) -> Window | None:
        """The pixels around places between those of `lowest` and `highest`, (2, n) each."""
        # Clipped before it becomes an integer: a place may be astronomically far away. One pixel more than
        # the taps on each side, because rounding inside a cell may step over the corners' values.
        last = np.array([self.aux.height, self.aux.width], np.float64)
        low = np.clip(np.floor(lowest.min(axis=1)) - 1, 0, last).astype(int)
        high = np.clip(np.floor(highest.max(axis=1)) + 3, 0, last).astype(int)
        if (high <= low).any():
            return None
        return Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))

    def resample(
        self,
        values: Floats,
        mask: NDArray[Any],
        source: Window,
        hr_window: Window,
        into: tuple[Floats, Mask] | None = None,
    ) -> tuple[Floats, Mask]:
        """Σ w m v / Σ w m over the four neighbours of each HR pixel centre, and where Σ w m is at least one
        half.

        values: (C, h, w) float32 and mask: (h, w), nonzero = valid, of `source`, which contains the answer
        of source_window(hr_window). Returns (C, H, W) float32, 0 where invalid, and (H, W) uint8. Whatever
        lies under the mask has no influence; there is nothing outside `aux`. into: C-contiguous arrays of any
        content for the result, but that the planes of the values may lie apart.

        Raises ValueError for arrays that do not fit `source`.
        """
        if values.ndim != 3 or values.shape[1:] != source.shape or mask.shape != source.shape:
            raise ValueError(
                f"values {values.shape} and mask {mask.shape} do not fit the source window {source}"
            )
        values = np.ascontiguousarray(values, np.float32)
        out, out_mask = into or (
            np.empty((values.shape[0], *hr_window.shape), np.float32),
            np.empty(hr_window.shape, np.uint8),
        )
        if 0 in (source.height, source.width, *hr_window.shape):
            out[:], out_mask[:] = 0, 0
            return out, out_mask
        meshes = self._meshes.covering(hr_window)
        known = as_mask(mask)
        if accel.NATIVE is None:
            for mesh in meshes:
                part = mesh.window.shared_with(hr_window)
                r, c = part.slices_in(hr_window)
                out[:, r, c], out_mask[r, c] = _resample_numpy(values, known, source, mesh, part)
        else:
            places = [(mesh.row, mesh.col, mesh.step) for mesh in meshes]
            accel.NATIVE.resample(
                values, known, source.row, source.col, [mesh.nodes for mesh in meshes], places,
                hr_window.row, hr_window.col, out, out_mask, self._threads,
            )  # fmt: skip
        return out, out_mask


def decimation(hr: Grid, aux: Grid, at: tuple[float, float] | None = None) -> tuple[int, int]:
    """How many `aux` pixels (rows fy, columns fx) fit into an HR pixel, rounded down, at least 1.

    at: HR (row, column) where the two are compared, by default the middle of the HR grid. Use the centre of
    the overlap: the scale of a projection varies.
    """
    row, col = at if at is not None else (hr.height / 2, hr.width / 2)
    rows = np.array([row - 0.5, row + 0.5, row, row])
    cols = np.array([col, col, col - 0.5, col + 0.5])
    places = Meshes(hr, aux).coordinates(rows, cols)
    sides = np.hypot(places[:, 1] - places[:, 0], places[:, 3] - places[:, 2])
    if not np.isfinite(sides).all():
        return 1, 1
    # A ratio that is an integer but for rounding is that integer.
    fy, fx = (max(1, math.floor(side + 1e-6)) for side in sides)
    return fy, fx


def decimated(aux: Grid, fy: int, fx: int) -> Grid:
    """The grid of area_mean's result: blocks of fy × fx pixels from the upper-left corner, the last ones
    partly outside."""
    return Grid(aux.crs, aux.transform @ Affine.scale(fx, fy), -(-aux.height // fy), -(-aux.width // fx))


def goes_round(grid: Grid) -> bool:
    """Whether a grid's columns run once around the Earth, so that its last column lies beside its first."""
    t, turn = grid.transform, full_turn(grid.crs)
    return bool(turn) and t.b == t.d == 0 and abs(abs(t.a) * grid.width - turn) < 0.01 * abs(t.a)


def opposite(grid: Grid, hr: Grid) -> int:
    """The column at which a grid that goes round begins as far from the middle of `hr` as it can, so that its columns
    start again within no scene that is less than a turn wide. It may lie before the first; 0 where `hr` has no middle
    in its projection."""
    middle = (np.array([(side - 1) / 2]) for side in hr.shape)
    column = float(Meshes(hr, grid).coordinates(*middle)[1, 0])
    return round(column - (grid.width - 1) / 2) if math.isfinite(column) else 0


def with_neighbours(grid: Grid, first: int = 0) -> Grid:
    """A grid that goes round and begins at its column `first`, with its last column once more before that and its first
    after the last."""
    return Grid(grid.crs, grid.transform @ Affine.translation(first - 1, 0), grid.height, grid.width + 2)


def area_mean(
    values: Floats, mask: NDArray[Any], fy: int, fx: int, *, threads: int = 1
) -> tuple[Floats, Mask]:
    """Mean of the valid pixels of each fy × fx block, and where at least half of the block is valid.

    values: (C, h, w) float32; mask: (h, w), nonzero = valid. Returns (C, ⌈h/fy⌉, ⌈w/fx⌉) float32, 0 where
    invalid, and its mask in uint8. Summed row by row in float64, so that a block's bits depend on nothing
    but the block. Blocks start at the arrays' corner: for answers that depend on no window, read windows
    that start at multiples of fy, fx.

    Raises ValueError for shapes or factors that do not fit.
    """
    if values.ndim != 3 or mask.shape != values.shape[1:] or fy < 1 or fx < 1:
        raise ValueError(f"values {values.shape}, mask {mask.shape}, factors ({fy}, {fx}) do not fit")
    values, known = np.ascontiguousarray(values, np.float32), as_mask(mask)
    if fy == fx == 1:
        return np.where(known != 0, values, np.float32(0)), (known != 0).view(np.uint8)
    if accel.NATIVE is None:
        return _area_mean_numpy(values, known, fy, fx)
    shape = (-(-values.shape[1] // fy), -(-values.shape[2] // fx))
    out, out_mask = np.empty((values.shape[0], *shape), np.float32), np.empty(shape, np.uint8)
    accel.NATIVE.area_mean(values, known, fy, fx, out, out_mask, threads)
    return out, out_mask


def _resample_numpy(
    values: Floats, mask: Mask, source: Window, mesh: Mesh, part: Window
) -> tuple[Floats, NDArray[np.bool_]]:
    rows = np.arange(part.row, part.row + part.height)
    cols = np.arange(part.col, part.col + part.width)
    r, c = mesh.at(rows, cols)
    with np.errstate(invalid="ignore"):
        inside = (r >= source.row - 1) & (r < source.row + source.height)
        inside &= (c >= source.col - 1) & (c < source.col + source.width)
    r, c = np.where(inside, r, source.row - 1), np.where(inside, c, source.col - 1)
    fr, i = _split(r)
    fc, j = _split(c)
    i, j = i - source.row, j - source.col
    top, left = np.float32(1) - fr, np.float32(1) - fc
    taps = [(i, j, top * left), (i, j + 1, top * fc), (i + 1, j, fr * left), (i + 1, j + 1, fr * fc)]
    return _blend(values, mask, taps)


def _split(place: Doubles) -> tuple[Floats, NDArray[np.int64]]:
    """Fraction and integer part of coordinates ≥ -1."""
    whole = (place + 1.0).astype(np.int64) - 1
    return (place - whole).astype(np.float32), whole


def _blend(
    values: Floats, mask: Mask, taps: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]
) -> tuple[Floats, NDArray[np.bool_]]:
    height, width = mask.shape
    shape = taps[0][2].shape
    total, whole = np.zeros(shape, np.float32), np.ones(shape, np.bool_)
    used = []
    for i, j, weight in taps:
        there = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        i, j = np.where(there, i, 0), np.where(there, j, 0)
        there &= mask[i, j] != 0
        weight = np.where(there, weight, np.float32(0))
        total += weight
        whole &= there
        used.append((i, j, there, weight))
    valid = whole | (total >= HALF)
    total = np.where(valid & ~whole, total, np.float32(1))
    products = [
        (weight / total) * np.where(there, values[:, i, j], np.float32(0)) for i, j, there, weight in used
    ]
    out = ((products[0] + products[1]) + products[2]) + products[3]
    out[:, ~valid] = 0
    return out, valid


def _area_mean_numpy(values: Floats, mask: Mask, fy: int, fx: int) -> tuple[Floats, Mask]:
    channels, height, width = values.shape
    h, w = -(-height // fy), -(-width // fx)
    known = np.zeros((h * fy, w * fx), np.bool_)
    known[:height, :width] = mask != 0
    padded = np.zeros((channels, h * fy, w * fx), np.float32)
    padded[:, :height, :width] = values
    padded[:, ~known] = 0
    sums, counts = np.zeros((channels, h, w), np.float64), np.zeros((h, w), np.int64)
    for r in range(fy):
        for c in range(fx):
            sums += padded[:, r::fy, c::fx]
            counts += known[r::fy, c::fx]
    valid = 2 * counts >= fy * fx
    means = np.where(valid, sums / np.maximum(counts, 1), 0.0).astype(np.float32)
    return means, valid.view(np.uint8)
