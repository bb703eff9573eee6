"""Radiance conservation on the device: the definition of run.conserve, for tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.core.forms import Conserving
from deeplight.engine.network.consistency import LEAST_NOISE
from deeplight.kernels import Sensor
from deeplight.kernels.agree.reference import RATIO_LIMIT, change, enlarged, seen


def conserved(radiance: Tensor, sensor: Sensor, line: Tensor, how: Conserving) -> tuple[Tensor, Tensor]:
    """Radiance (1, 1, 8h, 8w) in agreement with the lights, and the factor that made it so."""
    x = radiance + how.even_share * enlarged(sensor.y, line)
    total = torch.ones_like(x)
    for power in how.powers:
        factor = 1 + enlarged(change(x, sensor, power), line)
        x, total = x * factor, total * factor
    factor = _balance(x, sensor, line, how.around)
    return x * factor, total * factor


def _balance(x: Tensor, sensor: Sensor, line: Tensor, around: int) -> Tensor:
    counts = sensor.known * (1 - sensor.saturated)
    there = _around(seen(x, sensor.rows, sensor.columns) * counts, around) + LEAST_NOISE
    ratio = (_around(sensor.y * counts, around) + LEAST_NOISE) / there
    return 1 + enlarged((ratio.clamp(1 / RATIO_LIMIT, RATIO_LIMIT) - 1) * counts, line)


def _around(values: Tensor, reach: int) -> Tensor:
    """Sums over the square of `reach` pixels to each side; edges are repeated."""
    for pad, axis in (((0, 0, reach, reach), 2), ((reach, reach, 0, 0), 3)):
        padded, length = F.pad(values, pad, mode="replicate"), values.shape[axis]
        values = sum(
            (padded.narrow(axis, k, length) for k in range(1, 2 * reach + 1)), padded.narrow(axis, 0, length)
        )
    return values
