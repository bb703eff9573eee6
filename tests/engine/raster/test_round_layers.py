"""Layers that go around the Earth, where their columns start again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from deeplight.engine.core.windows import Window
from deeplight.engine.raster import accel
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import Meshes
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.warp import Warper, goes_round, opposite, with_neighbours
from tests.scenes import write_raster

WGS84, POLAR = CRS.from_epsg(4326), CRS.from_epsg(3413)
H, W = 60, 80


def at(crs: CRS, longitude: float, latitude: float, pixel: float) -> Grid:
    """H × W pixels around a place."""
    (x,), (y,) = transform(WGS84, crs, [longitude], [latitude])
    return Grid(crs, Affine(pixel, 0, x - W / 2 * pixel, 0, -pixel, y + H / 2 * pixel), H, W)


@pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
@pytest.mark.parametrize(
    ("hr", "west", "windows"),
    [
        (at(WGS84, 180, 70, 0.004), -180, 2),
        (at(WGS84, 0, 70, 0.004), 0, 2),
        (at(POLAR, 180, 70, 500), -180, 2),
        (at(POLAR, 20, 70, 500), -180, 1),
    ],
    ids=["degrees at 180", "degrees at 0", "polar at 180", "polar elsewhere"],
)
def test_two_source_windows_are_the_whole_one(
    hr: Grid, west: float, windows: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(accel, "NATIVE", None)
    elif accel.NATIVE is None:
        pytest.skip("the native module is not built")
    aux = Grid(WGS84, Affine(0.05, 0, west, 0, -0.05, 75), 200, 7200)
    values = np.random.default_rng(1).random((1, aux.height, aux.width), np.float32)
    mask = (values[0] > 0.1).astype(np.uint8)
    warper, window = Warper(hr, aux), Window(0, 0, H, W)
    everything = Window(0, 0, aux.height, aux.width)
    one, valid = warper.resample(values, mask, everything, window)
    found = warper.source_windows(window)
    assert len(found) == windows and all(source.width < 150 for source in found)
    cut = [source.slices_in(everything) for source in found]
    parts = [
        warper.resample(values[:, r, c], mask[r, c], source, window)
        for source, (r, c) in zip(found, cut, strict=True)
    ]
    assert valid.sum() > 4000
    np.testing.assert_array_equal(sum(m.astype(int) for _, m in parts), valid)
    np.testing.assert_array_equal(sum(v for v, _ in parts), one)


def test_blocks_kept_for_a_row_at_the_seam_are_not_those_of_a_whole_turn(tmp_path: Path) -> None:
    place = at(WGS84, 180, 70, 0.004).transform @ Affine.scale(8)
    ntl = write_raster(tmp_path / "n.tif", np.zeros((8, 10), np.float32), transform=place)
    around = Affine(0.05, 0, -180, 0, -0.05, 75)
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    dem = write_raster(tmp_path / "d.tif", np.zeros((200, 7200), np.int16), transform=around, **tiles)
    with Scene.open(SceneOptions(str(ntl), dem=str(dem))) as scene:
        both = scene.cached_bytes(Window(0, 0, 8, 10))
    # One block in a row at the end and one at the beginning, at most two rows of them, and a strip of NTL.
    assert 2 * 64 * 64 * 2 <= both <= 2 * 2 * 64 * 64 * 2 + 8 * 10 * 4


@pytest.mark.parametrize("pixel", [0.05, 0.004], ids=["as it is", "averaged"])
@pytest.mark.parametrize("native", [True, False], ids=["native", "numpy"])
def test_it_matters_not_where_a_layer_of_the_whole_earth_begins(
    pixel: float, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that start again in the middle of a scene, beside it and far from it: the same values and masks."""
    if not native:
        monkeypatch.setattr(accel, "NATIVE", None)
    elif accel.NATIVE is None:
        pytest.skip("the native module is not built")
    place = at(WGS84, 180, 70, 0.008).transform @ Affine.scale(8)
    ntl = write_raster(tmp_path / "n.tif", np.zeros((4, 5), np.float32), transform=place)
    turn = round(360 / pixel)
    metres = np.random.default_rng(2).integers(1, 3000, (round(1 / pixel), turn)).astype(np.int16)
    metres[metres % 4 == 0] = -1
    found = []
    for first in (0, turn // 8, turn // 2):
        around = Affine(pixel, 0, -180 + first * pixel, 0, -pixel, 70.5)
        dem = np.roll(metres, -first, axis=1)
        path = write_raster(tmp_path / f"{first}.tif", dem, transform=around, nodata=-1)
        with Scene.open(SceneOptions(str(ntl), dem=str(path))) as scene:
            found.append(scene.read_inputs(Window(-1, -1, 6, 7)))
    assert found[0]["dem_valid"].mean() > 0.5 and found[0]["dem"].std() > 100
    for other in found[1:]:
        np.testing.assert_array_equal(other["dem_valid"], found[0]["dem_valid"])
        # coordinates from another corner: float32 fractions that differ in their last bits
        np.testing.assert_allclose(other["dem"], found[0]["dem"], rtol=0, atol=0.05)


def test_a_scene_around_the_pole_has_no_hole_and_no_seam(tmp_path: Path) -> None:
    """Every meridian meets in it. The layer is the distance from the pole, in seconds of arc."""
    place = Affine(2000, 0, -8000, 0, -2000, 8000)
    ntl = write_raster(tmp_path / "n.tif", np.zeros((8, 8), np.float32), "EPSG:3413", place)
    seconds = np.repeat((np.arange(30) + 0.5)[:, None] * 36, 3600, axis=1).astype(np.float32)
    dem = write_raster(tmp_path / "d.tif", seconds, transform=Affine(0.1, 0, -180, 0, -0.01, 90))
    with Scene.open(SceneOptions(str(ntl), dem=str(dem))) as scene:
        inputs = scene.read_inputs(Window(0, 0, 8, 8))
    assert inputs["dem_valid"].all()
    rows, cols = np.meshgrid(np.arange(64) + 0.5 - 32, np.arange(64) + 0.5 - 32, indexing="ij")
    # 111.66 km a degree there, times the projection's scale of 0.9698 at the pole.
    want = np.hypot(rows, cols) * 250 / (111_660 * 0.9698) * 3600
    # Half a row, 18″, where the first row's middle is beyond the HR pixel; the mesh's 1/8 of one.
    assert np.abs(inputs["dem"][0, 0] - want).max() < 19
    far = want > 30
    assert np.abs(inputs["dem"][0, 0] - want)[far].max() < 5


def test_grids_that_go_round() -> None:
    def grid(crs: CRS, pixel: float, west: float, width: int) -> Grid:
        return Grid(crs, Affine(pixel, 0, west, 0, -0.1, 90), 1800, width)

    assert goes_round(grid(WGS84, 0.1, -180, 3600))
    assert goes_round(grid(WGS84, -1 / 7, 360, 2520))
    assert not goes_round(grid(WGS84, 0.1, -180, 3599))
    # More than a turn: its ends overlap, they do not adjoin.
    assert not goes_round(grid(WGS84, 0.1, -180.1, 3602))
    assert not goes_round(grid(POLAR, 0.1, -180, 3600))
    padded = with_neighbours(grid(WGS84, 0.1, -180, 3600))
    assert padded.width == 3602 and padded.transform.c == pytest.approx(-180.1)
    assert opposite(grid(WGS84, 0.1, -180, 3600), at(WGS84, 0, 70, 0.004)) == 0
    assert opposite(grid(WGS84, 0.1, -180, 3600), at(POLAR, 90, 70, 500)) == pytest.approx(900, abs=1)
    begins = opposite(grid(WGS84, -0.1, 180, 3600), at(POLAR, 180, 70, 500))
    assert abs(begins) == pytest.approx(1800, abs=1)


def test_nodes_are_the_mesh_s_or_none() -> None:
    """Coordinates jump in the middle of a block of the mesh, which so has a node for every HR pixel."""
    hr, aux = at(WGS84, 0, 70, 0.004), Grid(WGS84, Affine(0.05, 0, 0, 0, -0.05, 75), 200, 7200)
    meshes, warper = Meshes(hr, aux), Warper(hr, aux)
    assert [mesh.step for mesh in meshes.covering(Window(0, 0, H, W))] == [1]
    assert warper.nodes(Window(0, 0, 64, W), 8) is None and warper.nodes(Window(8, 32, 8, 16), 2) is None
    for window in (
        Window(0, 0, 64, 32),
        Window(0, 48, 64, 32),
        Window(-8, 48, 16, 32),
        Window(504, 48, 16, 8),
    ):
        nodes = warper.nodes(window, 8)
        assert nodes is not None
        cols = np.arange(window.width + 1.0)
        exact = meshes.coordinates(np.full_like(cols, window.row), window.col + cols)
        np.testing.assert_allclose(np.interp(cols, cols[::8], nodes[1, 0]), exact[1], rtol=0, atol=2.0**-20)


def test_nodes_hold_only_where_coordinates_are_bilinear_between_them() -> None:
    """Near the pole, coordinates in degrees bend within a few HR pixels."""
    hr, aux = at(POLAR, 20, 89.9, 500), Grid(WGS84, Affine(0.1, 0, -180, 0, -0.1, 90), 900, 3600)
    step = min(mesh.step for mesh in Meshes(hr, aux).covering(Window(0, 0, H, W)))
    assert step == 1 and all(Warper(hr, aux).nodes(Window(0, 0, 16, 16), s) is None for s in (8, 4, 2))
    hr = at(POLAR, 20, 89.4, 62.5)
    (mesh,) = Meshes(hr, aux).covering(Window(-64, -64, 64, 64))
    assert mesh.step == 4 and Warper(hr, aux).nodes(Window(-64, -64, 64, 64), 8) is None
    nodes = Warper(hr, aux).nodes(Window(-64, -64, 64, 64), 4)
    assert nodes is not None
    inside = np.arange(-64, 0, 4)
    np.testing.assert_array_equal(nodes[:, :-1, :-1], mesh.at(inside, inside))
