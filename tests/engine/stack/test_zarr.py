"""Several dates into a Zarr group: values equal to those of maps, read by xarray, resumed, replaced and refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from deeplight.engine.core.errors import InputError
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.grid import Grid
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.stack.report import StackReport
from deeplight.engine.stack.run import infer_dates
from tests.engine.stack.months import Months, name

pytest.importorskip("zarr", reason="zarr is not installed")
xarray = pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    return Months.write(tmp_path_factory.mktemp("months"))


@pytest.fixture(scope="module")
def finished(months: Months, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of all months with every band."""
    out = tmp_path_factory.mktemp("finished") / "x.zarr"
    months.run(out, bands=BANDS)
    return out


BANDS = ("isp", "offset", "quality", "interval")
NAMES = ("ntl", "isp", "offset_x", "offset_y", "quality", "ntl_low", "ntl_high")


def opened(path: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xarray.open_zarr(path, chunks=None, **options)


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_values_are_those_of_the_maps(months: Months, finished: Path, tmp_path: Path) -> None:
    months.run(tmp_path / "out", bands=BANDS)
    with opened(finished) as group:
        assert set(group.data_vars) == {*NAMES, "time_bnds"}
        assert group.sizes["time"] == len(months.with_data)
        for at, month in enumerate(months.with_data):
            with rasterio.open(tmp_path / "out" / f"{name(month)}.tif") as map:
                for band, array in enumerate(NAMES, 1):
                    assert group[array].dims == ("time", "y", "x")
                    np.testing.assert_array_equal(group[array][at].values, map.read(band), err_msg=array)


def test_uint16_and_deflate_keep_their_steps(months: Months, tmp_path: Path) -> None:
    changes = {"dtype": "uint16", "compression": "deflate"}
    months.run(tmp_path / "out", **changes)
    months.run(tmp_path / "x.zarr", **changes)
    with opened(tmp_path / "x.zarr", mask_and_scale=False) as raw, opened(tmp_path / "x.zarr") as physical:
        for at, month in enumerate(months.with_data):
            with rasterio.open(tmp_path / "out" / f"{name(month)}.tif") as map:
                steps = map.read(1)
            assert raw.ntl.dtype == np.uint16
            np.testing.assert_array_equal(raw.ntl[at].values, steps)
            # xarray scales in float32
            np.testing.assert_allclose(
                physical.ntl[at].values, np.where(steps == 65535, np.nan, steps * 0.1), rtol=1e-6
            )
        assert raw.ntl.attrs["valid_range"] == [0, 65534]


def test_xarray_finds_time_and_place(months: Months, finished: Path) -> None:
    with opened(finished) as group, rasterio.open(months.files.ntl) as ntl:
        starts = [f"{name(m)}-01" for m in months.with_data]
        assert list(group.time.values) == [np.datetime64(start, "ns") for start in starts]
        assert [str(t)[:10] for t in group.time_bnds.values[0]] == ["2020-01-01", "2020-02-01"]
        hr = Grid(ntl.crs, ntl.transform, *ntl.shape).finer()
        at = np.array([hr.transform @ (col + 0.5, row + 0.5) for col, row in [(0, 0), (5, 7)]])
        np.testing.assert_allclose(group.x.values[[0, 5]], at[:, 0], rtol=1e-15)
        np.testing.assert_allclose(group.y.values[[0, 7]], at[:, 1], rtol=1e-15)
        assert group.ntl.attrs["units"] == "nW cm-2 sr-1" and group.ntl.attrs["valid_min"] == 0
        assert group.quality.attrs["flag_masks"] == [1, 2, 4, 8, 16]
        assert CRS.from_wkt(group.spatial_ref.attrs["crs_wkt"]) == ntl.crs
        place = [float(v) for v in group.spatial_ref.attrs["GeoTransform"].split()]
        assert place == list(hr.transform.to_gdal())


def test_rioxarray_finds_the_crs(finished: Path, months: Months) -> None:
    pytest.importorskip("rioxarray", reason="rioxarray is not installed")
    with opened(finished) as group, rasterio.open(months.files.ntl) as ntl:
        assert CRS.from_wkt(group.ntl.rio.crs.to_wkt()) == ntl.crs
        assert group.rio.crs == group.ntl.rio.crs and group.ntl.rio.shape == (ntl.height * 8, ntl.width * 8)
