"""A comparison with float32 on the CPU before a file that was built elsewhere, or without a GPU, is used on a GPU."""

from __future__ import annotations

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from deeplight.engine.runtime.compare import Difference, difference

TILE = (1, 24, 20)
"""Batch and LR sides: large enough for every operation, small enough for a moment of a CPU."""


def compared(artifact: Artifact, backend: Backend, precision: str, threads: int) -> Difference:
    """`backend` and the artifact's float32 ONNX file on one tile of made-up layers."""
    inputs = trial_inputs()
    with OnnxRuntimeBackend.open(artifact, "fp32", "cpu", threads) as reference:
        want = reference.run(inputs)["ntl_hr"]
    return difference("a made-up tile", backend.name, precision, backend.run(inputs)["ntl_hr"], want)


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
