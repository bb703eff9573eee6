"""int8 only where it is worth it; a repository that Triton Inference Server reads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, input_shape
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.export import int8
from deeplight.export.build import Exported
from deeplight.export.parity import Case
from deeplight.export.triton_repo import write_repository
from tests.engine.analytic import write_analytic


def case(model: bytes, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    inputs = {s.name: rng.random(input_shape(s, 1, 8, 12), np.float32) for s in INPUTS}
    want = int8._session(model).run(["ntl_hr"], inputs)[0]
    return Case(f"case {seed}", inputs, want + rng.normal(0, 0.1, want.shape).astype(np.float32), want)


@pytest.mark.parametrize(
    ("speed", "tolerance", "kept"),
    [(2.0, 1e9, True), (0.5, 1e9, False), (2.0, 0.0, False)],
    ids=["faster and close", "slower", "too far off"],
)
def test_int8_is_kept_only_if_it_is_faster_and_loses_little(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, speed: float, tolerance: float, kept: bool
) -> None:
    model = (exported.path / "model.onnx").read_bytes()
    monkeypatch.setattr(int8, "_times", lambda *_: [[speed], [1.0]])
    monkeypatch.setitem(int8.TOLERANCE, "int8", tolerance)
    monkeypatch.setitem(int8.PSNR_TOLERANCE_DB, "int8", tolerance)
    result = int8.quantise(model, [case(model, 1), case(model, 2)])
    assert result.kept is kept
    assert re.match(
        rf"int8 {'kept' if kept else 'left out'}: {speed:.2f}× the speed of fp32, .* dB lost", result.note
    )
    ops = {n.op_type for n in onnx.load_from_string(result.model).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops


def test_triton_repository(exported: Exported, tmp_path: Path) -> None:
    out = write_repository(exported.path, tmp_path / "repo")
    model = load_artifact(exported.path)
    names = {model.manifest.name, f"{model.manifest.name}-fp16"}
    assert {p.name for p in out.iterdir()} == names
    for name, precision in ((model.manifest.name, "fp32"), (f"{model.manifest.name}-fp16", "fp16")):
        assert (out / name / "1" / "model.onnx").read_bytes() == model.read(precision)
        text = (out / name / "config.pbtxt").read_text()
        assert f'name: "{name}"' in text and 'backend: "onnxruntime"' in text and "max_batch_size: 0" in text
        for kind, specs in (("input", INPUTS), ("output", OUTPUTS)):
            found = re.findall(
                rf'^{kind} {{ name: "(\w+)" data_type: TYPE_FP32 dims: \[ ([-\d, ]+) \] }}$', text, re.M
            )
            assert [n for n, _ in found] == [s.name for s in specs]
            for spec, (_, dims) in zip(specs, found, strict=True):
                want = [-1, spec.channels] if spec.hr is None else [-1, spec.channels, -1, -1]
                assert [int(d) for d in dims.split(",")] == want
        assert text.count("{") == text.count("}")


def test_a_repository_is_not_overwritten_unasked(tmp_path: Path) -> None:
    artifact = write_analytic(tmp_path / "m")
    write_repository(artifact, tmp_path / "repo")
    with pytest.raises(InputError, match="exists: choose another place"):
        write_repository(artifact, tmp_path / "repo")
    write_repository(artifact, tmp_path / "repo", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "repo"]
