"""The page of a map in a real browser: what it shows, and that mouse, touch and keys move it; and what it holds."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.crs import CRS

from deeplight.engine.core.errors import InputError
from deeplight.engine.output.page import pieces
from deeplight.engine.output.page.pieces import Codes, PageNight, PagePiece
from deeplight.engine.output.page.write import write_page
from deeplight.engine.output.parts import Mode
from deeplight.engine.output.quicklook import Stretch
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from tests.engine.analytic import write_analytic
from tests.engine.output.browser import Browser, browsing
from tests.scenes import north_up, write_raster

HEIGHT, WIDTH = 8 * 20, 8 * 30
UNIT = "nW/cm²/sr"
LR = np.linspace(-0.5, 400, 20 * 30, dtype=np.float32).reshape(20, 30)
LR[0, 0] = np.nan


def night(name: str, times: float) -> PageNight:
    lr = PagePiece(LR * np.float32(times), 0, 0, 8)
    fine = np.kron(lr.values, np.ones((8, 8), np.float32)) + np.arange(WIDTH, dtype=np.float32) / 100
    return PageNight(name, [("model", f"of <{name}>")], [lr], [PagePiece(fine, 0, 0, 1)])


def page_of(path: Path, *nights: PageNight, title: str = "lights.tif") -> Path:
    grid = Grid(CRS.from_epsg(4326), north_up(), HEIGHT, WIDTH)
    write_page(path, title, UNIT, grid, nights)
    return path


def data_of(path: Path) -> Any:
    found = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


def decoded(data: Any, piece: Any) -> np.ndarray:
    """What the script does, in NumPy."""
    shape = 2, piece["h"], piece["w"]
    high, low = np.frombuffer(zlib.decompress(base64.b64decode(piece["data"])), np.uint8).reshape(shape)
    codes = np.cumsum(256 * high.astype(np.int64) + low, axis=1) % 65536
    values = data["codes"]["soft"] * np.sinh(data["codes"]["low"] + (codes - 1) * data["codes"]["step"])
    return np.where(codes == 0, np.nan, values)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three dates."""
    nights = [night("2019", 1), night("2020-03", 2), night("2021", 3)]
    return page_of(tmp_path_factory.mktemp("page") / "p.html", *nights)


def text(browser: Browser, name: str) -> str:
    return str(browser.look(f"document.getElementById('{name}').textContent"))


def state(browser: Browser) -> dict[str, Any]:
    found: dict[str, Any] = browser.look("view")
    return found


def colour(browser: Browser, x: int, y: int) -> list[int]:
    """Of the map, as it is drawn."""
    browser.look("paint()")
    found: list[int] = browser.look(f"[...context.getImageData({x}, {y}, 1, 1).data.slice(0, 3)]")
    return found


def screen(browser: Browser, x: float, y: float) -> tuple[float, float]:
    """Where in the window a place of the map lies."""
    left, top, _, _ = stage(browser)
    found = browser.look(f"toScreen({x}, {y})")
    return found[0] + left, found[1] + top


def stage(browser: Browser) -> list[float]:
    """Left, top, width, height of the map's place in the window."""
    box = browser.look(
        "(({ x, y, width, height }) => ({ x, y, width, height }))(stage.getBoundingClientRect())"
    )
    return [box[side] for side in ("x", "y", "width", "height")]


def test_values_and_colours(browser: Browser, page: Path) -> None:
    browser.open(page, 1200, 700)
    data = data_of(page)
    last = np.nanmax(data["stretch"]["top"])
    stretch = Stretch(data["stretch"]["top"], data["stretch"]["soft"])
    assert last >= 1000
    colours = np.frombuffer(base64.b64decode(data["colours"]), np.uint8).reshape(-1, 3)
    browser.mouse("Moved", *screen(browser, 100.5, 50.5))
    lr = float(LR[50 // 8, 100 // 8])
    assert text(browser, "lr") == f"{lr:.3g} {UNIT}"
    assert text(browser, "hr") == f"{lr + 1.0:.3g} {UNIT}"
    assert text(browser, "place") == f"{50 - 50.5 * 15 / 3600:.4f}° N, {6 + 100.5 * 15 / 3600:.4f}° E"
    for x, y, value in ((60, 100, LR[12, 7]), (200, 100, LR[12, 25] + 2.0)):  # left and right of the swipe
        box = stage(browser)
        at = screen(browser, x + 0.5, y + 0.5)
        wanted = colours[round(float(stretch(np.array(value, np.float32))) * 255)]
        drawn = colour(browser, int(at[0] - box[0]), int(at[1] - box[1]))
        assert np.abs(np.array(drawn, int) - wanted).max() <= 4  # one step of 256 colours
    browser.mouse("Moved", *screen(browser, 3, 3))
    assert text(browser, "lr") == text(browser, "hr") == "nodata"
    browser.mouse("Moved", *screen(browser, -5, 3))
    assert text(browser, "lr") == text(browser, "place") == "–"
    assert text(browser, "unit") == UNIT
    assert browser.look("[...document.querySelectorAll('#ticks span')].at(-1).textContent") == f"{last:g}+"


def test_the_mouse(browser: Browser, page: Path) -> None:
    browser.open(page, 1200, 700)
    box = browser.look(
        "(() => { const b = stage.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    middle = box[1] + box[3] / 2
    browser.drag((box[0] + box[2] / 2, middle), (box[0] + box[2] / 4, middle))
    assert state(browser)["swipe"] == pytest.approx(0.25, abs=0.01)
    before = state(browser)
    browser.mouse("Wheel", box[0] + 100, middle, deltaX=0, deltaY=-400)
    zoomed = state(browser)
    assert zoomed["zoom"] > 1.5 * before["zoom"]
    browser.drag((box[0] + 500, middle + 90), (box[0] + 450, middle + 70))
    moved = state(browser)
    assert moved["x"] - zoomed["x"] == pytest.approx(50 / zoomed["zoom"], rel=0.01)
    assert moved["y"] - zoomed["y"] == pytest.approx(20 / zoomed["zoom"], rel=0.01)
    browser.look("document.getElementById('fit').click()")
    assert state(browser)["zoom"] == pytest.approx(before["zoom"])


def test_fingers(browser: Browser, page: Path) -> None:
    browser.open(page, 390, 800, touch=True)
    assert browser.look("document.documentElement.scrollWidth") <= 390
    box = browser.look(
        "(() => { const b = stage.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    zoom = state(browser)["zoom"]
    assert zoom == pytest.approx(0.96 * min(box[2] / WIDTH, box[3] / HEIGHT))
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    browser.touch([(x, y)], [(x - 60, y)], [(x - 90, y)])
    assert state(browser)["swipe"] == pytest.approx((x - 90 - box[0]) / box[2], abs=0.02)
    browser.touch([screen(browser, 30.5, 20.5)])
    assert text(browser, "lr") == f"{LR[2, 3]:.3g} {UNIT}"
    browser.touch([(x + 60, y), (x + 100, y)], [(x + 40, y), (x + 120, y)])
    assert state(browser)["zoom"] == pytest.approx(2 * zoom, rel=0.05)


def test_keys_and_dates(browser: Browser, page: Path) -> None:
    browser.open(page, 1200, 700)
    browser.look("map.focus()")
    browser.key("ArrowRight", "ArrowDown", "ArrowDown")
    assert state(browser)["cross"] == [WIDTH / 2 + 1, HEIGHT / 2 + 2]
    first = text(browser, "lr")
    assert first == f"{LR[10, 15]:.3g} {UNIT}"
    zoom = state(browser)["zoom"]
    browser.key("+")
    assert state(browser)["zoom"] == pytest.approx(1.5 * zoom)
    browser.key("0")
    assert state(browser)["zoom"] == pytest.approx(zoom)
    browser.look("swipe.focus()")
    browser.key("ArrowRight", "ArrowRight")
    browser.until("swipe.getAttribute('aria-valuenow') === '54'")
    browser.key("Home")
    assert state(browser)["swipe"] == 0
    assert browser.look("document.getElementById('nights').hidden") is False
    assert text(browser, "when") == "2019" and text(browser, "facts") == "modelof <2019>"
    browser.look("document.getElementById('night').focus()")
    browser.key("ArrowRight")
    browser.until("document.body.dataset.night === '1'")
    assert text(browser, "when") == "2020-03" and text(browser, "facts") == "modelof <2020-03>"
    assert text(browser, "lr") == f"{2 * LR[10, 15]:.3g} {UNIT}"


def test_it_asks_for_nothing_and_a_name_is_no_script(browser: Browser, tmp_path: Path) -> None:
    evil = "</script><script>document.body.dataset.night = 'x'</script><b>.tif"
    path = page_of(tmp_path / "p.html", night("", 1), title=evil)
    browser.requests.clear()
    browser.errors.clear()
    browser.open(path, 800, 600)
    assert text(browser, "title") == browser.look("document.title") == evil
    assert browser.look("document.getElementById('nights').hidden") is True
    assert [r for r in browser.requests if not r.startswith("data:")] == [path.as_uri()]
    assert browser.errors == []


def test_codes_are_true_to_four_digits(tmp_path: Path) -> None:
    values = np.concatenate([-np.geomspace(0.01, 2, 50), [0], np.geomspace(1e-3, 340_573, 949)]).astype(
        np.float32
    )
    piece = PagePiece(values.reshape(20, 50).copy(), 0, 0, 1)
    piece.values[3, 7] = np.nan
    path = page_of(tmp_path / "p.html", PageNight("", [], [piece], [piece]))
    data = data_of(path)
    back = decoded(data, data["nights"][0]["hr"][0])
    assert np.isnan(back).sum() == 1 and np.isnan(back[3, 7])
    known = np.isfinite(back)
    top = data["stretch"]["top"]
    # half a step of some 25 in asinh over 65534 codes: 2e-4 of the value, or of `soft` where that is more
    allowed = 2e-4 * np.maximum(np.abs(piece.values[known]), data["codes"]["soft"])
    assert (np.abs(back[known] - piece.values[known]) <= allowed).all()
    assert top >= 340_000
    assert Codes.of([PageNight("", [], [], [])], 1.0).step > 0


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunOptions:
    """A run of 60 × 80 LR pixels, for pages that hold a twentieth of it."""
    values = np.ones((60, 80), np.float32)
    values[40:44, 60:66] = 30
    values[5, :] = -9999
    ntl = write_raster(tmp_path / "VNL_npp_20200201-20200229_x.tif", values, nodata=-9999)
    model = str(write_analytic(tmp_path / "model"))
    monkeypatch.setattr(pieces, "MOST_PIXELS", 15_000)
    monkeypatch.setattr(pieces, "LEAST_PIXELS", 5_000)
    scene = SceneOptions(str(ntl), ntl_unit=UNIT)
    return RunOptions(scene=scene, out=tmp_path / "map.tif", model=model, page=tmp_path / "map.html")


def test_a_large_map_is_shown_in_means_and_its_brightest_part_in_full(large: RunOptions) -> None:
    assert infer(large) is not None and large.page is not None
    data = data_of(large.page)
    night = data["nights"][0]
    coarse, fine = night["hr"]
    assert night["name"] == "2020-02"
    assert coarse["factor"] == 8 and fine["factor"] == 1
    assert coarse["h"] * coarse["w"] + fine["h"] * fine["w"] <= 15_000
    assert data["shown"].startswith("640 × 480 pixels, shown as means of 8 × 8; in full 80 × 80 in the frame")
    top, left = fine["row"] // 8, fine["col"] // 8
    assert top <= 40 and top + 10 >= 44 and left <= 60 and left + 10 >= 66
    lr = decoded(data, night["lr"][0])
    np.testing.assert_allclose(np.isnan(lr)[:, 3].nonzero()[0], [5])
    assert np.isnan(decoded(data, coarse)[5]).all()
    facts = dict(night["facts"])
    assert facts["input"] == f"80 × 60 pixels, {UNIT}"
    assert facts["data"] == "98.3% of the pixels"
    assert {"model", "blur", "lights", "daytime", "time", "made by"} <= set(facts)


def test_the_page_of_a_finished_map(large: RunOptions, tmp_path: Path) -> None:
    """--resume of a complete output draws the page anew, without what only the run has counted."""
    first = infer(replace(large, page=None))
    assert first is not None
    assert infer(replace(large, mode=Mode.RESUME)) is None
    assert large.page is not None
    facts = dict(data_of(large.page)["nights"][0]["facts"])
    assert "blur" in facts and "time" not in facts
    with pytest.raises(InputError, match=r"page\.txt.*\.html"):
        infer(replace(large, page=tmp_path / "page.txt", mode=Mode.OVERWRITE))
