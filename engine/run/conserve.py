"""Radiance conservation: `sensor.consistent` repeated, so that the output seen through the blur is the input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.run.sensor import (
    BLUR_REACH,
    LEAST_NOISE,
    RATIO_LIMIT,
    STEP_REACH,
    Sensor,
    blur_weights,
    consistent,
    enlarged,
    seen,
)

POWERS = (4.68, 1.01, 3.15, 1.13, 2.01, 1.42)
"""Exponents of the steps: the inverse roots of the Chebyshev polynomial of degree 6 on [0.2, 1], large and small in
turn, so that what a large one makes too much of the next takes back."""
AROUND = 4
"""LR pixels to each side over which light is balanced at the end. Lights sharper than the blur allows leave light in
the dark beside them, which no step takes away: sums of 32² LR pixels of a real raster were off by 4 % without it."""
REACH = len(POWERS) * STEP_REACH + (STEP_REACH + AROUND) + 1
"""LR pixels around a core that decide its pixels: those of the steps, of the balance, and one for the even share."""
EVEN_SHARE = 1e-3
"""Part of the LR value that is spread over its surroundings first: a step multiplies, and cannot light what is 0."""


def conserve_radiance(
    radiance: Floats, inputs: Mapping[str, Floats], core: Window, window: Window
) -> tuple[Floats, Floats, Floats]:
    """Radiance (8h, 8w) of a core in agreement with the lights, the factor (8h, 8w) that made it so, and what the
    sensor would see of it (h, w).

    radiance: (8H, 8W) of `window`, ≥ 0. inputs: the model's, of `window`, batch of 1. core, window: in LR pixels;
    `window` holds what there is of the scene within REACH around the core. Nothing farther has influence, so tiles
    agree. Values that are not finite stay so.
    """
    region = core.grown(REACH).shared_with(window)
    rows, cols = region.slices_in(window)
    ntl, valid = inputs["ntl"][0, 0, rows, cols], inputs["ntl_valid"][0, 0, rows, cols]
    sensor = Sensor.of(ntl, valid, inputs["psf"][0], inputs["limits"][0])
    hr_rows, hr_cols = region.scaled(SCALE).slices_in(window.scaled(SCALE))
    x = radiance[hr_rows, hr_cols] + np.float32(EVEN_SHARE) * enlarged(sensor.y)
    total = np.ones_like(x)
    with np.errstate(invalid="ignore"):
        for power in POWERS:
            x, factor = consistent(x, sensor, power)
            total *= factor
        factor = _balance(x, sensor)
        x, total = x * factor, total * factor
        found = seen(x, sensor.rows, sensor.columns)
    own = core.scaled(SCALE).slices_in(region.scaled(SCALE))
    return x[own], total[own], found[core.slices_in(region)]


def seen_of(radiance: Floats, inputs: Mapping[str, Floats], core: Window, window: Window) -> Floats:
    """What the sensor would see (h, w) of the core of a radiance (8H, 8W) over `window`. inputs: the model's."""
    region = core.grown(BLUR_REACH).shared_with(window)
    rows, columns = (blur_weights(max(float(fwhm), 0.0)) for fwhm in inputs["psf"][0])
    with np.errstate(invalid="ignore"):
        found = seen(radiance[region.scaled(SCALE).slices_in(window.scaled(SCALE))], rows, columns)
    return found[core.slices_in(region)]


def _balance(x: Floats, sensor: Sensor) -> Floats:
    """The factor (8h, 8w) that gives the surroundings of each LR pixel the light that was measured there; saturated and
    unknown pixels do not count, and are left as they are."""
    counts = sensor.known * (1 - sensor.saturated)
    least = np.float32(LEAST_NOISE)
    measured = _around(sensor.y * counts) + least
    ratio = measured / (_around(seen(x, sensor.rows, sensor.columns) * counts) + least)
    limit = np.float32(RATIO_LIMIT)
    return np.float32(1) + enlarged((np.clip(ratio, 1 / limit, limit) - np.float32(1)) * counts)


def _around(values: Floats) -> Floats:
    """Sums (h, w) over the square of AROUND pixels to each side; edges are repeated."""
    for axis in (0, 1):
        length = values.shape[axis]
        padded = np.pad(values, [(AROUND, AROUND) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        parts = (padded.take(range(k, k + length), axis) for k in range(2 * AROUND + 1))
        values = np.asarray(sum(parts), np.float32)
    return values
