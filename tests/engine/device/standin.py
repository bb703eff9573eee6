"""A device made of CPU tensors. It works as late as a real one may, and fails where memory is used too early.

Work on a stream is not done before a host thread waits for an event; then the streams are processed in an order drawn
from a seed. In addition, clocks tell of every two uses of a piece of memory, of which at least one writes, whether an
event orders them, independently of the order that was drawn. What the host does with pinned memory has a beginning and
an end, between which the device is given nothing to do that would disturb it. Memory of the device that nobody holds
any more may be what is asked for next.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Clock = dict[int, int]


class TouchedTooEarly(AssertionError):
    """No event orders two uses of a piece of memory."""


class Memory:
    """See deeplight.engine.runtime.device.Memory. written: the last write, as (stream, tick); read: reads since.
    host: threads of the host that read it now; writing: one that writes it does."""

    def __init__(self, device: StandIn, size: int, pinned: bool) -> None:
        self.bytes: Tensor = torch.full((size,), 0xA5, dtype=torch.uint8)
        self.pinned = pinned
        self.written: tuple[int, int] | None = None
        # of what lay there before, too
        self.read: Clock = {} if pinned else dict(device.left)
        self.host, self.writing = 0, False
        self._left = device.left

    def __del__(self) -> None:
        if not self.pinned:
            _merge(self._left, self.read)
            _merge(self._left, dict([self.written] if self.written else []))

    @property
    def array(self) -> NDArray[np.uint8]:
        assert self.pinned, "the host cannot reach memory of the device"
        found: NDArray[np.uint8] = self.bytes.numpy()
        return found


@dataclass
class Event:
    """See deeplight.engine.runtime.device.Event."""

    device: StandIn
    step: Step | None = None
    clock: Clock = field(default_factory=dict)

    def wait(self) -> None:
        self.device.reach(self)

    def seconds_since(self, earlier: Event) -> float:
        assert self.step is not None and earlier.step is not None
        assert self.step.done and earlier.step.done, "a time is read before the event was reached"
        return (self.step.at - earlier.step.at) * 1e-3


@dataclass
class Step:
    """A piece of work on a stream. after: work on another stream that must be done before. at: its place in the order
    of the device."""

    work: Callable[[], None] | None = None
    after: Step | None = None
    done: bool = False
    at: int = 0


@dataclass
class Graph:
    """A program, and the memory that it uses."""

    program: Callable[[], None]
    reads: Sequence[Memory]
    writes: Sequence[Memory]


class Stream:
    """See deeplight.engine.runtime.device.DeviceStream."""

    def __init__(self, device: StandIn, number: int) -> None:
        self.device, self.number = device, number
        self.clock: Clock = {number: 0}
        self.steps: deque[Step] = deque()

    def copy(self, target: Memory, source: Memory, size: int, *, to: int = 0, since: int = 0) -> None:
        assert to + size <= len(target.bytes) and since + size <= len(source.bytes)

        device = self.device
        device.copies += 1
        number = device.copies
        # work holds bytes and no Memory: letting go of that is what frees it, whether or not the work is done
        into, out_of = target.bytes[to : to + size], source.bytes[since : since + size]

        def work() -> None:
            if (device.fails, number) == ("copy", device.fails_at):
                raise RuntimeError(device.failure)
            into.copy_(out_of)

        self._add(work, [source], [target])

    def run(self, work: Callable[[], None], reads: Sequence[Memory], writes: Sequence[Memory]) -> None:
        self._add(work, reads, writes)

    def replay(self, graph: Graph) -> None:
        device = self.device
        device.replays += 1
        number, program = device.replays, graph.program

        def work() -> None:
            if (device.fails, number) == ("replay", device.fails_at):
                raise RuntimeError(device.failure)
            program()

        self._add(work, graph.reads, graph.writes)

    def follow_default(self) -> None:
        self.device.followed += 1

    def record(self, event: Event) -> None:
        with self.device.lock:
            event.step = self._add(None, [], [])
            event.clock = dict(self.clock)

    def wait(self, event: Event) -> None:
        with self.device.lock:
            if event.step is not None:
                _merge(self.clock, event.clock)
                self._add(None, [], [], event.step)

    def _add(
        self,
        work: Callable[[], None] | None,
        reads: Sequence[Memory],
        writes: Sequence[Memory],
        after: Step | None = None,
    ) -> Step:
        device = self.device
        with device.lock:
            device.alive()
            _merge(self.clock, device.known)
            for memory in reads:
                device.check(memory, self.clock, writes=False)
            for memory in writes:
                device.check(memory, self.clock, writes=True)
            self.clock[self.number] += 1
            tick = self.clock[self.number]
            for memory in reads:
                memory.read[self.number] = tick
            for memory in writes:
                memory.written, memory.read = (self.number, tick), {}
            step = Step(work, after)
            self.steps.append(step)
            return step


class StandIn:
    """See deeplight.engine.runtime.device.Device.

    room: bytes of device memory. fails_at: which replay, or copy, breaks the device, counted from 1, and what it says.
    Counted: bytes of memory at most, pieces of it, replays, copies, waits of the host for
    an event, and for the whole device, and how often a stream was told to follow the default one.
    """

    name = "stand-in"

    def __init__(
        self,
        seed: int = 0,
        room: int = 1 << 34,
        fails_at: int = 0,
        failure: str = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors …",
        fails: str = "replay",
    ) -> None:
        self.random, self.lock = random.Random(seed), threading.RLock()
        self.streams: list[Stream] = []
        self.known: Clock = {}
        self.left: Clock = {}
        self.room, self.fails_at, self.failure, self.fails = room, fails_at, failure, fails
        self.allocated = self.most = self.pieces = self.replays = self.waits = self.synchronised = (
            self.done
        ) = self.followed = self.copies = 0
        self.broken: str | None = None

    def pinned(self, size: int) -> Memory:
        self.alive()
        self.pieces += 1
        return Memory(self, size, pinned=True)

    def memory(self, size: int) -> Memory:
        self.alive()
        self.pieces += 1
        self.allocated += size
        self.most = max(self.most, self.allocated)
        if self.allocated > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate …")
        return Memory(self, size, pinned=False)

    def stream(self) -> Stream:
        self.streams.append(Stream(self, len(self.streams)))
        return self.streams[-1]

    def event(self) -> Event:
        return Event(self)

    def capture(
        self,
        stream: Stream,
        program: Callable[[], None],
        reads: Sequence[Memory],
        writes: Sequence[Memory],
        beside: Graph | None = None,
    ) -> Graph:
        if beside is not None:  # their memory is one
            own, other = (
                {id(memory) for memory in (*g[0], *g[1])}
                for g in ((reads, writes), (beside.reads, beside.writes))
            )
            assert own <= other, "a graph touches what the graph beside it does not"
        with self.lock:
            self.alive()
            self.synchronised += 1
            for each in self.streams:
                while each.steps:
                    self._one(each)
                _merge(self.known, each.clock)
            with torch.inference_mode():
                program()
            for memory in writes:
                memory.bytes.fill_(0xA5)
        return Graph(program, reads, writes)

    @contextmanager
    def host_uses(self, memory: Memory, *, writes: bool = False) -> Iterator[None]:
        with self.lock:
            assert memory.pinned, "the host cannot reach memory of the device"
            self.check(memory, self.known, writes=writes)
            memory.host += not writes
            memory.writing |= writes
        try:
            yield
        finally:
            with self.lock:
                memory.host -= not writes
                memory.writing &= not writes

    def free(self) -> int:
        self.alive()
        return self.room - self.allocated

    def release(self) -> None:
        """Count memory from zero again. Only a failed allocation frees everything."""
        self.alive()
        self.allocated = 0

    def out_of_memory(self, error: BaseException) -> bool:
        return "out of memory" in str(error)

    def check(self, memory: Memory, clock: Clock, *, writes: bool) -> None:
        """Raise if a use of `memory` may still be going on: on the device, that `clock` does not know to be finished,
        or on the host."""
        if memory.writing or (writes and memory.host):
            raise TouchedTooEarly(f"memory of {len(memory.bytes)} bytes, in use by the host")
        uses = dict(memory.read) if writes else {}
        if memory.written is not None:
            stream, tick = memory.written
            uses[stream] = max(uses.get(stream, 0), tick)
        for stream, tick in uses.items():
            if clock.get(stream, 0) < tick:
                raise TouchedTooEarly(f"memory of {len(memory.bytes)} bytes, in use by stream {stream}")

    def alive(self) -> None:
        """Raise the error that broke the device, as every later call does."""
        if self.broken is not None:
            raise RuntimeError(self.broken)

    def reach(self, event: Event) -> None:
        """Process work, in the order of the seed, until that before an event is done."""
        with self.lock:
            self.waits += 1
            self.alive()
            while event.step is not None and not event.step.done:
                ready = [
                    s for s in self.streams if s.steps and (s.steps[0].after is None or s.steps[0].after.done)
                ]
                self._one(self.random.choice(ready))
            _merge(self.known, event.clock)

    def _one(self, stream: Stream) -> None:
        step = stream.steps[0]
        if step.after is not None and not step.after.done:
            other = next(s for s in self.streams if step.after in s.steps)
            self._one(other)
            return
        stream.steps.popleft()
        try:
            if step.work is not None:
                with torch.inference_mode():
                    step.work()
        except RuntimeError as error:
            self.broken = str(error)
            raise
        self.done += 1
        step.done, step.at = True, self.done


def _merge(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)
