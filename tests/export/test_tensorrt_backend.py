"""The TensorRT backend's own logic with stand-ins for CUDA and the engine: nothing here ran on a GPU."""

from __future__ import annotations

import hashlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.plans import FOLDER, save_plan
from tests.engine.analytic import onnx_bytes, write_analytic, write_model
from tests.engine.runtime.test_onnx_notes import OWN, WRONG
from tests.export.fake_cuda import Engine, Error, Runtime

NAME = "deeplight.engine.runtime.backends.tensorrt_backend"
TILES = "deeplight.engine.runtime.backends.cuda_tiles"
TILE = (1, 6, 5)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def backend_module(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module, imported against the stand-ins."""
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = "11.4.0.106"
    # of the library that has the same interface and can be had without a GPU
    rtx: Any = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT for RTX is not installed (x86-64 Linux only)"
    )
    trt.ILogger, trt.ExecutionContextAllocationStrategy = rtx.ILogger, rtx.ExecutionContextAllocationStrategy
    plans = {b"good": Engine(runtime, TILE), b"stale": None}
    trt.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda plan: plans[plan])
    bindings: Any = types.ModuleType("cuda.bindings")
    bindings.runtime = runtime
    for name, module in (
        ("tensorrt", trt),
        ("cuda", types.ModuleType("cuda")),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", runtime),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in (NAME, TILES):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(NAME)
    for name in (NAME, TILES):
        sys.modules.pop(name, None)


def inputs(batch: int, h: int, w: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(h * 100 + w)
    return {s.name: rng.random(input_shape(s, batch, h, w), np.float32) for s in INPUTS}


def doubled(given: dict[str, np.ndarray]) -> np.ndarray:
    return np.repeat(np.repeat(2 * given["ntl"], 8, 2), 8, 3)


def test_a_plan_built_here_is_opened_and_run(backend_module: Any, tmp_path: Path) -> None:
    artifact = load_artifact(write_analytic(tmp_path / "m"))
    model = hashlib.sha256(artifact.read("fp32")).hexdigest()
    with pytest.raises(InputError, match="no TensorRT plan for NVIDIA H200"):
        open_backend("tensorrt", artifact)
    key = backend_module.key_here(model, "fp32")
    assert (key.gpu, key.capability) == ("NVIDIA H200", "9.0")
    save_plan(artifact.path / FOLDER, key, b"good")
    given = inputs(1, 7, 9)
    with open_backend("tensorrt", artifact) as backend:
        assert backend.name == "tensorrt" and backend.device == "cuda"
        assert np.array_equal(backend.run(given)["ntl_hr"], doubled(given))
        assert backend.origins() == {
            "the GPU": "NVIDIA H200, compute capability 9.0",
            "the TensorRT plan": hashlib.sha256(b"good").hexdigest()[:16],
        }
    save_plan(artifact.path / FOLDER, key, b"stale")
    with pytest.raises(ArtifactError, match=r"plan of TensorRT 11\.4\.0\.106 cannot be opened"):
        open_backend("tensorrt", artifact)


@pytest.mark.parametrize("note", WRONG)
def test_a_plan_of_another_model_is_refused(backend_module: Any, tmp_path: Path, note: str) -> None:
    """The plan fits the ONNX file, which does not fit the folder."""
    value, words = WRONG[note]
    artifact = load_artifact(write_model(tmp_path / "m", onnx_bytes(notes={**OWN, note: value})))
    key = backend_module.key_here(hashlib.sha256(artifact.read("fp32")).hexdigest(), "fp32")
    save_plan(artifact.path / FOLDER, key, b"good")
    with pytest.raises(ArtifactError, match=words):
        open_backend("tensorrt", artifact)


def test_one_of_several_gpus(backend_module: Any, runtime: Runtime, tmp_path: Path) -> None:
    artifact = load_artifact(write_analytic(tmp_path / "m"))
    model = hashlib.sha256(artifact.read("fp32")).hexdigest()
    save_plan(artifact.path / FOLDER, backend_module.key_here(model, "fp32"), b"good")
    with pytest.raises(InputError, match=r"no TensorRT plan for NVIDIA L4 .*is for NVIDIA H200"):
        open_backend("tensorrt", artifact, device="cuda:1")
    save_plan(artifact.path / FOLDER, backend_module.key_here(model, "fp32", gpu=1), b"good")
    given = inputs(1, 7, 9)
    with open_backend("tensorrt", artifact, device="cuda:1") as backend:
        runtime.current = 0  # as in another thread
        assert np.array_equal(backend.run(given)["ntl_hr"], doubled(given))
        assert backend.device == "cuda:1" and runtime.current == 1
    with pytest.raises(InputError, match=r"finds no device cuda:2: choose cuda:0 to cuda:1$"):
        open_backend("tensorrt", artifact, device="cuda:2")
    runtime.cards = ()
    with pytest.raises(InputError, match='finds no CUDA device: use `device="cpu"` or another `backend`'):
        open_backend("tensorrt", artifact)


def test_buffers_and_graph_are_made_once_a_shape(backend_module: Any, runtime: Runtime) -> None:
    engine = Engine(runtime, TILE)
    with backend_module.TensorRtBackend(engine) as backend:
        first = inputs(*TILE)
        got = backend.run(first)["ntl_hr"]
        made = dict(runtime.calls)
        for _ in range(5):
            given = inputs(*TILE)
            assert np.array_equal(backend.run(given)["ntl_hr"], doubled(given))
        grown = {name for name, count in runtime.calls.items() if count != made.get(name)}
        assert grown == {"cudaGraphLaunch"}, "a tile costs one launch and no allocation"
        assert np.array_equal(got, doubled(first)), "results do not alias the buffers"
        other = inputs(2, 4, 8)
        assert np.array_equal(backend.run(other)["ntl_hr"], doubled(other))
        assert engine.profiles == [0, 1], "the tuned profile for the plan's tile, the dynamic one for others"
    assert not runtime.blocks, "everything is freed"


def test_only_some_shapes_are_kept(backend_module: Any, runtime: Runtime) -> None:
    kept = sys.modules[TILES]._SHAPES
    with backend_module.TensorRtBackend(Engine(runtime, TILE)) as backend:
        for h in range(4, 4 + kept + 3):
            backend.run(inputs(1, h, 4))
        assert runtime.calls["cudaGraphExecDestroy"] == 3
    assert not runtime.blocks


def test_failures_name_the_tile(backend_module: Any, runtime: Runtime) -> None:
    with backend_module.TensorRtBackend(Engine(runtime, TILE, largest=8 * 16)) as backend:
        with pytest.raises(DeepLightError, match=r"tile of 4×40 LR pixels: .* outside the engine's profile"):
            backend.run(inputs(1, 4, 40))
        runtime.memory = 1000
        with pytest.raises(DeepLightError, match=f"tile of 5×6 LR pixels: CUDA error {Error(2).name}"):
            backend.run(inputs(1, 5, 6))
        assert not runtime.blocks, "what was allocated before the failure is freed"
