"""The ring of slots: memory is made once, every slot comes back, nobody waits for ever."""

from __future__ import annotations

import gc
import threading

import pytest

from deeplight.engine.run.slots import Ring
from deeplight.engine.run.stream import Stopped
from tests.engine.device.standin import StandIn


def test_memory_is_made_once_and_grows_when_it_must() -> None:
    device = StandIn()
    ring = Ring(device, 1)
    for sent, returned, pieces in ((10, 4, 4), (10, 4, 4), (6, 4, 4), (11, 4, 8), (8, 5, 12), (11, 5, 12)):
        lease = ring.take()
        lease.slot.reserve(sent, returned)
        lease.end()
        assert device.pieces == pieces
    assert len(lease.slot.host.array) == 11 and len(lease.slot.back.array) == 5


def refused(ring: Ring) -> None:
    with pytest.raises(Stopped):
        ring.take()


def test_a_forgotten_tile_gives_its_slot_back_and_one_that_ends_twice_gives_it_once() -> None:
    ring = Ring(StandIn(), 1)
    lease = ring.take()
    lease.end()
    lease.end()
    again = ring.take()
    del again
    gc.collect()
    held = ring.take()
    waiting = threading.Thread(target=refused, args=(ring,))
    waiting.start()
    ring.stop()
    waiting.join(10)
    assert not waiting.is_alive()
    del held
