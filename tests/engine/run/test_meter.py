"""What a device path measures of itself, and what is told of it: busy shares, bytes, what held the run up."""

from __future__ import annotations

import threading

import pytest

from deeplight.engine.run.meter import STAGES, Meter
from deeplight.engine.run.report import stage_load


def test_busy_shares_are_of_an_average_thread_and_of_the_device() -> None:
    meter = Meter()
    meter.add(decode=12.0, upload=1.0, compute=2.5, download=0.5, encode=3.0)
    meter.add(bytes_up=700, bytes_down=300)
    each = meter.seconds(readers=4, writers=2)
    assert each == {"decode": 3.0, "upload": 1.0, "compute": 2.5, "download": 0.5, "encode": 1.5, "host": 0.0}
    load, slowest = stage_load(each, 5.0, 0.0)
    assert (load["decode"], load["compute"], slowest) == (0.6, 0.5, "decode")
    facts = meter.facts(5.0)
    assert (facts["busy"], facts["bytes_up"], facts["bytes_down"]) == (0.5, 700, 300)
    assert facts["alone_hr_mpix_per_s"] is None and facts["tiles_tried"] == {}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_may_be_what_holds_the_run_up(stage: str) -> None:
    meter = Meter(**dict.fromkeys(STAGES, 1.0))
    meter.add(**{stage: 9.0})
    assert stage_load(meter.seconds(1, 1), 20.0, 2.0)[1] == stage


def test_threads_add_up() -> None:
    meter = Meter()
    adding = [threading.Thread(target=lambda: [meter.add(compute=1.0) for _ in range(500)]) for _ in range(4)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert meter.compute == 2000.0


def test_several_devices_together_are_busy_as_an_average_one() -> None:
    one, other = Meter(tried={256: 90.0}), Meter()
    one.add(decode=8.0, compute=4.0, bytes_up=5, alone_px=6e6, alone_s=2)
    other.add(decode=4.0, compute=2.0, bytes_up=6, alone_px=6e6, alone_s=1)
    both = Meter.sum([one.numbers(), other.numbers()])
    assert both.facts(10.0) == {
        "count": 2,
        "busy": 0.3,
        "bytes_up": 11,
        "bytes_down": 0,
        "host_tiles": 0,
        "tiles_tried": {256: 90.0},
        "alone_hr_mpix_per_s": 4.0,
    }
    assert both.seconds(readers=2, writers=1)["decode"] == 3.0
