"""In which order a tile is put on the streams: what is timed, what is timed with, and what is waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplight.engine.core.forms import Wanted
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import device_work
from deeplight.engine.run.device_path import MEASURED, WARM_UPS, DevicePath, TileShape
from deeplight.engine.run.device_work import DeviceWork
from deeplight.engine.run.slots import Ring, Slot
from deeplight.engine.runtime.backends.base import Resident
from deeplight.kernels.float32 import EXACT
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import analytic, run
from tests.engine.device.standin import StandIn, Stream
from tests.scenes import write_raster, write_scene

WANTED = Wanted((), 1, None, None, (1.0, 1.0), (-1.0, 0.1), 1e9, 2, 1.8, (-np.inf, np.inf))
CORE, WINDOW = Window(0, 0, 4, 4), Window(-4, -4, 12, 12)


def ready(
    device: StandIn, compute: Any = analytic, *, captured: bool = True
) -> tuple[DevicePath, TileShape, Slot]:
    """A path without layers, and a slot with room for a tile."""
    path = DevicePath(Resident(device, compute, captured=captured), WANTED, (0,) * 7)
    shape, slot = TileShape(12, 12, ()), Slot(device)
    slot.reserve(shape.sent.size, path.returned(*CORE.shape).size)
    return path, shape, slot


def test_only_the_program_lies_between_the_points_that_time_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host does between them would count as work of the device, which is idle meanwhile."""
    path, shape, slot = ready(StandIn())
    path.prepare(shape, slot, CORE, WINDOW)
    seen: list[Any] = []
    for name in ("copy", "run", "replay", "record", "wait"):
        does = getattr(Stream, name)

        def noted(self: Stream, *given: Any, name: str = name, does: Any = does, **more: Any) -> Any:
            seen.append(given[0] if name == "record" else name)
            return does(self, *given, **more)

        monkeypatch.setattr(Stream, name, noted)
    cut = DevicePath._cut
    monkeypatch.setattr(
        DevicePath, "_cut", lambda *given, **more: seen.append("views") or cut(*given, **more)
    )
    path.launch(slot, shape, CORE, WINDOW)
    begin, end = seen.index(slot.events["started"]), seen.index(slot.events["computed"])
    assert seen[begin + 1 : end] == ["replay"]
    assert seen.index("views") < begin and "run" in seen[end:]


def test_a_tile_that_is_timed_holds_what_tiles_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels leave out what is masked, and memory that nobody wrote holds no places in a file."""
    files = write_scene(tmp_path, 21, 27)
    scene = SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))
    model = str(write_model(tmp_path / "m", onnx_bytes(), halo_lr=4))
    seen: list[list[Tensor]] = []

    def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
        seen.append([tensor.clone() for tensor in inputs])
        return analytic(inputs)

    run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), core=8, on_device=compute)
    for ntl, valid, dmo, dmo_valid, _, dem, dem_valid, *_ in seen[1 : 1 + WARM_UPS + MEASURED]:
        assert valid.min() == 1 and 0 < ntl.mean() < 100
        assert dmo_valid.float().mean() > 0.8 and dem_valid.float().mean() > 0.8
        known = dmo_valid.bool().expand_as(dmo)
        assert dmo.min() >= 0 and dmo.max() <= 1 and dmo[known].std() > 0.1
        assert dem.abs().max() <= 1000 and dem.std() > 10


def test_memory_is_let_go_of_when_nothing_is_done_with_it() -> None:
    device = StandIn()
    path, shape, slot = ready(device)
    path.launch(slot, shape, CORE, WINDOW)
    path.forget()
    del slot
    # on another stream, in what may be the same memory: the stand-in raises where something there may still touch it
    source, target, stream, end = device.pinned(8), device.memory(8), device.stream(), device.event()
    source.array[:] = 7
    stream.copy(target, source, 8)
    stream.record(end)
    end.wait()
    assert target.bytes.tolist() == [7] * 8


@pytest.mark.parametrize("seed", range(2))
def test_a_slot_is_free_when_its_writer_has_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Writers take longer here than everything else, and there are fewer slots than tiles on their way: one that was
    free before would be used again meanwhile."""
    monkeypatch.setattr(device_work, "Ring", lambda device, _: Ring(device, 2))
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (8, 300)).astype(np.float32)
    scene = SceneOptions(ntl=str(write_raster(tmp_path / "ntl.tif", ntl)))
    model = str(write_model(tmp_path / "m", onnx_bytes(), halo_lr=4))
    finish = DeviceWork.finish

    def slowly(work: DeviceWork, tile: Any) -> Any:
        before = tile.pixels.copy()
        time.sleep(0.02)
        np.testing.assert_array_equal(tile.pixels, before)
        return finish(work, tile)

    monkeypatch.setattr(DeviceWork, "finish", slowly)
    report = run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(seed), core=8)
    assert report.tiles["computed"] > 30


def test_programs_that_are_not_captured_multiply_whole_numbers() -> None:
    seen: list[str] = []

    def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return analytic(inputs)

    path, shape, slot = ready(StandIn(), compute, captured=False)
    path.launch(slot, shape, CORE, WINDOW)
    slot.events["left"].wait()
    assert seen == [EXACT]
