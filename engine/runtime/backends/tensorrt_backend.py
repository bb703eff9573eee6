"""TensorRT: runs a plan that was built for exactly this GPU, version, precision and model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import tensorrt as trt

from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.cuda_tiles import (
    EngineBackend,
    gpu_number,
    gpu_properties,
    opened,
    path_versions,
)
from deeplight.engine.runtime.onnx_notes import check_origin
from deeplight.engine.runtime.plans import PlanKey, load_plan


class TensorRtBackend(EngineBackend):
    """Runs a plan, through a CUDA graph of each tile shape."""

    name: ClassVar[str] = "tensorrt"
    library: ClassVar[str] = "TensorRT"
    captures: ClassVar[bool] = True

    def __init__(self, engine: Any, gpu: int = 0, origins: Mapping[str, str] | None = None) -> None:
        super().__init__(trt, engine, gpu, origins)

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Load the plan for this GPU, see Backend.open. device: "cuda" or, as one of several, "cuda:1"."""
        gpu = gpu_number(device, cls.name, f"TensorRT {trt.__version__}")
        source = artifact.read(precision)  # the plan's name and sidecar hold its digest
        check_origin(artifact.manifest, source)
        key = key_here(hashlib.sha256(source).hexdigest(), precision, gpu=gpu)
        plan = load_plan(artifact, key)
        origins = {
            "the GPU": f"{key.gpu}, compute capability {key.capability}",
            "the TensorRT plan": hashlib.sha256(plan).hexdigest()[:16],
        }
        return cls(opened(trt, plan, gpu, f"the plan of TensorRT {trt.__version__}"), gpu, origins)

    def _context(self) -> Any:
        return self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _profile(self, ntl: tuple[int, ...]) -> int:
        """Profile 0 for the tiles that the plan was tuned for, else the last, which takes any."""
        tuned = tuple(self._engine.get_tensor_profile_shape("ntl", 0)[1])
        return 0 if tuned == ntl else int(self._engine.num_optimization_profiles) - 1

    def versions(self) -> dict[str, str]:
        """TensorRT's version, and on the device path of what is around it."""
        return {"tensorrt": str(trt.__version__)} | path_versions(self._gpu)


def key_here(model: str, precision: str, *, gpu: int = 0, **changes: Any) -> PlanKey:
    """The key of a plan for one of this machine's GPUs, the first unless given. Raises InputError where it is not."""
    found = gpu_properties(gpu, "TensorRT")
    return PlanKey(found.name, found.capability, str(trt.__version__), precision, model, **changes)
