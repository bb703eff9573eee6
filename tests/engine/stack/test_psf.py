"""`psf="auto"` over several dates: one blur for all of them, of the first date that shows it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import rasterio

from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.psf import parse_psf
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.stack.options import StackOptions
from deeplight.engine.stack.run import infer_dates
from tests.engine.analytic import write_analytic
from tests.engine.raster.test_blur import point_lights
from tests.scenes import write_raster

DATES = {"2020-01": (1.0, 9), "2020-02": (1.4, 30), "2020-03": (2.4, 30)}
"""FWHM in LR pixels and number of the lone lights of each date: the first has too few."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


@pytest.fixture(scope="module")
def lights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lights")
    files = {}
    for date, (fwhm, count) in DATES.items():
        values = point_lights((fwhm, fwhm), count, side=120)
        files[date] = write_raster(folder / f"ntl-{date}.tif", values, units=["nW/cm²/sr"])
    return files


def run(model: str, out: Path, *files: Path, mode: Mode = Mode.NEW) -> None:
    scene = SceneOptions(str(files[0]), psf="auto")
    options = RunOptions(scene, out, model=model, threads=1, mode=mode, tiles=TileRequest(64))
    infer_dates(StackOptions(tuple(map(str, files)), options))


def blur_of(path: Path) -> str:
    with rasterio.open(path) as d:
        return str(d.tags()["DEEPLIGHT_OPTION_PSF"])


def test_the_first_date_that_shows_the_blur_gives_that_of_all(
    model: str, lights: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(model, tmp_path / "all", *lights.values())
    blurs = {blur_of(tmp_path / "all" / f"{date}.tif") for date in lights}
    assert len(blurs) == 1
    found = parse_psf(blurs.pop())
    assert found == pytest.approx((1.4, 1.4), abs=0.15)
    assert "finds 9 isolated lights" in caplog.text and "all dates take the blur of 2020-02" in caplog.text
    assert isinstance(found, tuple)
    for date, file in lights.items():
        alone = tmp_path / f"{date}.tif"
        scene = SceneOptions(str(file), psf=found)
        infer(RunOptions(scene, alone, model=model, threads=1, tiles=TileRequest(64)))
        assert alone.read_bytes() == (tmp_path / "all" / f"{date}.tif").read_bytes()


def test_a_date_that_is_added_takes_the_blur_of_those_before(
    model: str, lights: dict[str, Path], tmp_path: Path
) -> None:
    first, second, third = lights.values()
    run(model, tmp_path / "all", first, second)
    before = (tmp_path / "all" / "2020-02.tif").read_bytes()
    run(model, tmp_path / "all", first, second, third, mode=Mode.RESUME)
    assert (tmp_path / "all" / "2020-02.tif").read_bytes() == before
    assert blur_of(tmp_path / "all" / "2020-03.tif") == blur_of(tmp_path / "all" / "2020-02.tif")
