"""--bands interval: two bands around the radiance, whatever is done to it; told in the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions, parse_extra_bands
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.products import Products, model_outputs
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import manifest, write_analytic
from tests.scenes import options, write_raster, write_scene


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


def run(scene: SceneOptions, model: str, out: Path, tiles: int | None = None, **more: Any) -> np.ndarray:
    request = None if tiles is None else TileRequest(tiles)
    infer(RunOptions(scene=scene, out=out, model=model, tiles=request, bands=("interval",), **more))
    with rasterio.open(out) as d:
        return np.asarray(d.read())


def test_the_model_s_interval_and_what_it_was_told(model: str, tmp_path: Path) -> None:
    """The analytic model adds the blur along rows to the upper end, so it shows that tiles are told it."""
    scene = options(write_scene(tmp_path, 21, 27), psf=(1.5, 2.5))
    radiance, low, high = run(scene, model, tmp_path / "o.tif", 9)
    known = np.isfinite(radiance)
    assert 0 < known.mean() < 1
    np.testing.assert_array_equal(np.isnan(low) | np.isnan(high), ~known)
    np.testing.assert_allclose(low[known], radiance[known] / 2, rtol=1e-6)
    np.testing.assert_allclose(high[known], 2 * radiance[known] + 1.5 - 1.0, rtol=1e-5)
    with rasterio.open(tmp_path / "o.tif") as d:
        assert d.descriptions == (
            "ntl",
            "ntl_low (lower end of the 90% interval)",
            "ntl_high (upper end of the 90% interval)",
        )
        assert d.units == ("nW/cm²/sr",) * 3
        assert d.tags()["DEEPLIGHT_INTERVAL"] == "0.9"
        assert d.tags()["DEEPLIGHT_OPTION_PSF"] == "1.5,2.5"
        assert d.tags()["DEEPLIGHT_OPTION_BANDS"] == "interval"


def test_without_it_the_output_does_not_speak_of_it(model: str, tmp_path: Path) -> None:
    scene = options(write_scene(tmp_path, 8, 8))
    infer(RunOptions(scene=scene, out=tmp_path / "o.tif", model=model, tiles=None))
    with rasterio.open(tmp_path / "o.tif") as d:
        assert d.count == 1 and "DEEPLIGHT_INTERVAL" not in d.tags()
    assert model_outputs(()) == ("ntl_hr",)
    assert model_outputs(parse_extra_bands("interval,isp")) == ("ntl_hr", "isp", "interval")


def test_the_radiance_stays_inside_after_conservation(model: str, tmp_path: Path) -> None:
    scene = options(write_scene(tmp_path, 21, 27))
    plain = run(scene, model, tmp_path / "p.tif", 8)
    whole = run(scene, model, tmp_path / "w.tif", None, conserve_radiance=True)
    tiles = run(scene, model, tmp_path / "t.tif", 8, conserve_radiance=True)
    for radiance, low, high in (plain, whole, tiles):
        known = np.isfinite(radiance)
        assert (low[known] <= radiance[known]).all() and (radiance[known] <= high[known]).all()
    for a, b in zip(whole, tiles, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.nanmax(a))
    # the interval moved with the radiance: in the log domain it keeps its lower width
    known = np.isfinite(whole[0]) & (whole[0] > 1)
    assert np.abs(np.log(whole[0] / plain[0]))[known].max() > 0.1
    np.testing.assert_allclose((whole[1] / whole[0])[known], 0.5, rtol=0.02)


def test_uint16_keeps_the_order(model: str, tmp_path: Path) -> None:
    lr = np.random.default_rng(0).gamma(0.3, 60, (30, 30)).astype(np.float32)
    lr[3, 3] = 4000  # twice of it is beyond the type
    scene = SceneOptions(str(write_raster(tmp_path / "n.tif", lr, units=["nW/cm²/sr"])))
    lr[3, 3] = 200_000
    radiance, low, high = run(scene, model, tmp_path / "o.tif", 16, dtype="uint16")
    assert radiance.dtype == np.uint16
    assert (low <= radiance).all() and (radiance <= high).all() and (low < high).any()
    with rasterio.open(tmp_path / "o.tif") as d:
        assert d.scales == (0.1,) * 3 and d.offsets == (0.0,) * 3 and d.nodata == 65535


def test_pixels_beyond_the_type_are_those_of_the_radiance(model: str, tmp_path: Path) -> None:
    lr = np.full((10, 10), 5000, np.float32)
    path = write_raster(tmp_path / "n.tif", lr, units=["nW/cm²/sr"])
    request = RunOptions(
        scene=SceneOptions(str(path)),
        out=tmp_path / "o.tif",
        model=model,
        tiles=None,
        bands=("interval",),
        dtype="uint16",
    )
    report = infer(request)
    assert report is not None and report.clamped_pixels == 0, "the upper end alone is beyond it"


def test_ends_on_the_wrong_side_are_put_right() -> None:
    window = Window(0, 0, 2, 2)
    inputs = {spec.name: np.ones(input_shape(spec, 1, 2, 2), np.float32) for spec in INPUTS}
    radiance = np.full((1, 1, 16, 16), 5, np.float32)
    interval = np.stack([np.full((16, 16), 5.001), np.full((16, 16), 4.999)])[None].astype(np.float32)
    made, _ = Products(("interval",), manifest(), 63.0, False).make(
        {"ntl_hr": radiance, "interval": interval}, inputs, window, window
    )
    np.testing.assert_array_equal(made, 5)
