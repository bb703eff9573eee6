"""--check N: tiles of the user's own scene in reduced precision against float32, before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deeplight.engine import cli
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.paths import open_in_fp32, open_model
from deeplight.engine.run.precision import SIDE, compare_scene, places
from deeplight.engine.runtime.artifact import load_artifact, write_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.compare import difference
from deeplight.engine.runtime.manifest import WEIGHTS
from tests.engine.analytic import manifest, onnx_bytes, weights
from tests.scenes import SceneFiles, write_raster, write_scene


def scaled(factor: float) -> bytes:
    """The analytic model with another weight of elevation, as a reduced precision that went wrong would be."""
    proto = onnx.load_from_string(onnx_bytes())
    weight = next(t for t in proto.graph.initializer if t.name == "w_dem")
    weight.CopyFrom(numpy_helper.from_array(np.float32(numpy_helper.to_array(weight) * factor), "w_dem"))
    return bytes(proto.SerializeToString())


def model(folder: Path, factor: float) -> Path:
    m = manifest(precisions={"fp32": "model.onnx", "fp16": "model.fp16.onnx"})
    files = {"model.onnx": onnx_bytes(), "model.fp16.onnx": scaled(factor), WEIGHTS: weights()}
    return write_artifact(folder, m, files)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SceneFiles:
    return write_scene(tmp_path_factory.mktemp("scene"), 21, 27)


def rows_of(files: SceneFiles, artifact_path: Path):
    artifact = load_artifact(artifact_path)
    options = SceneOptions(ntl=str(files.ntl), dmo=str(files.dmo), dem=str(files.dem))
    with Scene.open(options) as scene, open_backend("auto", artifact, precision="fp16") as backend:
        return compare_scene(scene, artifact, backend, "fp16", 3, 1)


def test_what_is_close_enough_passes_and_is_reported(files: SceneFiles, tmp_path: Path) -> None:
    rows = rows_of(files, model(tmp_path / "m", 1.0001))
    assert rows and all(r.passed and 0 < r.relative_l2 < 2e-3 and r.precision == "fp16" for r in rows)
    assert all(r.psnr_change_db is None for r in rows), "the truth of the user's scene is not known"


def test_what_is_too_far_off_fails(files: SceneFiles, tmp_path: Path) -> None:
    sentence = r"^onnxruntime in fp16 differs too much from float32 on this scene, so nothing is written: .* failed, "
    with pytest.raises(DeepLightError, match=sentence) as error:
        rows_of(files, model(tmp_path / "m", 1.5))
    assert str(error.value).endswith('; use `precision="fp32"`') and error.value.exit_code == 1


@pytest.mark.parametrize(("factor", "status"), [(1.0001, 0), (1.5, 1)])
def test_the_run_starts_only_if_the_check_passes(
    files: SceneFiles,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    status: int,
) -> None:
    artifact, out = model(tmp_path / "m", factor), tmp_path / "out" / "o.tif"
    out.parent.mkdir()
    layers = ["--ntl", files.ntl, "--dmo", files.dmo, "--dem", files.dem]
    options = ["--out", out, "--model", artifact, "--precision", "fp16", "--check", "2"]
    monkeypatch.setattr(sys, "argv", ["deeplight-infer", *map(str, layers + options)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == status
    said = capfd.readouterr().err
    assert ("checked row" in said) is (status == 0)
    if status == 1:
        *_, row, last = said.splitlines()
        assert row.endswith("FAILED") and last.startswith("error: onnxruntime in fp16 differs too much")
    assert [p.name for p in out.parent.iterdir()] == (["o.tif"] if status == 0 else [])


def test_places_are_spread_over_what_has_data(tmp_path: Path) -> None:
    ntl = np.full((SIDE * 4, SIDE * 5), -1, np.float32)
    ntl[: SIDE * 2] = 3.0
    with Scene.open(SceneOptions(ntl=str(write_raster(tmp_path / "n.tif", ntl, nodata=-1)))) as scene:
        for count, found in ((1, 1), (3, 3), (100, 10)):
            windows = list(places(scene, count))
            assert len(windows) == found == len(set(windows))
            assert all(w.row < SIDE * 2 and w.shape == (SIDE, SIDE) for w in windows)
        three = list(places(scene, 3))
        assert len({w.col for w in three}) == 3, "not all in one corner"


def test_a_dark_scene_has_no_relative_error() -> None:
    zero = np.zeros(4, np.float32)
    assert difference("c", "b", "fp16", zero, zero).passed
    assert not difference("c", "b", "fp16", zero + 1, zero).passed
    assert not difference("c", "b", "fp16", zero + np.nan, zero + 1).passed


def test_tiles_that_fail_in_a_reduced_precision_find_fp32_on_the_cpu(tmp_path: Path) -> None:
    """A backend that has the model only in the reduced precision does not end the run."""
    artifact = load_artifact(model(tmp_path / "m", 1.0))
    options = RunOptions(SceneOptions(ntl="n.tif"), tmp_path / "o.tif", backend="tensorrt", precision="fp16")
    with pytest.raises(InputError, match=r"backend tensorrt needs|has no TensorRT plan|finds no CUDA"):
        open_model(options, artifact, "fp32", 1)
    with open_in_fp32(options, artifact, 1) as backend:
        assert (backend.name, backend.device) == ("onnxruntime", "cpu")
