"""A made-up tile on which two ways to compute the same are compared."""

from __future__ import annotations

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import INPUTS, input_shape

TILE = (1, 24, 20)
"""Batch and LR sides: large enough for every operation, small enough for a moment of a CPU."""


def trial_inputs() -> dict[str, Floats]:
    """Inputs of one tile in physical units, the same every time: lights in a few places, all layers there."""
    rng = np.random.default_rng(7)
    shapes = {s.name: input_shape(s, *TILE) for s in INPUTS}
    inputs = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    inputs["ntl"] = rng.gamma(0.4, 12.0, shapes["ntl"]).astype(np.float32)
    inputs["dmo"] = rng.uniform(0.02, 0.4, shapes["dmo"]).astype(np.float32)
    inputs["dem"] = rng.uniform(0.0, 500.0, shapes["dem"]).astype(np.float32)
    inputs["psf"][:] = 1.2
    inputs["limits"][:] = (-1.0, 0.05)
    return inputs
