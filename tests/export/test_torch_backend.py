"""The torch backend: deeplight-infer runs programs whose weights are safetensors and in which nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from deeplight.engine import cli
from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.torch_backend import cpu_has_bf16, load_program
from deeplight.engine.runtime.program_scan import check_program
from deeplight.export.build import Exported
from deeplight.kernels import launch
from deeplight.kernels.align import entry as align_entry
from deeplight.kernels.fuse import entry as fuse_entry
from deeplight.kernels.refine import entry as refine_entry
from deeplight.kernels.upsample import entry as upsample_entry
from tests.scenes import write_scene


def entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_program_holds_no_weights_no_pickle_and_no_code(exported: Exported) -> None:
    for name in ("program.pt2", "program.fp16.pt2", "program.bf16.pt2"):
        content = entries((exported.path / name).read_bytes())
        assert not [n for n in content if "/weights/weight_" in n]
        assert not [n for n, data in content.items() if data.startswith((b"\x80", b"PK"))], (
            "pickles and torch.save"
        )
        model = json.loads(next(data for n, data in content.items() if n.endswith("models/model.json")))
        assert model["guards_code"] == []
        targets = {n["target"] for n in model["graph_module"]["graph"]["nodes"]}
        assert {
            f"torch.ops.deeplight.{o}.default" for o in ("align", "fuse", "upsample", "refine")
        } <= targets


def test_what_pytorch_itself_saves_is_refused() -> None:
    """torch.export.save puts a pickle of the example inputs into the file."""
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with pytest.raises(ArtifactError, match="refused"):
        check_program(buffer.getvalue())


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_payload_in_the_example_inputs_does_not_run(exported: Exported, tmp_path: Path) -> None:
    content = entries((exported.path / "program.pt2").read_bytes())
    sample = next(n for n in content if n.endswith("sample_inputs/model.pt"))
    content[sample] = pickle.dumps(Payload())
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    folder = tmp_path / "evil"
    folder.mkdir()
    manifest = json.loads((exported.path / "manifest.json").read_text())
    for name in manifest["files"]:
        (folder / name).write_bytes((exported.path / name).read_bytes())
    (folder / "program.pt2").write_bytes(evil.getvalue())
    manifest["files"]["program.pt2"] = {
        "sha256": hashlib.sha256(evil.getvalue()).hexdigest(),
        "bytes": len(evil.getvalue()),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="example inputs, which are a pickle"):
        load_artifact(folder)


def test_weights_of_another_model_are_refused(exported: Exported) -> None:
    program = load_artifact(exported.path).read("fp32", "program")
    with pytest.raises(ValueError, match="the weights lack"):
        load_program(program, {}, torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_named(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"finds no CUDA device: use --device cpu"):
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
    with pytest.raises(InputError, match="no bfloat16 arithmetic: use --precision fp32"):
        open_backend("torch", load_artifact(exported.path), precision="bf16")


def test_a_cancelled_backend_stops_and_bits_do_not_depend_on_threads(exported: Exported) -> None:
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.random(input_shape(s, 1, 9, 7), np.float32) for s in INPUTS}
    bits = []
    for threads in (1, 2):
        with open_backend("torch", load_artifact(exported.path), threads=threads) as backend:
            bits.append(backend.run(inputs)["ntl_hr"])
            backend.cancel()
            with pytest.raises(DeepLightError, match="asked to stop"):
                backend.run(inputs)
    torch.set_num_threads(1)
    # another split of float32 sums: a few ulp
    assert np.abs(bits[0] - bits[1]).max() <= 2e-5 * np.abs(bits[0]).max()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deeplight_infer_runs_it(
    exported: Exported,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    files = write_scene(tmp_path, 21, 27)
    results = {}
    for backend, options in (("onnxruntime", ["fp32"]), ("torch", [precision, "--check", "1"])):
        out = tmp_path / f"{backend}.tif"
        layers = ["--ntl", files.ntl, "--dmo", files.dmo, "--dem", files.dem, "--out", out]
        chosen = ["--model", exported.path, "--backend", backend, "--precision", *options]
        monkeypatch.setattr(sys, "argv", ["deeplight-infer", *map(str, layers + chosen)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0, capfd.readouterr().err
        with rasterio.open(out) as dataset:
            results[backend] = dataset.read(1, masked=True).astype(np.float64)
            assert dataset.tags()["DEEPLIGHT_BACKEND"] == backend
    a, b = results["onnxruntime"], results["torch"]
    assert (a.mask == b.mask).all()
    error = np.linalg.norm((a - b).compressed()) / np.linalg.norm(a.compressed())
    assert 0 < error <= {"fp32": 1e-5, "bf16": 1.5e-2}[precision]
