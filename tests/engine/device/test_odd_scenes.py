"""Whole runs of odd scenes over the device path, on a stand-in: tiles move inwards, and programs grow."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.warp import transform
from torch import Tensor

from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster import unresampled
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import device_work
from deeplight.engine.run.device_path import DevicePath
from deeplight.engine.run.seams import tiles_behind
from deeplight.engine.run.tiling import EDGE, TilePlan, fixed_window, tile_window
from tests.engine.analytic import manifest, onnx_bytes, write_model
from tests.engine.device.runs import analytic, pixels, run
from tests.engine.device.standin import StandIn
from tests.engine.device.test_device_path import same
from tests.engine.device.test_layers import CASES, round_the_earth
from tests.scenes import ARC, WEST, write_raster, write_scene

BANDS = ("isp", "quality", "interval")
HALO = EDGE + 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One whose halo is wider than what is shown beyond the scene."""
    return str(write_model(tmp_path_factory.mktemp("model") / "analytic", onnx_bytes(), halo_lr=HALO))


def brightened(scene: SceneOptions, folder: Path) -> SceneOptions:
    """The scene with lights that differ from place to place, and some missing."""
    ntl = np.random.default_rng(4).gamma(0.5, 8.0, (21, 27)).astype(np.float32)
    ntl[3:6, 5:9] = -999.0
    ntl[10, ::4] = -999.0
    return dataclasses.replace(scene, ntl=str(write_raster(folder / "lights.tif", ntl, nodata=-999.0)))


@pytest.mark.parametrize("name", CASES)
def test_odd_scenes(name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = brightened(CASES[name][0](tmp_path), tmp_path)
    for out, device in (("host.tif", None), ("device.tif", StandIn(2))):
        report = run(monkeypatch, scene, model, tmp_path / out, device, bands=BANDS)
    assert report.device is not None and report.device["host_tiles"] == 0 < report.tiles["computed"]
    same(pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif"), quality=2)


def test_tiles_where_columns_start_again_go_through_the_host(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of more than the whole Earth whose ends lie within the scene: the host finds the pixels of such tiles."""
    scene = brightened(round_the_earth(tmp_path, begins=WEST + 24.3 * ARC, more=1), tmp_path)
    launched, launch = [], DevicePath.launch

    def launching(path: DevicePath, *given: Any, **more: Any) -> None:
        launched.append(given[2])
        launch(path, *given, **more)

    monkeypatch.setattr(DevicePath, "launch", launching)
    for out, device in (("host.tif", None), ("device.tif", StandIn(3))):
        report = run(monkeypatch, scene, model, tmp_path / out, device, bands=BANDS)
    same(pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif"), quality=2)
    assert report.device is not None and report.device["host_tiles"] == report.tiles["computed"] - len(
        launched
    )
    cores = split(Window(0, 0, 21, 27), 6)
    assert set(launched) == {core for core in cores if core.col + core.width + HALO < 24}


def test_columns_are_counted_on_where_they_start_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of the whole Earth whose first column lies in the middle of a tile: no tile is left to the host."""
    scene = brightened(round_the_earth(tmp_path, begins=WEST + 15.3 * ARC), tmp_path)
    for out, device in (("host.tif", None), ("device.tif", StandIn(3))):
        report = run(monkeypatch, scene, model, tmp_path / out, device, bands=BANDS)
    same(pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif"), quality=2)
    assert report.device is not None and report.device["host_tiles"] == 0


def holed(
    folder: Path, crs: str, longitude: float, latitude: float, lights: np.ndarray, more: int = 0
) -> SceneOptions:
    """Lights in metres around a place, and daytime bands of the whole Earth with many holes, two of them in files of
    their own. more: columns by which their ends overlap on either side, so that they do not go round."""
    (x,), (y,) = transform("EPSG:4326", crs, [longitude], [latitude])
    ntl = write_raster(folder / "lights.tif", lights, crs, Affine(500, 0, x, 0, -500, y), nodata=-999.0)
    files, rng = {}, np.random.default_rng(3)
    for slot, west in (("red", -180.0), ("nir", 0.0)):
        values = rng.integers(0, 240, (1, 400, 3600)).astype(np.uint8)
        values = np.pad(values, ((0, 0), (0, 0), (more, more)), "wrap")
        place = Affine(0.1, 0, west - 0.1 * more, 0, -0.1, latitude + 20.0)
        path = write_raster(folder / f"{slot}.tif", values, transform=place, nodata=0, scales=[0.004])
        with rasterio.open(path, "r+") as file:
            values[values < 60] = 0
            file.write(values)
        files[slot] = str(path)
    return SceneOptions(ntl=str(ntl), dmo_files=files)


@pytest.mark.parametrize(
    ("place", "host"), [("antimeridian", "none"), ("overlapping ends", "some"), ("near the pole", "all")]
)
def test_masks_are_the_hosts_where_coordinates_jump_and_bend(
    place: str, host: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lights = np.random.default_rng(5).gamma(0.5, 8.0, (12, 90)).astype(np.float32)
    if place == "near the pole":
        scene = holed(tmp_path, "EPSG:3413", 20.0, 89.7, lights[:, :18])
    else:  # 75 pixels east of the corner, in the second block of the mesh
        more = 1 if place == "overlapping ends" else 0
        scene = holed(tmp_path, "EPSG:32760", 180 - 75 * 500 / 106_000, -17.0, lights, more)
    for out, device in (("host.tif", None), ("device.tif", StandIn(3))):
        report = run(monkeypatch, scene, model, tmp_path / out, device, bands=BANDS)
    got, want = pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif")
    same(got, want, quality=2)
    assert len(np.unique(want[2])) > 1, "the scene has holes"
    assert report.device is not None
    assert (report.device["host_tiles"] == report.tiles["computed"]) == (host == "all")
    assert (report.device["host_tiles"] == 0) == (host == "none")


@pytest.mark.parametrize(("latitude", "step"), [pytest.param(89.7, 4, marks=pytest.mark.slow), (89.8, 2)])
def test_nodes_closer_to_each_other_where_coordinates_bend(
    latitude: float, step: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lights within a single mesh near the pole, whose nodes lie as far apart as those that are sent."""
    lights = np.full((40, 40), -999.0, np.float32)
    lights[12:30, 12:30] = np.random.default_rng(5).gamma(0.5, 8.0, (18, 18))
    scene = holed(tmp_path, "EPSG:3413", -100.0, latitude, lights)
    made, capture = [], DevicePath._capture
    monkeypatch.setattr(
        DevicePath, "_capture", lambda path, shape: made.append(shape) or capture(path, shape)
    )
    for out, device in (("host.tif", None), ("device.tif", StandIn(3))):
        report = run(monkeypatch, scene, model, tmp_path / out, device, bands=BANDS)
    got, want = pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif")
    same(got, want, quality=2)
    assert len(np.unique(want[2][np.isfinite(want[2])])) > 1, "the scene has holes"
    assert {form.step for shape in made for _, form in shape.forms} == {step}
    assert report.device is not None and report.device["host_tiles"] == 0


def coarser(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The model as a device computes it in a reduced precision: other numbers than the host's."""
    return [x * (1 + 2.0**-9) for x in analytic(inputs)]


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "uint16"])
def test_seams_are_looked_at_where_the_device_has_made_them(
    dtype: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host makes beside it may differ by the precision, which is no seam; in pieces, of several tiles."""
    monkeypatch.setattr(device_work, "PIECE", 4)
    lights = np.random.default_rng(5).gamma(0.5, 8.0, (12, 90)).astype(np.float32)
    lights[:6, 70:76] = -999.0
    scene = holed(tmp_path, "EPSG:32760", 180 - 75 * 500 / 106_000, -17.0, lights, more=1)
    out, how = (
        tmp_path / "seams.tif",
        {"bands": ("interval",), "dtype": dtype, "verify_seams": 3, "threads": 4},
    )
    report = run(monkeypatch, scene, model, out, StandIn(3), on_device=coarser, **how)
    assert report.device is not None and 0 < report.device["host_tiles"] < report.tiles["computed"]
    assert report.seams is not None and report.seams["windows"] == 3
    run(monkeypatch, scene, model, tmp_path / "host.tif", None, bands=("interval",), dtype=dtype)
    got, want = pixels(out), pixels(tmp_path / "host.tif")
    assert np.array_equal(np.isnan(got), np.isnan(want))
    # a step, and the precision above
    np.testing.assert_allclose(got[0], want[0], rtol=2.0**-9, atol=1.1 if dtype == "uint16" else 1e-4)


def test_bad_numbers_beside_the_device_are_tried_again_in_one_piece(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_work, "PIECE", 4)
    scene = brightened(round_the_earth(tmp_path, begins=WEST + 24.3 * ARC, more=1), tmp_path)
    widths: list[int] = []

    def bad_at_first(inputs: Sequence[Tensor]) -> list[Tensor]:
        widths.append(inputs[0].shape[3])
        found = analytic(inputs)
        return [torch.full_like(x, torch.nan) for x in found] if len(widths) == 1 else found

    run(monkeypatch, scene, model, tmp_path / "good.tif", StandIn(1))
    report = run(
        monkeypatch, scene, model, tmp_path / "o.tif", StandIn(1), 6, bad_at_first, on_device=analytic
    )
    assert len(report.retried) == 1 and "below zero" in report.retried[0]["reason"]
    assert max(widths) > widths[0], "a piece, and the core"
    np.testing.assert_allclose(pixels(tmp_path / "o.tif"), pixels(tmp_path / "good.tif"), rtol=1e-6)


def test_tiles_behind_a_window_are_those_of_the_plan() -> None:
    plan = TilePlan(core=6, halo=HALO, pack=12, estimate=0)
    found = list(tiles_behind(Window(5, 11, 8, 2), (21, 27), plan))
    assert found == [Window(r, c, 6, 6) for r in (0, 6, 12) for c in (6, 12)]


@pytest.mark.parametrize("name", ["usual", "rotated"])
def test_a_tile_that_needs_more_room_changes_nothing(
    name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program is made for some of the windows; where another needs more, a larger one is made in the run."""
    scene = brightened(CASES[name][0](tmp_path), tmp_path)
    run(monkeypatch, scene, model, tmp_path / "roomy.tif", StandIn(1), bands=BANDS)
    monkeypatch.setattr(unresampled, "_SLACK", 1)
    monkeypatch.setattr(unresampled, "roomy", lambda needed: needed)
    monkeypatch.setattr(device_work, "spread", lambda size, core: [Window(0, 0, *core).clipped(*size)])
    made = []
    capture = DevicePath._capture
    monkeypatch.setattr(
        DevicePath, "_capture", lambda path, shape: made.append(shape) or capture(path, shape)
    )
    run(monkeypatch, scene, model, tmp_path / "grown.tif", StandIn(1), bands=BANDS)
    assert len(made) > 1, "nothing has grown"
    assert (tmp_path / "grown.tif").read_bytes() == (tmp_path / "roomy.tif").read_bytes()


def test_bytes_do_not_depend_on_how_many_read(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on how many tiles are on their way at once. The first is not collected before the third is launched."""
    files = write_scene(tmp_path, 21, 27)
    scene = SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))
    launch, land = DevicePath.launch, DevicePath.landed
    launched, changed = [0], threading.Condition()

    def launching(path: DevicePath, *given: Any, **more: Any) -> None:
        launch(path, *given, **more)
        with changed:
            launched[0] += 1
            changed.notify_all()

    def landing(path: DevicePath, *given: Any, **more: Any) -> Any:
        with changed:
            assert changed.wait_for(lambda: launched[0] >= 3, timeout=60), "fewer than three tiles at once"
        return land(path, *given, **more)

    monkeypatch.setattr(DevicePath, "launch", launching)
    monkeypatch.setattr(DevicePath, "landed", landing)
    found = []
    for threads in (1, 8):
        out, launched[0] = tmp_path / f"{threads}.tif", 0
        run(monkeypatch, scene, model, out, StandIn(threads), core=6, threads=threads)
        found.append(out.read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("size", [(100, 61), (23, 200), (5, 5)])
def test_tiles_of_one_size_hold_what_the_core_needs(size: tuple[int, int], multiple: int) -> None:
    """All windows of a scene have one shape, as large as it or as the tile, and hold the window that a tile needs."""
    rules = manifest(multiple_lr=multiple, halo_lr=HALO)
    side, shapes = 16, set()
    for core in split(Window(0, 0, *size), side):
        window, needed = fixed_window(core, side, HALO, rules, size), tile_window(core, HALO, rules, size)
        shapes.add(window.shape)
        assert window.row % multiple == 0 and window.col % multiple == 0
        assert window.height % multiple == 0 and window.width % multiple == 0
        assert window.row <= needed.row and window.row + window.height >= needed.row + needed.height
        assert window.col <= needed.col and window.col + window.width >= needed.col + needed.width
        assert window.row >= -(-EDGE // multiple) * -multiple or size[0] < side
        assert window.row + window.height <= size[0] + EDGE + multiple or size[0] < side + 2 * HALO
    assert len(shapes) == 1
