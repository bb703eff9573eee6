"""refine_dates: what deeplight-infer writes of several dates, from files, arrays and DataArrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

import deeplight as dl
from deeplight.api import tables
from tests.scenes import SceneFiles, write_raster

MONTHS = ("2020-01", "2020-02")


@pytest.fixture(scope="module")
def lights(files: SceneFiles) -> tuple[np.ndarray, dl.Grid]:
    """(months, h, w) in nW/cm²/sr, NaN = nodata, and their grid."""
    with rasterio.open(files.ntl) as d:
        first = d.read(1)
        grid = dl.Grid(d.crs, d.transform, d.height, d.width)
    first[first == -999] = np.nan
    return np.stack([first, first * 2]), grid


def write_months(folder: Path, lights: tuple[np.ndarray, dl.Grid]) -> list[Path]:
    values, grid = lights
    return [
        write_raster(
            folder / f"ntl-{month}.tif", v, transform=grid.transform, nodata=np.nan, units=["nW/cm²/sr"]
        )
        for month, v in zip(MONTHS, values, strict=True)
    ]


def test_maps_are_those_of_refine(
    files: SceneFiles, model: dl.Model, lights: tuple[np.ndarray, dl.Grid], tmp_path: Path
) -> None:
    paths = write_months(tmp_path, lights)
    given = {"dmo": files.dmo, "dem": files.dem}
    found = dl.refine_dates(
        str(tmp_path / "ntl-*.tif"),
        **given,
        out=tmp_path / "o",
        model=model,
        bands="quality",
        page=tmp_path / "p.html",
    )
    assert list(found.maps) == list(MONTHS) and found.report["status"] == "complete"
    assert (
        "2 maps in" in repr(found)
        and (tmp_path / "o" / "lights.vrt").is_file()
        and (tmp_path / "p.html").is_file()
    )
    for month, path in zip(MONTHS, paths, strict=True):
        with dl.open_scene(path, **given) as scene:
            single = dl.refine(scene, model, out=tmp_path / "s.tif", bands="quality", overwrite=True)
        assert found.maps[month].read_bytes() == single.path.read_bytes()
    assert tables._maps(found, None)[0] == [str(path) for path in found.maps.values()]
    again = dl.refine_dates(paths, **given, out=tmp_path / "o", model=model, bands="quality", resume=True)
    assert again.maps == found.maps and again.report["computed"] == 0


def test_a_zarr_group(
    files: SceneFiles, model: dl.Model, lights: tuple[np.ndarray, dl.Grid], tmp_path: Path
) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed")
    xarray = pytest.importorskip("xarray")
    found = dl.refine_dates(write_months(tmp_path, lights), out=tmp_path / "o.zarr", model=model)
    assert found.maps == {} and found.folder == tmp_path / "o.zarr" and "2 dates in" in repr(found)
    with xarray.open_zarr(found.folder, chunks=None) as group:
        assert [str(t)[:7] for t in group.time.values] == list(MONTHS)
    assert tables._maps(found, None)[0] == [str(found.folder)]


def test_arrays_by_date(
    files: SceneFiles, model: dl.Model, lights: tuple[np.ndarray, dl.Grid], tmp_path: Path
) -> None:
    values, grid = lights
    layers = [dl.Layer(v, grid, unit="nW/cm²/sr") for v in values]
    spans = ("2019", "2020-01-01/2020-03-31")
    found = dl.refine_dates(
        dict(zip(spans, layers, strict=True)), dem=files.dem, out=tmp_path / "o", model=model
    )
    assert list(found.maps) == list(spans)
    assert [p.name for p in found.maps.values()] == ["2019.tif", "2020-01-01_2020-03-31.tif"]
    listed = dl.refine_dates(layers, dem=files.dem, out=tmp_path / "l", model=model, dates=spans)
    for span in spans:
        with rasterio.open(found.maps[span]) as a, rasterio.open(listed.maps[span]) as b:
            np.testing.assert_array_equal(a.read(), b.read())


def test_a_data_array_with_time(model: dl.Model, lights: tuple[np.ndarray, dl.Grid], tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    values, grid = lights
    x = grid.transform.c + grid.transform.a * (np.arange(grid.width) + 0.5)
    y = grid.transform.f + grid.transform.e * (np.arange(grid.height) + 0.5)
    times = np.array(["2020-01-15", "2020-02-15"], "datetime64[ns]")
    array = xarray.DataArray(
        values, {"time": times, "y": y, "x": x}, ("time", "y", "x"), "ntl", {"units": "nW/cm²/sr"}
    )
    array = array.assign_coords(spatial_ref=((), 0, {"crs_wkt": grid.crs.to_wkt()}))
    found = dl.refine_dates(array.transpose("y", "x", "time"), out=tmp_path / "o", model=model)
    assert list(found.maps) == ["2020-01-15", "2020-02-15"]
    write_months(tmp_path, lights)
    with dl.open_scene(tmp_path / "ntl-2020-02.tif") as scene:
        single = dl.refine(scene, model, out=tmp_path / "s.tif")
    with rasterio.open(found.maps["2020-02-15"]) as a, rasterio.open(single.path) as b:
        np.testing.assert_allclose(
            a.read(), b.read(), rtol=1e-6
        )  # the corner, from coordinates, differs by rounding


def test_a_scene_is_of_one_date(
    files: SceneFiles, lights: tuple[np.ndarray, dl.Grid], tmp_path: Path
) -> None:
    paths = write_months(tmp_path, lights)
    for ntl, says in (
        (
            tmp_path / "ntl-*.tif",
            r"ntl-\*.tif holds lights of 2 dates \(2020-01 to 2020-02\) and a scene is of one",
        ),
        (paths, "ntl is list and .* give one of them, or several dates to deeplight.refine_dates"),
    ):
        with pytest.raises(dl.InputError, match=says):
            dl.open_scene(ntl, files.dmo)  # type: ignore[arg-type]


def test_what_is_refused(
    model: dl.Model, lights: tuple[np.ndarray, dl.Grid], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = write_months(tmp_path, lights)
    layer = dl.Layer(lights[0][0], lights[1])
    before = sorted(tmp_path.iterdir())
    for call, says in (
        ({"ntl": paths, "out": "o.tif"}, "refine_dates writes a folder"),
        ({"ntl": []}, "ntl is empty or None"),
        ({"ntl": {"2020": paths[0]}, "dates": ["2020"]}, "whose keys are dates, and dates are given too"),
        (
            {"ntl": [layer, layer]},
            r"neither the name nor the metadata of the array given as ntl\[0\] says when",
        ),
        ({"ntl": paths, "dates": ["20", "21"]}, "'20' is no date"),
        ({"ntl": paths, "quiklook": "q.png"}, "quiklook is no parameter of"),
        ({"ntl": paths, "quicklook": tmp_path / "q.png"}, "quicklook is a picture of one map"),
    ):
        with pytest.raises(dl.InputError, match=says):
            dl.refine_dates(**{"out": tmp_path / "o", "model": model, **call})  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before
