"""The blur of the lights: products' constants in LR pixels, and the estimate from isolated lights."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from deeplight.engine.core.windows import Window
from deeplight.engine.raster import isolated
from deeplight.engine.raster.blur import pixel_m, product_blur
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.products import PRODUCTS, product_of
from deeplight.engine.raster.psf import UNKNOWN, WIDEST, parse_psf, shown_psf
from deeplight.engine.raster.scene import Scene, SceneOptions
from tests.scenes import north_up, write_raster

ARC = 15 / 3600


def grid(latitude: float, pixel: float = ARC, height: int = 100, width: int = 80) -> Grid:
    """Latitudes and longitudes, its centre at `latitude`."""
    return Grid(CRS.from_epsg(4326), north_up(pixel, 6.0, latitude + height / 2 * pixel), height, width)


def test_metres_of_a_pixel() -> None:
    # 15″ of a great circle of 6371 km: 463.3 m
    assert pixel_m(grid(0.0)) == pytest.approx((463.3, 463.3), rel=1e-3)
    assert pixel_m(grid(60.0)) == pytest.approx((463.3, 231.7), rel=1e-3)
    utm = Grid(CRS.from_epsg(32632), Affine(500, 0, 500_000, 0, -750, 5_500_000), 10, 10)
    assert pixel_m(utm) == pytest.approx(
        (750, 500), rel=5e-3
    )  # the scale of UTM, and the sphere's for an ellipsoid
    # Web Mercator at 60° N: a pixel of 500 units is 250 m on the ground
    y = 6378137 * math.log(math.tan(math.pi / 4 + math.radians(60) / 2))
    mercator = Grid(CRS.from_epsg(3857), Affine(500, 0, 0, 0, -500, y + 2500), 10, 10)
    assert pixel_m(mercator) == pytest.approx((250, 250), rel=1e-2)


@pytest.mark.parametrize(
    ("product", "latitude", "pixel", "fwhm"),
    [
        ("viirs", 0.0, ARC, (1.6, 1.6)),  # 742 / 463.3
        ("viirs", 45.0, ARC, (1.6, 2.3)),
        ("viirs", 60.0, ARC, (1.6, 3.2)),
        ("viirs", 75.0, ARC, (1.6, WIDEST)),  # 6.2 is more than models know
        ("dmsp", 0.0, 2 * ARC, (2.9, 2.9)),  # 2700 / 926.6
        ("viirs", 0.0, 4 * ARC, (0.4, 0.4)),
    ],
)
def test_a_round_blur_is_elliptical_in_degrees(
    product: str, latitude: float, pixel: float, fwhm: tuple[float, float]
) -> None:
    assert product_blur(PRODUCTS[product], grid(latitude, pixel)) == fwhm


def test_nothing_known_of_the_product_is_an_unknown_blur() -> None:
    assert product_blur(None, grid(0.0)) == UNKNOWN


@pytest.mark.parametrize(
    ("name", "unit", "pixel", "product"),
    [
        ("svdnb_npp_20200101-20200131_75n060w_vcmslcfg_v10_c.avg_rade9h.tif", "nW/cm²/sr", ARC, "viirs"),
        ("vnl_v21_npp_2020_global_vcmslcfg_average_masked.tif", "nW/cm²/sr", ARC, "viirs"),
        ("vnp46a4.a2020001.h18v03.001.h5 nearnadir_composite_snow_free", "nW/cm²/sr", ARC, "viirs"),
        ("vnp46a2.a2020001.h18v03.001.h5 gap_filled_dnb_brdf-corrected_ntl", "nW/cm²/sr", ARC, "daily"),
        ("f182013.v4c_web.stable_lights.avg_vis.tif", "DN", 2 * ARC, "dmsp"),
        ("harmonized_dn_ntl_2014_simviirs.tif", "DN", 2 * ARC, "dmsp"),
        ("f16_20100111-20101209_rad_v4.avg_vis.tif", "", 2 * ARC, "calibrated"),
        ("ntl.tif", "DN", 2 * ARC, "dmsp"),
        ("ntl.tif", "nW/cm²/sr", ARC, "viirs"),
        ("ntl.tif", "nW/cm²/sr", ARC / 4, None),
        ("ntl.tif", "", ARC, "viirs"),
        ("ntl.tif", "", 2 * ARC, None),
        ("ntl.tif", "DN", ARC, None),
        ("ntl.tif", "nW/cm²/sr", ARC * 463.83 / 463.31, "viirs"),  # Google's exports in metres
        ("iss045-e-12345.tif", "DN", ARC / 100, None),
        ("luojia1-01_lr201806.tif", "nW/cm²/sr", 0.0012, None),
    ],
)
def test_products(name: str, unit: str, pixel: float, product: str | None) -> None:
    found = product_of(name, unit, pixel_m(grid(10.0, pixel))[0])
    assert found == (None if product is None else PRODUCTS[product])


def test_limits_hold_in_the_product_s_unit_only() -> None:
    dmsp, daily = PRODUCTS["dmsp"], PRODUCTS["daily"]
    assert dmsp.limits("DN", 63.0) == (63.0, 0.29)
    assert dmsp.limits("nW/cm²/sr", 63.0) == (-1.0, -1.0)
    assert daily.limits("nW/cm²/sr", 6553.4) == (-1.0, 0.45)
    assert PRODUCTS["viirs"].limits("nW/cm²/sr", 6553.4) == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.6", (1.6, 1.6)), ("1.6,2.4", (1.6, 2.4)), ("0", (0, 0)), ("auto", "auto"), ("unknown", "unknown")],
)
def test_texts(text: str, value: Any) -> None:
    assert parse_psf(text) == value
    if isinstance(value, tuple):
        assert parse_psf(shown_psf(value)) == value


@pytest.mark.parametrize("text", ["", "wide", "1,2,3", "-1", "3.3", "nan", "inf", "1;2", "1,"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not the FWHM of a blur of 0 to 3\.2 LR pixels"):
        parse_psf(text)


def point_lights(
    fwhm: tuple[float, float], count: int, side: int = 400, seed: int = 1
) -> NDArray[np.float32]:
    """Lights at random places between pixels, blurred, averaged over pixels, on a dark noisy ground."""
    rng = np.random.default_rng(seed)
    field = np.zeros((8 * side, 8 * side))
    cells = rng.permutation((side // 20) ** 2)[:count]
    at = np.arange(-48, 49)
    for cell in cells:
        row, col = (8 * (20 * k + 10) + rng.uniform(-24, 24) for k in divmod(cell, side // 20))
        first = round(row), round(col)
        profiles = []
        for place, centre, width in zip((row, col), first, fwhm, strict=True):
            sigma = max(8 * width / 2.3548, 0.3)
            profile = np.exp(-0.5 * ((at + centre - place) / sigma) ** 2)
            profiles.append(profile / profile.sum())
        rows, cols = (slice(k - 48, k + 49) for k in first)
        field[rows, cols] += 64 * rng.uniform(60, 400) * np.outer(*profiles)
    lr = field.reshape(side, 8, side, 8).mean(axis=(1, 3))
    return (lr + 0.2 + rng.normal(0, 0.03, lr.shape)).astype(np.float32)


@pytest.mark.parametrize("fwhm", [(0.5, 0.5), (1.0, 1.0), (1.6, 1.6), (1.4, 2.3), (2.6, 3.0)])
def test_the_blur_of_isolated_lights_is_found(
    fwhm: tuple[float, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(tmp_path / "n.tif", point_lights(fwhm, 200), units=["nW/cm²/sr"])
    with caplog.at_level(logging.INFO), Scene.open(SceneOptions(str(path), psf="auto")) as scene:
        assert scene.psf == pytest.approx(fwhm, abs=0.15)
        assert scene.psf == tuple(round(v, 1) for v in scene.psf)
        inputs = scene.read_inputs(Window(0, 0, 5, 4))
    assert inputs["psf"].tolist() == [[np.float32(v) for v in scene.psf]]
    assert inputs["limits"].tolist() == [[-1, -1]]
    assert f'`psf="auto"`: the blur is {shown_psf(scene.psf)} LR pixels' in caplog.text


def test_too_few_lights_leave_the_constant_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(tmp_path / "n.tif", point_lights((1.0, 1.0), 12), units=["nW/cm²/sr"])
    with Scene.open(SceneOptions(str(path), psf="auto")) as scene:
        assert scene.psf == product_blur(PRODUCTS["viirs"], scene.grid)
    assert (
        "finds 12 isolated lights" in caplog.text
        and "needs 20, so the blur is taken as VIIRS's" in caplog.text
    )


def test_towns_are_no_points(tmp_path: Path) -> None:
    """Lights with a flat top, five pixels wide: their width says nothing of the blur."""
    towns = np.full((400, 400), 0.1, np.float32)
    for row in range(10, 390, 20):
        for col in range(10, 390, 20):
            towns[row - 2 : row + 3, col - 2 : col + 3] = 50
            towns[row, col] = 51
    path = write_raster(tmp_path / "n.tif", towns, units=["nW/cm²/sr"])
    with Scene.open(SceneOptions(str(path), psf="auto")) as scene:
        assert scene.psf == product_blur(PRODUCTS["viirs"], scene.grid)


def test_a_large_scene_is_sampled() -> None:
    """The time and the memory of psf="auto" do not grow with a country."""
    windows = isolated.spread_windows(40_000, 60_000)
    assert len(windows) == len(set(windows)) == 64
    assert max(w.height * w.width for w in windows) <= 512**2
    assert windows[-1].row > 39_000 and windows[0].row == 0
    assert isolated.spread_windows(3, 5) == [Window(0, 0, 3, 5)]


def test_asked_values_are_taken(tmp_path: Path) -> None:
    path = str(write_raster(tmp_path / "n.tif", point_lights((1.0, 1.0), 12), units=["nW/cm²/sr"]))
    for asked, value in (((0.5, 3.0), (0.5, 3.0)), ("unknown", UNKNOWN)):
        with Scene.open(SceneOptions(path, psf=asked)) as scene:
            assert scene.psf == value
            assert scene.describe()["ntl"]["psf"] == shown_psf(value)


def test_dmsp_tells_its_limits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 64, (40, 40)).astype(np.uint8)
    path = write_raster(
        tmp_path / "F182013.v4c_web.stable_lights.avg_vis.tif", values, transform=north_up(2 * ARC)
    )
    with Scene.open(SceneOptions(str(path))) as scene:
        assert scene.limits == (63.0, 0.29)
        assert scene.psf == (2.9, WIDEST)
        assert scene.read_inputs(Window(0, 0, 2, 2))["limits"].tolist() == [[63, np.float32(0.29)]]
        told = scene.describe()["ntl"]
    assert (told["saturation"], told["noise"]) == (63.0, 0.29)
