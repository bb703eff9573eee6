"""--conserve-radiance: the output seen through the blur is the input, without block edges, the same in any tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.psf import Fwhm
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.conserve import REACH, conserve_radiance
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.sensor import Sensor, blur_weights, enlarged, seen
from deeplight.engine.run.tiling import TileRequest
from tests.engine.analytic import BLUR, write_analytic
from tests.scenes import options, write_raster, write_scene

SIDE = 96


def world(fwhm: Fwhm, seed: int = 3) -> tuple[Floats, Floats]:
    """Towns (8·SIDE, 8·SIDE) of many sizes on a dark ground, and what a sensor of this blur sees of them."""
    rng = np.random.default_rng(seed)
    side = 8 * SIDE
    at = np.arange(side)
    truth = np.full((side, side), 0.2)
    for _ in range(150):
        row, col = rng.uniform(0, side, 2)
        width, light = 8 * rng.uniform(0.3, 4), rng.gamma(0.7, 40)
        truth += light * np.outer(np.exp(-(((at - row) / width) ** 2)), np.exp(-(((at - col) / width) ** 2)))
    fine = truth.astype(np.float32)
    return fine, seen(fine, *(blur_weights(f) for f in fwhm))


def model_inputs(lr: Floats, fwhm: Fwhm, valid: Floats | None = None) -> dict[str, Floats]:
    mask = np.ones_like(lr) if valid is None else valid
    return {
        "ntl": (lr * mask)[None, None],
        "ntl_valid": mask[None, None],
        "psf": np.float32([fwhm]),
        "limits": np.float32([[-1, -1]]),
    }


def sums(values: Floats, side: int) -> NDArray[np.float64]:
    n = len(values) // side
    return np.asarray(values.astype(np.float64).reshape(n, side, n, side).sum(axis=(1, 3)))


@pytest.mark.parametrize("fwhm", [(0.0, 0.0), (1.0, 1.0), (1.6, 2.4)])
def test_the_output_seen_through_the_blur_is_the_input(fwhm: Fwhm) -> None:
    lr = world(fwhm)[1]
    # a network that has blurred everything once more and lost a tenth of the light
    poor = np.float32(0.9) * enlarged(seen(enlarged(lr), *(blur_weights(1.5),) * 2))
    whole = Window(0, 0, SIDE, SIDE)
    got, factor, _ = conserve_radiance(poor, model_inputs(lr, fwhm), whole, whole)
    assert got.dtype == np.float32 and (got > 0).all() and (factor > 0).all()
    rows, columns = (blur_weights(f) for f in fwhm)
    rms = np.sqrt(np.mean((seen(got, rows, columns) - lr) ** 2) / np.mean(lr**2))
    before = np.sqrt(np.mean((seen(poor, rows, columns) - lr) ** 2) / np.mean(lr**2))
    assert rms <= 0.02 < 0.1 < before
    # blocks of 32² LR pixels; light that the blur carries over their edges is not theirs
    np.testing.assert_allclose(sums(seen(got, rows, columns), 32), sums(lr, 32), rtol=0.005)
    if fwhm == (0.0, 0.0):
        np.testing.assert_allclose(sums(got, 256) / 64, sums(lr, 32), rtol=0.005)


def test_sums_hold_better_where_the_lights_contradict_the_blur() -> None:
    """Lights of half the blur that is told, and noise: no light looks so, and the steps alone leave 1.3 % too much."""
    lr = world((1.0, 1.0))[1] + np.random.default_rng(0).normal(-0.2, 0.05, (SIDE, SIDE)).astype(np.float32)
    given, whole = np.maximum(lr, 0), Window(0, 0, SIDE, SIDE)
    got = conserve_radiance(enlarged(given), model_inputs(lr, (2.0, 2.0)), whole, whole)[0]
    again = seen(got, blur_weights(2.0), blur_weights(2.0))
    np.testing.assert_allclose(sums(again, 32), sums(given, 32), rtol=0.01)


def test_saturated_lights_may_stay_brighter() -> None:
    lr = np.full((48, 48), 63, np.float32)
    inputs = model_inputs(lr, (1.0, 1.0)) | {"limits": np.float32([[63, 0.29]])}
    whole, bright = Window(0, 0, 48, 48), np.full((384, 384), 90, np.float32)
    got = conserve_radiance(bright, inputs, whole, whole)[0]
    np.testing.assert_allclose(got, bright, rtol=0.002)  # but for the even share


def test_there_are_no_block_edges() -> None:
    """Where the model says nothing the result is smooth; block means would make all its steps at edges."""
    fwhm = (1.0, 1.0)
    lr = world(fwhm)[1]
    whole = Window(0, 0, SIDE, SIDE)
    flat = np.full((8 * SIDE, 8 * SIDE), 5, np.float32)
    got = conserve_radiance(flat, model_inputs(lr, fwhm), whole, whole)[0]
    steps = np.abs(np.diff(np.log(got), axis=0))
    at_edges = steps[7::8].mean()
    inside = np.mean([steps[k::8].mean() for k in range(7)])
    assert 0.8 < at_edges / inside < 1.25


def test_dark_blocks_of_lit_pixels_are_lit() -> None:
    lr = np.full((64, 64), 5, np.float32)
    whole = Window(0, 0, 64, 64)
    got = conserve_radiance(np.zeros((512, 512), np.float32), model_inputs(lr, (0.0, 0.0)), whole, whole)[0]
    np.testing.assert_allclose(got, 5, rtol=0.01)


def test_nothing_beyond_the_reach_has_influence() -> None:
    fwhm = (3.2, 3.2)
    lr = world(fwhm)[1]
    rough = enlarged(lr) * np.random.default_rng(0).gamma(3, 0.3, (8 * SIDE, 8 * SIDE)).astype(np.float32)
    inputs, whole = model_inputs(lr, fwhm), Window(0, 0, SIDE, SIDE)
    want = conserve_radiance(rough, inputs, whole, whole)[0]
    core = Window(41, 37, 8, 8)
    part = core.grown(REACH + BLUR)
    rows, cols = part.slices_in(whole)
    smaller = {k: v[..., rows, cols] if v.ndim == 4 else v for k, v in inputs.items()}
    hr = part.scaled(8).slices_in(whole.scaled(8))
    got = conserve_radiance(rough[hr], smaller, core, part)[0]
    own = want[core.scaled(8).slices_in(whole.scaled(8))]
    np.testing.assert_allclose(got, own, rtol=0, atol=1e-5 * own.max())


def test_bad_numbers_stay_bad() -> None:
    lr = np.full((8, 8), 5, np.float32)
    radiance = np.ones((64, 64), np.float32)
    radiance[3, 3] = np.nan
    whole = Window(0, 0, 8, 8)
    assert np.isnan(conserve_radiance(radiance, model_inputs(lr, (1.0, 1.0)), whole, whole)[0][3, 3])


def test_output_of_a_run(tmp_path: Path) -> None:
    """Tiles agree, nodata stays, the header says what was done; the model blurs, so that there is something to mend."""
    model = str(write_analytic(tmp_path / "model"))
    lr = world((1.6, 1.6))[1][:70, :60].copy()
    lr[10:14, 20:23] = -999
    scene = SceneOptions(str(write_raster(tmp_path / "ntl.tif", lr, nodata=-999)), psf=(1.6, 1.6))
    results = {}
    for tiles in (None, 32):
        out = tmp_path / f"{tiles}.tif"
        request = None if tiles is None else TileRequest(tiles)
        infer(RunOptions(scene=scene, out=out, model=model, tiles=request, conserve_radiance=True))
        with rasterio.open(out) as d:
            results[tiles] = d.read(1)
            assert d.tags()["DEEPLIGHT_OPTION_CONSERVE_RADIANCE"] == "yes"
    known = lr != -999
    np.testing.assert_array_equal(np.isfinite(results[None]), np.kron(known, np.ones((8, 8))) != 0)
    top = np.nanmax(results[None])
    np.testing.assert_allclose(results[32], results[None], rtol=0, atol=1e-5 * top)
    inner = known.copy()
    inner[:3], inner[-3:], inner[:, :3], inner[:, -3:], inner[6:18, 16:27] = False, False, False, False, False
    sensor = Sensor.of(lr, known, np.float32([1.6, 1.6]), np.float32([-1, -1]))
    again = seen(np.nan_to_num(results[None]), sensor.rows, sensor.columns)
    assert np.sqrt(np.mean((again - lr)[inner] ** 2) / np.mean(lr[inner] ** 2)) < 0.02


def test_a_halo_that_is_too_small_is_refused(tmp_path: Path) -> None:
    scene = options(write_scene(tmp_path, 11, 13))
    model = str(write_analytic(tmp_path / "model"))
    request = RunOptions(
        scene=scene,
        out=tmp_path / "o.tif",
        model=model,
        tiles=TileRequest(8, BLUR + 1),
        conserve_radiance=True,
    )
    needed = BLUR + REACH
    with pytest.raises(
        InputError,
        match=rf"below the {needed} LR pixels that analytic with `conserve_radiance=True` needs; give 8\+{needed}",
    ):
        infer(request)


def test_not_with_rounded_radiance(tmp_path: Path) -> None:
    scene = options(write_scene(tmp_path, 11, 13))
    request = RunOptions(scene=scene, out=tmp_path / "o.tif", dtype="uint16", conserve_radiance=True)
    with pytest.raises(InputError, match="leave one of them out"):
        infer(request)
