"""A comparison with float32 on the CPU before a file that was built elsewhere, or without a GPU, is used on a GPU."""

from __future__ import annotations

from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from deeplight.engine.runtime.compare import Difference, difference
from deeplight.engine.runtime.trial import trial_inputs


def compared(artifact: Artifact, backend: Backend, precision: str, threads: int) -> Difference:
    """`backend` and the artifact's float32 ONNX file on one tile of made-up layers."""
    inputs = trial_inputs()
    with OnnxRuntimeBackend.open(artifact, "fp32", "cpu", threads) as reference:
        want = reference.run(inputs)["ntl_hr"]
    return difference("a made-up tile", backend.name, precision, backend.run(inputs)["ntl_hr"], want)
