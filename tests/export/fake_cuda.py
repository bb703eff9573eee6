"""A stand-in for `cuda.bindings.runtime` and for a TensorRT engine: host memory, calls in order, graphs that replay.

The engine doubles: `ntl_hr` is NTL repeated 8×8 and doubled, the other outputs are zero.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101


class Runtime(types.ModuleType):
    """calls: name → how often. gpus: how many there are, each of another kind. current: the one in use."""

    cudaStreamNonBlocking = 1

    def __init__(self, memory: int = 1 << 30, gpus: int = 2) -> None:
        super().__init__("cuda.bindings.runtime")
        self.calls: dict[str, int] = {}
        self.gpus, self.current = gpus, 0
        self.memory, self.blocks = memory, {}
        self.recording: list[Callable[[], None]] | None = None
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def submit(self, work: Callable[[], None]) -> None:
        """Record while capturing, else do it: what a stream does."""
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
        return (Error.cudaSuccess, self.gpus) if self.gpus else (Error.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if device >= self.gpus:
            return (Error.cudaErrorInvalidDevice,)
        self.current = device
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        if device >= self.gpus:
            return (Error.cudaErrorInvalidDevice, None)
        name = (b"NVIDIA H200\0\0", b"NVIDIA L4\0\0")[device]
        return (Error.cudaSuccess, types.SimpleNamespace(name=name, major=9 - device, minor=0))


class Context:
    def __init__(self, runtime: Runtime, largest: int, profiles: list[int]) -> None:
        self.runtime, self.largest, self.profiles = runtime, largest, profiles
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profiles.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return shape[-1] <= self.largest or len(shape) == 2

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self.addresses) == {s.name for s in (*INPUTS, *OUTPUTS)}
        self.runtime.submit(self._double)
        return True

    def _double(self) -> None:
        b, _, h, w = self.shapes["ntl"]
        size = 4 * b * h * w
        ntl = np.frombuffer(ctypes.string_at(self.addresses["ntl"], size), np.float32).reshape(b, 1, h, w)
        out = np.repeat(np.repeat(2 * ntl, 8, 2), 8, 3).tobytes()
        ctypes.memmove(self.addresses["ntl_hr"], out, len(out))
        for spec in OUTPUTS[1:]:
            ctypes.memset(self.addresses[spec.name], 0, 4 * int(np.prod(input_shape(spec, b, h, w))))


class Engine:
    """tile: what profile 0 was tuned for, (batch, h, w)."""

    num_optimization_profiles = 2

    def __init__(self, runtime: Runtime, tile: tuple[int, int, int], largest: int = 8 * 512) -> None:
        self.runtime, self.tile, self.largest = runtime, tile, largest
        self.profiles: list[int] = []

    def create_execution_context(self) -> Context:
        return Context(self.runtime, self.largest, self.profiles)

    def get_tensor_profile_shape(self, name: str, index: int) -> tuple[tuple[int, ...], ...]:
        b, h, w = self.tile
        return ((b, 1, h, w),) * 3
