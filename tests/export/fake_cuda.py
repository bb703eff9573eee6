"""A stand-in for what only a GPU can do: `cuda.bindings.runtime` and an engine of TensorRT.

It uses host memory, makes calls in order, and replays graphs. By default the engine doubles: `ntl_hr` is NTL repeated
8×8 and doubled, the other outputs are zero.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape

Arrays = dict[str, NDArray[np.float32]]
Card = tuple[str, int, int]
"""A GPU: name, major and minor compute capability."""
CARDS: tuple[Card, ...] = (("NVIDIA H200", 9, 0), ("NVIDIA L4", 8, 9))


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101


class Runtime(types.ModuleType):
    """calls: name → how often. cards: the GPUs. current: the one in use. driver: its version."""

    cudaStreamNonBlocking = 1

    def __init__(self, memory: int = 1 << 30, cards: tuple[Card, ...] = CARDS) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: dict[str, int] = {}
        self.cards, self.current, self.driver = cards, 0, 13000
        self.memory, self.blocks = memory, {}
        self.recording: list[Callable[[], None]] | None = None
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def submit(self, work: Callable[[], None]) -> None:
        """What a stream does with a call: record it during a capture, else make it."""
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()

    def _allocate(self, name: str, size: int) -> tuple[Any, ...]:
        self._count(name)
        if size > self.memory:
            return (Error.cudaErrorMemoryAllocation, None)
        self.memory -= size
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = (block, size)
        return (Error.cudaSuccess, ctypes.addressof(block))

    def _release(self, name: str, address: int) -> tuple[Any, ...]:
        self._count(name)
        self.memory += self.blocks.pop(address)[1]
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        assert self.recording is None, "an allocation inside a capture"
        return self._allocate("cudaMalloc", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMallocHost", size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._release("cudaFree", address)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._release("cudaFreeHost", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess, 77)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert self.recording is None and stream == 77
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        self.submit(lambda: ctypes.memmove(to, source, size) and None)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self.recording = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        graph, self.recording = self.recording, None
        return (Error.cudaSuccess, graph)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess, list(graph))

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        self._count("cudaGraphExecDestroy")
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Any, ...]:
        self._count("cudaGraphLaunch")
        for work in graph:
            work()
        return (Error.cudaSuccess,)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (Error.cudaSuccess, len(self.cards)) if self.cards else (Error.cudaErrorNoDevice, None)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return (Error.cudaSuccess, self.driver)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if device >= len(self.cards):
            return (Error.cudaErrorInvalidDevice,)
        self.current = device
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        if device >= len(self.cards):
            return (Error.cudaErrorInvalidDevice, None)
        name, major, minor = self.cards[device]
        found = types.SimpleNamespace(name=name.encode() + b"\0\0", major=major, minor=minor)
        return (Error.cudaSuccess, found)


def doubled(inputs: Arrays) -> Arrays:
    b, _, h, w = inputs["ntl"].shape
    found = {s.name: np.zeros(input_shape(s, b, h, w), np.float32) for s in OUTPUTS}
    found["ntl_hr"] += np.repeat(np.repeat(2 * inputs["ntl"], 8, 2), 8, 3)
    return found


class Context:
    """An execution context with working memory from the caller."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._engine.profiles.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return shape[-1] <= self._engine.largest or len(shape) == 2

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self._shapes) == {s.name for s in INPUTS}
        return 1000

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size == 1000
        self._scratch = memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert set(self._addresses) == {s.name for s in (*INPUTS, *OUTPUTS)}
        assert self._scratch in self._engine.runtime.blocks or (self._engine.given_memory and self._scratch)
        self._engine.streams.add(stream_handle)
        if self._engine.says:
            self._engine.log.log(self._engine.log.Severity.ERROR, self._engine.says)
        self._engine.runtime.submit(self._compute)
        return True

    def _compute(self) -> None:
        self._engine.ran += 1
        found = self._engine.compute({n: self._read(n, shape) for n, shape in self._shapes.items()})
        for name, values in found.items():
            data = values.astype(np.float32).tobytes()
            ctypes.memmove(self._addresses[name], data, len(data))

    def _read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        size = 4 * int(np.prod(shape))
        return np.frombuffer(ctypes.string_at(self._addresses[name], size), np.float32).reshape(shape)


class Engine:
    """tile: what profile 0 was tuned for, (batch, h, w). compute: what it is in place of a network. ran: how often.
    says: an error that it logs in `log` and goes on. given_memory: it works in memory that is not of the runtime.
    streams: that it was put on."""

    num_optimization_profiles = 2

    def __init__(
        self,
        runtime: Runtime,
        tile: tuple[int, int, int],
        largest: int = 8 * 512,
        compute: Callable[[Arrays], Arrays] = doubled,
    ) -> None:
        self.runtime, self.tile, self.largest, self.compute = runtime, tile, largest, compute
        self.profiles: list[int] = []
        self.ran, self.says = 0, ""
        self.given_memory = False
        self.streams: set[int] = set()
        self.log: Any = None

    def create_execution_context(self, strategy: Any) -> Context:
        return Context(self)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> tuple[tuple[int, ...], ...]:
        b, h, w = self.tile
        if profile_index < self.num_optimization_profiles - 1:
            return ((b, 1, h, w),) * 3
        side = self.largest // 8
        return (1, 1, 4, 4), (b, 1, h, w), (8, 1, side, side)
