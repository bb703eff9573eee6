"""What the device path asks of an accelerator: memory, streams beside each other, events between them, graphs.

`cuda_device.CudaDevice` is the real one. Everything that is put on a stream happens later, in the stream's order; only
events say what comes before what on different streams, and on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import DeepLightError


class DeviceFailed(DeepLightError):
    """The device broke down or ran out of memory while a run was going on: no other tile can be tried."""


class OutOfDeviceMemory(DeviceFailed):
    """There is not enough memory on the device for what was asked."""


class Memory(Protocol):
    """A piece of memory. bytes: a tensor (n,) of uint8, for programs that run on the device."""

    @property
    def bytes(self) -> Any:
        """The tensor."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """The same memory for the host, (n,); of pinned memory alone. See Device.host_uses."""


class Event(Protocol):
    """A point in a stream's work."""

    def wait(self) -> None:
        """Block the calling thread until the point that was last recorded is reached; at once where none was."""

    def seconds_since(self, earlier: Event) -> float:
        """Between two points that have been reached, as the device's clock says."""


class Graph(Protocol):
    """A program on the device that is launched as one piece."""


class DeviceStream(Protocol):
    """Work in order. No method waits for it."""

    def copy(self, target: Memory, source: Memory, size: int, *, to: int = 0, since: int = 0) -> None:
        """`size` bytes, from pinned memory to the device, back, or on the device. to, since: the byte of `target` and
        of `source` at which they begin."""

    def run(self, work: Callable[[], None], reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
        """A program that touches these pieces of memory and no others that anything else may touch meanwhile."""

    def replay(self, graph: Graph) -> None:
        """A captured program once more."""

    def follow_default(self) -> None:
        """What comes after this starts when all is done that was put on the default stream, as is what makes the
        tensors of a new program. `Device.capture` does the same."""

    def record(self, event: Event) -> None:
        """Let `event` be this point from now on."""

    def wait(self, event: Event) -> None:
        """What comes after this starts when the event's point is reached."""


class Device(Protocol):
    """One accelerator. name: as in "cuda:1". Methods raise RuntimeError where the device fails."""

    name: str

    def pinned(self, size: int) -> Memory:
        """Page-locked host memory of `size` bytes of any content."""

    def memory(self, size: int) -> Memory:
        """Memory on the device, of any content. It may be handed out again as soon as nobody holds it any more: before
        that, whoever gives it to a stream waits for what is done with it there."""

    def stream(self) -> DeviceStream:
        """A new stream."""

    def event(self) -> Event:
        """A new event."""

    def capture(
        self,
        stream: DeviceStream,
        program: Callable[[], None],
        reads: Sequence[Memory],
        writes: Sequence[Memory],
        beside: Graph | None = None,
    ) -> Graph:
        """A program as a graph: run some times on `stream` to warm up, then recorded. Waits for the device.

        It touches `reads` and `writes` alone, besides memory of its own. beside: a graph that does all that the program
        does, and more; so that there is nothing to compile. It has its memory in common with this one, and the two are
        replayed on one stream. It may have been captured by another thread.
        """

    def host_uses(self, memory: Memory, *, writes: bool = False) -> AbstractContextManager[None]:
        """Inside this context the host reads pinned memory, or writes it. Free on a real device; a stand-in checks that
        nothing on the device may still touch it, nor is put on a stream meanwhile."""

    def free(self) -> int:
        """Bytes of the device's memory that nothing uses."""

    def release(self) -> None:
        """Give memory that nothing uses any more back to other programs."""

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an error of the device says that its memory is full."""
