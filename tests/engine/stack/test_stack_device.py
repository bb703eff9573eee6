"""A stack over the device path, on the stand-in: one model and one upload of layers for all dates, the bytes of single
runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeplight.engine.run import device_dates, paths
from deeplight.engine.run.device_path import DevicePath
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.stack.report import StackReport
from tests.engine.device.runs import OnDevice, analytic, run
from tests.engine.device.standin import StandIn
from tests.engine.stack.months import Months, name
from tests.scenes import options

CORE = 6


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    return Months.write(tmp_path_factory.mktemp("months"))


def stack(
    monkeypatch: pytest.MonkeyPatch, months: Months, out: Path, device: StandIn, **changes: object
) -> StackReport:
    """All months over the device path."""
    backend = OnDevice(analytic, device)
    monkeypatch.setattr(paths, "open_model", lambda *_: backend)
    report = months.run(out, tiles=TileRequest(CORE), **changes)
    assert isinstance(report, StackReport) and report.computed == len(months.with_data)
    return report


def check_maps(monkeypatch: pytest.MonkeyPatch, months: Months, folder: Path) -> None:
    """Compare each map with that of a single run on another device."""
    for month in months.with_data:
        scene = options(months.files, ntl=str(months.folder / f"ntl-{name(month)}.tif"))
        single = folder.parent / f"{name(month)}.tif"
        run(monkeypatch, scene, months.model, single, StandIn(2), core=CORE)
        assert single.read_bytes() == (folder / single.name).read_bytes()


def test_layers_are_read_and_sent_for_the_first_date_alone(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = stack(monkeypatch, months, tmp_path / "out", StandIn(1), verify_seams=2)
    found = [report.of(name(month)).run for month in months.with_data]
    for number, date in enumerate(found):
        assert date is not None
        for layer in ("dmo", "dem"):
            assert (date["inputs"][layer]["bytes_read"] == 0) == (number > 0)
        # NTL, its mask and the core's, each aligned to 256 bytes; the windows are CORE + 2 · halo and less at edges
        tiles = date["tiles"]["computed"] + len(date["seams"]) * 10
        assert (date["device"]["bytes_up"] <= tiles * 3 * 1024) == (number > 0)
    check_maps(monkeypatch, months, tmp_path / "out")


def test_programs_are_made_for_the_first_date_alone(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    capture = DevicePath._capture

    def counting(self: DevicePath, shape: object) -> object:
        made.append(shape)
        return capture(self, shape)  # type: ignore[arg-type]

    monkeypatch.setattr(DevicePath, "_capture", counting)
    stack(monkeypatch, months, tmp_path / "out", StandIn(3))
    assert len(made) == len(set(made))


@pytest.mark.parametrize("share", [0.0, 1e-4], ids=["nothing", "some"])
def test_layers_that_do_not_fit_are_sent_again(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(device_dates, "SHARE", share)
    report = stack(monkeypatch, months, tmp_path / "out", StandIn(4))
    found = [report.of(name(month)).run for month in months.with_data]
    up = [date["device"]["bytes_up"] for date in found if date is not None]
    assert up[1] == up[2] and (up[1] == up[0] if share == 0 else 0.1 * up[0] < up[1] < up[0])
    check_maps(monkeypatch, months, tmp_path / "out")
