"""The event stream, and what a run says about tiles that failed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run import paths
from deeplight.engine.run.events import Events
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.runtime.artifact import write_artifact
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.manifest import WEIGHTS
from tests.engine.analytic import manifest, onnx_bytes, weights, write_analytic
from tests.scenes import write_raster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_analytic(tmp_path_factory.mktemp("model") / "analytic"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneOptions:
    """NTL alone, 12 × 700 LR pixels: three packs, tiles of 100, the third all nodata."""
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (12, 700)).astype(np.float32)
    ntl[:, 200:256] = -1
    return SceneOptions(ntl=str(write_raster(tmp_path_factory.mktemp("scene") / "ntl.tif", ntl, nodata=-1)))


def options(scene: SceneOptions, model: str, folder: Path, **more: Any) -> RunOptions:
    return RunOptions(
        scene=scene,
        out=folder / "o.tif",
        model=model,
        tiles=TileRequest(100),
        report=folder / "run.json",
        events=folder / "e.jsonl",
        **more,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "e.jsonl").read_text().splitlines()]


def test_events_of_a_run(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    report = infer(options(scene, model, tmp_path))
    assert report is not None
    said = lines(tmp_path)
    names = [e["event"] for e in said]
    assert names[0] == "started" and names[-2:] == ["assembling", "finished"]
    tiles = {(e["row"], e["col"]): e for e in said if e["event"] == "tile"}
    assert sorted(tiles) == [(0, c) for c in (0, 100, 200, 256, 356, 456, 512, 612)]
    assert all(e["tried"] == 0 and e["height"] == 12 for e in tiles.values())
    assert sorted(e["key"] for e in said if e["event"] == "pack") == [[0, 0], [0, 1], [0, 2]]
    assert [e["time"] for e in said] == sorted(e["time"] for e in said)
    assert said[0]["packs"] == 3 and said[0]["hr_pixels"] == 64 * 12 * 700
    last = said[-1]
    assert last["tiles"] == report.tiles["computed"] == 7 and last["skipped"] == 1
    assert last["bytes_written"] > (tmp_path / "o.tif").stat().st_size > 0 < last["peak_memory_bytes"]


class Flaky:
    """Stands in for Backend.run: `spoil` changes the outputs of the n-th call, from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spoil) -> None:
        self.calls = 0
        original = Backend.run

        def run(backend: Backend, inputs, outputs=("ntl_hr",)):
            self.calls += 1
            results = original(backend, inputs, outputs)
            spoil(self.calls, inputs, results)
            return results

        monkeypatch.setattr(Backend, "run", run)


def test_bad_numbers_once_are_computed_again(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(call: int, inputs, results) -> None:
        if call == 2:
            results["ntl_hr"][0, 0, 40, 40] = np.inf

    flaky = Flaky(monkeypatch, spoil)
    report = infer(options(scene, model, tmp_path))
    assert report is not None and flaky.calls == 8
    (retried,) = report.retried
    assert (retried["row"], retried["col"]) == (0, 100) and "not finite" in retried["reason"]
    assert report.status == "complete" and report.quarantined == []
    assert [e["col"] for e in lines(tmp_path) if e["event"] == "tile_failed"] == [100]
    with rasterio.open(tmp_path / "o.tif") as d:
        valid = np.isfinite(d.read(1)).reshape(12, 8, 700, 8).all(axis=(1, 3))
    assert valid.sum() == 12 * (700 - 56)


def test_bad_numbers_twice_are_named_and_all_else_is_kept(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(call: int, inputs, results) -> None:
        if inputs["ntl"].shape[-1] == 104 and np.array_equal(inputs["ntl"][0, 0, 2, 2:5], there):
            results["ntl_hr"][0, 0, 60:70, 60] = np.nan

    with Scene.open(scene) as s:
        there = s.read_ntl(Window(0, 356, 1, 3))[0][0]
    with monkeypatch.context() as m:
        Flaky(m, spoil)
        with pytest.raises(
            DeepLightError, match=r"1 tile could not be computed \(LR pixels row 0 column 356\)"
        ) as e:
            infer(options(scene, model, tmp_path))
    assert e.value.exit_code == 1 and "kept for `resume=True`" in str(e.value)
    assert not (tmp_path / "o.tif").exists()
    assert len(list(parts_folder(tmp_path / "o.tif").glob("packs-*/*.pack"))) == 2
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["status"] == "incomplete"
    assert [(q["row"], q["col"], q["width"]) for q in content["quarantined"]] == [(0, 356, 100)]
    assert lines(tmp_path)[-1]["event"] == "failed" and lines(tmp_path)[-1]["exit_status"] == 1
    before = len(lines(tmp_path))
    report = infer(options(scene, model, tmp_path, mode=Mode.RESUME))
    assert report is not None and report.packs["kept_from_earlier_run"] == 2
    assert len(lines(tmp_path)) > before and lines(tmp_path)[-1]["event"] == "finished"


def test_bad_numbers_of_another_precision_are_tried_in_fp32(
    scene: SceneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = paths.open_model

    def open_model(options: RunOptions, artifact, precision: str, threads: int, *_: object) -> Backend:
        opened.append(precision)
        return original(options, artifact, "fp32", threads)

    Flaky(monkeypatch, lambda call, inputs, results: results["ntl_hr"].fill(-1) if call == 3 else None)
    monkeypatch.setattr(paths, "open_model", open_model)
    both = manifest(precisions={"fp32": "model.onnx", "fp16": "model.fp16.onnx"})
    files = {name: onnx_bytes() for name in both.precisions.values()} | {WEIGHTS: weights()}
    own = write_artifact(tmp_path / "both", both, files)
    report = infer(options(scene, str(own), tmp_path, precision="fp16"))
    assert report is not None and opened == ["fp16", "fp32"] and len(report.retried) == 1


def test_a_read_that_fails_now_and_then_costs_nothing_but_time(
    scene: SceneOptions, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tries = Scene.read_inputs, Counter[Window]()

    def read_inputs(s: Scene, window: Window, inputs: Any = None):
        tries[window] += 1
        first_asked = list(tries).index(window)
        if tries[window] <= {1: 2, 2: 1}.get(first_asked, 0):  # the second tile fails twice, the third once
            raise DeepLightError("the network disk is away")
        return original(s, window, inputs)

    infer(options(scene, model, tmp_path / "..", mode=Mode.OVERWRITE))
    undisturbed = (tmp_path / ".." / "o.tif").read_bytes()
    monkeypatch.setattr(Scene, "read_inputs", read_inputs)
    report = infer(options(scene, model, tmp_path))
    assert report is not None and len(report.retried) == 3
    assert (tmp_path / "o.tif").read_bytes() == undisturbed


def test_events_need_a_name_of_their_own(scene: SceneOptions, model: str, tmp_path: Path) -> None:
    request = RunOptions(scene=scene, out=tmp_path / "o.tif", model=model, events=tmp_path / "e.txt")
    with pytest.raises(InputError, match=r"e\.txt does not end in \.jsonl"):
        infer(request)
    with Events(None) as nothing:
        nothing.emit("started")
