"""The sensor inside the network: what a refined image looks like through the blur, and the step that makes both agree.

The sensor model A blurs radiance with a Gaussian whose FWHM is known along rows and columns, then takes the 8×8 area
mean. A step x ← x · up((y + s) / (A x + s)) moves the refined radiance x towards one that the sensor would have seen
as the given y; s is the noise, so that what lies below it changes nothing (a multiplicative scheme in the manner of
Richardson 1972 and Lucy 1974). All of it is separable and local, and every operation is exact in its position, so
tiles agree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.kernels.interpolation import SCALE

BLUR_REACH = 3
"""LR pixels to each side of an LR pixel from which the sensor model gathers light. At a FWHM of 2.5 LR pixels 0.3 % of
the light lies beyond, which the weights take over."""
STEP_REACH = BLUR_REACH + 1
"""LR pixels that one step sees: the blur and the linear interpolation."""
BASE_STEPS = 2
BASE_POWER = 2.0
"""Over-relaxation: two steps with the squared ratio bring as much as four plain ones; an exponent of 2.5 diverges."""
RATIO_LIMIT = 4.0
SHARPEST_SIGMA = 0.1
"""HR pixels: below this the sampled Gaussian is a single 1 in float32."""
_SIGMA_PER_FWHM = SCALE / 2.354820045030949


class Sensor(NamedTuple):
    """What the sensor saw and how. y: radiance (B,1,h,w) ≥ 0, holes filled. known: (B,1,h,w), 1 where y was measured.

    saturated: (B,1,h,w), 1 where y is a lower bound only. rows, columns: weights of the blur, (B,7,8) each.
    noise: (B,1,1,1), in the unit of y.
    """

    y: Tensor
    known: Tensor
    saturated: Tensor
    rows: Tensor
    columns: Tensor
    noise: Tensor


def blur_weights(fwhm: Tensor) -> Tensor:
    """fwhm: (B,), LR pixels, ≥ 0. Returns (B,7,8): the weight of HR pixel t of the block k − 3 LR pixels away.

    A Gaussian sampled at whole HR pixels, then the mean over the 8 pixels of a block; they sum to 1.
    """
    sigma = (fwhm * _SIGMA_PER_FWHM).clamp(min=SHARPEST_SIGMA)[:, None, None]
    size = 2 * BLUR_REACH + 1
    at = torch.arange(size * SCALE, device=fwhm.device, dtype=torch.float32) - float(BLUR_REACH * SCALE)
    inside = torch.arange(SCALE, device=fwhm.device, dtype=torch.float32)
    distance = (at[:, None] - inside[None, :])[None] / sigma
    weight = torch.exp(-0.5 * distance * distance).sum(dim=2)
    return (weight / weight.sum(dim=1, keepdim=True)).reshape(-1, size, SCALE)


def seen(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A x: radiance (B,1,8h,8w) as the sensor sees it, (B,1,h,w). rows, columns: from `blur_weights`.

    Beyond the edge the outermost blocks are repeated.
    """
    b, _, height, width = x.shape
    h, w = height // SCALE, width // SCALE
    down = _gathered(torch.matmul(rows[:, None], x.reshape(b, h, SCALE, width)))
    across = down.reshape(b, h, w, SCALE).transpose(1, 2)
    # blocks of columns lead, as blocks of rows did: (B,w,8,h)
    both = _gathered(torch.matmul(columns[:, None], across.transpose(2, 3)))
    return both.transpose(1, 2)[:, None]


def _gathered(parts: Tensor) -> Tensor:
    """parts: (B,n,7,m), what block i gives to the block k − 3 before it. Returns the sums (B,n,m)."""
    b, n, size, m = parts.shape
    flat = parts.reshape(b, 1, n, size * m)
    padded = F.pad(flat, (0, 0, BLUR_REACH, BLUR_REACH), mode="replicate").reshape(
        b, n + 2 * BLUR_REACH, size, m
    )
    total = padded[:, :n, 0]
    for k in range(1, size):
        total = total + padded[:, k : k + n, k]
    return total


def enlarged(x: Tensor, line: Tensor) -> Tensor:
    """x (B,1,h,w) interpolated to (B,1,8h,8w). line: (8,K) from `interpolation_line`; edges are repeated."""
    b, _, h, w = x.shape
    taps = line.shape[1]
    reach = taps // 2
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    columns = torch.stack([padded[:, 0, :, k : k + w] for k in range(taps)], dim=3)
    wide = torch.matmul(columns, line.transpose(0, 1)).reshape(b, h + 2 * reach, SCALE * w)
    rows = torch.stack([wide[:, k : k + h] for k in range(taps)], dim=2)
    return torch.matmul(line, rows).reshape(b, 1, SCALE * h, SCALE * w)


def consistent(x: Tensor, sensor: Sensor, linear: Tensor, power: float | Tensor = 1.0) -> Tensor:
    """One step. x: radiance (B,1,8h,8w) ≥ 0. linear: `interpolation_line("linear")`. Returns the same shape.

    Unknown pixels ask for nothing, saturated ones only for more.
    """
    ratio = (sensor.y + sensor.noise) / (seen(x, sensor.rows, sensor.columns) + sensor.noise)
    ratio = torch.exp(torch.log(ratio) * power).clamp(1.0 / RATIO_LIMIT, RATIO_LIMIT)
    change = ratio - 1.0
    change = (change + (change.clamp(min=0.0) - change) * sensor.saturated) * sensor.known
    return x * (1.0 + enlarged(change, linear))


def base(sensor: Sensor, cubic: Tensor, linear: Tensor, power: float | Tensor = BASE_POWER) -> Tensor:
    """Radiance (B,1,8h,8w) without any learnt detail: bicubic, made consistent with the sensor in two steps."""
    x = enlarged(sensor.y, cubic).clamp(min=0.0)
    for _ in range(BASE_STEPS):
        x = consistent(x, sensor, linear, power)
    return x
