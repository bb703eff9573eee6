"""Radiance conservation: every 8 × 8 block of the output made to have the mean of its LR pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.spec import SCALE

Array = NDArray[np.float32]

SHARE_OF_UNIFORM = 1e-3
"""Part of the LR value that is spread evenly over its block before scaling. It decides blocks that the model
leaves dark although LR is lit, and bounds by its inverse how much scaling amplifies rounding."""


def conserve_radiance(radiance: Array, lr: Array, valid: NDArray[np.uint8]) -> Array:
    """`radiance` with the mean of each SCALE × SCALE block equal to max(LR, 0), to float32 rounding.

    With L = max(LR, 0), ε = SHARE_OF_UNIFORM and m the block's mean, a pixel v becomes (v + εL) · L / (m + εL).
    So a block without radiance gets L everywhere, L = 0 gives 0 everywhere, and there is no threshold at which
    the result jumps. A block depends on its own pixels alone: the result is the same in any tile.

    radiance: (8h, 8w), ≥ 0. lr, valid: (h, w); where valid is 0 the block is left as it is, to be masked.
    Values that are not finite stay so.
    """
    h, w = lr.shape
    blocks = radiance.reshape(h, SCALE, w, SCALE).astype(np.float64)
    light = np.maximum(lr.astype(np.float64), 0.0)[:, None, :, None]
    lifted = blocks + SHARE_OF_UNIFORM * light
    mean = lifted.mean(axis=(1, 3), keepdims=True)
    with np.errstate(invalid="ignore"):
        factor = np.divide(light, mean, out=np.zeros_like(mean), where=mean != 0)
        scaled = lifted * factor
    known = (valid != 0)[:, None, :, None]
    return np.where(known, scaled, blocks).astype(np.float32).reshape(radiance.shape)
