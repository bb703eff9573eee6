"""Elevations in other units than metres: by the file's word, or by what land can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.bands import parse_scale
from deeplight.engine.raster.scene import Scene, SceneOptions
from tests.field.lights import lights, put
from tests.scenes import ARC, north_up, open_error


def hills(top: float = 3000.0, side: int = 96) -> np.ndarray:
    """Elevations (side, side) in metres, from 120 to `top`."""
    y, x = np.mgrid[:side, :side]
    return 120 + (top - 120) * (0.5 + 0.25 * np.sin(x / 9) + 0.25 * np.cos(y / 11))


def dem(folder: Path, values: Any, **header: Any) -> SceneOptions:
    """On pixels of half an LR pixel over lights of 48² LR pixels."""
    path = put(folder, values, "dem.tif", transform=north_up(ARC / 2), **header)
    return SceneOptions(put(folder, lights(), units=["nW/cm2/sr"]), dem=path)


def read(request: SceneOptions) -> np.ndarray:
    with Scene.open(request) as scene:
        inputs = scene.read_inputs(Window(8, 8, 16, 16))
        assert inputs["dem_valid"].all()
        return np.array(inputs["dem"])


@pytest.mark.parametrize(
    ("unit", "metres"),
    [("km", 1000), ("kilometers", 1000), ("dm", 0.1), ("Decimetre", 0.1), ("cm", 0.01), ("mm", 0.001),
     ("US survey foot", 0.3048)],
)  # fmt: skip
def test_the_file_s_unit_is_refused_and_its_factor_gives_metres(
    unit: str, metres: float, tmp_path: Path
) -> None:
    wanted = read(dem(tmp_path, hills().astype(np.float32), units=["m"]))
    request = dem(tmp_path, (hills() / metres).astype(np.float32), units=[unit])
    said = open_error(request)
    assert "and metres are needed; add `dem_scale=" in said
    scale = parse_scale(said.split("`dem_scale=")[1].strip("()`").replace(" ", ""))
    found = read(SceneOptions(request.ntl, dem=request.dem, dem_scale=scale))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("metres", [0.1, 0.01, 0.001], ids=["dm", "cm", "mm"])
def test_land_higher_than_any_is_refused_without_a_unit_too(metres: float, tmp_path: Path) -> None:
    said = open_error(dem(tmp_path, np.rint(hills() / metres).astype(np.int32)))
    assert "different elevations above 9000 m in the sample" in said and f"{metres:g} for " in said


def test_kilometres_and_impossible_slopes_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = dem(tmp_path, (hills() / 1000).astype(np.float32))
    read(request)
    assert "if they are in kilometres, pass `dem_scale=1000`" in caplog.text
    caplog.clear()
    read(SceneOptions(request.ntl, dem=request.dem, dem_scale=(1000.0, 0.0)))
    cells = np.random.default_rng(5).random((96, 96))
    read(dem(tmp_path, (300 * cells).astype(np.float32)))  # rough, and possible at 150 m
    read(dem(tmp_path, np.rint(6 * cells).astype(np.int16)))  # a polder in whole metres
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    read(dem(tmp_path, (8000 * cells).astype(np.float32)))
    assert "would be steeper than land is" in caplog.text and "0.1 for decimetres" in caplog.text


@pytest.mark.parametrize("place", ["luxembourg", "para_landsat5", "porto_trombetas_s2"])
def test_real_elevations_pass(place: str, shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    ntl = {"luxembourg": "ntl.tif"}.get(place, "dem.tif")
    request = SceneOptions(
        str(shared_data / place / ntl), dem=str(shared_data / place / "dem.tif"), ntl_scale=(1.0, 0.0)
    )
    Scene.open(request).close()
    assert not [r for r in caplog.records if "DEM" in r.getMessage() and r.levelname == "WARNING"]
