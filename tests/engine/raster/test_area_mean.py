from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from deeplight.engine.raster import accel
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.warp import area_mean, decimated, decimation

UTM31 = CRS.from_epsg(32631)
LATLON = Grid(CRS.from_epsg(4326), Affine(1 / 1920, 0, 3.2, 0, -1 / 1920, 47.1), 1048, 776)
METRES = Grid(UTM31, Affine(60, 0, 515_000, 0, -60, 5_219_000), 1050, 980)


def test_decimation_counts_whole_pixels() -> None:
    hr = Grid(UTM31, Affine(60, 0, 500_000, 0, -60, 5_000_000), 100, 100)
    for size, expected in (
        ((60, 60), (1, 1)),
        ((30, 20), (3, 2)),
        ((31, 21), (2, 1)),
        ((90, 200), (1, 1)),
        ((10, 7), (8, 6)),
    ):
        aux = Grid(UTM31, Affine(size[0], 0, 500_000, 0, -size[1], 5_000_000), 100, 100)
        assert decimation(hr, aux) == expected, size
    turned = Grid(
        UTM31, Affine.translation(500_000, 5_000_000) @ Affine.rotation(90) @ Affine.scale(20, 10), 9, 9
    )
    assert decimation(hr, turned) == (6, 3)
    assert decimation(
        LATLON, Grid(UTM31, Affine(10, 0, 515_000, 0, -10, 5_219_000), 100, 100), (500, 300)
    ) == (5, 3)


def test_the_decimated_grid_covers_the_same_ground() -> None:
    coarse = decimated(METRES, 4, 3)
    assert (coarse.height, coarse.width) == (263, 327)
    assert coarse.transform @ (0, 0) == METRES.transform @ (0, 0)
    assert coarse.transform @ (10, 20) == METRES.transform @ (30, 80)


@pytest.mark.parametrize(("fy", "fx"), [(1, 1), (2, 2), (3, 2), (4, 7), (50, 60)])
def test_area_mean_is_the_mean_of_valid_pixels(fy: int, fx: int, path: str) -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(0, 10, (3, 37, 41)).astype(np.float32)
    mask = (rng.random((37, 41)) < 0.6).astype(np.uint8)
    values[:, mask == 0] = np.nan
    ours, valid = area_mean(values, mask, fy, fx)
    assert (
        ours.shape == (3, -(-37 // fy), -(-41 // fx)) and ours.dtype == np.float32 and valid.dtype == np.uint8
    )
    for r in range(valid.shape[0]):
        for c in range(valid.shape[1]):
            block = np.s_[r * fy : (r + 1) * fy, c * fx : (c + 1) * fx]
            known = mask[block].astype(bool)
            enough = 2 * known.sum() >= fy * fx
            assert bool(valid[r, c]) == enough
            expected = [v[block][known].astype(np.float64).mean() if enough else 0.0 for v in values]
            # One rounding to float32.
            np.testing.assert_allclose(ours[:, r, c], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(accel.NATIVE is None, reason="the native module is not built")
def test_area_mean_native_and_numpy_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    values, mask = rng.normal(0, 10, (4, 63, 100)).astype(np.float32), rng.random((63, 100)) < 0.5
    native = [
        area_mean(values, mask, fy, fx, threads=t) for fy, fx in ((2, 3), (5, 5), (1, 8)) for t in (1, 3)
    ]
    monkeypatch.setattr(accel, "NATIVE", None)
    plain = [area_mean(values, mask, fy, fx) for fy, fx in ((2, 3), (5, 5), (1, 8)) for _ in (1, 3)]
    for ours, expected in zip(native, plain, strict=True):
        np.testing.assert_array_equal(ours[1], expected[1])
        np.testing.assert_array_equal(ours[0], expected[0])
