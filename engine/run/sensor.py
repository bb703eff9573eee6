"""The sensor on the host: what a refined image looks like through the blur, and the step that makes both agree.

The same definitions as `engine.network.consistency` and `kernels.agree` in NumPy: a run without PyTorch needs them.
`seen` is the blur and the 8 × 8 area mean, `consistent` one multiplicative step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SCALE

BLUR_REACH = 3
"""LR pixels to each side of an LR pixel from which the sensor model gathers light."""
STEP_REACH = BLUR_REACH + 1
"""LR pixels that one step sees: the blur and the linear interpolation."""
RATIO_LIMIT = 4.0
SHARPEST_SIGMA = 0.1
UNKNOWN_NOISE = 0.05
"""As in `engine.network.consistency`: of NTL whose noise is not known, in its unit."""
LEAST_NOISE = 1e-3
_SIGMA_PER_FWHM = SCALE / 2.354820045030949


@dataclass(frozen=True)
class Sensor:
    """What the sensor saw and how.

    y: NTL (h, w), ≥ 0. known: (h, w), 1 where it was measured. saturated: (h, w), 1 where it is a lower bound only.
    rows, columns: weights of the blur, (7, 8) each. noise: in the unit of y.
    """

    y: Floats
    known: Floats
    saturated: Floats
    rows: Floats
    columns: Floats
    noise: np.float32

    @classmethod
    def of(cls, ntl: Floats, valid: Floats, psf: Floats, limits: Floats) -> Sensor:
        """ntl, valid: (h, w). psf, limits: (2,), as in spec.INPUTS: where the blur is not known it counts as none."""
        level, noise = (np.float32(v) for v in limits)
        rows, columns = (blur_weights(max(float(fwhm), 0.0)) for fwhm in psf)
        known = np.asarray(valid != 0, np.float32)
        reached = (ntl >= level) & (level > 0) & (valid != 0)
        least = np.float32(max(noise if noise >= 0 else UNKNOWN_NOISE, LEAST_NOISE))
        y = np.maximum(ntl, np.float32(0)) * known
        return cls(y, known, np.asarray(reached, np.float32), rows, columns, least)


def blur_weights(fwhm: float) -> Floats:
    """(7, 8): the weight of HR pixel t of the block k − 3 LR pixels away. fwhm: LR pixels, ≥ 0. They sum to 1."""
    sigma = np.float32(max(fwhm * _SIGMA_PER_FWHM, SHARPEST_SIGMA))
    size = 2 * BLUR_REACH + 1
    at = np.arange(size * SCALE, dtype=np.float32) - np.float32(BLUR_REACH * SCALE)
    distance = (at[:, None] - np.arange(SCALE, dtype=np.float32)[None, :]) / sigma
    weight = np.exp(np.float32(-0.5) * distance * distance).sum(axis=1)
    return np.asarray((weight / weight.sum()).reshape(size, SCALE), np.float32)


def seen(x: Floats, rows: Floats, columns: Floats) -> Floats:
    """What the sensor sees of radiance x (8h, 8w): (h, w). Beyond the edge the outermost blocks are repeated."""
    height, width = x.shape
    blocks = x.reshape(height // SCALE, SCALE, width)
    down = _gathered(np.matmul(rows, blocks))
    across = np.ascontiguousarray(down.T).reshape(width // SCALE, SCALE, -1)
    return np.ascontiguousarray(_gathered(np.matmul(columns, across)).T)


def _gathered(parts: Floats) -> Floats:
    """parts: (n, 7, m), what block i gives to the block k − 3 before it. Returns the sums (n, m)."""
    n, size, _ = parts.shape
    padded = np.pad(parts, ((BLUR_REACH, BLUR_REACH), (0, 0), (0, 0)), mode="edge")
    total = padded[:n, 0].copy()
    for k in range(1, size):
        total += padded[k : k + n, k]
    return total


def enlarged(x: Floats) -> Floats:
    """x (h, w) interpolated linearly to (8h, 8w), half-pixel centred; edges are repeated."""
    return _interpolated(_interpolated(x).T).T


def _interpolated(x: Floats) -> Floats:
    """x (h, w) → (8h, w)."""
    h, w = x.shape
    padded = np.pad(x, ((1, 1), (0, 0)), mode="edge")
    out = np.empty((h, SCALE, w), np.float32)
    for t in range(SCALE):
        at = (t + 0.5) / SCALE - 0.5  # of this HR row, in LR pixels from the LR pixel's centre
        first = int(at >= 0)
        share = np.float32(at if first else 1.0 + at)
        np.multiply(padded[first : first + h], np.float32(1) - share, out=out[:, t])
        out[:, t] += padded[first + 1 : first + 1 + h] * share
    return out.reshape(SCALE * h, w)


def consistent(x: Floats, sensor: Sensor, power: float = 1.0) -> tuple[Floats, Floats]:
    """One step. x: radiance (8h, 8w) ≥ 0. Returns it after the step, and the factor (8h, 8w) by which it changed.

    The ratio of the given lights to what the sensor would see, to the `power`, is kept within ¼ … 4. Unknown pixels ask
    for nothing, saturated ones only for more.
    """
    ratio = (sensor.y + sensor.noise) / (seen(x, sensor.rows, sensor.columns) + sensor.noise)
    if power != 1.0:
        ratio = np.power(ratio, np.float32(power))
    change = np.clip(ratio, np.float32(1 / RATIO_LIMIT), np.float32(RATIO_LIMIT)) - np.float32(1)
    change = np.where(sensor.saturated != 0, np.maximum(change, np.float32(0)), change) * sensor.known
    factor = np.float32(1) + enlarged(np.asarray(change, np.float32))
    return x * factor, factor
