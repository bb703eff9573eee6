"""--verify-seams: borders are where tiles meet; a wrong output does not get its name."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.output.filling import PackFiller
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.seams import borders, seam_windows
from deeplight.engine.run.tiling import TilePlan, TileRequest, cores
from tests.engine.analytic import onnx_bytes, write_analytic, write_model
from tests.scenes import write_scene

HEIGHT, WIDTH = 45, 61


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    files = write_scene(tmp_path_factory.mktemp("scene"), HEIGHT, WIDTH)
    return SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))


def options(scene: SceneOptions, model: str, out: Path, **more: Any) -> RunOptions:
    return RunOptions(scene=scene, out=out, model=model, tiles=TileRequest(17), verify_seams=12, **more)


@pytest.mark.parametrize("core", [17, 64, 100, 256])
def test_borders_are_where_tiles_begin(core: int) -> None:
    plan = TilePlan(core, 2, 256, 0)
    starts = {
        w.row for pack in range(0, 700, 256) for w in cores(Window(pack, 0, min(256, 700 - pack), 1), plan)
    }
    assert borders(700, plan) == sorted(starts - {0})
    for window in islice(seam_windows(700, 300, plan), 50):
        rows = [b for b in borders(700, plan) if window.row < b < window.row + window.height]
        cols = [b for b in borders(300, plan) if window.col < b < window.col + window.width]
        assert (rows or cols) and window == window.clipped(700, 300)


def test_no_borders_no_windows() -> None:
    assert borders(200, TilePlan(256, 2, 256, 0)) == []
    assert list(seam_windows(200, 200, TilePlan(256, 2, 256, 0))) == []


@pytest.mark.parametrize(
    "more", [{}, {"dtype": "uint16"}, {"bands": ("isp", "offset", "quality")}, {"conserve_radiance": True}]
)
def test_clean_seams_pass(scene: SceneOptions, model: str, tmp_path: Path, more: dict[str, Any]) -> None:
    report = infer(options(scene, model, tmp_path / "o.tif", **more))
    assert report is not None and report.seams is not None
    assert report.seams["windows"] == 12 and report.seams["worst"] <= 1e-5
    plain = infer(RunOptions(scene, tmp_path / "p.tif", model, TileRequest(17), **more))
    assert plain is not None and plain.seams is None
    assert (tmp_path / "p.tif").read_bytes() == (tmp_path / "o.tif").read_bytes()


@pytest.mark.parametrize("error", [3e-5, np.nan])
def test_a_seam_fails_the_run_and_the_output_does_not_appear(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    """error: of the range, added to the last row of HR pixels of every tile."""
    original = PackFiller.add
    top = 0.0

    def add(filler: PackFiller, core: Window, pixels: np.ndarray | None, *more: Any) -> None:
        nonlocal top
        if pixels is not None:
            top = max(top, float(np.nanmax(pixels)))
            pixels = pixels.copy()
            pixels[:, -1] += error * 100
        original(filler, core, pixels, *more)

    monkeypatch.setattr(PackFiller, "add", add)
    with pytest.raises(DeepLightError, match="the seams are not clean") as e:
        infer(options(scene, model, tmp_path / "o.tif"))
    assert top < 100 and e.value.exit_code == 1
    assert not (tmp_path / "o.tif").exists() and parts_folder(tmp_path / "o.tif").is_dir()
    monkeypatch.undo()
    assert infer(options(scene, model, tmp_path / "o.tif", mode=Mode.OVERWRITE)) is not None


def test_a_halo_that_is_too_small_is_found(scene: SceneOptions, tmp_path: Path) -> None:
    """An artifact that claims a smaller receptive field than it has."""
    write_model(tmp_path / "liar", onnx_bytes(), halo_lr=1, receptive_field_lr=1.0)
    with pytest.raises(DeepLightError, match=r"differs by .* of the range, more than 1e-05"):
        infer(options(scene, str(tmp_path / "liar"), tmp_path / "o.tif"))


def test_seams_need_tiles(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`verify_seams` compares across tile borders"):
        infer(RunOptions(scene, tmp_path / "o.tif", model, tiles=None, verify_seams=3))
