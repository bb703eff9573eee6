from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray

from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, input_shape
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.source import Raster, open_raster
from tests.scenes import (
    ARC,
    NORTH,
    NTL,
    REFLECTANCE,
    UTM,
    WEST,
    SceneFiles,
    dmo_file,
    field_on,
    north_up,
    ntl_file,
    open_error,
    options,
    write_raster,
    write_scene,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SceneFiles:
    return write_scene(tmp_path_factory.mktemp("scene"))


def test_inputs_have_the_contract_s_names_shapes_and_types(files: SceneFiles) -> None:
    with Scene.open(options(files)) as scene:
        inputs = scene.read_inputs(Window(-3, 5, 11, 9))
        assert scene.hr_grid == scene.grid.finer()
    assert list(inputs) == [spec.name for spec in INPUTS]
    for spec in INPUTS:
        assert inputs[spec.name].shape == input_shape(spec, 1, 11, 9)
        assert inputs[spec.name].dtype == np.float32
    for name in ("ntl", "dmo", "dem"):
        valid = inputs[f"{name}_valid"]
        assert set(np.unique(valid)) <= {0.0, 1.0}
        assert not inputs[name][np.broadcast_to(valid == 0, inputs[name].shape)].any()


def test_every_pixel_has_the_same_bits_in_every_window(files: SceneFiles) -> None:
    windows = [Window(0, 0, 21, 27), Window(3, 4, 1, 1), Window(-5, -9, 12, 16), Window(17, 20, 13, 17)]
    with Scene.open(options(files)) as scene:
        assert scene._dmo is not None
        assert scene._dmo.layers[0].factors == (1, 1)
        whole = scene.read_inputs(Window(-16, -16, 56, 60))
        for window in windows:
            compare_part(whole, Window(-16, -16, 56, 60), scene.read_inputs(window), window)


def test_decimated_layer_has_the_same_bits_in_every_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_scene(tmp_path, 9, 11, dmo_pixel=12.0)
    outer = Window(-4, -4, 18, 20)
    with Scene.open(options(files)) as scene:
        assert scene._dmo is not None
        assert scene._dmo.layers[0].factors == (4, 3)
        whole = scene.read_inputs(outer)
        monkeypatch.setattr("deeplight.engine.raster.layers._STRIP_PIXELS", 1000)
        for window in (outer, Window(0, 0, 9, 11), Window(4, 3, 2, 5), Window(8, 9, 5, 4)):
            compare_part(whole, outer, scene.read_inputs(window), window)


def test_strips_of_an_aslant_layer_are_not_read_many_times(tmp_path: Path) -> None:
    """Boxes around strips of a layer that is turned by 45° overlap; then a window is read in one piece."""
    grid, crs = Affine(500, 0, 3e5, 0, -500, 4e6), UTM
    ntl = write_raster(tmp_path / "ntl.tif", np.ones((40, 40), np.float32), crs, grid)
    centre = grid @ (20, 20)
    turned = Affine.translation(*centre) @ Affine.rotation(45) @ Affine.scale(grid.a / 8, grid.e / 8)
    side = 480
    place = turned @ Affine.translation(-side / 2, -side / 2)
    dem = write_raster(tmp_path / "dem.tif", np.ones((side, side), np.float32), crs, place)
    pixels = 0
    with Scene.open(SceneOptions(ntl=str(ntl), dem=str(dem))) as scene:
        layer = scene._dem
        assert layer is not None
        original = layer.read_native

        def counting(window: Window, scratch: Any = None) -> Any:
            nonlocal pixels
            pixels += window.height * window.width
            return original(window, scratch)

        layer.read_native = counting  # type: ignore[method-assign]
        valid = scene.read_inputs(Window(0, 0, 40, 40))["dem_valid"]
        assert valid.mean() > 0.95
    assert pixels <= 1.01 * side**2


def compare_part(
    whole: dict[str, NDArray[Any]], outer: Window, part: dict[str, NDArray[Any]], window: Window
) -> None:
    for spec in INPUTS:
        if spec.hr is None:
            np.testing.assert_array_equal(part[spec.name], whole[spec.name])
            continue
        factor = 8 if spec.hr else 1
        rows, cols = window.scaled(factor).slices_in(outer.scaled(factor))
        np.testing.assert_array_equal(part[spec.name], whole[spec.name][..., rows, cols], err_msg=spec.name)


def test_threads_read_what_one_thread_reads(files: SceneFiles) -> None:
    windows = [Window(r, c, 8, 8) for r in range(-4, 20, 6) for c in range(-4, 24, 7)]
    with Scene.open(options(files)) as scene:
        alone = [scene.read_inputs(window) for window in windows]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(scene.read_inputs, windows))
    for first, second in zip(alone, together, strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_layer_in_another_crs_holds_the_field_at_hr_centres(files: SceneFiles) -> None:
    with Scene.open(options(files)) as scene:
        inputs = scene.read_inputs(Window(0, 0, 21, 27))
        hr = scene.hr_grid
    # Bilinear error: (2π / 96 px)² / 8 · 0.1 per axis, 1.1e-4 in all; the mesh, 1/8 px off at most on each
    # axis, adds 1/8 · 0.1 · 2π / 96 · 2 = 1.6e-3; uint16 rounding 5e-5. At holes it is half a pixel off.
    for channel in range(7):
        expected = field_on("EPSG:4326", hr.transform, hr.height, hr.width, channel)
        found, valid = inputs["dmo"][0, channel], away_from_holes(inputs["dmo_valid"][0, 0] > 0)
        assert valid.mean() > 0.9
        assert np.abs(found - expected)[valid].max() < 1.8e-3
    dem = field_on("EPSG:4326", hr.transform, hr.height, hr.width) * 1000
    valid = away_from_holes(inputs["dem_valid"][0, 0] > 0)
    # The DEM's pixels are 1.6 HR pixels: 4 × the bilinear error, and half a metre of rounding.
    assert np.abs(inputs["dem"][0, 0] - dem)[valid].max() < 1.7
    assert 0.9 < valid.mean() < 1.0


def away_from_holes(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose neighbours up to two away are valid too, the image's border included."""
    padded = np.pad(valid, 2, constant_values=True)
    height, width = valid.shape
    return np.logical_and.reduce([padded[r : r + height, c : c + width] for r in range(5) for c in range(5)])


def test_finer_layer_on_the_same_lattice_is_the_plain_block_mean(tmp_path: Path) -> None:
    fine = np.random.default_rng(3).uniform(0.05, 0.6, (4, 13 * 24, 17 * 24)).astype(np.float32)
    fine[:, 100:103, 50:53] = np.nan
    fine[:, 30:31, 0:1] = np.nan
    request = SceneOptions(ntl_file(tmp_path), dmo_file(tmp_path, fine, transform=north_up(ARC / 24)))
    with Scene.open(request) as scene:
        assert scene._dmo is not None
        assert scene._dmo.layers[0].factors == (3, 3)
        inputs = scene.read_inputs(Window(0, 0, 13, 17))
    # HR pixel (r, c) is block (r, c): plain loops. Neighbours have weights of 1e-9; float32 sums.
    for r, c in [(0, 0), (10, 0), (33, 16), (33, 17), (50, 77), (103, 135)]:
        block = fine[:, 3 * r : 3 * r + 3, 3 * c : 3 * c + 3].astype(np.float64)
        known = np.isfinite(block[0])
        assert inputs["dmo_valid"][0, 0, r, c] == (known.sum() >= 5)
        expected = [band[known].mean() if known.any() else 0.0 for band in block]
        np.testing.assert_allclose(inputs["dmo"][0, [1, 2, 3, 4], r, c], expected, atol=2e-6)


def test_missing_layers_and_slots_are_zero_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "deeplight")
    with Scene.open(SceneOptions(ntl_file(tmp_path), dmo_file(tmp_path))) as scene:
        inputs = scene.read_inputs(Window(0, 0, 13, 17))
        assert scene.dmo_slots == {"blue": 1, "green": 2, "red": 3, "nir": 4}
    assert inputs["dmo_bands"][0].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert not inputs["dmo"][0, [0, 5, 6]].any()
    np.testing.assert_allclose(inputs["dmo"][0, 1:5], REFLECTANCE, rtol=1e-6)
    assert inputs["dmo_valid"].all()
    assert not inputs["dem_valid"].any()
    assert "no band for coastal, swir1, swir2" in caplog.text
    assert "DEM: not given" in caplog.text


def test_a_pixel_of_daytime_data_is_valid_where_all_bands_are(tmp_path: Path) -> None:
    values = np.full((4, 15, 19), REFLECTANCE, np.float32)
    values[2, 5, 6] = np.nan
    with Scene.open(SceneOptions(ntl_file(tmp_path), dmo_file(tmp_path, values))) as scene:
        valid = scene.read_inputs(Window(0, 0, 13, 17))["dmo_valid"][0, 0]
    assert not valid[4 * 8 + 2 : 5 * 8 - 2, 5 * 8 + 2 : 6 * 8 - 2].any()
    assert valid[:30].all()


def test_ntl_keeps_negatives_and_is_invalid_outside_and_at_nodata(tmp_path: Path) -> None:
    values = NTL.copy()
    values[0, 0], values[5, 6], values[12, 16] = -0.4, -999.0, np.inf
    with Scene.open(SceneOptions(ntl_file(tmp_path, values, nodata=-999.0, units=["nW cm-2 sr-1"]))) as scene:
        found, valid = scene.read_ntl(Window(-2, -1, 17, 20))
        assert scene.any_valid(Window(12, 15, 5, 5))
        assert not scene.any_valid(Window(12, 16, 5, 5))
        assert not scene.any_valid(Window(5, 6, 1, 1))
        assert not scene.any_valid(Window(40, 40, 3, 3))
        assert scene.unit == "nW/cm²/sr"
    expected_valid = np.zeros((17, 20), np.uint8)
    expected_valid[2:15, 1:18] = 1
    expected_valid[7, 7] = expected_valid[14, 17] = 0
    np.testing.assert_array_equal(valid, expected_valid)
    expected = np.zeros((17, 20), np.float32)
    expected[2:15, 1:18] = values
    np.testing.assert_array_equal(found, np.where(valid, expected, 0))
    assert found[2, 1] == np.float32(-0.4)


def test_scale_and_nodata_of_file_and_options(tmp_path: Path) -> None:
    raw = np.array([[10, 20, 7], [60000, 40, 50]], np.uint16)
    path = ntl_file(tmp_path, raw, nodata=7, scales=[0.1], offsets=[1.0], units=["W"])
    with Scene.open(SceneOptions(path)) as scene:
        values, valid = scene.read_ntl(Window(0, 0, 2, 3))
        assert scene.unit == "W"
    np.testing.assert_allclose(values, [[2, 3, 0], [6001, 5, 6]], rtol=1e-6)
    np.testing.assert_array_equal(valid, [[1, 1, 0], [1, 1, 1]])
    with Scene.open(SceneOptions(path, ntl_scale=(2.0, -1.0), ntl_nodata=60000)) as scene:
        values, valid = scene.read_ntl(Window(0, 0, 2, 3))
    np.testing.assert_allclose(values, [[19, 39, 13], [0, 79, 99]], rtol=1e-6)
    np.testing.assert_array_equal(valid, [[1, 1, 1], [0, 1, 1]])


def test_south_up_ntl_is_the_same_scene_upside_down(files: SceneFiles, tmp_path: Path) -> None:
    with Scene.open(options(files)) as scene:
        upright = scene.read_inputs(Window(0, 0, 21, 27))
        values, _ = scene.read_ntl(Window(0, 0, 21, 27))
    flipped = Affine(ARC, 0, WEST, 0, ARC, NORTH - 21 * ARC)
    path = ntl_file(tmp_path, values[::-1], transform=flipped)
    with Scene.open(options(files, ntl=path)) as scene:
        upside_down = scene.read_inputs(Window(0, 0, 21, 27))
    both = (upright["dmo_valid"][:, :, ::-1] > 0) & (upside_down["dmo_valid"] > 0)
    assert both.mean() > 0.9
    difference = np.abs(upright["dmo"][:, :, ::-1] - upside_down["dmo"]) * both
    # Two meshes with other nodes, each within 1/8 px of the truth; the field changes by up to 0.0065 per px.
    assert difference.max() < 2e-3


def test_layers_on_both_sides_of_the_antimeridian(tmp_path: Path) -> None:
    ntl = ntl_file(tmp_path, transform=north_up(ARC, 180 - 8 * ARC))
    dmo = dmo_file(
        tmp_path, np.full((4, 20, 20), REFLECTANCE, np.float32), transform=north_up(ARC, -180, NORTH + ARC)
    )
    with Scene.open(SceneOptions(ntl, dmo)) as scene:
        valid = scene.read_inputs(Window(0, 0, 13, 17))["dmo_valid"][0, 0]
        share = scene.describe()["dmo"]["share_of_scene"]
    assert not valid[:, : 8 * 8 - 5].any()
    assert valid[:, 8 * 8 + 5 :].all()
    # 9 of 17 columns, found on a lattice of 48 points.
    assert abs(share - 9 / 17) < 1 / 48


def test_layers_that_do_not_overlap_are_refused_with_both_extents(tmp_path: Path) -> None:
    dmo = dmo_file(tmp_path, transform=north_up(ARC, 20.0))
    message = open_error(SceneOptions(ntl_file(tmp_path), dmo))
    assert "longitude 20.00…20.08, latitude 49.94…50.00" in message
    assert "longitude 6.00…6.07, latitude 49.95…50.00" in message


def test_a_layer_smaller_than_an_ntl_pixel_is_found(tmp_path: Path) -> None:
    ntl = ntl_file(tmp_path, np.ones((200, 200), np.float32))
    spot = north_up(ARC / 8, WEST + 100 * ARC, NORTH - 100 * ARC)
    with Scene.open(
        SceneOptions(ntl, dem=str(write_raster(tmp_path / "dem.tif", NTL[:5, :5], transform=spot)))
    ) as scene:
        valid = scene.read_inputs(Window(99, 99, 3, 3))["dem_valid"]
    assert valid.sum() == 25


def test_ntl_and_dem_must_have_one_band(tmp_path: Path) -> None:
    assert "has 3 bands and must have one" in open_error(
        SceneOptions(ntl_file(tmp_path, np.stack([NTL] * 3)))
    )
    two = str(write_raster(tmp_path / "dem.tif", np.stack([NTL] * 2)))
    assert "has 2 bands and must have one" in open_error(SceneOptions(ntl_file(tmp_path), dem=two))


def test_dem_in_feet_is_refused_and_its_undeclared_voids_are_invalid(tmp_path: Path) -> None:
    heights = np.full((13, 17), 120, np.int16)
    heights[6, 7] = -32768
    feet = str(write_raster(tmp_path / "feet.tif", heights, units=["ft"]))
    assert "is in feet" in open_error(SceneOptions(ntl_file(tmp_path), dem=feet))
    metres = str(write_raster(tmp_path / "metres.tif", heights, units=["m"]))
    with Scene.open(SceneOptions(ntl_file(tmp_path), dem=metres)) as scene:
        inputs = scene.read_inputs(Window(0, 0, 13, 17))
    assert not inputs["dem_valid"][0, 0, 6 * 8 + 2 : 6 * 8 + 6, 7 * 8 + 2 : 7 * 8 + 6].any()
    np.testing.assert_allclose(inputs["dem"][inputs["dem_valid"] > 0], 120, rtol=1e-6)


def test_unusable_scale_in_the_file_is_refused_and_can_be_replaced(tmp_path: Path) -> None:
    path = ntl_file(tmp_path, scales=[0.0])
    assert "declares the scale [0.0]" in open_error(SceneOptions(path))
    Scene.open(SceneOptions(path, ntl_scale=(1.0, 0.0))).close()


def test_all_files_are_closed_when_one_is_refused(files: SceneFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Raster] = []

    def recording(*arguments: Any) -> Raster:
        opened.append(open_raster(*arguments))
        return opened[-1]

    for module in ("lights", "auxiliary"):
        monkeypatch.setattr(f"deeplight.engine.raster.{module}.open_raster", recording)
    open_error(options(files, dem=str(files.dmo)))
    assert [raster.role for raster in opened] == ["NTL", "DMO", "DEM"]
    assert all(raster._closed for raster in opened)


def test_description_names_what_is_in_force(files: SceneFiles) -> None:
    with Scene.open(options(files, dmo_scale=(2e-4, -0.1), dmo_nodata=1.0)) as scene:
        facts = scene.describe()
    assert list(facts) == ["ntl", "dmo", "dem"]
    assert facts["ntl"]["nodata"] == ["-999.0"] and facts["dmo"]["nodata"] == ["1.0"] * 7
    assert facts["ntl"]["unit"] == "nW/cm²/sr"
    assert facts["dmo"]["scale"] == [2e-4] * 7
    assert facts["dmo"]["offset"] == [-0.1] * 7
    assert facts["dmo"]["crs"] == UTM
    assert facts["dmo"]["slots"] == {slot: k + 1 for k, slot in enumerate(DMO_SLOTS)}
    assert facts["dmo"]["dtype"] == "uint16"
    assert facts["dem"]["share_of_scene"] == 1.0
    assert facts["dem"]["bytes"] == files.dem.stat().st_size


@pytest.mark.parametrize("order", [("lat", "lon", "time"), ("north", "time", "east")])
def test_netcdf_with_time_last_is_told_what_to_do(tmp_path: Path, order: tuple[str, ...]) -> None:
    """GDAL makes a band of each latitude; edges that are told would not help."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "cf.nc"
    with h5py.File(path, "w") as file:
        for dimension, values in zip(
            order, (50 - ARC * np.arange(4), np.arange(5.0), np.arange(6.0)), strict=True
        ):
            file[dimension] = values
            file[dimension].make_scale(dimension)
        file[order[0]].attrs["axis"] = np.bytes_("Y")
        data = file.create_dataset("lights", data=np.ones((4, 5, 6), np.float32))
        for number, dimension in enumerate(order):
            data.dims[number].attach_scale(file[dimension])
    name = f'NETCDF:"{path}":lights'
    for told in ({}, {"ntl_crs": "EPSG:4326", "ntl_bounds": (6, 49, 7, 50)}):
        message = open_error(SceneOptions(name, **told))
        assert f"is stored with {order[0]} before its last two dimensions" in message
        assert "time, y, x" in message
