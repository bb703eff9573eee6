"""The stand-in itself: what has no event between it is found, in every order; what has one is done in time."""

from __future__ import annotations

import pytest

from tests.engine.device.standin import StandIn, TouchedTooEarly


@pytest.mark.parametrize("seed", range(6))
def test_events_order_what_streams_do(seed: int) -> None:
    device = StandIn(seed)
    up, work, down = device.stream(), device.stream(), device.stream()
    host, there, result, back = device.pinned(4), device.memory(4), device.memory(4), device.pinned(4)
    arrived, computed, left = device.event(), device.event(), device.event()
    for value in range(3):
        device.host_uses(host, writes=True)
        host.array[:] = value
        up.copy(there, host, 4)
        up.record(arrived)
        work.wait(arrived)
        work.run(lambda: result.bytes.copy_(there.bytes + 1), [there], [result])
        work.record(computed)
        down.wait(computed)
        down.copy(back, result, 4)
        down.record(left)
        left.wait()
        device.host_uses(back)
        assert back.array.tolist() == [value + 1] * 4
        assert left.seconds_since(arrived) > 0


def test_nothing_happens_before_somebody_waits() -> None:
    device = StandIn()
    stream, host, there = device.stream(), device.pinned(2), device.memory(2)
    stream.copy(there, host, 2)
    host.array[:] = 7  # too late for a careful host, and what a device that is late would send
    event = device.event()
    stream.record(event)
    event.wait()
    assert there.bytes.tolist() == [7, 7]


def test_a_missing_event_is_found() -> None:
    device = StandIn()
    up, work, host, there = device.stream(), device.stream(), device.pinned(2), device.memory(2)
    up.copy(there, host, 2)
    with pytest.raises(TouchedTooEarly):
        work.run(lambda: None, [there], [])
    with pytest.raises(TouchedTooEarly):
        device.host_uses(host, writes=True)
    device.host_uses(host)  # two may read


def test_an_event_of_an_earlier_round_does_not_count() -> None:
    device = StandIn()
    up, work, there, host = device.stream(), device.stream(), device.memory(2), device.pinned(2)
    event = device.event()
    up.copy(there, host, 2)
    up.record(event)
    work.wait(event)
    work.run(lambda: None, [there], [])
    with pytest.raises(TouchedTooEarly, match="stream 1"):
        up.copy(there, host, 2)  # while the other stream may still read


def test_a_broken_device_stays_broken() -> None:
    device = StandIn(fails_at=1)
    stream, event = device.stream(), device.event()
    stream.replay(device.capture(stream, lambda: None, [], []))
    stream.record(event)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="illegal memory access"):
            event.wait()
