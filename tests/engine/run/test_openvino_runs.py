"""Whole runs on the backend openvino: the same map whole and in tiles, the same bytes however they are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.errors import InputError, Interrupted
from deeplight.engine.core.windows import Window
from deeplight.engine.output.packs import PackStore
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import Run, infer
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.stack.options import StackOptions
from deeplight.engine.stack.run import infer_dates
from tests.engine.stack.months import Months
from tests.scenes import write_raster, write_scene

pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")

BANDS = ("isp", "offset", "interval", "quality")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as change:
        change.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    files = write_scene(tmp_path_factory.mktemp("scene"), 61, 83)
    return SceneOptions(str(files.ntl), str(files.dmo), str(files.dem))


def run(scene: SceneOptions, out: Path, tiles: int | None, **more: Any) -> np.ndarray:
    request = None if tiles is None else TileRequest(tiles)
    settings = {"model": "deeplight-tiny", "backend": "openvino", "threads": 1, **more}
    assert infer(RunOptions(scene, out, tiles=request, **settings)) is not None
    return read(out)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as d:
        return d.read(masked=True).astype(np.float64).filled(np.nan)


@pytest.mark.slow
def test_tiles_make_the_map_of_the_whole_scene(
    scene: SceneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In four shapes: the last row and column of cores are short."""
    from deeplight.engine.raster.scene import Scene

    whole = run(scene, tmp_path / "whole.tif", None, bands=BANDS)
    shapes: list[tuple[int, int]] = []
    read_inputs = Scene.read_inputs

    def watched(self: Scene, window: Window, *more: Any) -> Any:
        shapes.append(window.shape)
        return read_inputs(self, window, *more)

    monkeypatch.setattr(Scene, "read_inputs", watched)
    monkeypatch.setattr(Run, "_moved_by_daytime", lambda _: "")  # which looks at places of its own
    tiled = run(scene, tmp_path / "tiled.tif", 20, bands=BANDS)
    assert len(shapes) >= 15 and len(set(shapes)) == 4, set(shapes)
    np.testing.assert_array_equal(np.isnan(tiled), np.isnan(whole))
    for band, (got, want) in enumerate(zip(tiled, whole, strict=True), 1):
        # in parts of the band's range; where a flag or a radiance is cut at a level, both are cut
        assert np.nanmax(np.abs(got - want)) <= 1e-5 * np.nanmax(np.abs(want)), band


def test_the_map_is_that_of_onnx_runtime(scene: SceneOptions, tmp_path: Path) -> None:
    got = run(scene, tmp_path / "a.tif", 32)
    want = run(scene, tmp_path / "b.tif", 32, backend="onnxruntime")
    valid = ~np.isnan(want)
    assert np.linalg.norm((got - want)[valid]) <= 1e-5 * np.linalg.norm(want[valid])
    with rasterio.open(tmp_path / "a.tif") as d:
        tags = d.tags()
    assert tags["DEEPLIGHT_BACKEND"] == "openvino" and tags["DEEPLIGHT_OPENVINO_VERSION"].startswith("20")


@pytest.mark.slow
def test_automatic_tiles_come_one_at_a_time_where_threads_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two threads two programs took more time than one that has both, and twice the memory."""
    from deeplight.engine.runtime.backends.openvino_backend import OpenVinoBackend

    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (12, 600)).astype(np.float32)
    scene = SceneOptions(ntl=str(write_raster(tmp_path / "ntl.tif", ntl)))

    def streams(**more: Any) -> int:
        out = tmp_path / "o.tif"
        options = RunOptions(
            scene, out, "deeplight-tiny", TileRequest(), backend="openvino", mode=Mode.OVERWRITE, **more
        )
        report = infer(options)
        assert report is not None
        return int(report.tiles["streams"])

    found = [streams(threads=2), streams(threads=2, streams=2)]
    monkeypatch.setattr(OpenVinoBackend, "threads_a_stream", 1)
    assert [*found, streams(threads=2)] == [1, 2, 2]


@pytest.mark.slow
def test_threads_and_streams_do_not_change_a_byte(scene: SceneOptions, tmp_path: Path) -> None:
    made = set()
    for number, (threads, streams) in enumerate([(1, 1), (2, 1), (2, 2)]):
        out = tmp_path / f"{number}.tif"
        run(scene, out, 20, threads=threads, streams=streams, bands=("interval",))
        made.add(out.read_bytes())
    assert len(made) == 1


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (12, 1100)).astype(np.float32)
    scene = SceneOptions(ntl=str(write_raster(tmp_path / "ntl.tif", ntl)))
    run(scene, tmp_path / "undisturbed.tif", 64)
    out, write, stored = tmp_path / "o.tif", PackStore.write, []

    def stopping(self: PackStore, *parts: Any) -> Any:
        if len(stored) == 2:
            raise Interrupted(15)
        stored.append(parts)
        return write(self, *parts)

    with monkeypatch.context() as change:
        change.setattr(PackStore, "write", stopping)
        with pytest.raises(Interrupted):
            run(scene, out, 64)
    with pytest.raises(InputError, match=r"backend was openvino on cpu and is now onnxruntime on cpu"):
        run(scene, out, 64, mode=Mode.RESUME, backend="onnxruntime")
    run(scene, out, 64, mode=Mode.RESUME)
    assert out.read_bytes() == (tmp_path / "undisturbed.tif").read_bytes()


@pytest.mark.slow
def test_dates_that_share_layers_have_the_bytes_of_single_runs(tmp_path: Path) -> None:
    (tmp_path / "months").mkdir()
    months = replace(Months.write(tmp_path / "months", 3), model="deeplight-tiny")
    files = [months.folder / f"ntl-2020-{month:02}.tif" for month in (1, 2)]
    request = months.request(tmp_path / "stack", *files, tiles=TileRequest(16), backend="openvino")
    assert isinstance(request, StackOptions)
    infer_dates(request)
    for month, file in enumerate(files, 1):
        alone = tmp_path / f"{month}.tif"
        infer(replace(request.run, scene=replace(request.run.scene, ntl=str(file)), out=alone))
        assert alone.read_bytes() == (tmp_path / "stack" / f"2020-{month:02}.tif").read_bytes()
