"""The quality band: what is known to weaken an output pixel, as bit flags."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats, to_hr
from deeplight.engine.core.spec import SCALE, Quality
from deeplight.engine.core.windows import Window

_PRESSED = 0.9
"""Share of the largest offset that a model makes, from which on the true offset may lie beyond it."""


def extrapolated_from(d_max: float) -> float:
    """Offset along an axis, in LR pixels, from which on it is flagged. d_max: the largest that the model makes."""
    return _PRESSED * d_max


def quality_flags(
    inputs: Mapping[str, Floats],
    offset: Floats,
    core: Window,
    window: Window,
    radius: int,
    ceiling: float,
    far: float,
) -> Floats:
    """Flags (8h, 8w) of a core, as float32.

    inputs: the model's, of `window` (spec.INPUTS, batch of 1). offset: (2, h', w') of `window`. core, window: in LR
    pixels; `window` holds the core and what there is of the scene within `radius` around it; what lies beyond
    `window` counts as filled. radius: of the model's receptive field in LR pixels. ceiling: NTL value from which a
    pixel counts as saturated. far: see `extrapolated_from`. Each flag depends on the surroundings within `radius`
    alone, so tiles agree.
    """
    rows, cols = core.slices_in(window)
    hr_rows, hr_cols = core.scaled(SCALE).slices_in(window.scaled(SCALE))
    valid = inputs["ntl_valid"][0, 0]
    near = touched(_seen(valid, core.grown(radius), window) == 0, radius)
    saturated = (inputs["ntl"][0, 0, rows, cols] >= np.float32(ceiling)) & (valid[rows, cols] != 0)
    pressed = (np.abs(offset[:, rows, cols]) >= np.float32(far)).any(axis=0)
    lr = near * np.uint8(Quality.NTL_FILLED_NEAR)
    lr |= saturated * np.uint8(Quality.SATURATED_LR)
    lr |= pressed * np.uint8(Quality.EXTRAPOLATED_OFFSET)
    flags = to_hr(lr)
    for name, flag in (("dmo", Quality.DMO_MISSING), ("dem", Quality.DEM_MISSING)):
        flags |= (inputs[f"{name}_valid"][0, 0, hr_rows, hr_cols] == 0) * np.uint8(flag)
    return flags.astype(np.float32)


def _seen(valid: Floats, around: Window, window: Window) -> Floats:
    """The mask `valid` (h, w) of `window` over `around`, 0 where that leaves it."""
    seen = np.zeros(around.shape, np.float32)
    both = around.shared_with(window)
    seen[both.slices_in(around)] = valid[both.slices_in(window)]
    return seen


def touched(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Where a square of 2 · radius + 1 around a pixel holds a true one.

    mask: (h + 2 · radius, w + 2 · radius). Returns (h, w).
    """
    side = 2 * radius + 1
    counts = mask.astype(np.int32)
    for axis in (0, 1):
        sums = np.cumsum(counts, axis=axis, dtype=np.int32)
        sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis)), sums], axis=axis)
        last = sums.shape[axis]
        upper, lower = np.arange(side, last), np.arange(last - side)
        counts = np.take(sums, upper, axis) - np.take(sums, lower, axis)
        counts = (counts > 0).astype(np.int32)
    return counts > 0
