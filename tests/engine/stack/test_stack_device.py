"""A stack over the device path, on the stand-in: one model for all dates, the bytes of single runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeplight.engine.run import paths
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.stack.report import StackReport
from tests.engine.device.runs import OnDevice, analytic, run
from tests.engine.device.standin import StandIn
from tests.engine.stack.months import Months, name
from tests.scenes import options


def test_maps_of_a_device_are_those_of_its_single_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scene").mkdir()
    months = Months.write(tmp_path / "scene")
    backend = OnDevice(analytic, StandIn(1))
    monkeypatch.setattr(paths, "open_model", lambda *_: backend)
    report = months.run(tmp_path / "out", tiles=TileRequest(6))
    assert isinstance(report, StackReport) and report.computed == len(months.with_data)
    for month in months.with_data:
        date = report.of(name(month))
        assert date.run is not None and date.run["device"]["bytes_up"] > 0
        scene = options(months.files, ntl=str(months.folder / f"ntl-{name(month)}.tif"))
        single = tmp_path / f"{name(month)}.tif"
        run(monkeypatch, scene, months.model, single, StandIn(2))
        assert single.read_bytes() == (tmp_path / "out" / single.name).read_bytes()
