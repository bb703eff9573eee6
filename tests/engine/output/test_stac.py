"""The STAC item beside the output: its fields, its outline, the time it covers. No network, no schema fetched."""

from __future__ import annotations

import importlib.util
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from deeplight.engine.core.errors import InputError
from deeplight.engine.output.acquired import acquired
from deeplight.engine.output.footprint import footprint
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from tests.engine.analytic import write_analytic
from tests.scenes import ARC, north_up, write_raster


def test_item_of_a_run(tmp_path: Path) -> None:
    model = str(write_analytic(tmp_path / "model"))
    ntl = write_raster(tmp_path / "VNL_npp_20200201-20200229_x.tif", np.ones((5, 7), np.float32))
    scene = SceneOptions(str(ntl))
    out = tmp_path / "map.tif"
    bands = ("isp", "quality")
    infer(RunOptions(scene=scene, out=out, model=model, bands=bands, stac=True))
    with rasterio.open(out) as dataset:
        found = acquired(out.name, dataset.tags())
    assert found is not None and [f"{at:%Y-%m-%d}" for at in found] == ["2020-02-01", "2020-02-29"]
    text = (tmp_path / "map.stac.json").read_text()
    assert str(tmp_path) not in text
    content = json.loads(text)
    item = pystac.Item.from_dict(content)
    assert item.id == "map" and content["type"] == "Feature" and content["stac_version"].startswith("1.")
    assert content["properties"]["datetime"] is None
    assert content["properties"]["start_datetime"] == "2020-02-01T00:00:00Z"
    assert content["properties"]["end_datetime"] == "2020-02-29T23:59:59Z"
    for extension in ("projection/v", "raster/v", "processing/v"):
        assert any(extension in uri for uri in content["stac_extensions"])
    with rasterio.open(out) as d:
        assert content["properties"]["proj:code"] == "EPSG:4326"
        assert content["properties"]["proj:shape"] == [d.height, d.width]
        np.testing.assert_allclose(content["properties"]["proj:transform"], list(d.transform)[:6])
        np.testing.assert_allclose(content["properties"]["proj:bbox"], list(d.bounds))
        np.testing.assert_allclose(content["bbox"], list(d.bounds), atol=1e-6)
        described = content["assets"]["data"]["raster:bands"]
        assert [band["name"] for band in described] == list(d.descriptions)
    assert described[0]["unit"] == "nW/cm²/sr" and "scale" not in described[0]
    assert all(band["nodata"] == "nan" and band["data_type"] == "float32" for band in described)
    # sqrt(463.8² · cos 50°) / 8
    assert described[0]["spatial_resolution"] == pytest.approx(46.5, rel=0.01)
    asset = content["assets"]["data"]
    assert (out.parent / asset["href"]).resolve() == out.resolve()
    assert asset["type"] == pystac.MediaType.COG and asset["roles"] == ["data"]


def test_item_of_scaled_integers_and_of_a_finished_run(tmp_path: Path) -> None:
    model = str(write_analytic(tmp_path / "model"))
    place = Affine(500, 0, 4e5, 0, -500, 5.5e6)
    unnamed = "+proj=laea +lat_0=50 +lon_0=8 +datum=WGS84"
    ntl = write_raster(tmp_path / "F182013.v4.tif", np.ones((5, 7), np.float32), unnamed, place)
    request = RunOptions(
        scene=SceneOptions(str(ntl)), out=tmp_path / "m.tif", model=model, dtype="uint16", stac=True
    )
    infer(request)
    path = tmp_path / "m.stac.json"
    first = path.read_bytes()
    content = json.loads(first)
    band = content["assets"]["data"]["raster:bands"][0]
    assert (band["scale"], band["offset"], band["nodata"], band["data_type"]) == (0.1, 0, 65535, "uint16")
    assert content["properties"].get("proj:code") is None
    assert CRS.from_wkt(content["properties"]["proj:wkt2"]) == CRS.from_string(unnamed)
    assert content["properties"]["start_datetime"] == "2013-01-01T00:00:00Z"
    path.unlink()
    from dataclasses import replace

    from deeplight.engine.output.parts import Mode

    assert infer(replace(request, mode=Mode.RESUME)) is None
    assert path.read_bytes() == first


def test_missing_pystac_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "deeplight.engine.output.stac.find_spec", lambda name: None if name == "pystac" else found(name)
    )
    request = RunOptions(scene=SceneOptions(str(tmp_path / "no.tif")), out=tmp_path / "o.tif", stac=True)
    with pytest.raises(InputError, match=r"-m pip install 'pystac>="):
        infer(request)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "tags", "span"),
    [
        ("SVDNB_npp_20190101-20190131_75N060W_vcmslcfg.tif", {}, ("2019-01-01", "2019-01-31")),
        ("VNP46A2.A2020060.h18v04.h5", {}, ("2020-02-29", "2020-02-29")),
        ("VNP46A3.A2020032.h18v04.001.h5", {}, ("2020-02-01", "2020-02-29")),
        ("VNP46A4.A2021001.h18v04.h5", {}, ("2021-01-01", "2021-12-31")),
        ("F182013.v4c_web.stable_lights.avg_vis.tif", {}, ("2013-01-01", "2013-12-31")),
        ("VNL_v21_npp_2020_global.tif", {}, ("2020-01-01", "2020-12-31")),
        (
            "x.h5",
            {"RangeBeginningDate": "2012-01-19", "RangeEndingDate": "2012-01-20"},
            ("2012-01-19", "2012-01-20"),
        ),
        (
            "2020.nc",
            {
                "NC_GLOBAL#time_coverage_start": "2018-05-01T00:00:00Z",
                "NC_GLOBAL#time_coverage_end": "2018-05-31",
            },
            ("2018-05-01", "2018-05-31"),
        ),
        ("ntl.tif", {"RangeBeginningDate": "long ago", "RangeEndingDate": "2012-99-99"}, None),
        ("a_20201399-20201400_b.tif", {}, None),
        ("tile12020345.tif", {}, None),
        ("x_20200201-20200101.tif", {}, None),
    ],
)
def test_time_from_metadata_or_product_names(
    name: str, tags: dict[str, str], span: tuple[str, str] | None
) -> None:
    found = acquired(name, tags)
    if span is None:
        assert found is None
        return
    assert found is not None
    assert tuple(f"{t:%Y-%m-%d}" for t in found) == span
    assert [f"{t:%H:%M:%S%z}" for t in found] == ["00:00:00+0000", "23:59:59+0000"]


def test_unknown_time_is_the_file_s_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = str(write_analytic(tmp_path / "model"))
    ntl = write_raster(tmp_path / "ntl.tif", np.ones((5, 7), np.float32))
    infer(RunOptions(scene=SceneOptions(str(ntl)), out=tmp_path / "o.tif", model=model, stac=True))
    when = json.loads((tmp_path / "o.stac.json").read_text())["properties"]["datetime"]
    assert datetime.fromisoformat(when).timestamp() == int(ntl.stat().st_mtime)
    assert "correct its datetime" in caplog.text


def grid(crs: int, transform: Affine, height: int = 20, width: int = 30) -> Grid:
    return Grid(CRS.from_epsg(crs), transform, height, width)


def rings(geometry: dict) -> list[np.ndarray]:
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [np.array(polygon[0]) for polygon in polygons]


def area(ring: np.ndarray) -> float:
    (x, y), (u, v) = ring[:-1].T, ring[1:].T
    return float(np.sum(x * v - u * y) / 2)


@pytest.mark.parametrize(
    ("place", "parts", "bbox"),
    [
        (grid(4326, north_up(0.1, 6, 50)), 1, [6, 48, 9, 50]),
        (grid(4326, Affine(0.1, 0, 6, 0, 0.1, 48)), 1, [6, 48, 9, 50]),
        (grid(4326, north_up(0.1, 179, 50)), 2, [179, 48, -178, 50]),
        (grid(4326, north_up(0.1, -181, 50)), 2, [179, 48, -178, 50]),
        (grid(4326, north_up(0.1, 366, 50)), 1, [6, 48, 9, 50]),
        (grid(4326, north_up(0.1, 177, 50)), 1, [177, 48, 180, 50]),
        (grid(4326, north_up(1, -180, 90), 180, 360), 1, [-180, -90, 180, 90]),
    ],
    ids=["plain", "south-up", "across 180", "across -180", "beyond 360", "up to 180", "global"],
)
def test_footprint_in_degrees(place: Grid, parts: int, bbox: list[float]) -> None:
    geometry, found = footprint(place)
    np.testing.assert_allclose(found, bbox, atol=1e-6)
    outlines = rings(geometry)
    assert len(outlines) == parts
    for ring in outlines:
        assert (ring[0] == ring[-1]).all() and np.abs(ring[:, 0]).max() <= 180
    whole = place.height * place.width * abs(place.transform.determinant)
    # Counter-clockwise: positive.
    assert sum(area(ring) for ring in outlines) == pytest.approx(whole, rel=1e-6)
    assert ARC < 1


def test_footprint_of_projected_grids() -> None:
    utm, bbox = footprint(grid(32632, Affine(1000, 0, 5e5, 0, -1000, 5.5e6)))
    (ring,) = rings(utm)
    assert len(ring) > 40, "edges are curves in degrees"
    assert bbox[0] == pytest.approx(9.0, abs=1e-3) and 49.4 < bbox[1] < bbox[3] < 49.7
    across, bbox = footprint(grid(3413, Affine(1000, 0, -1.6e6, 0, -1000, 1.65e6), 60, 60))
    assert across["type"] == "MultiPolygon" and bbox[0] > bbox[2]
    around, bbox = footprint(grid(3413, Affine(1000, 0, -15000, 0, -1000, 10000)))
    assert bbox[0] == -180 and bbox[2] == 180 and bbox[3] == 90 and 89 < bbox[1] < 90
    assert around["type"] == "Polygon"
