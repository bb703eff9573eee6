from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.synth import Country, CountryConfig, CountrySample
from deeplight.train.synth.degrade import sensor_matrix
from deeplight.train.synth.noise import ancestors, bell, fractal, hash_window, upsampled
from deeplight.train.synth.roads import MOTORWAY, PRIMARY, roads_of_cell
from deeplight.train.synth.settlements import TOWN, VILLAGE, sites_of_cell
from deeplight.train.synth.spectra import MATERIALS

HR_FIELDS = ("ntl_hr", "isp", "dmo", "dem")
SEED = 4  # a country with a coast, mountains and cities in its first 128 × 128 LR px
QUIET = CountryConfig(seed=SEED, noise=0.0, relative_noise=0.0)


@pytest.fixture(scope="module")
def country() -> Country:
    return Country(CountryConfig(seed=SEED))


@pytest.fixture(scope="module")
def land(country: Country) -> CountrySample:
    return country.sample(Window(0, 0, 128, 128))


def test_fractal_of_a_window_is_a_part_of_a_larger_one() -> None:
    amplitudes = {5: 1.0, 2: 0.5, 0: 0.2}
    whole = fractal(3, amplitudes, Window(-40, -31, 120, 101))
    for w in (Window(-40, -31, 1, 1), Window(-3, 5, 33, 17), Window(11, -30, 64, 99)):
        np.testing.assert_array_equal(
            fractal(3, amplitudes, w), whole[w.slices_in(Window(-40, -31, 120, 101))]
        )


def test_fractal_and_bell_have_the_stated_spread() -> None:
    window = Window(0, 0, 600, 600)
    # 150 × 150 independent nodes: the standard deviation of their smooth field is known to some percent.
    assert fractal(5, {2: 2.0}, window).std() == pytest.approx(2.0, rel=0.1)
    assert fractal(5, {0: 2.0}, window).std() == pytest.approx(2.0, rel=0.02)
    noise = bell(hash_window(6, window))
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noise.std() == pytest.approx(1.0, rel=0.01)


def test_subdivision_reproduces_a_plane() -> None:
    window = Window(-7, 13, 21, 30)
    coarse = ancestors(window, 3)
    rows = np.arange(coarse.row, coarse.row + coarse.height, dtype=np.float32)[:, None] * 8
    cols = np.arange(coarse.col, coarse.col + coarse.width, dtype=np.float32)[None, :] * 8
    fine = upsampled(2 * rows + cols, window, 3)
    r, c = np.mgrid[window.row : window.row + 21, window.col : window.col + 30]
    np.testing.assert_array_equal(fine, 2 * r + c)  # small integers and eighths are exact in float32


@pytest.mark.parametrize("w", [(-9, 3, 1, 1), (0, 10, 17, 33), (20, 8, 31, 5), (9, 40, 32, 32)])
def test_windows_agree_bit_for_bit(w: tuple[int, int, int, int]) -> None:
    outer, inner = Window(-9, 3, 61, 69), Window(*w)
    large, small = Country(QUIET).sample(outer), Country(QUIET).sample(inner)
    for field in dataclasses.fields(CountrySample):
        k = SCALE if field.name in HR_FIELDS else 1
        part = (..., *inner.scaled(k).slices_in(outer.scaled(k)))
        np.testing.assert_array_equal(
            getattr(small, field.name), getattr(large, field.name)[part], field.name
        )


def test_the_seed_decides_everything() -> None:
    window = Window(5, 5, 9, 11)
    first = Country(CountryConfig(seed=1)).sample(window)
    again = pickle.loads(pickle.dumps(Country(CountryConfig(seed=1)))).sample(window)
    other = Country(CountryConfig(seed=2)).sample(window)
    for field in dataclasses.fields(CountrySample):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
        assert not np.array_equal(getattr(first, field.name), getattr(other, field.name)), field.name


def test_shapes_types_and_ranges(land: CountrySample) -> None:
    hr = (128 * SCALE, 128 * SCALE)
    shapes = {"ntl": (128, 128), "ntl_hr": hr, "isp": hr, "dmo": (7, *hr), "dem": hr, "offset": (2, 128, 128)}
    for name, shape in shapes.items():
        field = getattr(land, name)
        assert field.shape == shape and field.dtype == np.float32 and np.isfinite(field).all(), name
    assert land.ntl_hr.min() > 0
    assert land.isp.min() >= 0 and land.isp.max() <= 1
    assert land.dmo.min() > 0 and land.dmo.max() < 1.2
    assert land.dem.min() >= 0 and 500 < land.dem.max() < 5000
    length = np.hypot(*land.offset)
    assert 0.4 < length.mean() < length.max() <= 1.2


def test_lights_look_like_viirs(land: CountrySample) -> None:
    rural, lit, core = np.percentile(land.ntl, [50, 95, 99.9])
    assert 0.05 < rural < 0.5
    assert 2 < lit < 30
    assert 30 < core < 250
    assert land.ntl.min() > -0.5 and 0.01 < (land.ntl < 0).mean() < 0.3  # small negatives are noise
    share = np.sort(land.ntl_hr.ravel())[-land.ntl_hr.size // 20 :].sum() / land.ntl_hr.sum()
    assert share > 0.5  # a twentieth of the land sends more than half of the light
    assert 0.02 < land.isp.mean() < 0.2


def test_brightness_is_not_given_away_by_the_built_surface(land: CountrySample) -> None:
    built = land.isp > 0.6
    dark = (land.ntl_hr < 1.0) & built
    assert dark.sum() > 0.02 * built.sum()  # unlit built-up land
    bare = (land.ntl_hr > 1.0) & (land.isp < 0.15)
    assert bare.sum() > 0.005 * bare.size  # light where little is built
    assert np.log(land.ntl_hr[built]).std() > 0.8


def test_lr_is_the_blurred_area_mean_of_hr() -> None:
    sample = Country(QUIET).sample(Window(96, 46, 7, 8))
    sigma = QUIET.psf_fwhm_lr * SCALE / np.sqrt(8 * np.log(2))
    radius = int(np.ceil(3 * sigma))
    taps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    light = sample.ntl_hr.astype(np.float64)
    for row, col in ((2, 2), (3, 4), (4, 5)):
        total = 0.0
        for r in range(row * SCALE, (row + 1) * SCALE):
            for c in range(col * SCALE, (col + 1) * SCALE):
                total += (weights * light[r - radius : r + radius + 1, c - radius : c + radius + 1]).sum()
        # float32 sums of some thousand terms of one sign
        assert sample.ntl[row, col] == pytest.approx(total / SCALE**2, rel=1e-5)


@pytest.mark.parametrize("fwhm", [0.0, 0.3, 1.0, 3.2])
def test_the_sensor_s_matrix_is_a_gaussian_and_then_the_mean(fwhm: float) -> None:
    n, sigma = 9, fwhm * SCALE / np.sqrt(8 * np.log(2))
    light = np.random.default_rng(0).lognormal(0, 2, SCALE * n)
    blurred = light.copy()
    if fwhm:
        for i in range(len(light)):
            near = range(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
            weights = [np.exp(-0.5 * (k / sigma) ** 2) for k in near]
            values = [light[min(max(i + k, 0), len(light) - 1)] for k in near]
            blurred[i] = np.dot(weights, values) / sum(weights)
    # float32 weights
    np.testing.assert_allclose(sensor_matrix(fwhm, n) @ light, blurred.reshape(n, SCALE).mean(1), rtol=1e-5)


def test_truth_is_the_ground_at_the_displaced_position() -> None:
    world = Country(QUIET)
    window = Window(98, 50, 6, 5)
    sample = world.sample(window)
    around = window.scaled(SCALE).grown(16)
    isp = world.ground(around).isp.astype(np.float64)
    for r, c in ((4, 4), (13, 30), (22, 9), (40, 33)):  # between LR centres on all sides
        y, x = (r + 0.5) / SCALE - 0.5, (c + 0.5) / SCALE - 0.5
        i, j, fy, fx = int(y), int(x), y % 1, x % 1
        corners = sample.offset[:, i : i + 2, j : j + 2].astype(np.float64)
        dx, dy = np.einsum("kab,a,b->k", corners, [1 - fy, fy], [1 - fx, fx]) * SCALE
        v, u = r + dy + 16, c + dx + 16
        a, b, gy, gx = int(v), int(u), v % 1, u % 1
        expected = np.einsum("ab,a,b->", isp[a : a + 2, b : b + 2], [1 - gy, gy], [1 - gx, gx])
        assert sample.isp[r, c] == pytest.approx(
            expected, abs=1e-4
        )  # float32 position at 1e-6 × steepest edge


def test_auxiliary_is_in_the_ground_frame() -> None:
    world = Country(QUIET)
    window = Window(90, 40, 7, 5)
    sample, ground = world.sample(window), world.ground(window.scaled(SCALE))
    np.testing.assert_array_equal(sample.dmo, ground.dmo)
    np.testing.assert_array_equal(sample.dem, ground.dem)


def test_sampling_the_auxiliary_at_the_true_offset_aligns_it(country: Country, land: CountrySample) -> None:
    margin = 2
    inner = Window(margin, margin, 128 - 2 * margin, 128 - 2 * margin)
    built = country.ground(Window(0, 0, 128 * SCALE, 128 * SCALE)).isp
    light = np.log1p(np.maximum(land.ntl, 0))[inner.slices_in(Window(0, 0, 128, 128))]

    def correlation(sign: int) -> float:
        rows, cols = np.mgrid[: 128 * SCALE, : 128 * SCALE]
        fine = np.repeat(np.repeat(land.offset, SCALE, 1), SCALE, 2) * SCALE * sign
        r = np.clip(np.rint(rows + fine[1]).astype(int), 0, 128 * SCALE - 1)
        c = np.clip(np.rint(cols + fine[0]).astype(int), 0, 128 * SCALE - 1)
        mean = built[r, c].reshape(128, SCALE, 128, SCALE).mean(axis=(1, 3))
        return float(np.corrcoef(mean[inner.slices_in(Window(0, 0, 128, 128))].ravel(), light.ravel())[0, 1])

    assert correlation(1) > correlation(0) + 0.03 > correlation(-1) + 0.06


def test_saturation_and_noise_do_what_they_say() -> None:
    window = Window(88, 44, 20, 20)
    clean = Country(QUIET).sample(window).ntl
    capped = Country(dataclasses.replace(QUIET, saturation=31.5)).sample(window).ntl
    np.testing.assert_allclose(capped, np.clip(np.rint(clean * 2) / 2, 0, 31.5), atol=1e-5)
    assert (capped == 31.5).any() and len(np.unique(capped)) <= 64
    noisy = Country(dataclasses.replace(QUIET, noise=0.5)).sample(window).ntl
    assert (noisy - clean).std() == pytest.approx(0.5, rel=0.12)  # 400 draws: 3.5 % standard error
    scaled = Country(dataclasses.replace(QUIET, relative_noise=0.1)).sample(window).ntl
    assert (scaled / clean - 1).std() == pytest.approx(0.1, rel=0.12)
    still = Country(dataclasses.replace(QUIET, misregistration_lr=0.0, psf_fwhm_lr=0.0)).sample(window)
    assert not still.offset.any()
    mean = still.ntl_hr.reshape(20, SCALE, 20, SCALE).mean(axis=(1, 3))
    np.testing.assert_allclose(still.ntl, mean, rtol=1e-5)  # float32 sums in another order


def test_sites_keep_off_slopes_and_water(country: Country) -> None:
    terrain = country.relief(Window(0, 0, 384 * 2, 384 * 2))
    cells = [sites_of_cell(SEED, r, c) for r in range(2) for c in range(2)]
    slope, wet, radius = [], [], []
    for sites in cells:
        settled = sites.where(sites.kind <= VILLAGE)
        rows, cols = settled.y.astype(int), settled.x.astype(int)
        slope.append(terrain.slope[rows, cols])
        wet.append(terrain.water[rows, cols])
        radius.append(sites.radius[sites.kind == TOWN])
    assert sum(map(len, slope)) > 60
    assert np.concatenate(slope).mean() < 0.5 * terrain.slope.mean()
    assert np.concatenate(wet).mean() < 0.3 * terrain.water.mean() + 0.01
    towns = np.concatenate(radius)
    assert np.median(towns) < towns.mean()  # many small, few large


def test_roads_avoid_slopes_and_water(country: Country) -> None:
    terrain = country.relief(Window(0, 0, 1152, 1152))
    along, straight, wet = [], [], []
    for row, col in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 1)):
        roads = roads_of_cell(SEED, PRIMARY, row, col)
        per_road = 64
        for first in range(0, len(roads.x0), per_road - 1):
            x, y = roads.x0[first : first + per_road - 1], roads.y0[first : first + per_road - 1]
            line_x, line_y = np.linspace(x[0], x[-1], len(x)), np.linspace(y[0], y[-1], len(y))
            if min(x.min(), y.min(), line_x.min(), line_y.min()) < 0 or max(x.max(), y.max()) >= 1152:
                continue
            along.append(terrain.slope[y.astype(int), x.astype(int)])
            straight.append(terrain.slope[line_y.astype(int), line_x.astype(int)])
            wet.append(terrain.water[y.astype(int), x.astype(int)])
    assert len(along) > 15
    assert np.concatenate(along).mean() < 0.9 * np.concatenate(straight).mean()
    assert np.concatenate(wet).mean() < 0.8 * terrain.water.mean()


def test_motorways_reach_beyond_their_cell_and_join_sites() -> None:
    ends = 0
    for row in range(3):
        for col in range(3):
            roads = roads_of_cell(SEED, MOTORWAY, row, col)
            if len(roads.x0) == 0:
                continue
            own = sites_of_cell(SEED, row, col)
            assert (np.abs(own.x - roads.x0[0]) + np.abs(own.y - roads.y0[0])).min() == 0
            ends += len(roads.x0)
    assert ends > 0


def test_water_is_dark_and_unbuilt(country: Country, land: CountrySample) -> None:
    window = Window(0, 0, 128 * SCALE, 128 * SCALE)
    water = country.relief(window).water > 0.99
    ground = country.ground(window)
    assert water.mean() > 0.02
    assert ground.isp[water].mean() < 0.1 * ground.isp.mean()
    nir, green = DMO_SLOTS.index("nir"), DMO_SLOTS.index("green")
    open_water = water & (ground.isp == 0)
    assert (land.dmo[nir][open_water] < land.dmo[green][open_water]).all()  # water absorbs the near infrared
    assert all(
        len(values) == len(DMO_SLOTS) and 0 < min(values) < max(values) < 1 for values in MATERIALS.values()
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"lr_height": 0}, "size"),
        ({"lr_width": 10**6}, "size"),
        ({"misregistration_lr": 9.0}, "misregistration"),
        ({"misregistration_lr": float("nan")}, "misregistration"),
        ({"psf_fwhm_lr": -1.0}, "PSF"),
        ({"noise": -0.1}, "noise"),
        ({"saturation": 0.0}, "saturation"),
    ],
)
def test_senseless_settings_are_refused(change: dict[str, float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        dataclasses.replace(QUIET, **change)
