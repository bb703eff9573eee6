"""--conserve-radiance on the device: the definition of run.conserve, for tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.core.forms import Conserving
from deeplight.engine.network.consistency import blur_weights
from deeplight.engine.network.model import LEAST_NOISE, UNKNOWN_NOISE
from deeplight.kernels import Sensor
from deeplight.kernels.agree.reference import RATIO_LIMIT, enlarged, seen


def sensor_of(ntl: Tensor, valid: Tensor, psf: Tensor, limits: Tensor) -> Sensor:
    """What the sensor saw and how, from inputs as in spec.INPUTS, batch of 1: see run.sensor.Sensor.of."""
    level, noise = limits[:, :1, None, None], limits[:, 1:, None, None]
    known = (valid != 0).to(ntl.dtype)
    saturated = ((ntl >= level) & (level > 0)).to(ntl.dtype) * known
    noise = torch.where(noise >= 0, noise, torch.full_like(noise, UNKNOWN_NOISE)).clamp(min=LEAST_NOISE)
    fwhm = psf.clamp(min=0.0)
    rows, columns = blur_weights(fwhm[:, 0]), blur_weights(fwhm[:, 1])
    return Sensor(ntl.clamp(min=0.0) * known, known, saturated, rows, columns, noise)


def conserved(radiance: Tensor, sensor: Sensor, line: Tensor, how: Conserving) -> tuple[Tensor, Tensor]:
    """Radiance (1, 1, 8h, 8w) in agreement with the lights, and the factor that made it so."""
    x = radiance + how.even_share * enlarged(sensor.y, line)
    total = torch.ones_like(x)
    for power in how.powers:
        ratio = (sensor.y + sensor.noise) / (seen(x, sensor.rows, sensor.columns) + sensor.noise)
        change = torch.pow(ratio, power).clamp(1 / RATIO_LIMIT, RATIO_LIMIT) - 1
        change = torch.where(sensor.saturated != 0, change.clamp(min=0.0), change) * sensor.known
        factor = 1 + enlarged(change, line)
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
