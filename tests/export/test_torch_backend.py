"""The torch backend: deeplight-infer runs the weights of any model folder, a training run's too."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from deeplight.engine import cli
from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.machine import cpu_has_bf16
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.provenance import fingerprint
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.torch_backend import TorchBackend
from deeplight.export.build import Exported
from deeplight.kernels import launch
from deeplight.kernels.align import entry as align_entry
from deeplight.kernels.fuse import entry as fuse_entry
from deeplight.kernels.refine import entry as refine_entry
from deeplight.kernels.upsample import entry as upsample_entry
from deeplight.train.fit.checkpoint import save_checkpoint
from tests.in_process import run_here
from tests.scenes import SceneFiles, write_scene

Masked = np.ma.MaskedArray
"""Lights (8h, 8w), masked where there are none."""


def test_a_run_is_a_model(exported: Exported, model: DeepLightSR, tmp_path: Path) -> None:
    """A folder of deeplight-train gives the same as what was exported from it, in every precision of the weights."""
    save_checkpoint(tmp_path / "run", model, {"step": 0})
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.random(input_shape(s, 1, 9, 7), np.float32) for s in INPUTS}
    run, artifact = load_artifact(tmp_path / "run"), load_artifact(exported.path)
    assert run.digest == artifact.digest and not run.manifest.precisions
    with open_backend("auto", run) as first, open_backend("auto", artifact) as second:
        assert (first.name, second.name) == ("torch", "onnxruntime")
        a, b = (x.run(inputs)["ntl_hr"] for x in (first, second))
    assert np.abs(a - b).max() <= 1e-5 * b.max()


def test_without_pytorch_a_run_says_what_it_needs(
    model: DeepLightSR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "run", model, {"step": 0})
    monkeypatch.setitem(sys.modules, "deeplight.engine.runtime.backends.torch_backend", None)
    with pytest.raises(
        InputError, match=r"backend torch needs .*, make an ONNX file of it: deeplight-export \S+/run"
    ):
        open_backend("auto", load_artifact(tmp_path / "run"))


def test_a_gpu_that_is_not_there_is_named(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"finds no CUDA device: use `device=\"cpu\"`"):
        open_backend("torch", load_artifact(exported.path), device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"PyTorch \S+ finds no device cuda:2: choose cuda:0 to cuda:1$"):
        open_backend("torch", load_artifact(exported.path), device="cuda:2")


def test_a_cpu_runs_the_reference_even_where_the_interpreter_is_on(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile of a whole network takes Triton's interpreter minutes."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    launched: list[str] = []
    monkeypatch.setattr(launch, "run", lambda ready: launched.append(ready.kernel))
    for module in (align_entry, fuse_entry, refine_entry, upsample_entry):
        monkeypatch.setattr(module, "run", launch.run)
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.random(input_shape(s, 1, 5, 4), np.float32) for s in INPUTS}
    with open_backend("torch", load_artifact(exported.path)) as backend:
        backend.run(inputs)
    assert launched == []
    torch.ops.deeplight.upsample(torch.ones(1, 2, 2, 2), torch.ones(8, 2, 3, 3), torch.ones(8), None)
    assert len(launched) == 1, "elsewhere the switch decides"


def test_a_cpu_without_bfloat16_is_told_so(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplight.engine.runtime.backends.torch_backend.cpu_has_bf16", lambda: False)
    with pytest.raises(InputError, match='no bfloat16 arithmetic: use `precision="fp32"`'):
        open_backend("torch", load_artifact(exported.path), precision="bf16")


def test_a_cancelled_backend_stops_and_bits_do_not_depend_on_threads(exported: Exported) -> None:
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.random(input_shape(s, 1, 9, 7), np.float32) for s in INPUTS}
    bits, before = [], torch.get_num_threads()
    for threads in (1, 2):
        with open_backend("torch", load_artifact(exported.path), threads=threads) as backend:
            assert torch.get_num_threads() == threads
            bits.append(backend.run(inputs)["ntl_hr"])
            backend.cancel()
            with pytest.raises(DeepLightError, match="asked to stop"):
                backend.run(inputs)
        assert torch.get_num_threads() == before, "it is the whole process's, so it is given back"
    # another split of float32 sums: a few ulp
    assert np.abs(bits[0] - bits[1]).max() <= 2e-5 * np.abs(bits[0]).max()


def test_a_backend_that_cannot_be_opened_leaves_the_threads(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("deeplight.engine.runtime.backends.torch_backend.Computing", fail)
    before = torch.get_num_threads()
    with pytest.raises(MemoryError):
        open_backend("torch", load_artifact(exported.path), threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_resume_depends_on_the_gpu_and_on_compilation_where_there_is_one(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for a GPU: nothing is computed."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    gpu = types.SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(TorchBackend, "versions", lambda self: {"torch": "2"})
    artifact, scene = load_artifact(exported.path), SceneOptions(str(write_scene(tmp_path).ntl))
    opened = Scene.open(scene)

    def found(device: str, **changes: object) -> dict[str, str]:
        options = RunOptions(scene, tmp_path / "out.tif", **changes)  # type: ignore[arg-type]
        backend = TorchBackend(lambda x: x, torch.device(device))
        return fingerprint(options, opened, artifact, backend, 1, {})

    assert found("cpu", compiling=False) == found("cpu") and "the GPU" not in found("cpu")
    assert found("cuda")["the GPU"] == "NVIDIA H200, compute capability 9.0"
    assert found("cuda", compiling=False) == found("cuda") | {"the option compile": "off"}
    opened.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneFiles:
    return write_scene(tmp_path_factory.mktemp("scene"), 21, 27)


def mapped(scene: SceneFiles, out: Path, model: Path, backend: str, *options: str) -> Masked:
    """The lights that deeplight-infer writes."""
    layers = ("--ntl", scene.ntl, "--dmo", scene.dmo, "--dem", scene.dem, "--out", out)
    chosen = ("--model", model, "--backend", backend, "--precision", *options)
    done = run_here("deeplight-infer", *layers, *chosen, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    with rasterio.open(out) as dataset:
        assert dataset.tags()["DEEPLIGHT_BACKEND"] == backend
        return dataset.read(1, masked=True).astype(np.float64)


@pytest.fixture(scope="module")
def by_onnxruntime(exported: Exported, scene: SceneFiles, tmp_path_factory: pytest.TempPathFactory) -> Masked:
    return mapped(scene, tmp_path_factory.mktemp("onnx") / "o.tif", exported.path, "onnxruntime", "fp32")


@pytest.mark.parametrize(
    ("precision", "folder"), [("fp32", "artifact"), ("bf16", "artifact"), ("fp32", "run")]
)
def test_deeplight_infer_runs_it(
    exported: Exported,
    scene: SceneFiles,
    by_onnxruntime: Masked,
    tmp_path: Path,
    model: DeepLightSR,
    precision: str,
    folder: str,
) -> None:
    save_checkpoint(tmp_path / "run", model, {"step": 0})
    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    own = tmp_path / "run" if folder == "run" else exported.path
    a, b = by_onnxruntime, mapped(scene, tmp_path / "torch.tif", own, "torch", precision, "--check", "1")
    assert (a.mask == b.mask).all()
    error = np.linalg.norm((a - b).compressed()) / np.linalg.norm(a.compressed())
    assert 0 < error <= {"fp32": 1e-5, "bf16": 1.5e-2}[precision]


@pytest.fixture
def short_products() -> Iterator[None]:
    """A caller who chose TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("short_products")
def test_float32_is_not_shortened_whatever_the_caller_chose(exported: Exported) -> None:
    """cuDNN's TF32 moves radiance by 2.5e-3; the caller's own switches stay as they are."""
    inputs = {s.name: np.zeros(input_shape(s, 1, 4, 4), np.float32) for s in INPUTS}
    seen = []
    with open_backend("torch", load_artifact(exported.path)) as backend:
        compute = backend._compute  # type: ignore[attr-defined]

        def looking(given: list[torch.Tensor]) -> object:
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return compute(given)

        backend._compute = looking  # type: ignore[attr-defined]
        backend.run(inputs)
    assert seen == [(False, False)]
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("choice", "wanted"), [("auto", True), ("off", False)])
def test_the_network_is_compiled_where_a_gpu_runs_it(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, wanted: bool
) -> None:
    """On a CPU never: the choice reaches `network.compiled`, which knows the device."""
    asked: list[str] = []

    def compiled(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        asked.append(device.type)
        return network

    monkeypatch.setattr("deeplight.engine.runtime.backends.torch_backend.compiled", compiled)
    files = write_scene(tmp_path, 9, 9)
    command = ["--ntl", str(files.ntl), "--out", str(tmp_path / "o.tif"), "--model", str(exported.path)]
    arguments = [*command, "--backend", "torch", "--compile", choice]
    cli.command.main(arguments, standalone_mode=False)
    assert set(asked) == ({"cpu"} if wanted else set())
    with rasterio.open(tmp_path / "o.tif") as dataset:
        assert "DEEPLIGHT_OPTION_COMPILE" not in dataset.tags(), "nothing is compiled on a CPU"


def changed(exported: Exported, folder: Path, **fields: object) -> Path:
    """The exported model with another manifest, whose checksums are right."""
    shutil.copytree(exported.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    return folder


def test_a_manifest_that_lies_about_the_network_is_found_out(
    exported: Exported, tmp_path: Path, model: DeepLightSR
) -> None:
    near = changed(exported, tmp_path / "near", halo_lr=3, receptive_field_lr=3.0)
    with pytest.raises(ArtifactError, match=r"claims a halo of 3 LR pixels and its network needs \d\d"):
        open_backend("torch", load_artifact(near))
    with pytest.raises(ArtifactError, match=r"needs a halo of \d\d LR pixels and the manifest claims 3"):
        open_backend("onnxruntime", load_artifact(near))
    vast = model.config.to_dict() | {"main": [10**9, 10**9, 10**9, 10**9]}
    with pytest.raises(ArtifactError, match=r"do not fit its configuration: main is \(1000000000, "):
        open_backend("torch", load_artifact(changed(exported, tmp_path / "vast", configuration=vast)))


def test_an_onnx_file_of_other_weights_is_refused(
    exported: Exported, tmp_path: Path, model: DeepLightSR
) -> None:
    """Each file matches its checksum, but they do not belong together."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    save_checkpoint(tmp_path / "run", other, {})
    files = json.loads((exported.path / "manifest.json").read_text())["files"]
    weights = json.loads((tmp_path / "run/manifest.json").read_text())["files"]
    mixed = changed(exported, tmp_path / "mixed", files=files | weights)
    shutil.copy(tmp_path / "run/model.safetensors", mixed)
    with pytest.raises(ArtifactError, match=r"was made from other weights than model\.safetensors"):
        open_backend("onnxruntime", load_artifact(mixed))
