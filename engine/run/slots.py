"""The memory of tiles on their way through a device: a ring of slots, made once and used again for every tile."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from deeplight.engine.run.stream import Stopped

if TYPE_CHECKING:
    from deeplight.engine.runtime.device import Device, Memory

EVENTS = ("up", "arrived", "started", "computed", "cut", "leaving", "left")
"""Points of a tile: its upload begins and ends, then its program; its core is cut out; its download begins and ends."""


def page_locked(size: int) -> int:
    """Host memory that PyTorch takes for so many page-locked bytes: it rounds up to a power of two."""
    return 1 << max(0, size - 1).bit_length()


class Slot:
    """Memory for one tile: to send from (`host`), on the device (`there`, `result`), and to come back to (`back`)."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._room = (0, 0)
        self.events = {name: device.event() for name in EVENTS}
        self.host: Memory
        self.there: Memory
        self.result: Memory
        self.back: Memory

    def reserve(self, sent: int, returned: int) -> None:
        """Make room for so many bytes each way. A slot that has it stays as it is."""
        room = (max(sent, self._room[0]), max(returned, self._room[1]))
        if room != self._room:
            device = self._device
            self.host, self.there = device.pinned(room[0]), device.memory(room[0])
            self.result, self.back = device.memory(room[1]), device.pinned(room[1])
            self._room = room


class Lease:
    """A slot that a tile holds. It goes back with `end`, or when the tile is forgotten; only the first counts."""

    def __init__(self, ring: Ring, slot: Slot) -> None:
        self.slot = slot
        self._end = weakref.finalize(self, ring.give, slot)
        self._end.atexit = False

    def end(self) -> None:
        """Give the slot to the next tile. Nothing of this one may be in it any more."""
        self._end()


class Ring:
    """Slots for `count` tiles. Threads may take and give at the same time."""

    def __init__(self, device: Device, count: int) -> None:
        self.count = count
        self._free = deque(Slot(device) for _ in range(count))
        self._stopped = False
        self._changed = threading.Condition()

    def reserve(self, sent: int, returned: int) -> None:
        """Make room in all slots, before any is taken."""
        for slot in self._free:
            slot.reserve(sent, returned)

    def take(self) -> Lease:
        """Wait for a slot. Raises stream.Stopped after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._free)
            if self._stopped:
                raise Stopped
            return Lease(self, self._free.popleft())

    def give(self, slot: Slot) -> None:
        """Take a slot back."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def stop(self) -> None:
        """Wake everyone who waits; there are no more slots."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
