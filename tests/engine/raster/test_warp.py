from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform

from deeplight.engine.core.windows import Window
from deeplight.engine.raster import accel, mesh
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.mesh import Meshes, project
from deeplight.engine.raster.warp import Warper

WGS84 = CRS.from_epsg(4326)
UTM31 = CRS.from_epsg(32631)
SINUSOIDAL = CRS.from_proj4("+proj=sinu +lon_0=0 +R=6371007.181 +units=m +no_defs")
POLAR = CRS.from_epsg(3413)
GEOS = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=-75 +sweep=x +ellps=GRS80")

ARCSEC = 1 / 3600
LATLON = Grid(WGS84, Affine(15 * ARCSEC / 8, 0, 3.2, 0, -15 * ARCSEC / 8, 47.1), 8 * 131, 8 * 97)
METRES = Grid(UTM31, Affine(60, 0, 515_000, 0, -60, 5_219_000), 1050, 980)

# (HR grid, aux grid) that overlap in part. Aux pixels are coarser, finer, rotated, south-up, not square.
PAIRS = {
    "utm to lat/lon": (LATLON, METRES),
    "lat/lon to utm": (METRES, LATLON),
    "sinusoidal to lat/lon": (
        LATLON,
        Grid(SINUSOIDAL, Affine(463.3, 0, 238_000, 0, -463.3, 5_240_000), 140, 120),
    ),
    "lat/lon to sinusoidal": (
        Grid(SINUSOIDAL, Affine(463.3 / 8, 0, 238_000, 0, -463.3 / 8, 5_240_000), 8 * 120, 8 * 100),
        Grid(WGS84, Affine(ARCSEC * 3, 0, 3.2, 0, -ARCSEC * 3, 47.1), 700, 800),
    ),
    "polar to lat/lon": (
        Grid(WGS84, Affine(15 * ARCSEC / 2, 0, 20, 0, -15 * ARCSEC / 2, 78.5), 640, 900),
        Grid(POLAR, Affine(150, 0, 1_000_000, 0, -150, -300_000), 1500, 1500),
    ),
    "rotated utm to lat/lon": (
        LATLON,
        Grid(
            UTM31,
            Affine.translation(520_000, 5_190_000) @ Affine.rotation(30) @ Affine.scale(70, -50),
            600,
            700,
        ),
    ),
    "south-up, same CRS": (LATLON, Grid(WGS84, Affine(3 * ARCSEC, 0, 3.21, 0, 4 * ARCSEC, 46.9), 400, 500)),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def pair(request: pytest.FixtureRequest) -> tuple[Grid, Grid]:
    return request.param


def whole(grid: Grid) -> Window:
    return Window(0, 0, grid.height, grid.width)


def ramp(grid: Grid, window: Window | None = None) -> np.ndarray:
    """Values that are coordinates: row + 0.5 and column + 0.5 of each pixel."""
    w = window or whole(grid)
    rows, cols = np.mgrid[w.row : w.row + w.height, w.col : w.col + w.width]
    return np.stack([rows, cols]).astype(np.float32) + np.float32(0.5)


def noise(grid: Grid, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    values = rng.normal(0, 1, (channels, grid.height, grid.width)).astype(np.float32)
    mask = (rng.random((grid.height, grid.width)) < 0.9).astype(np.uint8)
    mask[: grid.height // 3] = 1
    return values, mask


def part(array: np.ndarray, window: Window) -> np.ndarray:
    r, c = window.row, window.col
    return array[..., r : r + window.height, c : c + window.width]


def sampled(
    warper: Warper, values: np.ndarray, mask: np.ndarray, window: Window
) -> tuple[np.ndarray, np.ndarray]:
    source = warper.source_window(window)
    if source is None:
        return np.zeros((len(values), *window.shape), np.float32), np.zeros(window.shape, np.uint8)
    return warper.resample(part(values, source), part(mask, source), source, window)


def exact_places(hr: Grid, aux: Grid, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Aux (row, column) of HR pixel centres, corner-based, by the library's transform of every point."""
    points = [hr.transform @ (c + 0.5, r + 0.5) for r, c in zip(rows, cols, strict=True)]
    xs, ys = transform(hr.crs, aux.crs, [p[0] for p in points], [p[1] for p in points])
    back = ~aux.transform
    return np.array([(back @ (x, y))[::-1] for x, y in zip(xs, ys, strict=True)]).T


@pytest.fixture
def dataset() -> Iterator:
    files: list[MemoryFile] = []

    def make(grid: Grid, values: np.ndarray) -> rasterio.DatasetReader:
        memory = MemoryFile()
        files.append(memory)
        size = {"height": grid.height, "width": grid.width, "count": len(values)}
        with memory.open(
            driver="GTiff", dtype="float32", crs=grid.crs, transform=grid.transform, **size
        ) as out:
            out.write(values)
        return memory.open()

    yield make
    for memory in files:
        memory.close()


def smaller_pixel(hr: Grid, aux: Grid, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The shorter side of an HR pixel at each place, at most 1, in aux pixels."""
    here = exact_places(hr, aux, rows, cols)
    down = np.hypot(*(exact_places(hr, aux, rows + 1, cols) - here))
    across = np.hypot(*(exact_places(hr, aux, rows, cols + 1) - here))
    return np.minimum(np.minimum(down, across), 1)


def test_coordinates_are_within_an_eighth_of_a_pixel(pair: tuple[Grid, Grid], path: str) -> None:
    hr, aux = pair
    warper = Warper(hr, aux)
    values, valid = sampled(warper, ramp(aux), np.ones((aux.height, aux.width), np.uint8), whole(hr))
    assert valid.mean() > 0.2
    rows, cols = np.nonzero(valid)
    some = np.random.default_rng(0).choice(rows.size, 2000, replace=False)
    rows, cols = rows[some], cols[some]
    expected = exact_places(hr, aux, rows, cols)
    # In the outermost half pixel the nearest valid pixels stand in: there the ramp is not the coordinate.
    size = np.array([[aux.height], [aux.width]])
    inner = ((expected > 0.5) & (expected < size - 0.5)).all(axis=0)
    error = np.hypot(*(values[:, rows, cols] - expected))
    # 1e-3: float32 ramps of up to 1500.
    assert (error <= 0.125 * smaller_pixel(hr, aux, rows, cols) + 1e-3)[inner].all()
    assert inner.mean() > 0.9


@pytest.mark.parametrize(
    "name", ["utm to lat/lon", "lat/lon to utm", "sinusoidal to lat/lon", "rotated utm to lat/lon"]
)
def test_agrees_with_warped_vrt(name: str, dataset) -> None:
    hr, aux = PAIRS[name]
    # GDAL averages more pixels where the source is finer than the target; on a ramp, averages agree.
    values = ramp(aux)
    places = {"crs": hr.crs, "transform": hr.transform, "height": hr.height, "width": hr.width}
    # GDAL refuses a tolerance of 0 here; 1e-6 px is exact for every purpose of this test.
    with WarpedVRT(
        dataset(aux, values), resampling=Resampling.bilinear, tolerance=1e-6, nodata=-1, **places
    ) as vrt:
        oracle = vrt.read()
    ours, valid = sampled(Warper(hr, aux), values, np.ones((aux.height, aux.width), np.uint8), whole(hr))
    inner = valid.astype(bool) & (oracle[0] > 1) & (oracle[1] > 1)
    inner &= (oracle[0] < aux.height - 1) & (oracle[1] < aux.width - 1)
    assert inner.mean() > 0.2
    # 2e-3: float32 ramps of up to 1050 in both.
    assert np.hypot(*(ours - oracle))[inner].max() <= 0.125 + 2e-3


def test_a_bit_pattern_does_not_depend_on_the_window(pair: tuple[Grid, Grid], path: str) -> None:
    hr, aux = pair
    values, mask = noise(aux)
    reference = Warper(hr, aux)
    wanted = whole(hr).grown(9)
    everything, valid = sampled(reference, values, mask, wanted)
    assert valid.any()
    windows = [
        Window(0, 0, 17, 333),
        Window(500, 1, 61, 700),
        Window(-9, -9, 40, 50),
        Window(333, 501, 257, 31),
    ]
    for window in windows:
        ours, ours_valid = sampled(Warper(hr, aux), values, mask, window)
        rows, cols = window.slices_in(wanted)
        np.testing.assert_array_equal(
            ours.view(np.uint32), everything[:, rows, cols].view(np.uint32), str(window)
        )
        np.testing.assert_array_equal(ours_valid, valid[rows, cols], str(window))


@pytest.mark.skipif(accel.NATIVE is None, reason="the native module is not built")
@pytest.mark.parametrize("channels", [1, 7])
def test_native_and_numpy_agree(
    pair: tuple[Grid, Grid], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hr, aux = pair
    values, mask = noise(aux, channels)
    values[:, mask == 0] = np.nan
    window = Window(101, 97, 411, 523)
    warper = Warper(hr, aux)
    native = sampled(warper, values, mask, window)
    threaded = sampled(Warper(hr, aux, threads=3), values, mask, window)
    monkeypatch.setattr(accel, "NATIVE", None)
    plain = sampled(warper, values, mask, window)
    assert plain[1].any()
    for ours in (native, threaded):
        np.testing.assert_array_equal(ours[0], plain[0])
        np.testing.assert_array_equal(ours[1], plain[1])


def test_a_result_goes_into_planes_that_lie_apart(pair: tuple[Grid, Grid], path: str) -> None:
    hr, aux = pair
    values, mask = noise(aux, 2)
    window, warper = Window(101, 97, 411, 523), Warper(hr, aux)
    source = warper.source_window(window)
    assert source is not None
    values, mask = part(values, source), part(mask, source)
    want, known = warper.resample(values, mask, source, window)
    room = np.full((2, 500, 523), np.nan, np.float32)
    found = np.full(window.shape, 7, np.uint8)
    warper.resample(values, mask, source, window, (room[:, 40:451], found))
    np.testing.assert_array_equal(room[:, 40:451], want)
    np.testing.assert_array_equal(found, known)
    assert np.isnan(room[:, :40]).all() and np.isnan(room[:, 451:]).all()


@pytest.mark.skipif(accel.NATIVE is None, reason="the native module is not built")
def test_rows_that_lie_apart_are_refused() -> None:
    warper, window = Warper(LATLON, LATLON), Window(0, 0, 2, 2)
    values, room = np.ones((1, 4, 4), np.float32), np.empty((1, 2, 4), np.float32)[:, :, :2]
    with pytest.raises(ValueError, match="rows must follow each other"):
        warper.resample(values, values[0], Window(0, 0, 4, 4), window, (room, np.empty((2, 2), np.uint8)))


def nearby(shift: float, size: int = 6) -> tuple[Grid, Grid]:
    """HR pixel (r, c) lies at aux (r, c) + shift."""
    aux = Grid(UTM31, Affine(10, 0, 500_000, 0, -10, 5_000_000), size, size)
    return Grid(UTM31, aux.transform @ Affine.translation(shift, shift), size, size), aux


def reference_bilinear(values: np.ndarray, mask: np.ndarray, r: float, c: float) -> float | None:
    """Σ w m v / Σ w m, None where Σ w m < 1/2. Integer coordinates are pixel centres."""
    total = blended = 0.0
    for i in (int(np.floor(r)), int(np.floor(r)) + 1):
        for j in (int(np.floor(c)), int(np.floor(c)) + 1):
            if 0 <= i < values.shape[0] and 0 <= j < values.shape[1] and mask[i, j]:
                weight = (1 - abs(r - i)) * (1 - abs(c - j))
                total += weight
                blended += weight * float(values[i, j])
    return blended / total if total >= 0.5 - 1e-6 else None


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, -0.375, 0.75, 5.0, -1.0])
def test_masked_bilinear_is_the_formula(shift: float, path: str) -> None:
    hr, aux = nearby(shift)
    rng = np.random.default_rng(3)
    values = rng.normal(0, 10, (2, 6, 6)).astype(np.float32)
    mask = (rng.random((6, 6)) < 0.7).astype(np.uint8)
    values[:, mask == 0] = [[np.nan], [1e30]]
    ours, valid = Warper(hr, aux).resample(values, mask, whole(aux), whole(hr))
    for r in range(6):
        for c in range(6):
            expected = [reference_bilinear(v, mask, r + shift, c + shift) for v in values]
            assert bool(valid[r, c]) == (expected[0] is not None), (r, c)
            # Four float32 products of values up to 30.
            np.testing.assert_allclose(ours[:, r, c], [e or 0 for e in expected], atol=1e-5)


def test_masked_neighbours_do_not_bleed(path: str) -> None:
    hr, aux = nearby(0.25, 40)
    values = np.full((1, 40, 40), 7, np.float32)
    mask = np.ones((40, 40), np.uint8)
    mask[10:13, 20:25] = 0
    for poison in (np.nan, np.inf, -9999, 65535):
        values[:, mask == 0] = poison
        ours, valid = Warper(hr, aux).resample(values, mask, whole(aux), whole(hr))
        assert np.isfinite(ours).all()
        # 1e-6: weights in float32 sum to one but for rounding.
        np.testing.assert_allclose(ours[0][valid == 1], 7, rtol=1e-6)
        assert (valid[10:12, 20:24] == 0).all() and valid[8, 20] == 1
        assert (ours[0][valid == 0] == 0).all()


def test_layers_that_do_not_meet(path: str) -> None:
    far = Grid(CRS.from_epsg(32755), Affine(30, 0, 300_000, 0, -30, 6_000_000), 100, 100)
    warper = Warper(LATLON, far)
    assert warper.source_window(whole(LATLON)) is None
    near = Warper(LATLON, METRES)
    assert near.source_window(Window(-5000, -5000, 64, 64)) is None
    assert near.source_window(Window(0, 0, 0, 5)) is None
    source = near.source_window(whole(LATLON))
    assert source is not None
    ones = np.ones((1, *source.shape), np.float32)
    values, valid = near.resample(ones, ones[0].astype(np.uint8), source, Window(-5000, -5000, 64, 64))
    assert not valid.any() and not values.any()


def test_an_empty_source_gives_nothing(path: str) -> None:
    warper = Warper(LATLON, METRES)
    values, valid = warper.resample(
        np.zeros((2, 0, 4), np.float32), np.zeros((0, 4), np.uint8), Window(0, 0, 0, 4), Window(0, 0, 3, 5)
    )
    assert values.shape == (2, 3, 5) and not values.any() and not valid.any()


def test_arrays_that_do_not_fit_are_refused() -> None:
    warper = Warper(LATLON, METRES)
    with pytest.raises(ValueError, match="do not fit the source window"):
        warper.resample(
            np.zeros((1, 3, 3), np.float32),
            np.zeros((3, 3), np.uint8),
            Window(0, 0, 3, 4),
            Window(0, 0, 2, 2),
        )
    with pytest.raises(ValueError, match="power of two"):
        Warper(LATLON, METRES, step=48)
    with pytest.raises(ValueError, match="max_error"):
        Warper(LATLON, METRES, max_error=0)


def test_the_source_window_is_enough_and_not_much_more() -> None:
    warper = Warper(LATLON, METRES)
    window = Window(300, 200, 100, 120)
    source = warper.source_window(window)
    assert source is not None
    rows, cols = (a.ravel() for a in np.mgrid[300:400, 200:320])
    places = exact_places(LATLON, METRES, rows, cols) - 0.5
    low, high = np.floor(places.min(axis=1)), np.floor(places.max(axis=1)) + 2
    assert source.row <= low[0] and source.col <= low[1]
    assert source.row + source.height >= high[0] and source.col + source.width >= high[1]
    assert source.height * source.width <= 1.15 * np.prod(high - low)


def test_the_same_crs_needs_one_cell_and_curvature_needs_more() -> None:
    straight = Meshes(*PAIRS["south-up, same CRS"])
    assert {m.step for m in straight.covering(whole(LATLON))} == {mesh.BLOCK}
    bent = Meshes(*PAIRS["polar to lat/lon"], step=512, max_error=0.01)
    steps = {m.step for m in bent.covering(Window(0, 0, 512, 512))}
    assert max(steps) < 512


def test_conformal_curvature_is_not_overlooked() -> None:
    """Between conformal projections the interpolation error vanishes at cell centres, not at edge midpoints."""
    mercator = Grid(CRS.from_epsg(3395), Affine(2000, 0, 350_000, 0, -2000, 9_000_000), 512, 512)
    aux = Grid(UTM31, Affine(600, 0, 400_000, 0, -600, 7_500_000), 900, 900)
    (block,) = Meshes(mercator, aux, step=512).covering(Window(0, 0, 512, 512))
    rows, cols = np.arange(0, 512, 16), np.arange(0, 512, 16)
    grid_rows, grid_cols = (a.ravel() for a in np.meshgrid(rows, cols, indexing="ij"))
    expected = exact_places(mercator, aux, grid_rows, grid_cols).reshape(2, 32, 32) - 0.5
    assert block.step < 512
    assert np.hypot(*(block.at(rows, cols) - expected)).max() <= 0.125


def test_longitudes_a_turn_apart_meet(path: str) -> None:
    """An HR grid across the antimeridian in degrees up to 181, and a layer on its far side from -180 on."""
    hr = Grid(WGS84, Affine(0.01, 0, 179, 0, -0.01, 1), 200, 200)
    aux = Grid(WGS84, Affine(0.02, 0, -180, 0, -0.02, 1), 100, 50)
    values, valid = sampled(Warper(hr, aux), ramp(aux), np.ones((100, 50), np.uint8), whole(hr))
    assert not valid[:, :100].any() and valid[1:-1, 100:].all()
    np.testing.assert_allclose(values[1, 50, 101:199], (np.arange(101, 199) + 0.5 - 100) / 2, atol=1e-4)


def test_a_jump_inside_a_cell_is_resolved_to_the_pixel(path: str) -> None:
    """A polar HR grid over the antimeridian, and a global layer whose columns wrap there."""
    hr = Grid(POLAR, Affine(1000, 0, -100_000, 0, -1000, 1_400_000), 200, 200)
    aux = Grid(WGS84, Affine(0.05, 0, -180, 0, -0.05, 90), 1000, 7200)
    values, valid = sampled(Warper(hr, aux), ramp(aux), np.ones((1000, 7200), np.uint8), whole(hr))
    rows, cols = (a.ravel() for a in np.mgrid[0:200:7, 0:200:7])
    expected = exact_places(hr, aux, rows, cols)
    inner = (expected[1] > 1) & (expected[1] < 7199)
    assert inner.mean() > 0.9 and valid[rows, cols][inner].all()
    # 0.125 px of the mesh, float32 ramps of up to 7200.
    assert np.abs(values[:, rows, cols] - expected)[:, inner].max() <= 0.125 + 2e-3


def test_outside_the_projection_is_invalid(path: str) -> None:
    """A geostationary disc ends at its limb; beyond, PROJ refuses the whole batch."""
    hr = Grid(WGS84, Affine(0.004, 0, -5, 0, -0.004, 0.1), 60, 3000)
    aux = Grid(GEOS, Affine(2000, 0, -5_440_000, 0, -2000, 40_000), 40, 5440)
    values, valid = sampled(Warper(hr, aux), ramp(aux), np.ones((40, 5440), np.uint8), whole(hr))
    limb = int((6.3 + 5) / 0.004)  # 81.3° from the satellite
    assert valid[:, : limb - 700].all()
    assert not valid[:, limb + 50 :].any() and not values[:, valid == 0].any()
    cols = np.arange(0, limb - 700, 60)
    rows = np.full(cols.size, 30)
    error = np.hypot(*(values[:, rows, cols] - exact_places(hr, aux, rows, cols)))
    # 1e-3: float32 ramps of up to 5440.
    assert error.max() <= 0.125 + 1e-3


def test_project_marks_the_points_that_fail() -> None:
    x, y = np.array([[0.0, -75.0, -60.0], [105.0, -80.0, 120.0]]), np.zeros((2, 3))
    out_x, out_y = project(WGS84, GEOS, x, y)
    assert np.isfinite(out_x).tolist() == [[True, True, True], [False, True, False]]
    assert np.isfinite(out_y).tolist() == np.isfinite(out_x).tolist()
    assert abs(out_x[0, 1]) < 1e-6
