"""Tables of a Zarr group: the numbers of the same maps as GeoTIFFs, to the last bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import rasterio
import shapely

import deeplight as dl
from deeplight.engine.stack.run import infer_dates
from tests.engine.stack.months import Months, name
from tests.engine.zonal.places import write_regions

zarr = pytest.importorskip("zarr", reason="zarr is not installed")


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    return Months.write(tmp_path_factory.mktemp("months"))


def regions(folder: Path, ntl: Path) -> Path:
    """A triangle, and one that leaves the map."""
    with rasterio.open(ntl) as d:
        corners = [(2.3, 1.1), (20.7, 6.2), (9.4, 19.8)], [(15, 10), (40, 12), (18, 30)]
        shapes = {f"r{k}": shapely.Polygon([d.transform @ c for c in of]) for k, of in enumerate(corners)}
        return write_regions(folder / "r.gpkg", shapes, d.crs.to_string())


def same(group: pandas.DataFrame, maps: pandas.DataFrame) -> None:
    """All columns but the files' names."""
    assert len(group) == len(maps) > 0 and np.isfinite(group["sum_nW_cm2_sr_km2"]).all()
    pandas.testing.assert_frame_equal(group.drop(columns="map"), maps.drop(columns="map"), check_exact=True)


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ({"bands": ("quality", "interval")}, {}),
        ({"bands": ("quality", "interval")}, {"without": "DMO_MISSING", "threshold": 20.0}),
        ({"dtype": "uint16", "bands": ("interval",)}, {}),
    ],
    ids=["plain", "flags", "uint16"],
)
def test_tables_of_a_group_are_those_of_its_maps(
    months: Months, tmp_path: Path, made: dict[str, Any], asked: dict[str, Any]
) -> None:
    files = [months.folder / f"ntl-{name(m)}.tif" for m in (1, 2)]
    months.run(tmp_path / "lights", *files, **made)
    months.run(tmp_path / "lights.zarr", *files, **made)
    where = regions(tmp_path, files[0])
    found = dl.zonal(tmp_path / "lights.zarr", where, by="name", **asked)
    same(found, dl.zonal(sorted((tmp_path / "lights").glob("*.tif")), where, by="name", **asked))
    assert [f"{d:%Y-%m}" for d in found["date"][::2]] == [name(1), name(2)]
    assert "mean_low_nW_cm2_sr" in found


def test_a_rotated_group_and_dates_that_are_said(months: Months, tmp_path: Path) -> None:
    ntl = tmp_path / "ntl-2020-01.tif"
    with rasterio.open(months.folder / f"ntl-{name(1)}.tif") as first:
        profile, values = first.profile, first.read()
    profile["transform"] = profile["transform"] @ rasterio.Affine.rotation(10)
    with rasterio.open(ntl, "w", **profile) as turned:
        turned.write(values)
        turned.set_band_unit(1, "nW/cm²/sr")
    for out in ("map.tif", "x.zarr"):
        request = months.request(tmp_path / out, ntl)
        scene = replace(request.run.scene, dmo=None, dem=None)
        infer_dates(replace(request, run=replace(request.run, scene=scene)))
    where = regions(tmp_path, ntl)
    found = dl.zonal(tmp_path / "x.zarr", where, dates=["2019"])
    same(found, dl.zonal(tmp_path / "map.tif", where, dates=["2019"]))
    assert {f"{d:%Y}" for d in found["date"]} == {"2019"}, "said, though the file's name says 2020"


def test_what_is_refused_of_a_group(months: Months, tmp_path: Path) -> None:
    group, where = tmp_path / "x.zarr", regions(tmp_path, months.files.ntl)
    months.run(group, months.folder / f"ntl-{name(1)}.tif")
    (tmp_path / "other.zarr").mkdir()
    for maps, given, message in (
        (tmp_path / "other.zarr", {}, "is not a Zarr group of deeplight-infer: write its dates as GeoTIFFs"),
        (group, {"map_band": 1}, "map_band is about rasters and .* is a Zarr group: leave it out"),
        (group, {"without": "any"}, "x.zarr has no quality array, which without needs"),
        (group, {"dates": ["2019", "2020"]}, "1 map and 2 dates are given"),
        ([group, group], {}, "have the same date, 2020-01-01"),
    ):
        with pytest.raises(dl.InputError, match=message):
            dl.zonal(maps, where, **given)  # type: ignore[arg-type]
    metadata = group / "ntl" / "zarr.json"
    content = json.loads(metadata.read_text())
    del content["attributes"]["units"]
    metadata.write_text(json.dumps(content))
    with pytest.raises(dl.InputError, match=r"x\.zarr does not say its unit"):
        dl.zonal(group, where)
    assert len(dl.zonal(group, where, map_unit="DN")) == 2


def test_damage_is_one_sentence(months: Months, tmp_path: Path) -> None:
    group = tmp_path / "x.zarr"
    months.run(group, months.folder / f"ntl-{name(1)}.tif")
    (shard,) = (p for p in (group / "ntl" / "c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(dl.DeepLightError, match=r"x\.zarr.*ntl cannot be read"):
        dl.zonal(group, regions(tmp_path, months.files.ntl))
