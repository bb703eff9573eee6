"""The picture: one window in all panels, honest bicubic, nodata in its own colour, ticks that are true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplight.engine.core.arrays import to_hr
from deeplight.engine.output.colormap import NODATA_RGB, light_colours
from deeplight.engine.output.quicklook import Stretch, bicubic, choose_window, render
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.runtime.artifact import load_artifact
from tests.engine.analytic import write_analytic
from tests.scenes import write_raster, write_scene


def test_colours_get_lighter_evenly_and_avoid_the_nodata_grey() -> None:
    colours = light_colours(256).astype(float)
    linear = np.where(colours <= 10.3, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -1e-4).all()
    assert luminance[0] < 0.01 and luminance[-1] > 0.9
    assert np.abs(colours - NODATA_RGB).max(axis=1).min() > 40


def test_bicubic_keeps_a_constant_and_interpolates_a_ramp() -> None:
    flat = np.full((6, 9), 3.0, np.float32)
    # float32 weights sum to 1 within a few units in the last place
    np.testing.assert_allclose(bicubic(flat), 3.0, rtol=1e-5)
    ramp = np.tile(np.arange(12, dtype=np.float32), (12, 1))
    x = (np.arange(96) + 0.5) / 8 - 0.5
    np.testing.assert_allclose(bicubic(ramp)[:, 24:-24], np.tile(x[24:-24], (96, 1)), atol=1e-4)


def test_bicubic_does_not_bleed_nodata() -> None:
    lr = np.full((9, 9), 5.0, np.float32)
    lr[3:5, 4:7] = np.nan
    up = bicubic(lr)
    np.testing.assert_array_equal(np.isnan(up), to_hr(np.isnan(lr)))
    np.testing.assert_allclose(up[~np.isnan(up)], 5.0, rtol=1e-4)
    assert np.nanmin(bicubic(np.where(np.eye(9) > 0, 100, 0).astype(np.float32))) >= 0


@pytest.mark.parametrize("peak", [1e-9, 0.37, 5.0, 63.0, 3e5])
def test_ticks_are_round_apart_and_in_place(peak: float) -> None:
    stretch = Stretch.of(np.linspace(0, peak, 1000, dtype=np.float32))
    assert peak <= stretch.top * 1.002 and stretch.top <= 2.6 * peak
    ticks = stretch.ticks(900, 56)
    values, places = zip(*ticks, strict=True)
    assert values[0] == 0 and values[-1] == stretch.top and places[0] == 0 and places[-1] == 900
    assert len(ticks) >= 5 and min(np.diff(places)) >= 56
    for value, place in ticks:
        assert f"{value:e}"[0] in "0125"
        assert place == pytest.approx(900 * float(stretch(np.array(value, np.float32))), abs=0.51)


@pytest.mark.parametrize("values", [np.full((20, 20), np.nan), np.zeros((20, 20)), np.full((20, 20), -3.0)])
def test_dark_and_empty_scenes_are_drawn(values: np.ndarray) -> None:
    lr = np.pad(values, 2, constant_values=np.nan).astype(np.float32)
    image = render(lr, to_hr(values).astype(np.float32), "DN")
    assert image.mode == "RGB" and image.width > 900


@pytest.mark.parametrize(("h", "w"), [(1, 1), (13, 60), (90, 90), (121, 180)])
def test_panels_show_the_same_ground(h: int, w: int) -> None:
    lr = np.full((h + 4, w + 4), 1.0, np.float32)
    lr[2:-2, 2:-2] = np.nan
    hr = np.full((8 * h, 8 * w), np.nan, np.float32)
    pixels = np.asarray(render(lr, hr, "nW/cm²/sr"))
    grey = (pixels == NODATA_RGB).all(axis=2)
    columns = np.flatnonzero(grey[: pixels.shape[0] - 100].any(axis=0))
    runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert len(runs) == 3 and len({len(r) for r in runs}) == 1
    rows = np.flatnonzero(grey[: pixels.shape[0] - 100].any(axis=1))
    assert len(rows) / len(runs[0]) == pytest.approx(h / w, rel=0.02)


def test_large_scene_shows_the_brightest_square(tmp_path: Path) -> None:
    ntl = np.ones((333, 471), np.float32)
    ntl[205:260, 301:377] = 50
    path = write_raster(tmp_path / "ntl.tif", ntl)
    with Scene.open(SceneOptions(ntl=str(path))) as scene:
        w = choose_window(scene)
    assert w.shape == (90, 90)
    assert w.row <= 205 and w.row + 90 >= 260 and w.col <= 301 and w.col + 90 >= 377


def test_long_thin_scene_stays_inside(tmp_path: Path) -> None:
    ntl = np.ones((12, 400), np.float32)
    ntl[:, 390:] = 9
    with Scene.open(SceneOptions(ntl=str(write_raster(tmp_path / "n.tif", ntl)))) as scene:
        w = choose_window(scene)
    assert w.shape == (12, 90) and w.row == 0 and w.col + w.width == 400


def test_picture_of_a_run(tmp_path: Path) -> None:
    files = write_scene(tmp_path)
    model = write_analytic(tmp_path / "model")
    assert load_artifact(model)
    scene = SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))
    png = tmp_path / "q.png"
    infer(RunOptions(scene=scene, out=tmp_path / "o.tif", model=str(model), quicklook=png))
    with Image.open(png) as image:
        assert image.format == "PNG" and image.width > 1000
        seen = np.asarray(image)
    assert len(np.unique(seen.astype(int) @ [1 << 16, 1 << 8, 1])) > 50, "colours"
