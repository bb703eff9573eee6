"""Model folders with engines that the real builder of TensorRT for RTX made, and a stand-in for running them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from deeplight.engine.core.spec import OUTPUTS
from deeplight.engine.runtime.artifact import Draft
from deeplight.engine.runtime.manifest import WEIGHTS
from deeplight.export.to_tensorrt_rtx import put_engines
from tests.engine.analytic import manifest, onnx_bytes, weights
from tests.export.fake_cuda import Arrays, Context, Engine, Runtime


def write_with_engines(folder: Path, model: bytes | None = None) -> Path:
    """Write the folder of the analytic model, or of another ONNX file, with both engines."""
    described = manifest()
    with Draft(folder) as draft:
        draft.put(WEIGHTS, weights())
        draft.put("model.onnx", model or onnx_bytes())
        engines = put_engines(draft, dict(described.precisions), ["fp32"])
        return draft.commit(dataclasses.replace(described, engines=engines))


def by_onnx(model: bytes) -> Any:
    """A function that computes what an engine of the ONNX file computes."""
    session = ort.InferenceSession(model)

    def compute(inputs: Arrays) -> Arrays:
        names = [s.name for s in OUTPUTS]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return compute


class Kernels:
    """Stands for IRuntimeCache; the kernels of a shape are one byte."""

    def __init__(self) -> None:
        self.content = b""
        self.refuses = False

    def serialize(self) -> bytes:
        return self.content

    def deserialize(self, blob: bytes) -> bool:
        if not self.refuses:
            self.content = blob
        return not self.refuses


class RuntimeConfig:
    """Stands for IRuntimeConfig."""

    __slots__ = (
        "_cache",
        "_strategy",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    )

    def __init__(self) -> None:
        self._cache = Kernels()

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def create_runtime_cache(self) -> Kernels:
        return self._cache

    def set_runtime_cache(self, cache: Kernels) -> bool:
        return cache is self._cache

    def get_runtime_cache(self) -> Kernels:
        return self._cache


class RtxEngine(Engine):
    """Stands for ICudaEngine of TensorRT for RTX: one profile, kernels compiled when a shape is first run."""

    num_optimization_profiles = 1

    def __init__(self, runtime: Runtime, compute: Any) -> None:
        super().__init__(runtime, (1, 96, 96), compute=compute)
        self.configs: list[RuntimeConfig] = []

    def create_runtime_config(self) -> RuntimeConfig:
        self.configs.append(RuntimeConfig())
        return self.configs[-1]

    def create_execution_context(self, how: RuntimeConfig) -> Context:
        how.get_runtime_cache().content += b"k"
        return super().create_execution_context(how)


def zeros(inputs: Arrays) -> Arrays:
    """The results of an engine for Turing that an older builder made."""
    b, _, h, w = inputs["ntl"].shape
    return {
        s.name: np.zeros((b, s.channels, *((8 * h, 8 * w) if s.hr else (h, w))), np.float32) for s in OUTPUTS
    }
