"""What an export leaves: a model folder that runs on any shape, or nothing where the comparison fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.engine.runtime.artifact import Artifact, load_artifact
from deeplight.engine.runtime.backends import installed, open_backend
from deeplight.engine.runtime.compare import Difference
from deeplight.engine.runtime.manifest import WEIGHTS
from deeplight.export import build
from deeplight.export.build import Exported, Request
from deeplight.export.parity import ParityError, table
from tests.export.conftest import SMALL


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_other_shapes_and_batches_run_and_agree(exported: Exported, model: DeepLightSR, backend: str) -> None:
    artifact = load_artifact(exported.path)
    with open_backend(backend, artifact) as opened:
        for b, h, w in ((1, 4, 4), (1, 9, 31), (3, 6, 5)):
            g = torch.Generator().manual_seed(h)
            inputs = [torch.rand(input_shape(s, b, h, w), generator=g) for s in INPUTS]
            with torch.no_grad():
                want = model(*inputs)
            given = {s.name: x.numpy() for s, x in zip(INPUTS, inputs, strict=True)}
            got = opened.run(given, [s.name for s in OUTPUTS])
            for spec, value in zip(OUTPUTS, want, strict=True):
                # two runtimes order float32 sums differently: a few ulp of the largest value
                error = np.abs(got[spec.name] - value.numpy()).max()
                assert error <= 2e-5 * max(1.0, float(value.abs().max()))


@pytest.mark.parametrize("which", ["exported", pytest.param("exported_all", marks=pytest.mark.slow)])
def test_manifest_says_what_the_model_is(request: pytest.FixtureRequest, which: str) -> None:
    m = load_artifact(request.getfixturevalue(which).path).manifest
    assert m.halo_lr == halo(SMALL) and m.preset == SMALL.preset
    assert m.bytes_per_lr_px > 64 * 4, "a run needs at least its output"
    assert m.training["step"] == 7 and m.producer["torch"] == torch.__version__
    assert set(m.precisions) == ({"fp32"} if which == "exported" else {"fp32", "fp16", "bf16"})
    assert ModelConfig.from_dict(dict(m.configuration)) == SMALL


@pytest.mark.slow
def test_the_bfloat16_file_is_for_openvino_alone(exported_all: Exported, tmp_path: Path) -> None:
    artifact = load_artifact(exported_all.path)
    assert artifact.offered() == {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
    assert artifact.offered("openvino") == {"fp32": "model.onnx", "bf16": "model.bf16.onnx"}
    with pytest.raises(
        ArtifactError,
        match=r'has no ONNX file that ONNX Runtime runs in precision bf16, it has fp32, fp16; `backend="openvino"` '
        r"runs model\.bf16\.onnx$",
    ):
        open_backend("onnxruntime", artifact, precision="bf16")
    for precisions in (("bf16", "fp32"), ("fp32", "bf16")):
        assert build.Request(("onnx", "tensorrt"), precisions).for_tensorrt() == ("fp32",)
    with pytest.raises(InputError, match='`precisions="bf16"` makes a file for OpenVINO, of which TensorRT'):
        build.Request(("onnx", "tensorrt"), ("bf16",)).check(tmp_path / "m")


def test_failed_parity_leaves_nothing(
    exported: Exported,
    model: DeepLightSR,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = onnx.load(exported.path / "model.onnx")
    first = next(t for t in wrong.graph.initializer if t.name == "first.weight")
    first.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(first) * 1.01, first.name))
    monkeypatch.setattr(build, "trace", lambda *_: None)
    monkeypatch.setattr(build, "to_onnx", lambda *_: wrong.SerializeToString())
    runtimes = 1 + installed("openvino", "cpu")  # that run the file
    failed = (
        rf"{7 * runtimes} of {21 + 7 * runtimes} comparisons failed, worst fp32 on (openvino|onnxruntime) in "
    )
    with pytest.raises(ParityError, match=failed) as error:
        build.export_artifact(model, {"step": 0}, tmp_path / "artifact")
    assert error.value.exit_code == 1 and "FAILED" in table(error.value.rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("good", [True, False])
def test_plans_are_compared_before_the_artifact_appears(
    exported: Exported, model: DeepLightSR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    known: list[str] = []

    def build_plans(path: Path, precisions: tuple[str, ...], options: object) -> None:
        known[:] = [p.name for p in (path / "plans").glob("*")]
        (path / "plans").mkdir(exist_ok=True)
        (path / "plans" / "p.plan").write_bytes(b"plan")
        (path / "plans" / "g.timing").write_bytes(b"timed")

    def compare_plans(draft: Artifact, cases: object) -> tuple[list[Difference], list[str]]:
        assert (draft.path / "plans" / "p.plan").is_file()
        return [Difference("c", "tensorrt cuda", "fp32", 0.0, 0.0 if good else 1.0, 0.0, 0.0, 1e-5)], []

    onnx_file = (exported.path / "model.onnx").read_bytes()
    monkeypatch.setattr(build, "trace", lambda *_: None)
    monkeypatch.setattr(build, "to_onnx", lambda *_: onnx_file)
    monkeypatch.setattr(build, "cases_of", lambda *_: [])
    monkeypatch.setattr(build, "build_plans", build_plans)
    monkeypatch.setattr(build, "compare_all", compare_plans)
    monkeypatch.setattr(build, "_bytes_per_lr_px", lambda _: 1)
    out = tmp_path / "artifact"
    if good:
        for before in ([], ["g.timing"]):
            build.export_artifact(model, {}, out, Request(("onnx", "tensorrt")), overwrite=bool(before))
            assert (out / "plans" / "p.plan").read_bytes() == b"plan" and load_artifact(out)
            assert known == before, "timings outlive the artifact that they were taken for, plans do not"
            assert {p.name for p in out.iterdir()} == {
                "manifest.json",
                WEIGHTS,
                "model.onnx",
                "parity.json",
                "plans",
            }
    else:
        with pytest.raises(DeepLightError, match="nothing is written"):
            build.export_artifact(model, {}, out, Request(("onnx", "tensorrt")))
        assert list(tmp_path.iterdir()) == []
