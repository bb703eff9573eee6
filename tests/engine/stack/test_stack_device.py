"""A stack over the device path, on the stand-in: one model, one upload of layers and one suggestion of lights for all
dates, the bytes of single runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight.engine.core.windows import Window
from deeplight.engine.network.divided import Divided
from deeplight.engine.raster.unresampled import Placed, Unresampled
from deeplight.engine.run import device_dates, paths
from deeplight.engine.run.device_path import MEASURED, WARM_UPS, DevicePath
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact
from deeplight.engine.runtime.backends.torch_backend import Computing
from deeplight.engine.runtime.models import load_network
from deeplight.engine.stack.report import StackReport
from tests.engine.device.runs import Compute, OnDevice, analytic, run
from tests.engine.device.standin import StandIn
from tests.engine.stack.months import Months, name
from tests.scenes import options

CORE, SUGGESTING_CORE = 6, 9


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    return Months.write(tmp_path_factory.mktemp("months"))


def stack(
    monkeypatch: pytest.MonkeyPatch,
    months: Months,
    out: Path,
    device: StandIn,
    compute: Compute = analytic,
    core: int = CORE,
    **changes: object,
) -> StackReport:
    """All months over the device path."""
    backend = OnDevice(compute, device)
    monkeypatch.setattr(paths, "open_model", lambda *_: backend)
    report = months.run(out, tiles=TileRequest(core), **changes)
    assert isinstance(report, StackReport) and report.computed == len(months.with_data)
    return report


def single_maps(
    months: Months, folder: Path, compute: Compute = analytic, core: int = CORE, **changes: Any
) -> dict[str, bytes]:
    """The map of each month, by name, made by a run of its own on another device."""
    maps = {}
    for month in months.with_data:
        scene = options(months.files, ntl=str(months.folder / f"ntl-{name(month)}.tif"))
        out = folder / f"{name(month)}.tif"
        with pytest.MonkeyPatch.context() as patch:
            run(patch, scene, months.model, out, StandIn(2), core, compute, **changes)
        maps[out.name] = out.read_bytes()
    return maps


@pytest.fixture(scope="module")
def singles(months: Months, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of the analytic model."""
    return single_maps(months, tmp_path_factory.mktemp("singles"))


def check_maps(singles: dict[str, bytes], folder: Path) -> None:
    """Compare all maps with those of single runs."""
    assert singles == {place.name: place.read_bytes() for place in folder.glob("*.tif")}


def test_layers_are_read_and_sent_for_the_first_date_alone(
    months: Months, singles: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    check_maps(singles, tmp_path / "out")


def test_programs_are_made_for_the_first_date_alone(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    capture = DevicePath._capture

    def counting(self: DevicePath, shape: object) -> object:
        made.append(shape)
        return capture(self, shape)  # type: ignore[arg-type]

    monkeypatch.setattr(DevicePath, "_capture", counting)
    single_maps(months, tmp_path)
    count = len(made) // len(months.with_data)
    made.clear()
    stack(monkeypatch, months, tmp_path / "out", StandIn(3))
    assert len(made) == len(set(made)) == count


def test_tiles_beside_the_device_are_made_for_every_date(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a layer's columns start again: nothing of such tiles is kept on the device."""
    located = Unresampled.located

    def some(layer: Unresampled, window: Window) -> Placed | None:
        return None if window.col > 0 else located(layer, window)

    monkeypatch.setattr(Unresampled, "located", some)
    (tmp_path / "singles").mkdir()
    singles = single_maps(months, tmp_path / "singles")
    report = stack(monkeypatch, months, tmp_path / "out", StandIn(4))
    dates = [report.of(name(month)).run for month in months.with_data]
    for date in dates:
        assert date is not None and 0 < date["device"]["host_tiles"] < date["tiles"]["computed"]
    check_maps(singles, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 1e-4], ids=["nothing", "some"])
def test_layers_that_do_not_fit_are_sent_again(
    months: Months, singles: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(device_dates, "SHARE", share)
    report = stack(monkeypatch, months, tmp_path / "out", StandIn(4))
    found = [report.of(name(month)).run for month in months.with_data]
    up = [date["device"]["bytes_up"] for date in found if date is not None]
    assert up[1] == up[2] and (up[1] == up[0] if share == 0 else 0.1 * up[0] < up[1] < up[0])
    check_maps(singles, tmp_path / "out")


@pytest.fixture(scope="module")
def network() -> Computing:
    """The shipped model: the analytic one suggests nothing."""
    return Computing(load_network(load_artifact(DEFAULT_MODEL)), "fp32", torch.device("cpu"))


@pytest.fixture(scope="module")
def network_singles(
    months: Months, network: Computing, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Its maps."""
    return single_maps(
        months, tmp_path_factory.mktemp("network"), network, SUGGESTING_CORE, bands=("offset",)
    )


@pytest.fixture
def suggestions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the device suggested lights, counted in its only element."""
    counted, call = [0], Divided.__call__

    def counting(self: Divided, *given: Any, known: bool, **more: Any) -> Sequence[Tensor]:
        counted[0] += not known
        return call(self, *given, known=known, **more)

    monkeypatch.setattr(Divided, "__call__", counting)
    return counted


@pytest.mark.parametrize(
    "kept",
    [
        "all",
        *(pytest.param(few, marks=pytest.mark.slow) for few in ("some", "none")),
        "all, and there is no memory for the second program",
    ],
)
def test_lights_are_suggested_once_for_all_dates(
    months: Months,
    network: Computing,
    network_singles: dict[str, bytes],
    suggestions: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: str,
) -> None:
    shares, device = {"some": 1e-4, "none": 0.0}, StandIn(5)
    monkeypatch.setattr(device_dates, "SHARE", shares.get(kept, device_dates.SHARE))
    capture, programs = StandIn.capture, []

    def capturing(self: StandIn, *given: Any, beside: Any = None) -> Any:
        if beside is not None and "no memory" in kept:
            raise RuntimeError("CUDA out of memory. Tried to allocate …")
        programs.append("whole" if beside is None else "known")
        return capture(self, *given, beside=beside)

    monkeypatch.setattr(StandIn, "capture", capturing)
    report = stack(monkeypatch, months, tmp_path / "out", device, network, SUGGESTING_CORE, bands=("offset",))
    dates = [report.of(name(month)).run for month in months.with_data]
    tiles = [date["tiles"]["computed"] for date in dates if date is not None]
    assert tiles == [9, 9, 9]
    # beside those of maps: tiles that time the first program, and one for each that is captured
    suggested = suggestions[0] - programs.count("whole") - (WARM_UPS + MEASURED)
    if kept == "all":
        assert suggested == tiles[0] and 0 < programs.count("known") <= programs.count("whole")
    elif kept == "some":
        assert tiles[0] < suggested < sum(tiles)
    else:
        assert suggested == sum(tiles) and "known" not in programs
    check_maps(network_singles, tmp_path / "out")
