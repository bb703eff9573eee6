"""Several dates into a Zarr group: values equal to those of maps, read by xarray, resumed, replaced and refused."""

from __future__ import annotations

import errno
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.grid import Grid
from deeplight.engine.stack.report import StackReport
from deeplight.engine.stack.run import infer_dates
from tests.engine.stack.months import Months, name

zarr = pytest.importorskip("zarr", reason="zarr is not installed")
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
    """Of one date, which a group may be of."""
    month, changes = months.folder / f"ntl-{name(2)}.tif", {"dtype": "uint16", "compression": "deflate"}
    months.run(tmp_path / "map.tif", month, **changes)
    months.run(tmp_path / "x.zarr", month, **changes)
    with rasterio.open(tmp_path / "map.tif") as map:
        steps = map.read(1)
    with opened(tmp_path / "x.zarr", mask_and_scale=False) as raw:
        assert raw.ntl.dtype == np.uint16 and raw.ntl.attrs["valid_range"] == [0, 65534]
        np.testing.assert_array_equal(raw.ntl.values, steps[None])
    with opened(tmp_path / "x.zarr") as physical:
        wanted = np.where(steps == 65535, np.nan, steps * 0.1)
        np.testing.assert_allclose(physical.ntl[0].values, wanted, rtol=1e-6)  # xarray scales in float32


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


def test_an_item_of_the_group(months: Months, tmp_path: Path) -> None:
    """Read by pystac, links followed; its dimensions are those that xarray finds. Dates that come later are in it."""
    pystac = pytest.importorskip("pystac")
    from pystac.extensions.datacube import DatacubeExtension

    out, path = tmp_path / "lights.zarr", tmp_path / "lights.stac.json"
    files = [months.folder / f"ntl-{name(m)}.tif" for m in months.with_data]
    bands = ("quality",)
    months.run(out, *files[1:], bands=bands, stac=True)
    assert pystac.Item.from_file(str(path)).properties["start_datetime"] == "2020-02-01T00:00:00Z"
    months.run(out, *files, bands=bands, stac=True, mode=Mode.RESUME)
    item = pystac.Item.from_file(str(path))
    assert item.datetime is None and item.properties["start_datetime"] == "2020-01-01T00:00:00Z"
    assert item.properties["end_datetime"] == "2020-04-30T23:59:59Z" and "proj:code" in item.properties
    (link,) = item.get_links("derived_from")
    assert pystac.Item.from_file(str(link.get_absolute_href())).properties["mlm:name"] == "analytic"
    asset = item.assets["data"]
    assert asset.media_type == "application/vnd.zarr; version=3"
    assert [b["data_type"] for b in asset.extra_fields["raster:bands"]] == ["float32", "uint8"]
    cube = DatacubeExtension.ext(item)
    with opened(Path(str(asset.get_absolute_href()))) as group:
        assert {n: tuple(v.dimensions) for n, v in cube.variables.items()} == {
            n: group[n].dims for n in ("ntl", "quality")
        }
        times = [np.datetime64(at.rstrip("Z"), "ns") for at in cube.dimensions["time"].values]
        assert times == list(group.time.values) and item.properties["proj:shape"] == list(group.ntl.shape[1:])
        for axis in ("y", "x"):
            steps, said = np.diff(group[axis].values), cube.dimensions[axis].to_dict()
            np.testing.assert_allclose(steps, said["step"], rtol=1e-9)
            ends = np.sort(group[axis].values[[0, -1]]) + np.array([-0.5, 0.5]) * abs(said["step"])
            np.testing.assert_allclose(said["extent"], ends, rtol=1e-12)
            assert said["reference_system"] == 4326
    text = path.read_text()
    assert str(tmp_path) not in text
    months.run(out, *files, bands=bands, stac=True, mode=Mode.RESUME)
    assert path.read_text() == text


def test_rioxarray_finds_the_crs(finished: Path, months: Months) -> None:
    pytest.importorskip("rioxarray", reason="rioxarray is not installed")
    with opened(finished) as group, rasterio.open(months.files.ntl) as ntl:
        assert CRS.from_wkt(group.ntl.rio.crs.to_wkt()) == ntl.crs
        assert np.isnan(group.ntl.rio.encoded_nodata)
        assert group.rio.crs == group.ntl.rio.crs and group.ntl.rio.shape == (ntl.height * 8, ntl.width * 8)


def test_a_rotated_grid_has_a_place_and_no_axes(months: Months, tmp_path: Path) -> None:
    with rasterio.open(months.folder / f"ntl-{name(1)}.tif") as first:
        profile, values = first.profile, first.read()
    profile["transform"] = profile["transform"] @ rasterio.Affine.rotation(10)
    with rasterio.open(tmp_path / "ntl-2020-01.tif", "w", **profile) as turned:
        turned.write(values)
        turned.set_band_unit(1, "nW/cm²/sr")
    request = months.request(tmp_path / "x.zarr", tmp_path / "ntl-2020-01.tif")
    scene = replace(request.run.scene, dmo=None, dem=None)
    infer_dates(replace(request, run=replace(request.run, scene=scene)))
    with opened(tmp_path / "x.zarr") as group:
        assert "y" not in group.coords and group.ntl.shape[0] == 1
        place = [float(v) for v in group.spatial_ref.attrs["GeoTransform"].split()]
        assert place == list((profile["transform"] @ rasterio.Affine.scale(1 / 8)).to_gdal())


def test_nothing_else_is_left_and_nothing_is_done_twice(
    months: Months, finished: Path, tmp_path: Path
) -> None:
    report = months.run(tmp_path / "x.zarr", bands=BANDS, report=tmp_path / "r.json")
    assert isinstance(report, StackReport) and report.status == "complete"
    assert [date.output for date in report.dates] == [str(tmp_path / "x.zarr")] * len(months.lights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "x.zarr"]
    again = months.run(tmp_path / "x.zarr", bands=BANDS, mode=Mode.RESUME)
    assert isinstance(again, StackReport) and again.computed == 0
    assert content(tmp_path / "x.zarr") == content(finished)
    assert [p.name for p in finished.parent.iterdir()] == ["x.zarr"]


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs that end when their second date is finished, before it is in the group."""
    finished, stops = StackReport.finished, []

    def stop(self: StackReport, *args: Any) -> None:
        finished(self, *args)
        stops.append(1)
        if len(stops) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(StackReport, "finished", stop)


def test_a_stopped_run_goes_on(months: Months, finished: Path, tmp_path: Path, stopping: Any) -> None:
    out, parts = tmp_path / "x.zarr", tmp_path / "x.zarr.parts"
    with pytest.raises(KeyboardInterrupt):
        months.run(out, bands=BANDS)
    assert not out.exists() and {p.name for p in parts.iterdir()} == {
        f"{name(2)}.tif",
        "lock",
        "run.json",
        "store",
    }
    shard = parts / "store" / "ntl" / "c" / "0" / "0" / "0"
    written = shard.stat()
    with pytest.raises(InputError, match="holds an unfinished run: use `resume=True`"):
        months.run(out, bands=BANDS)
    (parts / "store" / "ntl" / "c" / "1").mkdir()
    (parts / "store" / "ntl" / "c" / "1" / "half.partial").write_text("of a process that was killed")
    (parts / "store" / "zarr.json.0123.partial").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error", zarr.errors.ZarrUserWarning)  # such files are nothing to tell of
        report = months.run(out, bands=BANDS, mode=Mode.RESUME)
    assert isinstance(report, StackReport) and report.computed == len(months.with_data) - 2
    after = (out / "ntl" / "c" / "0" / "0" / "0").stat()
    assert (after.st_ino, after.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert content(out) == content(finished)
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


def test_a_page_has_all_dates(months: Months, tmp_path: Path) -> None:
    """Those that the group has, too; it shows what the page of a folder shows."""
    files, page = [months.folder / f"ntl-{name(m)}.tif" for m in (1, 2)], tmp_path / "p.html"

    def shown() -> list[str]:
        return re.findall(r'"hr":\[.*?\]', page.read_text())

    months.run(tmp_path / "maps", *files, page=page)
    wanted = shown()
    page.unlink()
    months.run(tmp_path / "x.zarr", *files, page=page)
    assert shown() == wanted and len(wanted) == 2
    page.unlink()
    months.run(tmp_path / "x.zarr", *files, page=page, mode=Mode.RESUME)
    assert shown() == wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maps", "p.html", "x.zarr"]


def test_dates_that_come_later_are_added_in_their_order(
    months: Months, finished: Path, tmp_path: Path
) -> None:
    files = [months.folder / f"ntl-{name(m)}.tif" for m in months.with_data]
    out = tmp_path / "x.zarr"
    months.run(out, *files[1:], bands=BANDS)
    report = months.run(out, files[0], bands=BANDS, mode=Mode.RESUME)
    assert isinstance(report, StackReport) and report.computed == 1
    assert content(out) == content(finished)
    message = refused(months, out, files[0], bands=BANDS, mode=Mode.RESUME, dates=f"{name(1)}-01")
    assert f"{name(1)}-01 and {name(1)} begin on one day" in message


def test_a_group_is_replaced_when_the_new_one_is_whole(months: Months, tmp_path: Path, stopping: Any) -> None:
    out = tmp_path / "x.zarr"
    months.run(out, months.folder / f"ntl-{name(1)}.tif")
    old = content(out)
    with pytest.raises(KeyboardInterrupt):
        months.run(out, mode=Mode.OVERWRITE, dtype="uint16")
    assert content(out) == old
    report = months.run(out, mode=Mode.RESUME, dtype="uint16")
    assert isinstance(report, StackReport)
    with opened(out, mask_and_scale=False) as group:
        assert group.ntl.dtype == np.uint16 and group.sizes["time"] == len(months.with_data)
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


def refused(months: Months, out: Path, *ntl: object, dates: str = "", **changes: Any) -> str:
    before = content(out.parent)
    with pytest.raises(InputError) as error:
        months.run(out, *ntl, dates=dates, **changes)
    assert content(out.parent) == before and "\n" not in str(error.value)
    return str(error.value)


def test_what_is_refused(months: Months, finished: Path, tmp_path: Path) -> None:
    mine, file = tmp_path / "mine.zarr", tmp_path / "file.zarr"
    (mine / "a").mkdir(parents=True)
    (mine / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    file.write_text("mine")
    for mode in Mode:
        assert "mine.zarr is not a Zarr group of deeplight-infer" in refused(months, mine, mode=mode)
        assert "file.zarr is a file, and would be removed" in refused(months, file, mode=mode)
    assert "x.zarr exists: use `overwrite=True`" in refused(months, finished, bands=BANDS)
    assert "x.zarr is of another run (its isp is " in refused(months, finished, mode=Mode.RESUME)
    message = refused(months, finished, bands=BANDS, mode=Mode.RESUME, conserve_radiance=True)
    assert "x.zarr is of another run (2020-01: DEEPLIGHT_OPTION_CONSERVE_RADIANCE" in message
    out = tmp_path / "x.zarr"
    assert "is an ending without a name" in refused(months, tmp_path / ".zarr")
    assert "is an ending without a name" in refused(months, tmp_path / ".tif")
    assert "`quicklook` is a picture of one map and" in refused(months, out, quicklook=tmp_path / "q.png")
    assert "there is no folder" in refused(months, tmp_path / "no" / "x.zarr")
    undated = tmp_path / "ntl.tif"
    undated.write_bytes((months.folder / f"ntl-{name(1)}.tif").read_bytes())
    assert "has a time axis, and nothing says when" in refused(months, out, undated)
    both = (months.folder / f"ntl-{name(1)}.tif", months.folder / f"ntl-{name(2)}.tif")
    assert "begin on one day" in refused(months, out, *both, dates="2020,2020-01")


@pytest.mark.parametrize("mode", [Mode.RESUME, Mode.OVERWRITE])
def test_a_group_in_a_folder_that_takes_no_files(
    months: Months, finished: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "is not writable; choose another one" in refused(months, finished, bands=BANDS, mode=mode)


def test_parts_in_which_nothing_is_finished_are_begun_anew(months: Months, tmp_path: Path) -> None:
    """A process that was killed in its first pack."""
    (tmp_path / "x.zarr.parts" / f"{name(1)}.tif.parts").mkdir(parents=True)
    months.run(tmp_path / "x.zarr", months.folder / f"ntl-{name(1)}.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


def test_parts_of_others_are_not_taken_over(months: Months, tmp_path: Path) -> None:
    (tmp_path / "x.zarr.parts").mkdir()
    (tmp_path / "x.zarr.parts" / "thesis.txt").write_text("mine")
    assert "x.zarr.parts holds thesis.txt" in refused(months, tmp_path / "x.zarr", mode=Mode.OVERWRITE)


def test_a_full_disk_keeps_what_is_finished(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second date is written into the group."""
    from zarr.storage import _local

    put = _local._put

    def full(path: Path, *args: Any, **more: Any) -> int:
        if path.match("ntl/c/1/0/0"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(path, *args, **more)

    monkeypatch.setattr(_local, "_put", full)
    out = tmp_path / "x.zarr"
    with pytest.raises(DeepLightError, match=r"the disk is full while writing .*store: free some space"):
        months.run(out)
    assert not out.exists()
    monkeypatch.undo()
    report = months.run(out, mode=Mode.RESUME)
    assert isinstance(report, StackReport) and report.computed == len(months.with_data) - 2
    with opened(out) as group:
        assert np.isfinite(group.ntl[1].values).any()
