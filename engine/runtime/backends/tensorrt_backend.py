"""TensorRT: runs a plan that was built for exactly this GPU, version, precision and model.

Device buffers, page-locked host buffers and a CUDA graph are made once for each tile shape; a tile then costs copies
and one graph launch. PyTorch is not needed: memory and streams come from the CUDA runtime (package cuda-python).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends import cuda_index
from deeplight.engine.runtime.backends.base import Array, Backend
from deeplight.engine.runtime.onnx_notes import check_origin
from deeplight.engine.runtime.plans import PlanKey, load_plan

_SHAPES = 16
"""Tile shapes whose buffers and graphs are kept."""


@dataclass
class _Shape:
    """What one tile shape needs. host: NumPy views of page-locked memory; device: addresses. The execution context is
    its own, since a captured graph holds for the shapes of the context that it was captured from."""

    context: Any
    host: dict[str, Array]
    device: dict[str, int]
    graph: Any


class TensorRtBackend(Backend):
    """Runs a plan on one CUDA stream."""

    name: ClassVar[str] = "tensorrt"

    def __init__(self, engine: Any, gpu: int = 0, origins: Mapping[str, str] | None = None) -> None:
        """origins: see Backend.origins."""
        self.device = f"cuda:{gpu}" if gpu else "cuda"
        self._engine, self._gpu, self._origins = engine, gpu, dict(origins or {})
        _call(cudart.cudaSetDevice(gpu))
        self._stream = _call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._shapes: dict[tuple[int, ...], _Shape] = {}

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """See Backend.open. device: "cuda" or, as one of several, "cuda:1"."""
        if device.partition(":")[0] != "cuda":
            raise InputError(f"backend tensorrt runs on cuda, not on {device!r}")
        gpu = cuda_index(device, _gpus(), f"TensorRT {trt.__version__}")
        source = artifact.read(precision)  # the plan's name and sidecar hold its digest
        check_origin(artifact.manifest, source)
        key = key_here(hashlib.sha256(source).hexdigest(), precision, gpu=gpu)
        plan = load_plan(artifact, key)
        _call(cudart.cudaSetDevice(gpu))
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ArtifactError(f"TensorRT {trt.__version__} refuses its own plan: build it again")
        origins = {
            "the GPU": f"{key.gpu}, compute capability {key.capability}",
            "the TensorRT plan": hashlib.sha256(plan).hexdigest()[:16],
        }
        return cls(engine, gpu, origins)

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        shape = inputs["ntl"].shape
        key = (shape[0], shape[2], shape[3])
        try:
            _call(cudart.cudaSetDevice(self._gpu))  # of the calling thread, which is not the one that opened
            if key not in self._shapes:
                while len(self._shapes) >= _SHAPES:
                    self._free(self._shapes.pop(next(iter(self._shapes))))
                self._shapes[key] = self._prepare(*key)
            buffers = self._shapes[key]
            for spec in INPUTS:
                buffers.host[spec.name][...] = inputs[spec.name]
            _call(cudart.cudaGraphLaunch(buffers.graph, self._stream))
            _call(cudart.cudaStreamSynchronize(self._stream))
        except RuntimeError as e:
            raise DeepLightError(f"TensorRT failed on a tile of {key[1]}×{key[2]} LR pixels: {e}") from None
        return [buffers.host[name].copy() for name in outputs]

    def _prepare(self, batch: int, h: int, w: int) -> _Shape:
        """Buffers for a shape, and the graph of copies in, network, copies out."""
        made = _Shape(self._engine.create_execution_context(), {}, {}, None)
        try:
            for spec in (*INPUTS, *OUTPUTS):
                made.host[spec.name] = _page_locked(input_shape(spec, batch, h, w))
                made.device[spec.name] = _call(cudart.cudaMalloc(made.host[spec.name].nbytes))
            made.context.set_optimization_profile_async(self._profile((batch, 1, h, w)), self._stream)
            for spec in INPUTS:
                if not made.context.set_input_shape(spec.name, made.host[spec.name].shape):
                    raise RuntimeError(
                        f"{batch} tiles of {h}×{w} are outside the plan's profile; use other --tiles"
                    )
            for name, address in made.device.items():
                made.context.set_tensor_address(name, address)
            self._enqueue(made)  # the first run allocates and loads, which a capture must not contain
            _call(cudart.cudaStreamSynchronize(self._stream))
            made.graph = self._captured(made)
        except RuntimeError:
            self._free(made)
            raise
        return made

    def _captured(self, shape: _Shape) -> Any:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call(cudart.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue(shape)
        graph = _call(cudart.cudaStreamEndCapture(self._stream))
        launchable = _call(cudart.cudaGraphInstantiate(graph, 0))
        _call(cudart.cudaGraphDestroy(graph))
        return launchable

    def _profile(self, ntl: tuple[int, ...]) -> int:
        """Profile 0 for the tiles that the plan was tuned for, else the last, which takes any."""
        tuned = tuple(self._engine.get_tensor_profile_shape("ntl", 0)[1])
        return 0 if tuned == ntl else int(self._engine.num_optimization_profiles) - 1

    def _enqueue(self, shape: _Shape) -> None:
        for spec in INPUTS:
            array, address = shape.host[spec.name], shape.device[spec.name]
            kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
            _call(cudart.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))
        if not shape.context.execute_async_v3(self._stream):
            raise RuntimeError("the network could not be enqueued")
        for spec in OUTPUTS:
            array, address = shape.host[spec.name], shape.device[spec.name]
            kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            _call(cudart.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def _free(self, shape: _Shape) -> None:
        if shape.graph is not None:
            _call(cudart.cudaGraphExecDestroy(shape.graph))
        for address in shape.device.values():
            _call(cudart.cudaFree(address))
        for array in shape.host.values():
            _call(cudart.cudaFreeHost(array.ctypes.data))

    def versions(self) -> dict[str, str]:
        """TensorRT's version."""
        return {"tensorrt": str(trt.__version__)}

    def origins(self) -> dict[str, str]:
        """See Backend.origins."""
        return dict(self._origins)

    def close(self) -> None:
        """Free everything on the device."""
        _call(cudart.cudaSetDevice(self._gpu))
        while self._shapes:
            self._free(self._shapes.popitem()[1])
        _call(cudart.cudaStreamDestroy(self._stream))


def _gpus() -> int:
    """How many GPUs there are; none, too, where CUDA has no driver."""
    try:
        return int(_call(cudart.cudaGetDeviceCount()))
    except RuntimeError:
        return 0


def key_here(model: str, precision: str, *, gpu: int = 0, **changes: Any) -> PlanKey:
    """The key of a plan for one of this machine's GPUs, the first unless given. Raises InputError where it is not."""
    try:
        properties = _call(cudart.cudaGetDeviceProperties(gpu))
    except RuntimeError as e:
        raise InputError(f"TensorRT finds no CUDA device ({e}): use another --backend") from None
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    capability = f"{properties.major}.{properties.minor}"
    return PlanKey(name.rstrip("\0"), capability, str(trt.__version__), precision, model, **changes)


def _call(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call. Raises RuntimeError with CUDA's name of the error."""
    code, *values = result
    if int(code) != 0:
        raise RuntimeError(f"CUDA error {getattr(code, 'name', code)}")
    return values[0] if len(values) == 1 else tuple(values)


def _page_locked(shape: tuple[int, ...]) -> Array:
    """A float32 array in memory that the device can read by itself."""
    count = int(np.prod(shape))
    address = _call(cudart.cudaMallocHost(4 * count))
    view = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (count,))
    return view.reshape(shape)
