"""What goes wrong on a device: a run ends resumably, in one sentence, and goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.device_path import MEASURED, WARM_UPS
from deeplight.engine.run.device_work import DeviceWork
from deeplight.engine.runtime.device import DeviceFailed, OutOfDeviceMemory
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import analytic, pixels, run
from tests.engine.device.standin import StandIn
from tests.scenes import write_raster

BRIGHT = 500.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model") / "analytic", onnx_bytes(), halo_lr=4))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    """NTL alone, 8 × 600 LR pixels: three packs; one pixel of the second is bright."""
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (8, 600)).astype(np.float32).clip(0, BRIGHT / 2)
    ntl[4, 300] = BRIGHT
    return SceneOptions(ntl=str(write_raster(tmp_path_factory.mktemp("scene") / "ntl.tif", ntl)))


def bad_where_bright(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The model, whose light is not a number beside the bright pixel."""
    found = analytic(inputs)
    bright = (inputs[0] == BRIGHT).repeat_interleave(8, 2).repeat_interleave(8, 3)
    found[0] = torch.where(bright, torch.full_like(found[0], torch.nan), found[0])
    return found


@pytest.mark.parametrize(("fails", "failing"), [("replay", 1), ("replay", 38), ("copy", 1), ("copy", 3 * 38)])
def test_a_device_that_breaks_ends_the_run_resumably(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, failing: int
) -> None:
    """All that is asked of it afterwards fails as well, letting go of its memory too. A tile has three copies, those
    that are timed beforehand one, and one for all of them."""
    run(monkeypatch, scene, model, tmp_path / "whole.tif", StandIn(), core=16)
    device = StandIn(seed=failing, fails_at=WARM_UPS + MEASURED + (fails == "copy") + failing, fails=fails)
    with pytest.raises(
        DeviceFailed, match=r"^stand-in failed.*illegal memory access.*`resume=True`$"
    ) as error:
        run(monkeypatch, scene, model, tmp_path / "o.tif", device, core=16)
    assert "\n" not in str(error.value) and error.value.exit_code == 1
    assert not (tmp_path / "o.tif").exists()
    resumed = run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(5), core=16, mode=Mode.RESUME)
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    if failing > 1:  # the last tile: seven are on their way at most, so one of the first two packs is whole
        assert resumed.packs["kept_from_earlier_run"] >= 1


def test_errors_of_triton_are_the_devices(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = pytest.importorskip("triton.runtime.errors")
    asked = []

    def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
        if len(asked) > 8:
            raise errors.OutOfResources(300_000, 232_448, "shared memory")
        asked.append(1)
        return analytic(inputs)

    with pytest.raises(DeviceFailed, match=r"^stand-in failed.*shared memory.*`resume=True`$"):
        run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), core=16, on_device=compute)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_bad_numbers_are_tried_in_fp32_off_the_path(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    options: dict[str, Any] = {"core": 64, "dtype": dtype}
    run(monkeypatch, scene, model, tmp_path / "good.tif", StandIn(), **options)
    report = run(
        monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), on_device=bad_where_bright, **options
    )
    assert len(report.retried) == 1 and "below zero" in report.retried[0]["reason"]
    np.testing.assert_allclose(pixels(tmp_path / "o.tif"), pixels(tmp_path / "good.tif"), rtol=1e-6)


def test_a_tile_beside_the_path_that_is_tried_again_counts_once(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it takes is told, as a stage of its own."""
    monkeypatch.setattr(DeviceWork, "_located", lambda self, window: None)
    bright: list[int] = []

    def bad_at_first(inputs: Sequence[Tensor]) -> list[Tensor]:
        bright.extend([1] * bool((inputs[0] == BRIGHT).any()))
        return bad_where_bright(inputs) if len(bright) == 1 else analytic(inputs)

    how: dict[str, Any] = {"core": 150, "compute": bad_at_first, "on_device": analytic, "threads": 1}
    report = run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), **how)
    assert len(report.retried) == 1 and report.device is not None
    # packs have 256 LR pixels a side
    assert report.device["host_tiles"] == report.tiles["computed"] == 5
    assert report.load["host"] > 0 and report.load["compute"] == 0


def test_a_tile_that_is_bad_in_fp32_too_is_put_into_quarantine(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeepLightError, match="1 tile could not be computed"):
        run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), core=64, compute=bad_where_bright)
    resumed = run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), core=64, mode=Mode.RESUME)
    assert resumed.packs["kept_from_earlier_run"] == 2
    run(monkeypatch, scene, model, tmp_path / "whole.tif", StandIn(), core=64)
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_too_little_memory_before_the_first_tile(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Automatic tiles become smaller; those that were asked for are refused, with nothing written."""
    needed = StandIn()
    run(monkeypatch, scene, model, tmp_path / "a.tif", needed, core=16)
    small = run(monkeypatch, scene, model, tmp_path / "b.tif", StandIn(room=needed.most), core=0)
    assert small.tiles["core"] == 16
    with pytest.raises(InputError, match=r"tiles of 64 LR pixels do not fit.*stand-in.*use smaller `tiles`"):
        run(monkeypatch, scene, model, tmp_path / "c.tif", StandIn(room=needed.most), core=64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_too_little_memory_later_names_the_tiles(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = StandIn(
        fails_at=WARM_UPS + MEASURED + 1, failure="CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    with pytest.raises(
        OutOfDeviceMemory, match=r"memory of stand-in did not suffice.*`tiles`.*`resume=True`"
    ):
        run(monkeypatch, scene, model, tmp_path / "o.tif", device, core=64)
    assert not (tmp_path / "o.tif").exists()
    run(monkeypatch, scene, model, tmp_path / "whole.tif", StandIn(), core=64)
    run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(5), core=64, mode=Mode.RESUME)
    assert (tmp_path / "o.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
