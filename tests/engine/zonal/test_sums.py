"""Sums by region against points counted one by one: lat/lon and rotated grids, partial pixels, other CRSs, nodata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from deeplight.engine.core.spec import Quality
from deeplight.engine.zonal import coverage, sums
from deeplight.engine.zonal.options import ZonalOptions
from deeplight.engine.zonal.table import zonal_table
from tests.engine.zonal.places import (
    LATLON,
    ROTATED,
    SHAPE,
    Counted,
    counted,
    light,
    on_pixels,
    write_map,
    write_regions,
)

GRIDS = pytest.mark.parametrize("place", [LATLON, ROTATED], ids=["lat/lon", "rotated"])
EXACT = 2e-6
"""exactextract's shares of pixels are float32: 6e-8 each; areas of pixels are interpolated to 1e-6 on
these grids."""


def table(maps: Path | list[Path], regions: Path, **options: Any) -> Any:
    names = [str(m) for m in (maps if isinstance(maps, list) else [maps])]
    return zonal_table(ZonalOptions(names, regions, by="name", **options))


def box_of(place: tuple[str, Affine], top: float, bottom: float, left: float, right: float) -> Any:
    """A polygon between rows and columns of a grid."""
    return on_pixels(place, (left, top), (right, top), (right, bottom), (left, bottom))


def reprojected(shape: Any, source: str, target: str) -> Any:
    there = pyproj.Transformer.from_crs(source, target, always_xy=True)
    return shapely.transform(shape, lambda points: np.stack(there.transform(*points.T), axis=1))


def compared(row: Any, truth: Counted, tolerance: float) -> None:
    found = row[["data_area_km2", "pixels", "sum_nW_cm2_sr_pixels", "sum_nW_cm2_sr_km2", "lit_area_km2"]]
    wanted = [truth.data_km2, truth.pixels, truth.light_px, truth.light_km2, truth.lit_km2]
    np.testing.assert_allclose(found.to_numpy(float), wanted, rtol=tolerance)
    np.testing.assert_allclose(row["mean_nW_cm2_sr"], truth.light_km2 / truth.data_km2, rtol=tolerance)
    np.testing.assert_allclose(row["lit_share"], truth.lit_km2 / truth.data_km2, rtol=tolerance)
    np.testing.assert_allclose(row["share_with_data"], truth.data_km2 / truth.area_km2, rtol=tolerance)


@GRIDS
def test_regions_along_the_pixels_are_exact(tmp_path: Path, place: tuple[str, Affine]) -> None:
    """Corners at quarters of pixels: 4 × 4 points count such a region without error."""
    file = write_map(tmp_path / "m.tif", place)
    ell = on_pixels(place, (2.25, 1.5), (14, 1.5), (14, 7.75), (9.5, 7.75), (9.5, 20), (2.25, 20))
    hole = box_of(place, 4, 6.5, 4, 7.25)
    apart = shapely.MultiPolygon([hole, box_of(place, 2, 9.25, 20, 22.5)])
    regions = {"ell": ell, "ring": ell - hole, "parts": apart}
    found = table(file, write_regions(tmp_path / "r.gpkg", regions, place[0]))
    assert list(found["region"]) == list(regions)
    for row, shape in enumerate(regions.values()):
        compared(found.iloc[row], counted(file, shape, place[0], 4), EXACT)
    np.testing.assert_allclose(
        found["share_in_map"], 1.0, rtol=2e-5
    )  # lines of regions are cut into 64, see _fine


@GRIDS
def test_regions_in_another_crs_agree_with_points(tmp_path: Path, place: tuple[str, Affine]) -> None:
    file = write_map(tmp_path / "m.tif", place)
    slanted = shapely.affinity.rotate(shapely.Point(place[1] @ (16, 11)).buffer(1, quad_segs=3), 17)
    slanted = shapely.affinity.scale(slanted, 9 * abs(place[1].a), 7 * abs(place[1].e))
    moved = reprojected(slanted, place[0], "EPSG:3035")
    found = table(file, write_regions(tmp_path / "r.gpkg", {"slanted": moved}, "EPSG:3035"))
    # 16 × 16 points: a line through a pixel is off by 1/32 of it at random, for the 45 on the outline 1/5 of a pixel
    # among 200, and some are ten times as bright as the mean
    compared(found.iloc[0], counted(file, moved, "EPSG:3035", 16), 5e-3)
    degrees = reprojected(moved, "EPSG:3035", "EPSG:4326")
    geodesic = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(degrees)[0]) / 1e6
    np.testing.assert_allclose(
        found["area_km2"], geodesic, rtol=2e-4
    )  # its sides are geodesics, ours straight in 3035


@GRIDS
def test_what_leaves_the_map_is_said(tmp_path: Path, place: tuple[str, Affine], caplog: Any) -> None:
    file = write_map(tmp_path / "m.tif", place)
    height, width = SHAPE
    regions = {
        "half": box_of(place, 8, 12, width - 4, width + 4),
        "around": box_of(place, -height, 2 * height, -width, 2 * width),
        "away": box_of(place, 1, 4, width + 9, width + 12),
        "hole": box_of(place, 3, 6, 8, 12),
    }
    with caplog.at_level("WARNING", "deeplight"):
        found = table(file, write_regions(tmp_path / "r.gpkg", regions, place[0])).set_index("region")
    # pixels on both sides of an edge are not of the same size: at 62° they change by 1 % in 0.3°
    np.testing.assert_allclose(found["share_in_map"], [0.5, 1 / 9, 0, 1], rtol=0.03)
    assert found["share_with_data"]["hole"] == 0
    missing = found["sum_nW_cm2_sr_km2"].isna().to_dict()
    assert missing == {"half": False, "around": False, "away": True, "hole": True}
    np.testing.assert_allclose(found["pixels"]["around"], np.isfinite(light()).sum(), rtol=1e-6)
    said = " ".join(caplog.messages)
    assert "1 of 4 regions lie outside" in said
    assert "2 of 4 regions leave the maps" in said
    assert "1 rows of regions inside" in said


def test_degrees_go_round_the_globe(tmp_path: Path) -> None:
    """A map in 0 … 360°, regions in −180 … 180°; and a map across the antimeridian in metres."""
    file = write_map(tmp_path / "m.tif", ("EPSG:4326", Affine(0.01, 0.0, 190.0, 0.0, -0.01, 10.0)))
    found = table(
        file, write_regions(tmp_path / "r.gpkg", {"box": shapely.box(-169.95, 9.8, -169.75, 9.9)})
    ).iloc[0]
    compared(found, counted(file, shapely.box(190.05, 9.8, 190.25, 9.9), "OGC:CRS84", 1), EXACT)
    file = write_map(tmp_path / "fiji.tif", ("EPSG:32760", Affine(2000.0, 0.0, 8.0e5, 0.0, -2000.0, 8.05e6)))
    shapes = {"west": shapely.box(179.9, -18, 180, -17.8), "east": shapely.box(-180, -18, -179.9, -17.8)}
    found = table(file, write_regions(tmp_path / "f.gpkg", shapes))
    np.testing.assert_allclose(found["share_in_map"], 1.0, rtol=1e-4)
    np.testing.assert_allclose(found["area_km2"], found["area_km2"][0], rtol=1e-9)


def test_far_regions_do_no_harm(tmp_path: Path) -> None:
    """UTM knows nothing of the other side of the globe."""
    file = write_map(tmp_path / "m.tif", ROTATED)
    world = {"all": shapely.box(-180, -90, 180, 90), "far": shapely.box(-170, -5, -160, 5)}
    found = table(file, write_regions(tmp_path / "w.gpkg", world)).set_index("region")
    np.testing.assert_allclose(found["area_km2"]["all"], 510_065_621.7, rtol=1e-6)  # of the WGS 84 ellipsoid
    np.testing.assert_allclose(found["pixels"]["all"], np.isfinite(light()).sum(), rtol=1e-6)
    assert found["share_in_map"]["far"] == 0


def test_interval_and_quality(tmp_path: Path) -> None:
    value = light()
    flags = np.where(np.arange(SHAPE[1]) < 10, float(Quality.SATURATED_LR | Quality.DMO_MISSING), 2.0)
    bands = np.stack([value, np.where(np.isnan(value), np.nan, flags), value * 0.5, value * 3]).astype(
        np.float32
    )
    names = ["ntl", "quality (bit flags: 1 A)", "ntl_low (lower)", "ntl_high (upper)"]
    file = write_map(tmp_path / "m.tif", values=bands, names=names)
    regions = write_regions(tmp_path / "r.gpkg", {"box": box_of(LATLON, 1, 20, 5, 15)})
    plain = table(file, regions).iloc[0]
    for what in ("sum{}_nW_cm2_sr_pixels", "sum{}_nW_cm2_sr_km2", "mean{}_nW_cm2_sr"):
        np.testing.assert_allclose(plain[what.format("_low")], 0.5 * plain[what.format("")], rtol=1e-6)
        np.testing.assert_allclose(plain[what.format("_high")], 3 * plain[what.format("")], rtol=1e-6)
    assert plain["lit_area_low_km2"] < plain["lit_area_km2"] < plain["lit_area_high_km2"]
    without = table(file, regions, without=Quality.SATURATED_LR).iloc[0]
    assert without["pixels"] == pytest.approx(np.isfinite(value[1:20, 10:15]).sum())
    kept_and_left = without["share_left_out"] + without["share_with_data"]
    assert kept_and_left == pytest.approx(plain["share_with_data"], rel=1e-6)
    assert np.isnan(table(file, regions, without=Quality.DMO_MISSING).iloc[0]["mean_nW_cm2_sr"])


def test_windows_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_map(tmp_path / "m.tif", ROTATED)
    shapes = {f"r{k}": on_pixels(ROTATED, (k, 0.3), (k + 9.6, 3), (k + 5, 22)) for k in range(20)}
    regions = write_regions(tmp_path / "r.gpkg", shapes, ROTATED[0])
    whole = table(file, regions)
    monkeypatch.setattr(sums, "_SIDE", 7)
    monkeypatch.setattr(coverage, "_MOST_CELLS", 30)
    pieces = table(file, regions)
    assert list(whole["region"]) == list(pieces["region"])
    numbers = [name for name in whole.columns if whole[name].dtype == float]
    np.testing.assert_allclose(
        pieces[numbers], whole[numbers], rtol=1e-6
    )  # shares are float32, and added in parts


def test_regions_that_share_out_a_map_hold_all_of_it(tmp_path: Path) -> None:
    values = light(3, (100, 100))
    file = write_map(tmp_path / "m.tif", ("EPSG:4326", Affine(0.001, 0.0, 15.0, 0.0, -0.001, 62.0)), values)
    rows, cols = np.divmod(np.arange(625), 25)
    boxes = shapely.box(15 + cols * 0.004, 61.996 - rows * 0.004, 15.004 + cols * 0.004, 62 - rows * 0.004)
    found = table(file, write_regions(tmp_path / "r.gpkg", dict(enumerate(boxes))))
    assert list(found["region"]) == list(range(625))
    np.testing.assert_allclose(found["sum_nW_cm2_sr_pixels"].sum(), np.nansum(values, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found["pixels"].sum(), np.isfinite(values).sum(), rtol=1e-6)


def test_real_lights(tmp_path: Path, shared_data: Path) -> None:
    """Lesotho's lights, half of which are nodata, by four quarters: a plain loop over the pixels agrees."""
    file = shared_data / "lesotho_maseru" / "ntl.tif"
    with rasterio.open(file) as raster:
        values = raster.read(1, masked=True).astype(float).filled(np.nan)
        place, (height, width) = raster.transform, raster.shape
    row, col = height // 2, width // 2
    edges = {
        "nw": (0, row, 0, col),
        "ne": (0, row, col, width),
        "sw": (row, height, 0, col),
        "se": (row, height, col, width),
    }
    shapes = {name: box_of(("", place), *edge) for name, edge in edges.items()}
    found = table(file, write_regions(tmp_path / "r.gpkg", shapes), map_unit="nW/cm²/sr").set_index("region")
    for name, (top, bottom, left, right) in edges.items():
        part = values[top:bottom, left:right]
        np.testing.assert_allclose(found["sum_nW_cm2_sr_pixels"][name], np.nansum(part), rtol=1e-5)
        np.testing.assert_allclose(found["pixels"][name], np.isfinite(part).sum(), rtol=1e-6)
