from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.bands import parse_scale
from deeplight.engine.raster.scene import Scene, SceneOptions
from tests.scenes import (
    REFLECTANCE,
    dmo_file,
    north_up,
    ntl_file,
    open_error,
    options,
    write_raster,
    write_scene,
)


def test_fill_values_without_nodata_are_refused_with_the_remedy(tmp_path: Path) -> None:
    black_marble = np.array([[10, 65535], [3, 4]], np.uint16)
    path = ntl_file(tmp_path, black_marble)
    message = open_error(SceneOptions(path))
    assert "`ntl_nodata=65535`" in message
    assert "`ntl_scale=0.1`" in message
    with Scene.open(SceneOptions(path, ntl_nodata=65535, ntl_scale=(0.1, 0.0))) as scene:
        assert scene.read_ntl(Window(0, 0, 2, 2))[1].sum() == 3
    dmsp = np.array([[63, 255], [3, 4]], np.uint8)
    assert "`ntl_nodata=255`" in open_error(SceneOptions(ntl_file(tmp_path, dmsp)))
    photograph = np.array([[200, 255], [3, 4]], np.uint8)
    with Scene.open(SceneOptions(ntl_file(tmp_path, photograph))) as scene:
        assert scene.unit == "DN"


@pytest.mark.parametrize(
    ("value", "dtype", "header", "more", "piece"),
    [
        (np.nan, "float32", {}, {}, "has no valid pixel: all are NaN, infinite or masked"),
        (np.inf, "float32", {}, {}, "has no valid pixel"),
        (7, "uint16", {"nodata": 7}, {}, "all are NaN, masked or the nodata value 7"),
        (7, "float32", {}, {"ntl_nodata": 7.0}, "or the right `ntl_nodata`"),
        (1e300, "float64", {}, {}, "holds 1e+300, after scaling by 1,0 1e+300, which cannot be radiance"),
        (-9999, "int16", {}, {}, "pass `ntl_nodata=-9999` if it marks missing pixels"),
        (-3.4028234663852886e38, "float32", {}, {}, "pass `ntl_nodata=-3.40282347e+38"),
        (3, "uint16", {}, {"ntl_scale": (1e300, 0.0)}, "holds 2, after scaling by 1e+300,0 2e+300"),
        (3, "uint8", {}, {"ntl_scale": (-1e3, 0.0)}, "-2000, which cannot be radiance (-100…2e+07)"),
    ],
)
def test_lights_without_a_plausible_value_are_refused(
    tmp_path: Path, value: float, dtype: str, header: dict[str, float], more: dict[str, Any], piece: str
) -> None:
    """One such pixel beside good ones, except where the point is that there are no others."""
    values = np.full((13, 17), value, dtype)
    if "no valid pixel" not in piece and "nodata value" not in piece and "right" not in piece:
        values[:] = 2
        values[12, 16] = value
    assert piece in open_error(SceneOptions(ntl_file(tmp_path, values, **header), **more))


def test_the_remedy_for_fill_makes_lights_usable(tmp_path: Path) -> None:
    lowest = float(np.finfo(np.float32).min)
    path = ntl_file(tmp_path, np.array([[lowest, 2.0], [-1.5, 340573.0]], np.float32))
    message = open_error(SceneOptions(path))
    nodata = float(message.split("`ntl_nodata=")[1].split("`")[0])
    with Scene.open(SceneOptions(path, ntl_nodata=nodata)) as scene:
        values, valid = scene.read_ntl(Window(0, 0, 2, 2))
    np.testing.assert_array_equal(valid, [[0, 1], [1, 1]])
    np.testing.assert_array_equal(values, np.array([[0, 2], [-1.5, 340573]], np.float32))


def test_elevations_that_cannot_be_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heights = np.full((13, 17), 321.0, np.float32)
    heights[:3] = 3e38
    heights[3, 0], heights[3, 1], heights[3, 2], heights[3, 3] = -10994, -430, 8849, 9001
    dem = str(write_raster(tmp_path / "dem.tif", heights))
    with Scene.open(SceneOptions(ntl_file(tmp_path), dem=dem)) as scene:
        inputs = scene.read_inputs(Window(0, 0, 13, 17))
    share = 100 * (3 * 17 + 2) / (13 * 17)
    assert f"{share:.2g} % of the sampled elevations are outside -500…9000 m (such as 3e+38)" in caplog.text
    valid = inputs["dem_valid"][0, 0, 4::8, 4::8] != 0  # beside LR pixel centres
    want = np.ones((13, 17), bool)
    want[:3] = want[3, 0] = want[3, 3] = False
    np.testing.assert_array_equal(valid, want)
    assert inputs["dem"].min() >= -430 and inputs["dem"].max() <= 8849


def test_elevations_that_are_all_impossible_are_refused(tmp_path: Path) -> None:
    dem = str(write_raster(tmp_path / "dem.tif", np.full((13, 17), 30000.0, np.float32)))
    message = open_error(SceneOptions(ntl_file(tmp_path), dem=dem))
    assert "all sampled elevations are outside -500…9000 m (such as 30000)" in message
    assert "`dem_scale=F or (F, OFFSET)` and `dem_nodata=VALUE`" in message


@pytest.mark.parametrize(
    ("low", "high", "dtype", "remedy"),
    [
        (300, 4000, "uint16", "`dmo_scale=0.0001`"),
        (1200, 9000, "float32", "`dmo_scale=(0.0001, -0.1)` where 1000 is added, or `dmo_scale=(0.0001, 0)`"),
        (7500, 21000, "uint16", "`dmo_scale=(0.0000275, -0.2)`"),
        (10, 250, "uint8", "`dmo_scale=0.003922`"),
        (1.5, 60.3, "float32", "`dmo_scale=0.01`"),
        (1e6, 2e6, "float32", "`dmo_scale=F or (F, OFFSET)`"),
    ],
)
def test_values_that_cannot_be_reflectance(
    tmp_path: Path, low: float, high: float, dtype: str, remedy: str
) -> None:
    values = np.linspace(low, high, 4 * 13 * 17).reshape(4, 13, 17).astype(dtype)
    request = SceneOptions(ntl_file(tmp_path), dmo_file(tmp_path, values))
    message = open_error(request)
    assert "cannot be reflectance" in message
    assert remedy in message
    if "F or" not in remedy:
        scale = re.sub(r"[()` ]", "", remedy.partition("=")[2].partition("` ")[0])
        Scene.open(replace(request, dmo_scale=parse_scale(scale))).close()


def test_reflectance_scaled_twice_or_below_zero_is_refused(tmp_path: Path) -> None:
    request = SceneOptions(ntl_file(tmp_path), dmo_file(tmp_path), dmo_scale=(0.0001, 0.0))
    assert "reflectance already: pass `dmo_scale=1`" in open_error(request)
    assert "cannot be reflectance" in open_error(replace(request, dmo_scale=(1.0, -1.0)))


def test_daytime_data_without_a_valid_pixel_is_accepted(tmp_path: Path) -> None:
    values = np.full((4, 13, 17), np.nan, np.float32)
    with Scene.open(SceneOptions(ntl_file(tmp_path), dmo_file(tmp_path, values))) as scene:
        assert not scene.read_inputs(Window(0, 0, 13, 17))["dmo_valid"].any()


def test_likely_fill_in_daytime_data_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.full((4, 13, 17), REFLECTANCE, np.float32)
    values[:, :3] = 0
    dmo = dmo_file(tmp_path, values, transform=north_up())
    Scene.open(SceneOptions(ntl_file(tmp_path), dmo)).close()
    assert "23 % of the sampled pixels are 0 in every band" in caplog.text


def test_sample_stays_inside_its_region_and_is_repeatable(tmp_path: Path) -> None:
    with Scene.open(options(write_scene(tmp_path))) as scene:
        assert scene._dmo is not None
        (layer,) = scene._dmo.layers
        first, second = layer.sample(Window(3, 4, 20, 30)), layer.sample(Window(3, 4, 20, 30))
        raw, _ = layer.raster.read(Window(3, 4, 20, 30), layer.bands)
    np.testing.assert_array_equal(first[0], second[0])
    # The region is smaller than one sampling window, so every window is the region.
    np.testing.assert_array_equal(first[0][:, :600], raw.reshape(7, 600))
