"""`psf="auto"` over several dates: one blur for all of them, of the first date that shows it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import rasterio

from deeplight.engine.output.dates_zarr import DatesZarr
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
    assert "the blur of all dates is that of 2020-02" in caplog.text
    assert "needs 20" not in caplog.text, (
        "of a date that has too few, and takes that of another, nothing is said"
    )
    assert isinstance(found, tuple)
    for date, file in lights.items():
        alone = tmp_path / f"{date}.tif"
        scene = SceneOptions(str(file), psf=found)
        infer(RunOptions(scene, alone, model=model, threads=1, tiles=TileRequest(64)))
        assert alone.read_bytes() == (tmp_path / "all" / f"{date}.tif").read_bytes()


@pytest.mark.parametrize(
    ("before", "then"),
    [
        (["2020-01", "2020-02"], ["2020-01", "2020-02", "2020-03"]),
        (["2020-02"], ["2020-01", "2020-02", "2020-03"]),
        # the product's blur, since a month had too few lights
        (["2020-01"], ["2020-01", "2020-03"]),
        (["2020-02"], ["2020-03"]),
    ],
)
def test_dates_that_are_added_take_the_blur_of_those_that_are_there(
    model: str, lights: dict[str, Path], tmp_path: Path, before: list[str], then: list[str]
) -> None:
    folder = tmp_path / "all"
    run(model, folder, *(lights[date] for date in before))
    maps = {path: path.read_bytes() for path in folder.glob("*.tif")}
    run(model, folder, *(lights[date] for date in then), mode=Mode.RESUME)
    assert all(path.read_bytes() == whole for path, whole in maps.items())
    assert {path.stem for path in folder.glob("*.tif")} == {*before, *then}
    assert len({blur_of(path) for path in folder.glob("*.tif")}) == 1


def test_a_folder_that_is_overwritten_is_measured_anew(
    model: str, lights: dict[str, Path], tmp_path: Path
) -> None:
    first, second, third = lights.values()
    run(model, tmp_path / "all", second)
    before = blur_of(tmp_path / "all" / "2020-02.tif")
    run(model, tmp_path / "all", third, second, mode=Mode.OVERWRITE)
    assert blur_of(tmp_path / "all" / "2020-02.tif") == before, "the first in time, as ever"
    run(model, tmp_path / "all", first, third, mode=Mode.OVERWRITE)
    assert blur_of(tmp_path / "all" / "2020-01.tif") == blur_of(tmp_path / "all" / "2020-03.tif") != before


def test_one_blur_in_a_zarr_group(model: str, lights: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    first, second, third = lights.values()
    group = tmp_path / "all.zarr"
    run(model, group, second)
    run(model, group, first, second, third, mode=Mode.RESUME)
    store = DatesZarr.open(group)
    assert store is not None and len(store.keys) == 3
    assert len({(store.tags(key) or {})["DEEPLIGHT_OPTION_PSF"] for key in store.keys}) == 1


def test_a_run_that_was_replacing_maps_goes_on_with_its_own_blur(
    model: str, lights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps that it has not reached yet have another one."""
    _, second, third = lights.values()
    folder = tmp_path / "all"
    run(model, folder, third)
    old = blur_of(folder / "2020-03.tif")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deeplight.engine.stack.run.return_memory", stopped)
        run(model, folder, second, third, mode=Mode.OVERWRITE)
    assert blur_of(folder / "2020-02.tif") != old == blur_of(folder / "2020-03.tif")
    run(model, folder, second, third, mode=Mode.RESUME)
    assert blur_of(folder / "2020-02.tif") == blur_of(folder / "2020-03.tif") != old
