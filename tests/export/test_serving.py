"""A repository that Triton Inference Server reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.export.build import Exported
from deeplight.export.triton_repo import write_repository
from tests.engine.analytic import write_analytic


@pytest.mark.parametrize("which", ["exported", pytest.param("exported_all", marks=pytest.mark.slow)])
def test_triton_repository(request: pytest.FixtureRequest, which: str, tmp_path: Path) -> None:
    exported: Exported = request.getfixturevalue(which)
    out = write_repository(exported.path, tmp_path / "repo")
    model = load_artifact(exported.path)
    names = {model.manifest.name: "fp32"}
    if which == "exported_all":
        names[f"{model.manifest.name}-fp16"] = "fp16"
    assert {p.name for p in out.iterdir()} == names.keys()
    for name, precision in names.items():
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
    with pytest.raises(InputError, match="exists: use `overwrite=True`"):
        write_repository(artifact, tmp_path / "repo")
    write_repository(artifact, tmp_path / "repo", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "repo"]
