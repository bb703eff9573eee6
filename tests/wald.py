"""Wald's protocol: lights are the truth, and what a sensor sees of them is the input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.spec import SCALE
from deeplight.train.synth.degrade import sensor_matrix

Floats = NDArray[np.float32]


def coarsened(truth: Floats, fwhm: tuple[float, float]) -> tuple[Floats, Floats]:
    """The truth cut to whole LR pixels (8h, 8w), and what a sensor sees of it (h, w). fwhm: of its blur along rows and
    columns, in LR pixels."""
    h, w = (n // SCALE for n in truth.shape)
    truth = truth[: h * SCALE, : w * SCALE]
    return truth, np.asarray(sensor_matrix(fwhm[0], h) @ truth @ sensor_matrix(fwhm[1], w).T, np.float32)
