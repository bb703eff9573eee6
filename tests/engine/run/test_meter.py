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
    assert each == {"decode": 3.0, "upload": 1.0, "compute": 2.5, "download": 0.5, "encode": 1.5}
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
