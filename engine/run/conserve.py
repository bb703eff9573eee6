"""Radiance conservation: `sensor.consistent` repeated, so that the output seen through the blur is the input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.run.sensor import STEP_REACH, Sensor, consistent, enlarged

Array = NDArray[np.float32]

POWERS = (4.68, 1.01, 3.15, 1.13, 2.01, 1.42)
"""Exponents of the steps: the inverse roots of the Chebyshev polynomial of degree 6 on [0.2, 1], large and small in
turn, so that what a large one makes too much of the next takes back."""
REACH = len(POWERS) * STEP_REACH + 1
"""LR pixels around a core that decide its pixels: those of the steps, and one for the even share."""
EVEN_SHARE = 1e-3
"""Part of the LR value that is spread over its surroundings first: a step multiplies, and cannot light what is 0."""


def conserve_radiance(
    radiance: Array, inputs: Mapping[str, Array], core: Window, window: Window
) -> tuple[Array, Array]:
    """Radiance (8h, 8w) of a core in agreement with the lights, and the factor (8h, 8w) that made it so.

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
    own = core.scaled(SCALE).slices_in(region.scaled(SCALE))
    return x[own], total[own]
