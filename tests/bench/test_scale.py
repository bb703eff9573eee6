"""The simulation of large runs: what it says where the answer is known, or was measured."""

from __future__ import annotations

import pytest

from bench.scale import PACK_MPIX, Rates, World, seconds

FREE = {"storage": 1e15, "start_s": 0.0, "end_s": 0.0, "noise": 0.0, "indexed_per_s": 1e9, "copied": 1e15}
ISLAND = World("all land", 10, 10, 10.0)


def test_land_is_as_much_as_was_asked_for() -> None:
    shares = World("half land", 30, 40, 0.5).shares()
    assert len(shares) == 1200 and list(shares) == sorted(shares)
    assert sum(shares.values()) / 1200 == pytest.approx(0.5, abs=0.01)
    assert shares[0, 0] == 0 and shares[15, 20] == 1 and any(0 < share < 1 for share in shares.values())


@pytest.mark.parametrize(("workers", "rounds"), [(1, 100), (2, 50), (8, 13), (128, 1)])
def test_equal_packs_take_as_many_rounds_as_a_worker_has_packs(workers: int, rounds: int) -> None:
    rates = Rates("one pack a second", PACK_MPIX, empty_s=0.0, **FREE)
    found, calls = seconds(ISLAND, rates, workers)
    assert rounds < found < rounds + 0.5 and calls == 100


def test_fast_packs_go_several_a_call() -> None:
    found, calls = seconds(ISLAND, Rates("fast", 100 * PACK_MPIX, empty_s=0.0, **FREE), 2)
    assert calls < 50 and 0.5 < found < 0.7


def test_storage_limits_what_workers_gain() -> None:
    slow = Rates("slow disk", PACK_MPIX, **{**FREE, "storage": 1e8})
    least = 100 * PACK_MPIX * 1e6 * (slow.bytes_read + 3 * slow.bytes_written) / 1e8
    assert seconds(ISLAND, slow, 64)[0] == pytest.approx(least, rel=0.01)
