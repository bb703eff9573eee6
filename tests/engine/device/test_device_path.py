"""Whole runs over the device path, on a stand-in: the same pixels and facts as on the host's path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.raster.scene import SceneOptions
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import pixels, run
from tests.engine.device.standin import StandIn
from tests.scenes import write_scene

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
