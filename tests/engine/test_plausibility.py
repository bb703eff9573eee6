from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.bands import parse_scale
from deeplight.engine.layers import AuxLayer
from deeplight.engine.scene import Scene, SceneOptions
from deeplight.engine.tiles import Window
from tests.scenes import (
    REFLECTANCE,
    dmo_file,
    north_up,
    ntl_file,
    open_error,
    options,
    write_scene,
)


def test_fill_values_without_nodata_are_refused_with_the_remedy(tmp_path: Path) -> None:
    black_marble = np.array([[10, 65535], [3, 4]], np.uint16)
    path = ntl_file(tmp_path, black_marble)
    message = open_error(SceneOptions(path))
    assert "--ntl-nodata 65535" in message
    assert "--ntl-scale 0.1" in message
    with Scene.open(SceneOptions(path, ntl_nodata=65535, ntl_scale=(0.1, 0.0))) as scene:
        assert scene.read_ntl(Window(0, 0, 2, 2))[1].sum() == 3
    dmsp = np.array([[63, 255], [3, 4]], np.uint8)
    assert "--ntl-nodata 255" in open_error(SceneOptions(ntl_file(tmp_path, dmsp)))
    photograph = np.array([[200, 255], [3, 4]], np.uint8)
    with Scene.open(SceneOptions(ntl_file(tmp_path, photograph))) as scene:
        assert scene.unit == "DN"


@pytest.mark.parametrize(
    ("low", "high", "dtype", "remedy"),
    [
        (300, 4000, "uint16", "--dmo-scale 0.0001"),
        (1200, 9000, "float32", "--dmo-scale 0.0001 (0.0001,-0.1"),
        (7500, 21000, "uint16", "--dmo-scale 0.0000275,-0.2"),
        (10, 250, "uint8", "--dmo-scale 0.003922"),
        (1.5, 60.3, "float32", "--dmo-scale 0.01"),
        (1e6, 2e6, "float32", "--dmo-scale F[,OFFSET]"),
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
    if "F[" not in remedy:
        scale = remedy.split()[1]
        Scene.open(replace(request, dmo_scale=parse_scale(scale))).close()


def test_reflectance_scaled_twice_or_below_zero_is_refused(tmp_path: Path) -> None:
    request = SceneOptions(ntl_file(tmp_path), dmo_file(tmp_path), dmo_scale=(0.0001, 0.0))
    assert "reflectance already: pass --dmo-scale 1" in open_error(request)
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
        layer = scene._dmo
        assert isinstance(layer, AuxLayer)
        first, second = layer.sample(Window(3, 4, 20, 30)), layer.sample(Window(3, 4, 20, 30))
        raw, _ = layer.raster.read(Window(3, 4, 20, 30), layer.bands)
    np.testing.assert_array_equal(first[0], second[0])
    # The region is smaller than one sampling window, so every window is the region.
    np.testing.assert_array_equal(first[0][:, :600], raw.reshape(7, 600))
