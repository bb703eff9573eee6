"""xarray: results as DataArrays in rioxarray's conventions, DataArrays as layers, the accessor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import deeplight as dl
from tests.scenes import SceneFiles

xarray = pytest.importorskip("xarray")


def test_a_result_becomes_a_dataset(scene: dl.Scene, model: dl.Model) -> None:
    result = model(scene[2:8, 3:20], bands=["isp", "offset", "interval"])
    data = result.to_xarray()
    assert set(data.data_vars) == {"radiance", "isp", "offset", "interval"}
    assert data["radiance"].dims == ("y", "x")
    assert data["radiance"].attrs["units"] == "nW/cm²/sr"
    assert data["radiance"].encoding["grid_mapping"] == "spatial_ref"
    west, north = result.grid.transform @ (0.5, 0.5)
    assert float(data.x[0]) == pytest.approx(west)
    assert float(data.y[0]) == pytest.approx(north)
    assert rasterio.CRS.from_wkt(data.spatial_ref.attrs["crs_wkt"]) == result.grid.crs
    place = [float(v) for v in data.spatial_ref.attrs["GeoTransform"].split()]
    assert tuple(place) == pytest.approx(result.grid.transform.to_gdal())
    low, high = data["interval"].sel(end="low"), data["interval"].sel(end="high")
    assert bool(((low <= high) | np.isnan(low)).all())
    np.testing.assert_array_equal(data["offset"].sel(axis="x"), result.offset[0])


def test_there_and_back(scene: dl.Scene, model: dl.Model) -> None:
    result = model(scene)
    with dl.open_scene(result.to_xarray()["radiance"]) as again:
        assert again.grid.crs == result.grid.crs
        assert again.grid.transform.almost_equals(result.grid.transform, 1e-9)
        assert again.unit == scene.unit
        lights, valid = again.rasters.read_ntl(again.window)
    np.testing.assert_array_equal(lights[valid != 0], result.radiance[valid != 0])
    np.testing.assert_array_equal(valid == 0, np.isnan(result.radiance))


def test_a_cut_and_turned_array_lies_where_it_was_cut(scene: dl.Scene, model: dl.Model) -> None:
    whole = model(scene).to_xarray()["radiance"]
    cut = whole.isel(x=slice(40, 90), y=slice(60, 100)).transpose("x", "y")
    with dl.open_scene(cut) as again:
        assert again.shape == (40, 50)
        corner = again.grid.transform @ (0, 0)
    assert corner == pytest.approx(scene.grid.finer().transform @ (40, 60))


def test_bands_scale_and_nodata_as_rioxarray_reads_them(files: SceneFiles, scene: dl.Scene) -> None:
    with rasterio.open(files.dmo) as file:
        names, pixels, grid = file.descriptions, file.read(), file.transform
        wkt = file.crs.to_wkt()
    rows, columns = np.arange(pixels.shape[1]) + 0.5, np.arange(pixels.shape[2]) + 0.5
    dmo = xarray.DataArray(
        pixels,
        dims=("band", "y", "x"),
        coords={"band": range(1, 8), "y": grid.f + grid.e * rows, "x": grid.c + grid.a * columns},
        attrs={"_FillValue": 0, "scale_factor": 1e-4, "add_offset": -0.1, "long_name": names},
    ).assign_coords(spatial_ref=((), 0, {"crs_wkt": wkt}))
    with dl.open_scene(files.ntl, dmo) as other:
        ours = other.rasters.read_inputs(other.window)
    theirs = scene.rasters.read_inputs(scene.window)
    for name in ("dmo", "dmo_valid", "dmo_bands"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("first", ["deeplight", "xarray"])
def test_the_accessor_is_there_whoever_is_imported_first(first: str) -> None:
    second = {"deeplight": "xarray", "xarray": "deeplight"}[first]
    code = f"import {first}, {second}, xarray; print(type(xarray.DataArray(0).deeplight).__name__)"
    code += "; print(type(xarray.__loader__).__name__, type(xarray.__spec__.loader).__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["Accessor", "SourceFileLoader", "SourceFileLoader"]


def test_the_accessor_refines(scene: dl.Scene, files: SceneFiles, model: dl.Model, tmp_path: Path) -> None:
    lights = model(scene).to_xarray()["radiance"]
    run = lights.deeplight.refine(tmp_path / "o.tif", model, dem=files.dem, tiles=64, bands="isp")
    with rasterio.open(run.path) as file:
        assert (file.height, file.width, file.count) == (8 * 168, 8 * 216, 2)
    with pytest.raises(dl.InputError) as error:
        lights.deeplight.refine(tmp_path / "p.tif", model, tile=64)
    assert str(error.value).startswith("tile is no parameter of deeplight.open_scene or deeplight.refine")


def test_without_xarray_a_sentence_names_it(
    scene: dl.Scene, model: dl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(
        dl.InputError, match=r"to_xarray needs xarray, which is not installed: .* -m pip install"
    ):
        model(scene).to_xarray()


@pytest.mark.parametrize(
    ("change", "piece"),
    [
        (
            lambda a: a.to_dataset(name="lights"),
            "ntl is a Dataset of dimensions ('x', 'y') and a DataArray of (y, x)",
        ),
        (lambda a: a.rename(x="column"), "ntl is a DataArray of dimensions ('y', 'column')"),
        (lambda a: a.expand_dims(time=2, band=1), "with isel one time"),
        (lambda a: a.assign_coords(x=a.x.values**2), "ntl has pixels along x that are not evenly spaced"),
        (lambda a: a.isel(x=[3]).drop_vars("spatial_ref"), "ntl has one pixel along x"),
        (
            lambda a: a.drop_vars("spatial_ref"),
            'NTL array has no CRS; say which it is: add ntl_crs="EPSG:4326"',
        ),
    ],
    ids=["dataset", "dimension", "time", "uneven", "one pixel", "no CRS"],
)
def test_an_array_that_is_no_raster_is_one_sentence(
    scene: dl.Scene, model: dl.Model, change: Callable[[Any], Any], piece: str
) -> None:
    with pytest.raises(dl.InputError) as error:
        dl.open_scene(change(model(scene).to_xarray()["radiance"]))
    assert piece in str(error.value)
    assert "\n" not in str(error.value) and "--" not in str(error.value)
