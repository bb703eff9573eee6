from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.bands import parse_bands, parse_scale
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.source import open_raster
from tests.scenes import ntl_file, open_error


def test_luxembourg(shared_data: Path) -> None:
    place = shared_data / "luxembourg"
    request = SceneOptions(str(place / "ntl.tif"), str(place / "dmo.tif"), str(place / "dem.tif"))
    assert "pass `dmo_scale=(0.0001, -0.1)` where 1000 is added" in open_error(request)
    doubtful = open_error(replace(request, dmo_scale=parse_scale("0.0001")))
    assert "the values begin at" in doubtful and "pass `dmo_scale=(0.0001, -0.1)`" in doubtful
    named = replace(request, dmo_scale=parse_scale("0.0001,-0.1"))
    given = replace(named, dmo_bands=parse_bands("blue=1,green=2,red=3,nir=4"))
    with Scene.open(named) as first, Scene.open(given) as second:
        inputs, same = first.read_inputs(Window(0, 0, 87, 95)), second.read_inputs(Window(0, 0, 87, 95))
        assert first.unit == "DN"
    for name in inputs:
        np.testing.assert_array_equal(inputs[name], same[name])
    assert inputs["dmo_bands"][0].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert inputs["ntl_valid"].all()
    assert 0.5 < inputs["dmo_valid"].mean() < 0.65
    assert 0.5 < inputs["dem_valid"].mean() < 0.6
    reflectance = inputs["dmo"][0, 1:5][:, inputs["dmo_valid"][0, 0] > 0]
    assert 0 < reflectance.min() < 0.02 and reflectance.max() < 0.6
    # Vegetation in August: near infrared well above red.
    assert np.median(reflectance[3]) > 1.5 * np.median(reflectance[2])


def test_lesotho_keeps_negatives_and_nodata(shared_data: Path) -> None:
    with Scene.open(SceneOptions(str(shared_data / "lesotho_maseru/ntl.tif"))) as scene:
        values, valid = scene.read_ntl(Window(0, 0, 505, 587))
        inputs = scene.read_inputs(Window(200, 250, 40, 40))
    assert values.min() == pytest.approx(-0.04796, abs=1e-5)
    assert valid.mean() == pytest.approx(0.55, abs=0.01)
    assert inputs["ntl"].min() < 0
    assert not inputs["dmo_valid"].any()


def test_new_york_scale(shared_data: Path) -> None:
    with Scene.open(SceneOptions(str(shared_data / "us_nyc/ntl.tif"), ntl_scale=(0.1, 0.0))) as scene:
        values, valid = scene.read_ntl(Window(0, 0, 112, 149))
        assert scene.hr_grid.transform.a == pytest.approx(352 / 8)
        assert scene.hr_grid.transform.e == pytest.approx(-463 / 8)
        assert scene.unit == "nW/cm²/sr"
    assert values.max() == pytest.approx(413.4, abs=0.1)
    assert valid.mean() == pytest.approx(0.31, abs=0.01)


def hostile_names() -> list[str]:
    """The files of SOURCES.md by number, so that collection needs none of them."""
    return [f"h{k:02d}" for k in (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 14, 16, 17, 18, 20, 24, 25, 26, 27, 30)]


@pytest.mark.parametrize("name", hostile_names())
def test_hostile_files_read_or_give_one_sentence(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = next((shared_data / "hostile").glob(f"{name}_*"))
    assert_reads_or_explains(SceneOptions(str(path)))
    try:
        with open_raster(str(path), "DMO") as raster:
            grid = raster.grid
    except InputError:
        return
    middle = grid.transform @ Affine.translation(grid.width / 2, grid.height / 2) @ Affine.scale(3)
    ntl = ntl_file(tmp_path, crs=grid.crs, transform=middle)
    for scale in (None, (0.004, 0.0), (1e-8, 0.2)):
        assert_reads_or_explains(SceneOptions(ntl, str(path), dmo_scale=scale))
        assert_reads_or_explains(SceneOptions(ntl, str(path), dmo_bands={"blue": 1}, dmo_scale=scale))
    assert_reads_or_explains(SceneOptions(ntl, dem=str(path)))


def assert_reads_or_explains(request: SceneOptions) -> None:
    try:
        with Scene.open(request) as scene:
            inputs = scene.read_inputs(Window(-1, -1, 12, 12))
    except DeepLightError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert not message.endswith(".")
    else:
        assert all(np.isfinite(values).all() for values in inputs.values())


def test_rotated_and_sinusoidal_real_files_are_read(shared_data: Path) -> None:
    for name in (
        "h16_rotated_nan_no_nodata.tif",
        "h17_sheared_utm.tif",
        "h20_sinusoidal.nc",
    ):
        with Scene.open(SceneOptions(str(shared_data / "hostile" / name))) as scene:
            assert scene.any_valid(Window(0, 0, scene.grid.height, scene.grid.width))
