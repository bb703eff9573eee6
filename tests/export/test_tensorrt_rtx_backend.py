"""`--backend tensorrt-rtx` around the execution of an engine, for which a stand-in computes: there is no GPU here.

The library, the engines and their logger are real; the GPU is not.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.pipeline import infer
from deeplight.engine.run.tiling import TileRequest
from deeplight.engine.runtime import backends
from deeplight.engine.runtime.artifact import Artifact, load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.engine_compute import EngineCompute
from deeplight.engine.runtime.tensorrt_log import log_of
from deeplight.engine.runtime.trial import trial_inputs
from tests.engine.analytic import onnx_bytes
from tests.export.fake_cuda import Context, Engine, Runtime
from tests.export.rtx import Kernels, RtxEngine, RuntimeConfig, by_onnx, write_with_engines, zeros
from tests.scenes import options, write_scene

trt: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed (x86-64 Linux only)")

TILES = "deeplight.engine.runtime.backends.cuda_tiles"
BACKEND = "deeplight.engine.runtime.backends.tensorrt_rtx_backend"
ADA = ("NVIDIA GeForce RTX 4070", 8, 9)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_engines(tmp_path_factory.mktemp("rtx") / "m")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """A machine with one GPU for which an engine is there; the backend's modules see it."""
    made = Runtime(cards=(ADA,))
    bindings: Any = types.ModuleType("cuda.bindings")
    bindings.runtime = made
    for name, module in (
        ("cuda", types.ModuleType("cuda")),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", made),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    for name in (TILES, BACKEND):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield made
    for name in (TILES, BACKEND):
        sys.modules.pop(name, None)


@pytest.fixture
def engine(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> RtxEngine:
    """What the library opens: computes the analytic model."""
    made = RtxEngine(runtime, by_onnx(onnx_bytes()))
    made.log = log_of(trt)
    opened = types.SimpleNamespace(deserialize_cuda_engine=lambda plan: made if plan[:4] == b"vtrt" else None)
    monkeypatch.setattr(trt, "Runtime", lambda log: opened)
    return made


@pytest.fixture
def artifact(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """Built on another machine, by what this process can know, and trusted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(built, tmp_path / "m")
    return load_artifact(tmp_path / "m", trust=True)


def inputs(h: int, w: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(h * 100 + w)
    return {s.name: rng.random(input_shape(s, 1, h, w), np.float32) for s in INPUTS}


def test_an_engine_runs_as_a_backend(artifact: Artifact, engine: RtxEngine, tmp_path: Path) -> None:
    given = inputs(7, 9)
    names = [s.name for s in OUTPUTS]
    with open_backend("tensorrt-rtx", artifact) as backend, open_backend("onnxruntime", artifact) as want:
        got, expected = backend.run(given, names), want.run(given, names)
        assert all(np.array_equal(got[n], expected[n]) for n in names)
        assert (backend.name, backend.device) == ("tensorrt-rtx", "cuda")
        assert backend.versions() == {"tensorrt_rtx": trt.__version__}
        assert backend.origins()["the GPU"] == "NVIDIA GeForce RTX 4070, compute capability 8.9"
    (config,) = engine.configs
    assert config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    lasting = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert config.dynamic_shapes_kernel_specialization_strategy == lasting
    ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert config.get_execution_context_allocation_strategy() == ours
    assert "cudaGraphLaunch" not in engine.runtime.calls, "the library captures, not we"
    assert not engine.runtime.blocks, "everything is freed"


def test_a_run_is_that_of_the_onnx_file(artifact: Artifact, engine: RtxEngine, tmp_path: Path) -> None:
    """Through the whole pipeline: tiles, halos, packs. The stand-in computes what ONNX Runtime does."""
    scene = options(write_scene(tmp_path, 21, 27))
    found = []
    for name in ("onnxruntime", "tensorrt-rtx"):
        out = tmp_path / f"{name}.tif"
        model = str(artifact.path)
        infer(RunOptions(scene, out, model=model, backend=name, tiles=TileRequest(9), trust=True, check=2))
        with rasterio.open(out) as d:
            found.append(d.read())
            assert d.tags()["DEEPLIGHT_BACKEND"].startswith(name)
    assert np.array_equal(found[0], found[1], equal_nan=True) and np.nanmax(found[0]) > 0
    assert engine.ran > 6 and not engine.runtime.blocks


def test_kernels_are_kept_for_the_next_process(artifact: Artifact, engine: RtxEngine, tmp_path: Path) -> None:
    with open_backend("tensorrt-rtx", artifact) as backend:
        backend.run(inputs(7, 9))
    (kept,) = (tmp_path / "cache" / "deeplight" / "tensorrt-rtx").glob("*.cache")
    assert kept.read_bytes() == b"kk", "of the comparison's shape and the tile's"
    assert "nvidia-geforce-rtx-4070_13000" in kept.name and kept.parent.stat().st_mode & 0o777 == 0o700
    with open_backend("tensorrt-rtx", artifact) as backend:
        assert engine.configs[-1].get_runtime_cache().content == b"kk"
        backend.run(inputs(5, 5))
        assert kept.read_bytes() == b"kkk"
        # on the device path too
        on_device = EngineCompute(backend, torch.device("cpu"), lambda: 77)
        engine.given_memory = True
        for _ in range(2):
            on_device([torch.from_numpy(x) for x in inputs(4, 4).values()])
        on_device.close()
    assert kept.read_bytes() == b"kkkk"


def test_kernels_that_the_library_refuses_are_replaced(
    artifact: Artifact, engine: RtxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_backend("tensorrt-rtx", artifact):
        pass
    (kept,) = (tmp_path / "cache" / "deeplight" / "tensorrt-rtx").glob("*.cache")
    kept.write_bytes(b"of another driver")
    monkeypatch.setattr(Kernels, "deserialize", lambda self, blob: False)
    with open_backend("tensorrt-rtx", artifact) as backend:
        backend.run(inputs(5, 5))
    assert kept.read_bytes() == b"k"


def test_without_a_cache_folder_it_runs_and_says_so_once(
    artifact: Artifact, engine: RtxEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "deeplight").write_text("a file")
    with open_backend("tensorrt-rtx", artifact) as backend:
        backend.run(inputs(5, 5))
    assert [r.message[:47] for r in caplog.records] == ["compiled kernels are not kept for the next run:"]


def test_the_first_time_on_a_gpu_the_engine_is_compared(
    artifact: Artifact, engine: RtxEngine, tmp_path: Path
) -> None:
    right, engine.compute = engine.compute, zeros
    for _ in range(2):
        with pytest.raises(
            ArtifactError,
            match=r"engine of analytic differs too much from float32 on NVIDIA GeForce RTX 4070, so it is not used "
            r".*relative L2 error of 1\.0e\+00",
        ):
            open_backend("tensorrt-rtx", artifact)
    assert not engine.runtime.blocks, "nothing stays on the device"
    engine.compute = right
    with open_backend("tensorrt-rtx", artifact):
        assert engine.ran == 6, "once to compile and once to compute, each time"
    with open_backend("tensorrt-rtx", artifact):
        assert engine.ran == 6, "it is not compared again"
    engine.runtime.driver += 10
    with open_backend("tensorrt-rtx", artifact):
        assert engine.ran == 8, "but under another driver it is"


def test_an_error_that_the_library_only_logs_ends_the_run(artifact: Artifact, engine: RtxEngine) -> None:
    with open_backend("tensorrt-rtx", artifact) as backend:
        engine.says = "Myelin error 7"
        with pytest.raises(
            DeepLightError, match=r"TensorRT for RTX failed on a tile of 5×6 .* Myelin error 7"
        ):
            backend.run(inputs(5, 6))


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (
            ("NVIDIA H200", 9, 0),
            r"TensorRT for RTX does not run on NVIDIA H200 \(compute capability 9\.0\), it runs on GeForce and RTX PRO "
            r"GPUs of 7\.5, 8\.6, 8\.9, 12\.0: use `backend=\"torch\"` or `backend=\"tensorrt\"`$",
        ),
        (
            ("NVIDIA GeForce RTX 2080", 7, 5),
            r"analytic has no engine of TensorRT for RTX in fp32 for NVIDIA GeForce RTX 2080 \(compute capability "
            r"7\.5\), it has: 8\.6, 8\.9, 12\.0; build one: deeplight-export .* --format onnx,tensorrt-rtx",
        ),
    ],
)
def test_a_gpu_without_an_engine_is_told(
    artifact: Artifact, engine: RtxEngine, runtime: Runtime, card: tuple[str, int, int], words: str
) -> None:
    manifest = artifact.path / "manifest.json"
    described = json.loads(manifest.read_text())
    del described["engines"]["model.rtx-turing.engine"]
    manifest.write_text(json.dumps(described))
    runtime.cards = (card,)
    with pytest.raises(InputError, match=words):
        open_backend("tensorrt-rtx", load_artifact(artifact.path, trust=True))


def test_an_engine_of_another_version_model_or_machine_is_refused(
    artifact: Artifact, engine: RtxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ArtifactError, match=r"model\.rtx\.engine is native code that this machine did not build"
    ):
        open_backend("tensorrt-rtx", load_artifact(artifact.path))
    manifest = artifact.path / "manifest.json"
    described = json.loads(manifest.read_text())
    described["engines"]["model.rtx.engine"]["model"] = "ab" * 32
    manifest.write_text(json.dumps(described))
    with pytest.raises(
        ArtifactError, match=r"built from another ONNX file than the folder's: build it again"
    ):
        open_backend("tensorrt-rtx", load_artifact(artifact.path, trust=True))
    monkeypatch.setattr(trt, "__version__", "1.8.0.1")
    with pytest.raises(
        ArtifactError,
        match=r"built by TensorRT for RTX 1\.7\..*, and 1\.8\.0\.1 is installed, .* tensorrt-rtx==1\.7",
    ):
        open_backend("tensorrt-rtx", artifact)


def test_a_model_without_engines_and_a_machine_without_a_gpu_are_told(
    artifact: Artifact, engine: RtxEngine, runtime: Runtime
) -> None:
    runtime.cards = ()
    with pytest.raises(
        InputError, match=r"TensorRT for RTX 1\..* finds no CUDA device: use `device=\"cpu\"` or another"
    ):
        open_backend("tensorrt-rtx", artifact)
    with pytest.raises(
        ArtifactError,
        match=r"no engine of TensorRT for RTX in precision fp16, it has fp32; deeplight-export .*,tensorrt-rtx builds",
    ):
        open_backend("tensorrt-rtx", artifact, precision="fp16")


def test_without_the_library_the_message_says_what_to_install(
    artifact: Artifact, engine: RtxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        InputError, match=r"backend tensorrt-rtx needs a package .*pip install .*tensorrt-rtx>="
    ):
        open_backend("tensorrt-rtx", artifact)


def test_auto_on_cuda_takes_pytorch_and_without_it_what_the_folder_has(
    artifact: Artifact, engine: RtxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"torch", "tensorrt_rtx", "tensorrt"}
    monkeypatch.setattr(backends, "installed", lambda name, device: backends.BACKENDS[name].imports in there)
    assert backends.chosen("auto", artifact, "fp32", "cuda") == "torch"
    there.discard("torch")
    assert backends.chosen("auto", artifact, "fp32", "cuda") == "tensorrt-rtx"
    with open_backend("auto", artifact, device="cuda") as backend:
        assert backend.name == "tensorrt-rtx"
    there.discard("tensorrt_rtx")
    assert backends.chosen("auto", artifact, "fp32", "cuda") == "tensorrt"
    there.clear()
    assert backends.chosen("auto", artifact, "fp32", "cuda") == "torch", "which then says how to install it"
    assert backends.chosen("auto", artifact, "fp32", "auto") == "onnxruntime"


def test_a_build_of_pytorch_for_cpus_is_none_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "version", lambda package: "2.13.0+cpu")
    assert not backends.installed("torch", "cuda") and backends.installed("torch", "cpu")
    monkeypatch.setattr(backends, "version", lambda package: "2.13.0")
    assert backends.installed("torch", "cuda")


def test_the_stand_in_has_only_names_that_the_libraries_have() -> None:
    for fake, real in (
        (Kernels, trt.IRuntimeCache),
        (RuntimeConfig, trt.IRuntimeConfig),
        (Engine, trt.ICudaEngine),
        (Context, trt.IExecutionContext),
    ):
        methods = {name for name, value in vars(fake).items() if callable(value) and not name.startswith("_")}
        assert methods <= set(dir(real)) and methods, fake
    assert {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"} <= set(
        dir(trt.IRuntimeConfig)
    )
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    assert {name for name in vars(Runtime) if name.startswith("cuda")} <= set(dir(cudart))


def test_the_real_libraries_say_that_there_is_no_gpu(artifact: Artifact) -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    if int(cudart.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"TensorRT for RTX .* finds no CUDA device"):
        open_backend("tensorrt-rtx", artifact)
    assert importlib.import_module(BACKEND).trt is trt
    assert set(trial_inputs()) == {s.name for s in INPUTS}
