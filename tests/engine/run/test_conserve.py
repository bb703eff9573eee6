"""--conserve-radiance: block means, dark blocks, nodata, tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene
from deeplight.engine.run.conserve import SHARE_OF_UNIFORM, conserve_radiance
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import write_analytic
from tests.scenes import options, write_scene


def block_means(values: NDArray[np.float32]) -> NDArray[np.float64]:
    h, w = values.shape
    return np.asarray(values.astype(np.float64).reshape(h // 8, 8, w // 8, 8).mean(axis=(1, 3)))


def test_every_block_has_the_mean_of_its_pixel() -> None:
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.integers(-30, 5, (9, 11))
    radiance = (rng.gamma(0.3, 1, (72, 88)) * np.kron(scales, np.ones((8, 8)))).astype(np.float32)
    radiance[8:16] = 0
    lr = rng.gamma(0.5, 20, (9, 11)).astype(np.float32)
    lr[0, :4] = 0, -0.3, 1e-6, 6553.4
    got = conserve_radiance(radiance, lr, np.ones((9, 11), np.uint8))
    assert got.dtype == np.float32 and (got >= 0).all()
    # Rounding of each pixel to float32: 6e-8 of it.
    np.testing.assert_allclose(block_means(got), np.maximum(lr, 0), rtol=1e-6, atol=0)
    # A dark block of a lit pixel is filled evenly; one of a dark or negative pixel is dark.
    np.testing.assert_allclose(got[8:16], np.kron(lr[1], np.ones((8, 8))), rtol=1e-6)
    assert not got[:8, :16].any()


def test_where_the_model_has_radiance_the_pattern_stays() -> None:
    radiance = np.random.default_rng(1).gamma(1, 10, (8, 8)).astype(np.float32)
    got = conserve_radiance(radiance, np.float32([[25.0]]), np.ones((1, 1), np.uint8))
    lifted = radiance + SHARE_OF_UNIFORM * 25.0
    np.testing.assert_allclose(got, lifted * (25.0 / lifted.mean()), rtol=1e-6)
    # Up to the even share, the ratio of pixels is the model's.
    factor = 25.0 / radiance.mean()
    share = SHARE_OF_UNIFORM * factor
    np.testing.assert_allclose(got, radiance * factor, rtol=share, atol=share * 25)


def test_nodata_and_bad_numbers_are_left_to_the_mask() -> None:
    radiance = np.ones((8, 16), np.float32)
    radiance[3, 3] = np.nan
    got = conserve_radiance(radiance, np.float32([[5, 5]]), np.uint8([[1, 0]]))
    assert np.isnan(got[:, :8]).all()  # stays bad, so that the run notices
    np.testing.assert_array_equal(got[:, 8:], 1)


def test_output_of_a_run(tmp_path: Path) -> None:
    model = str(write_analytic(tmp_path / "model"))
    scene = options(write_scene(tmp_path, 11, 13))
    results = {}
    for tiles in (None, 4):
        out = tmp_path / f"{tiles}.tif"
        request = None if tiles is None else TileRequest(tiles)
        infer(RunOptions(scene=scene, out=out, model=model, tiles=request, conserve_radiance=True))
        with rasterio.open(out) as d:
            results[tiles] = d.read(1)
            assert d.tags()["DEEPLIGHT_OPTION_CONSERVE_RADIANCE"] == "yes"
    with Scene.open(scene) as opened:
        lr, valid = opened.read_ntl(Window(0, 0, 11, 13))
    means = block_means(results[None])
    np.testing.assert_array_equal(np.isfinite(means), valid != 0)
    known = valid != 0
    assert (lr[known] < 0).any() and (lr[known] > 1).any()
    np.testing.assert_allclose(means[known], np.maximum(lr[known], 0), rtol=1e-4)
    top = np.nanmax(results[None])
    np.testing.assert_allclose(results[4], results[None], rtol=0, atol=1e-5 * top)
    plain = tmp_path / "plain.tif"
    infer(RunOptions(scene=scene, out=plain, model=model))
    with rasterio.open(plain) as d:
        off = block_means(d.read(1))[known] / np.maximum(lr[known], 1e-3)
    assert np.abs(off - 1).max() > 0.1, "without the option the means differ, or this test shows nothing"


def test_not_with_rounded_radiance(tmp_path: Path) -> None:
    scene = options(write_scene(tmp_path, 11, 13))
    request = RunOptions(scene=scene, out=tmp_path / "o.tif", dtype="uint16", conserve_radiance=True)
    with pytest.raises(InputError, match="leave one of them out"):
        infer(request)
