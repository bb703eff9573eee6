"""What dates share on a device: one path for those that want the same, layers within a share of its memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deeplight.engine.core.forms import LayerForm, Wanted
from deeplight.engine.run.device_dates import SHARE, DatesOnDevice
from deeplight.engine.run.device_path import TileShape
from deeplight.engine.runtime.backends.base import Resident
from tests.engine.device.runs import analytic
from tests.engine.device.standin import StandIn

WANTED = Wanted((), 1, None, None, (1.0, 1.0), (-1.0, 0.1), 1e9, 2, 1.8, (-np.inf, np.inf))
SHAPE = TileShape(4, 4, (("dem", LayerForm("raw", (0,), (16, 16), "int16")),))


def test_dates_share_a_path_where_they_want_the_same() -> None:
    dates, resident = DatesOnDevice(), Resident(StandIn(), analytic)
    first = dates.path(resident, WANTED, (1,))
    first.meter.add(bytes_up=5)
    assert dates.path(resident, replace(WANTED), (1,)) is first and first.meter.bytes_up == 0
    assert dates.path(resident, replace(WANTED, psf=(2.0, 2.0)), (1,)) is not first
    assert dates.path(resident, WANTED, (0,)) is not first


def test_layers_stay_within_their_share_of_the_memory() -> None:
    device, dates = StandIn(room=int(3.5 * SHAPE.kept / SHARE)), DatesOnDevice()
    assert dates.room(SHAPE) is None  # before the first date has its own memory
    dates.keep_layers(device)
    held = [dates.room(SHAPE) for _ in range(4)]
    assert [layers is None for layers in held] == [False, False, False, True]
    assert dates.size == 3 * SHAPE.kept == device.allocated
    assert SHAPE.kept == SHAPE.layers + 4 * 4 * 4, "with the lights that they suggest"
    assert dates.room(TileShape(4, 4, ())) is None  # there are none


def test_layers_are_found_once_they_have_arrived_and_one_tile_counts_once() -> None:
    dates = DatesOnDevice()
    dates.keep_layers(StandIn())
    first, again = dates.room(SHAPE), dates.room(SHAPE)
    assert first is not None and again is not None and dates.find("tile") is None and not first.there
    dates.keep("tile", first)
    dates.keep("tile", again)
    assert dates.find("tile") is first and first.there and dates.size == SHAPE.kept
    dates.close()
    assert dates.find("tile") is None


def test_nothing_more_is_kept_where_others_have_taken_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device, dates = StandIn(), DatesOnDevice()
    dates.keep_layers(device)
    assert dates.room(SHAPE) is not None
    monkeypatch.setattr(device, "room", 0)
    assert dates.room(SHAPE) is None
    monkeypatch.undo()
    assert dates.room(SHAPE) is None and dates.size == SHAPE.kept
