"""The device path's accelerator through PyTorch: CUDA streams, events, graphs and page-locked memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as package_version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplight.engine.runtime.device import Memory
from deeplight.kernels import launch, table
from deeplight.kernels.float32 import exact_float32

_FULL = ("out of memory", "status_alloc_failed", "allocation_failed")
"""What CUDA, cuBLAS and cuDNN say where memory is full."""
_WARM_UPS = 3
"""Runs before a capture: they compile kernels and let libraries choose, which a capture must not contain.
In every capture, since handles and choices of libraries belong to a thread, and a further date comes in a new one."""


def available() -> bool:
    """Whether PyTorch can use a GPU here."""
    return torch.cuda.is_available()


def device_of(gpu: int) -> torch.device:
    """The GPU of this number."""
    return torch.device("cuda", gpu)


def current_stream(device: torch.device) -> int:
    """The address of the stream that is current on a device."""
    found: int = torch.cuda.current_stream(device).cuda_stream
    return found


def kernel_versions(device: torch.device) -> dict[str, str]:
    """What decides the bits of PyTorch and of our kernels on a GPU: versions, and a digest of their configurations."""
    triton = package_version("triton") if launch.TRITON else "not installed"
    kernels = table.digest(launch.arch_of(device))
    return {"torch": str(torch.__version__), "triton": triton, "kernels": kernels}


@dataclass(frozen=True)
class CudaMemory:
    """See device.Memory."""

    bytes: Tensor

    @property
    def array(self) -> NDArray[np.uint8]:
        """See device.Memory."""
        found: NDArray[np.uint8] = self.bytes.numpy()
        return found


class CudaEvent:
    """See device.Event."""

    def __init__(self) -> None:
        # blocking: a writer that waits must not keep a core busy
        self.event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """See device.Event."""
        self.event.synchronize()

    def seconds_since(self, earlier: Any) -> float:
        """See device.Event."""
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1e3


class CudaStream:
    """See device.DeviceStream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, target: Memory, source: Memory, size: int, *, to: int = 0, since: int = 0) -> None:
        """See device.DeviceStream."""
        with torch.cuda.stream(self.stream):
            target.bytes[to : to + size].copy_(source.bytes[since : since + size], non_blocking=True)

    def run(self, work: Callable[[], None], reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
        """See device.DeviceStream."""
        with torch.cuda.stream(self.stream), torch.inference_mode():
            work()

    def replay(self, graph: Any) -> None:
        """See device.DeviceStream."""
        with torch.cuda.stream(self.stream):
            graph.replay()

    def follow_default(self) -> None:
        """See device.DeviceStream."""
        self.stream.wait_stream(torch.cuda.default_stream(self._device))

    def record(self, event: Any) -> None:
        """See device.DeviceStream."""
        event.event.record(self.stream)

    def wait(self, event: Any) -> None:
        """See device.DeviceStream."""
        self.stream.wait_event(event.event)


class CudaDevice:
    """See device.Device."""

    def __init__(self, device: torch.device) -> None:
        self.name, self._device = str(device), device

    def pinned(self, size: int) -> CudaMemory:
        """See device.Device."""
        return CudaMemory(torch.empty(size, dtype=torch.uint8, pin_memory=True))

    def memory(self, size: int) -> CudaMemory:
        """See device.Device."""
        with torch.cuda.stream(self._aside):
            return CudaMemory(torch.empty(size, dtype=torch.uint8, device=self._device))

    @cached_property
    def _aside(self) -> Any:
        """A stream on which nothing is done. PyTorch hands memory of a stream out again for the same one, without
        waiting: that of tiles beside the path, on the default stream, must not become another tile's on the path."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def stream(self) -> CudaStream:
        """See device.Device."""
        return CudaStream(self._device)

    def event(self) -> CudaEvent:
        """See device.Device."""
        return CudaEvent()

    def capture(
        self,
        stream: Any,
        program: Callable[[], None],
        reads: Sequence[Memory],
        writes: Sequence[Memory],
        beside: Any = None,
    ) -> Any:
        """See device.Device."""
        # `torch.cuda.graph` waits for the current GPU, which need not be this one
        with torch.cuda.device(self._device), exact_float32(), torch.inference_mode():
            stream.follow_default()
            with torch.cuda.stream(stream.stream):
                for _ in range(_WARM_UPS):
                    program()
                torch.cuda.synchronize(self._device)
                graph = torch.cuda.CUDAGraph()
                # no tensor of a captured program outlives it, so another one may use its memory at another time
                pool = None if beside is None else beside.pool()
                # other threads may pin memory and wait for events meanwhile: only this one is being recorded. Inside
                # the stream's context, since `torch.cuda.graph` leaves it current where a recording breaks off
                with torch.cuda.graph(graph, pool, stream.stream, capture_error_mode="thread_local"):
                    program()
        return graph

    def host_uses(self, memory: Memory, *, writes: bool = False) -> AbstractContextManager[None]:
        """See device.Device."""
        return nullcontext()

    def free(self) -> int:
        """See device.Device."""
        free: int = torch.cuda.mem_get_info(self._device)[0]
        return free

    def release(self) -> None:
        """See device.Device."""
        torch.cuda.empty_cache()
        # PyTorch keeps page-locked memory, too; older releases have no public way to let go of it
        if empty := getattr(torch.accelerator, "empty_host_cache", None):
            empty()

    def out_of_memory(self, error: BaseException) -> bool:
        """See device.Device."""
        seen: BaseException | None = error
        while seen is not None:  # the end of a capture may only say that it was broken off
            if isinstance(seen, torch.OutOfMemoryError) or any(s in str(seen).lower() for s in _FULL):
                return True
            seen = seen.__cause__ or seen.__context__
        return False
