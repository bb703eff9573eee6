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
        with device.host_uses(host, writes=True):
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
        with device.host_uses(back):
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
    with pytest.raises(TouchedTooEarly), device.host_uses(host, writes=True):
        pass
    with device.host_uses(host):  # two may read
        up.copy(there, host, 2)


@pytest.mark.parametrize("to_device", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_what_the_host_still_uses_is_left_alone(to_device: bool, writes: bool) -> None:
    """The device may read what the host reads, and nothing else."""
    device = StandIn()
    stream, pinned, there = device.stream(), device.pinned(2), device.memory(2)

    def copy() -> None:
        target, source = (there, pinned) if to_device else (pinned, there)
        stream.copy(target, source, 2)

    with device.host_uses(pinned, writes=writes):
        if to_device and not writes:
            copy()
        else:
            with pytest.raises(TouchedTooEarly, match="by the host"):
                copy()
    copy()


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_two_threads_of_the_host_may_only_read(first: bool, second: bool) -> None:
    device = StandIn()
    pinned = device.pinned(2)
    with (
        device.host_uses(pinned, writes=first),
        pytest.raises(TouchedTooEarly),
        device.host_uses(pinned, writes=second),
    ):
        pass
    for writes in (False, True):  # what was refused is no use
        with device.host_uses(pinned, writes=writes):
            pass
    with device.host_uses(pinned), device.host_uses(pinned):
        pass


def test_memory_that_is_let_go_of_may_be_anothers() -> None:
    """While work on it has not been waited for, what is asked for next may be the same memory."""
    device = StandIn()
    up, work, host, there = device.stream(), device.stream(), device.pinned(2), device.memory(2)
    work.run(lambda: None, [], [there])
    done = device.event()
    work.record(done)
    del there
    new = device.memory(2)
    with pytest.raises(TouchedTooEarly, match="stream 1"):
        up.copy(new, host, 2)
    work.run(lambda: None, [], [new])  # in the order of a stream
    done.wait()
    up.copy(device.memory(2), host, 2)


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
