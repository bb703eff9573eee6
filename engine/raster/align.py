"""The layers of a tile moved onto its lights: `kernels.align` of features on the HR grid, for CPUs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.raster import accel

_FARTHEST = np.float32(1 << 20)
"""HR pixels; keeps wholes of offsets within 32 bits, whatever a model gives."""


def align(values: Floats, offset: Floats, out: Floats, threads: int = 1) -> None:
    """Write to `out` the bilinear sample of `values` at each pixel + 8·offset, which is interpolated linearly between
    LR pixels; taps are clamped to the tile.

    values, out: (B, C, 8h, 8w) float32. offset: (B, 2, h, w) float32, (x, y) in LR pixels. All C-contiguous. The native
    module and NumPy give the same bits, for any number of threads.
    """
    for one, moved_by, into in zip(values, offset, out, strict=True):
        if accel.NATIVE is None:
            _align(one, moved_by, into)
        else:
            accel.NATIVE.align(one, moved_by, into, threads)


def _align(values: Floats, offset: Floats, out: Floats) -> None:
    """The same in NumPy, row by row so that it takes little memory."""
    _, height, width = values.shape
    first, second, share = _between(width)
    flat = values.reshape(len(values), -1)
    columns, up, down, part = np.arange(width), *_between(height)
    for row in range(height):
        coarse = np.float32(SCALE) * _lerp(offset[:, up[row]], offset[:, down[row]], part[row])
        place = _lerp(coarse[:, first], coarse[:, second], share)
        floor = np.floor(place)
        x, y = place - floor
        known = np.where(np.isnan(floor), -_FARTHEST, floor)
        left, top = np.clip(known, -_FARTHEST, _FARTHEST).astype(np.int64)
        left, top = left + columns, top + row
        c0, c1 = np.clip(left, 0, width - 1), np.clip(left + 1, 0, width - 1)
        r0, r1 = (np.clip(r, 0, height - 1) * width for r in (top, top + 1))
        upper = _lerp(flat[:, r0 + c0], flat[:, r0 + c1], x)
        lower = _lerp(flat[:, r1 + c0], flat[:, r1 + c1], x)
        out[:, row] = _lerp(upper, lower, y)


def _between(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """For each HR pixel along an axis of `length`: the LR pixels around its centre, and how far it is towards the
    second."""
    place = (np.arange(length, dtype=np.float32) + np.float32(0.5)) / np.float32(SCALE) - np.float32(0.5)
    whole = np.floor(place)
    k = whole.astype(np.int64)
    return np.maximum(k, 0), np.minimum(k + 1, length // SCALE - 1), place - whole


def _lerp(a: Floats, b: Floats, t: Floats | np.float32) -> Floats:
    return a + (b - a) * t
