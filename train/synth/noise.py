"""Lattice noise as a pure function of (seed, global node index), so that windows of a field never disagree.

Every function uses element-wise arithmetic only (no reductions, no BLAS): a value does not depend on the
shape of the array it is computed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.windows import Window

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint32]

_HASH_STD = 0.57735  # of a uniform variable on [−1, 1)
_SPLINE_STD = 0.277  # of the same variable on a lattice, seen through a bicubic B-spline


def _mixed(x: Hashes) -> Hashes:
    """Avalanche 32 bits in place: two multiply–xorshift rounds (the "lowbias32" family of integer hashes)."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x735A2D97)
    x ^= x >> np.uint32(15)
    return x


@lru_cache(4096)
def stream(seed: int, name: int) -> int:
    """A 32-bit seed for stream `name` of `seed`; different names give unrelated noise."""
    word = np.array(
        [(seed * 0x9E3779B1 + name * 0x7FEB352D + (seed >> 32) * 0x846CA68B) & 0xFFFFFFFF], np.uint32
    )
    return int(_mixed(word)[0])


def hash_points(seed: int, row: Ints, col: Ints) -> Hashes:
    """uint32 hashes of integer positions; `row` and `col` broadcast against each other, negatives are
    fine.
    """
    rows = _mixed(row.astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed))
    return _mixed(rows + col.astype(np.uint32) * np.uint32(0x85EBCA77))


def hash_window(seed: int, window: Window) -> Hashes:
    """uint32 hashes (height, width) of the nodes of `window`."""
    rows = np.arange(window.row, window.row + window.height, dtype=np.int64)[:, None]
    cols = np.arange(window.col, window.col + window.width, dtype=np.int64)[None, :]
    return hash_points(seed, rows, cols)


def unit(hashes: Hashes) -> Floats:
    """Hashes as float32 in [0, 1), from their upper 24 bits."""
    return (hashes >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def bell(hashes: Hashes) -> Floats:
    """Hashes as float32 of mean 0 and standard deviation 1, nearly normal: the sum of their four bytes
    (Irwin–Hall).
    """
    eight = np.uint32(0xFF)
    total = (hashes & eight) + (hashes >> np.uint32(8) & eight) + (hashes >> np.uint32(16) & eight)
    total += hashes >> np.uint32(24)
    return np.asarray((total.astype(np.float32) - np.float32(510.0)) * np.float32(1.0 / 147.8), np.float32)


def _doubled(a: Floats) -> Floats:
    """Cubic B-spline subdivision along axis 0: n parents give 2·(n − 2) children, the first at parent 1."""
    out = np.empty((2 * (a.shape[0] - 2), *a.shape[1:]), np.float32)
    out[0::2] = (a[:-2] + a[2:]) * np.float32(0.125) + a[1:-1] * np.float32(0.75)
    out[1::2] = (a[1:-1] + a[2:]) * np.float32(0.5)
    return out


def _doubled_columns(a: Floats) -> Floats:
    out = np.empty((a.shape[0], 2 * (a.shape[1] - 2)), np.float32)
    out[:, 0::2] = (a[:, :-2] + a[:, 2:]) * np.float32(0.125) + a[:, 1:-1] * np.float32(0.75)
    out[:, 1::2] = (a[:, 1:-1] + a[:, 2:]) * np.float32(0.5)
    return out


def parents(window: Window) -> Window:
    """The nodes one level up that `upsampled` needs for `window`."""
    r0, c0 = (window.row >> 1) - 1, (window.col >> 1) - 1
    r1, c1 = ((window.row + window.height - 1) >> 1) + 2, ((window.col + window.width - 1) >> 1) + 2
    return Window(r0, c0, r1 - r0, c1 - c0)


def ancestors(window: Window, levels: int) -> Window:
    """`parents`, `levels` times."""
    for _ in range(levels):
        window = parents(window)
    return window


def upsampled(coarse: Floats, window: Window, levels: int = 1) -> Floats:
    """`coarse` on `ancestors(window, levels)` → (height, width) on `window`, by cubic B-spline
    subdivision.
    """
    for level in range(levels - 1, -1, -1):
        child = ancestors(window, level)
        above = parents(child)
        r, c = child.row - 2 * (above.row + 1), child.col - 2 * (above.col + 1)
        rows = _doubled(coarse)[r : r + child.height]
        coarse = _doubled_columns(rows)[:, c : c + child.width]
    return coarse


def fractal(seed: int, amplitudes: Mapping[int, float], window: Window, level: int = 0) -> Floats:
    """Multi-octave B-spline noise (height, width) at the nodes of `window` on lattice `level`.

    Lattice k has a node every 2^k pixels, node i at pixel i·2^k. amplitudes: standard deviation of the octave
    whose nodes lie on lattice k ≥ `level`; octaves are added from coarse to fine while subdividing (one pass
    at every level, so the cost is 4/3 of the finest one).
    """
    top = max(amplitudes)
    at = ancestors(window, top - level)
    field: Floats | None = None
    for k in range(top, level - 1, -1):
        at = ancestors(window, k - level)
        if field is not None:
            field = upsampled(field, at)
        if k in amplitudes:
            gain = 2.0 * amplitudes[k] / (_HASH_STD if k == level else _SPLINE_STD)
            octave = unit(hash_window(stream(seed, k), at))
            octave -= np.float32(0.5)
            octave *= np.float32(gain)
            field = octave if field is None else field + octave
    if field is None:
        raise ValueError("fractal needs at least one amplitude")
    return np.ascontiguousarray(field)


def smoothstep(x: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, 3t² − 2t³ between."""
    t = np.clip((x - np.float32(low)) * np.float32(1.0 / (high - low)), np.float32(0), np.float32(1))
    return np.asarray(t * t * (np.float32(3.0) - np.float32(2.0) * t), np.float32)
