"""Plain PyTorch definition of the step towards what the sensor saw. Everything faster is tested against it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.kernels.interpolation import SCALE

BLUR_REACH = 3
"""How many LR pixels to each side of an LR pixel the sensor model gathers light from. At a FWHM of 2.5 LR pixels 0.3 %
of the light comes from farther away; since the weights sum to 1, it is added to them."""
RATIO_LIMIT = 4.0
STEPS = 2
"""Of the base. Over-relaxed, two with the squared ratio bring as much as four plain ones."""


class Sensor(NamedTuple):
    """What the sensor saw, and its properties. y: radiance (B,1,h,w) ≥ 0 with holes filled. known: (B,1,h,w), 1 where y
    was measured.

    saturated: (B,1,h,w), 1 where y is only a lower bound. rows, columns: weights of the blur, (B,7,8) each.
    noise: (B,1,1,1), in the unit of y.
    """

    y: Tensor
    known: Tensor
    saturated: Tensor
    rows: Tensor
    columns: Tensor
    noise: Tensor


def seen(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A x: radiance (B,1,8h,8w) as the sensor sees it, (B,1,h,w). rows, columns: (B,7,8), see Sensor; or as many
    weights of any odd number of blocks.

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
    """Sum what blocks receive: (B,n,m). parts: (B,n,7,m); [:, i, k] is what block i gives to block i − (k − 3)."""
    b, n, size, m = parts.shape
    reach = size // 2
    flat = parts.reshape(b, 1, n, size * m)
    padded = F.pad(flat, (0, 0, reach, reach), mode="replicate").reshape(b, n + 2 * reach, size, m)
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


def change(x: Tensor, sensor: Sensor, power: float | Tensor) -> Tensor:
    """The share (B,1,h,w) by which x should grow: 0 where y is unknown, at least 0 where it is saturated."""
    ratio = (sensor.y + sensor.noise) / (seen(x, sensor.rows, sensor.columns) + sensor.noise)
    return asked(torch.exp(torch.log(ratio) * power), sensor)


def asked(ratio: Tensor, sensor: Sensor) -> Tensor:
    """As `change`. ratio: of what the sensor saw to what it would have seen, (B,1,h,w)."""
    more = ratio.clamp(1.0 / RATIO_LIMIT, RATIO_LIMIT) - 1.0
    return (more + (more.clamp(min=0.0) - more) * sensor.saturated) * sensor.known


def mixture(x: Tensor, start: Tensor, share: Tensor, linear: Tensor) -> Tensor:
    """As much of x (B,1,8h,8w) as `share` (B,1,h,w) says, and the rest of `start`. linear: see `agree`."""
    return start + (x - start) * enlarged(share, linear)


def agree(x: Tensor, sensor: Sensor, linear: Tensor, power: float | Tensor = 1.0) -> Tensor:
    """x · (1 + change on the HR grid). linear: `interpolation_line(SCALE, "linear")`."""
    return x * (1.0 + enlarged(change(x, sensor, power), linear))


def base(sensor: Sensor, cubic: Tensor, linear: Tensor, power: float | Tensor) -> Tensor:
    """y, enlarged and bounded below, after STEPS steps. cubic: `interpolation_line(SCALE, "cubic")`."""
    x = enlarged(sensor.y, cubic).clamp(min=0.0)
    for _ in range(STEPS):
        x = agree(x, sensor, linear, power)
    return x
