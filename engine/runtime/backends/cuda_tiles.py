"""Tiles through a serialised engine on a GPU: what TensorRT and TensorRT for RTX have in common.

Device buffers, page-locked host buffers and an execution context are made once for each tile shape; a tile then costs
copies and a launch. PyTorch is not needed: memory and streams come from the CUDA runtime (package cuda-python). Where
it is there, with Triton, tiles take the device path instead (`resident`): their pixels go up as they are in the files.
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from cuda.bindings import runtime as cudart

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape
from deeplight.engine.runtime.backends import cuda_index, installed
from deeplight.engine.runtime.backends.base import Backend, Resident
from deeplight.engine.runtime.engines import Gpu
from deeplight.engine.runtime.tensorrt_log import log_of

if TYPE_CHECKING:
    from deeplight.engine.runtime.backends.engine_compute import EngineCompute

_SHAPES = 16
"""Tile shapes whose buffers and contexts are kept."""


@dataclass
class Buffers:
    """What one tile shape needs. host: NumPy views of page-locked memory; device: addresses; scratch: address of the
    context's working memory. The execution context is its own, since what is captured of it holds for its shapes.
    graph: the captured work, or None where the library captures by itself."""

    context: Any
    host: dict[str, Floats]
    device: dict[str, int]
    scratch: int = 0
    graph: Any = None


class EngineBackend(Backend):
    """Runs an engine on one CUDA stream."""

    library: ClassVar[str]
    """The library's name in messages."""
    captures: ClassVar[bool]
    """Whether the work of a shape is captured here; else the library does it, or nobody."""

    def __init__(self, trt: Any, engine: Any, gpu: int = 0, origins: Mapping[str, str] | None = None) -> None:
        """trt: the module that the engine is of. origins: see Backend.origins."""
        self.device = f"cuda:{gpu}" if gpu else "cuda"
        self._engine, self._gpu, self._origins = engine, gpu, dict(origins or {})
        self._log = log_of(trt)
        call(cudart.cudaSetDevice(gpu))
        self._stream = call(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._shapes: dict[tuple[int, ...], Buffers] = {}
        self._compute: EngineCompute | None = None
        self.compiles = has_device_path()
        # the last profile takes any shape up to its largest
        largest = engine.get_tensor_profile_shape("ntl", int(engine.num_optimization_profiles) - 1)[2]
        self.largest_tile = int(largest[2]), int(largest[3])

    @abstractmethod
    def _context(self) -> Any:
        """A new execution context whose working memory is set by `_prepare`."""

    @abstractmethod
    def _profile(self, ntl: tuple[int, ...]) -> int:
        """The optimisation profile for an NTL tensor of this shape."""

    def _run(self, inputs: Mapping[str, Floats], outputs: Sequence[str]) -> list[Floats]:
        shape = inputs["ntl"].shape
        key = (shape[0], shape[2], shape[3])
        try:
            call(cudart.cudaSetDevice(self._gpu))  # of the calling thread, which is not the one that opened
            if key not in self._shapes:
                while len(self._shapes) >= _SHAPES:
                    self._free(self._shapes.pop(next(iter(self._shapes))))
                self._shapes[key] = self._prepare(*key)
            made = self._shapes[key]
            for spec in INPUTS:
                made.host[spec.name][...] = inputs[spec.name]
            if made.graph is None:
                self._enqueue(made)
            else:
                call(cudart.cudaGraphLaunch(made.graph, self._stream))
            call(cudart.cudaStreamSynchronize(self._stream))
        except RuntimeError as e:
            raise DeepLightError(
                f"{self.library} failed on a tile of {key[1]}×{key[2]} LR pixels: {e}"
            ) from None
        return [made.host[name].copy() for name in outputs]

    def _prepare(self, batch: int, h: int, w: int) -> Buffers:
        """Buffers for a shape, and the graph of copies in, network, copies out where it is captured here."""
        context, size = self.fitted(batch, h, w, self._stream)
        made = Buffers(context, {}, {})
        try:
            for spec in (*INPUTS, *OUTPUTS):
                made.host[spec.name] = _page_locked(input_shape(spec, batch, h, w))
                made.device[spec.name] = call(cudart.cudaMalloc(made.host[spec.name].nbytes))
            for name, address in made.device.items():
                made.context.set_tensor_address(name, address)
            if size:
                made.scratch = call(cudart.cudaMalloc(size))
                made.context.set_device_memory(made.scratch, size)
            self._enqueue(made)  # the first run compiles and loads, which a capture must not contain
            call(cudart.cudaStreamSynchronize(self._stream))
            if self.captures:
                made.graph = self._captured(made)
        except RuntimeError:
            self._free(made)
            raise
        return made

    def fitted(self, batch: int, h: int, w: int, stream: int) -> tuple[Any, int]:
        """A new execution context for a shape, which has no memory yet, and the bytes that it needs to work in. Raises
        RuntimeError where the library refuses."""
        self._log.clear()
        context = self._context()
        if context is None:
            raise RuntimeError(f"no execution context: {'; '.join(self._log.errors)}")
        context.set_optimization_profile_async(self._profile((batch, 1, h, w)), stream)
        for spec in INPUTS:
            if not context.set_input_shape(spec.name, input_shape(spec, batch, h, w)):
                raise RuntimeError(
                    f"{batch} tiles of {h}×{w} are outside the engine's profile; use other `tiles`"
                )
        # by default a context takes what the largest tile of its profile would need, which no GPU has
        return context, context.update_device_memory_size_for_shapes()

    def execute(self, context: Any, stream: int) -> None:
        """Put the network on a stream. Raises RuntimeError also where the library only logs an error: it was seen to go
        on then, with zeros for a result."""
        self._log.clear()
        if not context.execute_async_v3(stream) or self._log.errors:
            raise RuntimeError(f"the network could not be enqueued {'; '.join(self._log.errors)}".strip())

    def compiled(self, stream: int) -> None:
        """A shape was put on a stream for the first time, for which the library may have compiled kernels."""

    def _captured(self, shape: Buffers) -> Any:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue(shape)
        graph = call(cudart.cudaStreamEndCapture(self._stream))
        launchable = call(cudart.cudaGraphInstantiate(graph, 0))
        call(cudart.cudaGraphDestroy(graph))
        return launchable

    def _enqueue(self, shape: Buffers) -> None:
        """Copies in, network, copies out. Raises RuntimeError as `execute`."""
        for spec in INPUTS:
            array, address = shape.host[spec.name], shape.device[spec.name]
            kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
            call(cudart.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))
        self.execute(shape.context, self._stream)
        for spec in OUTPUTS:
            array, address = shape.host[spec.name], shape.device[spec.name]
            kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
            call(cudart.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def _free(self, shape: Buffers) -> None:
        """Errors are passed over: a device that has failed fails here again, and has said why."""
        if shape.graph is not None:
            cudart.cudaGraphExecDestroy(shape.graph)
        shape.context = None  # before the memory that it works in
        for address in (*shape.device.values(), *([shape.scratch] if shape.scratch else [])):
            cudart.cudaFree(address)
        for array in shape.host.values():
            cudart.cudaFreeHost(array.ctypes.data)

    def origins(self) -> dict[str, str]:
        """The GPU and the files made for it, by name: they decide bits besides versions and the model."""
        return dict(self._origins)

    def resident(self) -> Resident | None:
        """The engine for the device path, where PyTorch and Triton are installed, which do all else there."""
        if not has_device_path():
            return None
        from deeplight.engine.runtime.backends.engine_compute import EngineCompute
        from deeplight.engine.runtime.cuda_device import CudaDevice, current_stream, device_of

        place = device_of(self._gpu)
        if self._compute is None:
            self._compute = EngineCompute(self, place, lambda: current_stream(place))
        device = CudaDevice(place)
        return Resident(
            device,
            self._compute,
            captured=self.captures,
            compiling=self.compiling,
            keep=self._compute.keep,
        )

    def close(self) -> None:
        """Free everything on the device, as `_free`."""
        if self._compute is not None:
            self._compute.close()
        cudart.cudaSetDevice(self._gpu)
        while self._shapes:
            self._free(self._shapes.popitem()[1])
        cudart.cudaStreamDestroy(self._stream)


def has_device_path() -> bool:
    """Whether PyTorch, which finds a GPU, and Triton are there: for what surrounds the network on the device path."""
    if not installed("torch", "cuda") or find_spec("triton") is None:
        return False
    from deeplight.engine.runtime.cuda_device import available

    return available()


def path_versions(gpu: int) -> dict[str, str]:
    """What decides bits on the device path beside the engine; nothing without it."""
    if not has_device_path():
        return {}
    from deeplight.engine.runtime.cuda_device import device_of, kernel_versions

    return kernel_versions(device_of(gpu))


def gpu_number(device: str, backend: str, runtime: str) -> int:
    """Number of the GPU that "cuda" or "cuda:1" means. runtime: name and version of the library. Raises InputError
    where the device is none, or there is no such GPU."""
    if device.partition(":")[0] != "cuda":
        raise InputError(f"backend {backend} runs on cuda, not on {device!r}")
    return cuda_index(device, _gpus(), runtime)


def gpu_properties(number: int, runtime: str) -> Gpu:
    """What a GPU is. runtime: see gpu_number. Raises InputError where there is none of this number."""
    try:
        properties = call(cudart.cudaGetDeviceProperties(number))
        driver = int(call(cudart.cudaDriverGetVersion()))
    except RuntimeError as e:
        raise InputError(f"{runtime} finds no CUDA device ({e}): use another `backend`") from None
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}", driver)


def opened(trt: Any, plan: bytes, number: int, what: str) -> Any:
    """The engine of a plan, on a GPU. what: it is, for the message. Raises ArtifactError with what the library says."""
    log = log_of(trt)
    log.clear()
    call(cudart.cudaSetDevice(number))
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(
            f"{what} cannot be opened: {'; '.join(log.errors) or 'it says nothing'}; build it again"
        )
    return engine


def _gpus() -> int:
    """How many GPUs there are; none, too, where CUDA has no driver."""
    try:
        return int(call(cudart.cudaGetDeviceCount()))
    except RuntimeError:
        return 0


def wait(stream: int) -> None:
    """Block until everything on a stream is done."""
    call(cudart.cudaStreamSynchronize(stream))


def call(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call. Raises RuntimeError with CUDA's name of the error."""
    code, *values = result
    if int(code) != 0:
        raise RuntimeError(f"CUDA error {getattr(code, 'name', code)}")
    return values[0] if len(values) == 1 else tuple(values)


def _page_locked(shape: tuple[int, ...]) -> Floats:
    """A float32 array in memory that the device can read by itself."""
    count = int(np.prod(shape))
    address = call(cudart.cudaMallocHost(4 * count))
    view = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (count,))
    return view.reshape(shape)
