"""Whole runs over the device path, on a stand-in: the same pixels and facts as on the host's path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import OnDevice, pixels, run
from tests.engine.device.standin import StandIn
from tests.scenes import write_raster, write_scene

BANDS = ("isp", "offset", "quality", "interval")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    # a halo that holds what the sensor sees: else its counts depend on the window
    return str(write_model(tmp_path_factory.mktemp("model") / "analytic", onnx_bytes(), halo_lr=4))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    files = write_scene(tmp_path_factory.mktemp("scene"), 21, 27)
    return SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))


def same(got: np.ndarray, want: np.ndarray, quality: int | None = None) -> None:
    """The same mask; values within what float32 coordinates and sums in another order cost; the same flags."""
    assert got.shape == want.shape
    assert np.array_equal(np.isnan(got), np.isnan(want))
    for band, (a, b) in enumerate(zip(got, want, strict=True)):
        if band == quality:
            np.testing.assert_array_equal(a, b)
        # 2⁻¹⁸ of a pixel between neighbours, and the rounding of 25 terms
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.nanmax(np.abs(b)))


@pytest.mark.parametrize("conserve", [False, True], ids=["plain", "conserving"])
def test_pixels_and_facts_are_the_hosts(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conserve: bool
) -> None:
    options = {"bands": BANDS, "conserve_radiance": conserve}
    want = run(monkeypatch, scene, model, tmp_path / "host.tif", None, **options)
    got = run(monkeypatch, scene, model, tmp_path / "device.tif", StandIn(1), **options)
    same(pixels(tmp_path / "device.tif"), pixels(tmp_path / "host.tif"), quality=4)
    assert got.tiles["computed"] == want.tiles["computed"] and got.tiles["skipped"] == want.tiles["skipped"]
    for name in ("dmo", "dem"):
        assert got.inputs[name]["share_of_output"] == want.inputs[name]["share_of_output"]
    for name, value in want.lights.items():
        assert got.lights[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (
            name
        )


def test_steps_and_overviews_of_uint16_are_the_hosts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_scene(tmp_path, 9, 70)
    scene = SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo))
    options: dict[str, Any] = {"bands": ("interval",), "dtype": "uint16", "core": 20}
    want = run(monkeypatch, scene, model, tmp_path / "host.tif", None, **options)
    got = run(monkeypatch, scene, model, tmp_path / "device.tif", StandIn(1), **options)
    for level in (None, 0):
        more = {} if level is None else {"overview_level": level}
        with (
            rasterio.open(tmp_path / "host.tif", **more) as a,
            rasterio.open(tmp_path / "device.tif", **more) as b,
        ):
            host, device = a.read().astype(np.int32), b.read().astype(np.int32)
        assert host.shape == device.shape and np.array_equal(host == 65535, device == 65535)
        # inputs differ by rounding, which moves a few values that lie between two steps
        assert np.abs(host - device).max() <= 1 and (host != device).mean() < 1e-3
    # steps and the first overview, 3 bytes a pixel in each of three bands, and what the sensor sees
    assert got.device is not None and got.clamped_pixels == want.clamped_pixels
    tiles, lr = got.tiles["computed"], 9 * 70
    assert 0 <= got.device["bytes_down"] - lr * (3 * 3 * 64 + 4) < tiles * 4 * 256


@pytest.mark.parametrize("seed", range(3))
def test_bytes_do_not_depend_on_what_the_device_does_first(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dtype = "uint16" if seed == 1 else "float32"
    for out, chosen in (("a.tif", 100 + seed), ("b.tif", seed)):
        run(monkeypatch, scene, model, tmp_path / out, StandIn(chosen), core=7, dtype=dtype)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_tile_costs_no_memory_and_nothing_waits_for_it_but_its_writer(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the tiles: as many pieces of memory, as many waits for the whole device, and one wait more a tile."""
    counted = []
    for width in (20, 60):
        ntl = np.random.default_rng(0).gamma(0.5, 8.0, (20, width)).astype(np.float32)
        scene = SceneOptions(ntl=str(write_raster(tmp_path / f"{width}.tif", ntl)))
        device = StandIn()
        report = run(monkeypatch, scene, model, tmp_path / f"out{width}.tif", device, core=5)
        counted.append((device.pieces, device.synchronised, device.waits - report.tiles["computed"]))
    assert counted[0] == counted[1]


def test_what_a_run_says_of_the_device(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_host = run(monkeypatch, scene, model, tmp_path / "host.tif", None)
    assert on_host.device is None and on_host.backend["uncompiled"] == {}
    monkeypatch.setattr(OnDevice, "fallbacks", lambda self: {"1×1×9×9": "no compiler"})
    got = run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn())
    assert set(got.load) == {"decode", "upload", "compute", "download", "encode", "host", "assemble"}
    assert got.bottleneck in got.load and got.device is not None
    assert got.backend["uncompiled"] == {"1×1×9×9": "no compiler"}
    # a stand-in's clock counts steps, so only that there are times can be said
    assert got.device["busy"] > 0 and got.device["alone_hr_mpix_per_s"] > 0
    # pixels and what the sensor sees, float32, and seven counts: aligned to 256 bytes each
    assert got.device["bytes_down"] >= 4 * 65 * 21 * 27
    assert got.device["bytes_up"] > got.device["bytes_down"]


def test_scenes_without_layers_and_smaller_than_a_tile(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in ((1, 1), (3, 40)):
        ntl = np.random.default_rng(0).gamma(0.5, 8.0, shape).astype(np.float32)
        scene = SceneOptions(ntl=str(write_raster(tmp_path / "ntl.tif", ntl)))
        for out, device in (("host.tif", None), ("device.tif", StandIn())):
            run(monkeypatch, scene, model, tmp_path / out, device, core=16, mode=Mode.OVERWRITE)
        found = pixels(tmp_path / "device.tif")
        assert np.isfinite(found).all() and found.shape[-2:] == (8 * shape[0], 8 * shape[1])
        same(found, pixels(tmp_path / "host.tif"))


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_seams_are_verified_on_the_same_path(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    options: dict[str, Any] = {"core": 8, "verify_seams": 3, "dtype": dtype}
    report = run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), **options)
    assert report.seams is not None and report.seams["windows"] == 3 and report.seams["worst"] <= 1e-6
