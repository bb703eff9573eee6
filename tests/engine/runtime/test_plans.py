"""TensorRT plans are named by what they depend on and loaded for nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.runtime.artifact import Artifact, load_artifact
from deeplight.engine.runtime.plans import FOLDER, PlanKey, load_plan, save_plan
from tests.engine.analytic import write_analytic

HERE = PlanKey("NVIDIA H200", "9.0", "11.4.0.106", "fp16", "ab" * 32)


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return load_artifact(write_analytic(tmp_path / "m"))


def test_the_name_says_what_the_plan_is_for_and_every_field_changes_it() -> None:
    assert HERE.file_name().startswith("nvidia-h200_sm90_trt11.4.0.106_fp16_abababababab_")
    others = [
        dataclasses.replace(HERE, **change)
        for change in (
            {"gpu": "NVIDIA H100"},
            {"capability": "10.0"},
            {"tensorrt": "10.12.0.36"},
            {"precision": "fp32"},
            {"model": "ab" * 31 + "cd"},
            {"compatibility": "ampere_plus"},
            {"version_compatible": True},
            {"tile": (1, 64, 64)},
        )
    ]
    assert (
        len({k.file_name() for k in (HERE, *others)}) == 9 and len({k.digest() for k in (HERE, *others)}) == 9
    )


def test_the_timing_cache_is_shared_by_models_but_not_by_gpus_or_versions() -> None:
    same = dataclasses.replace(HERE, model="cd" * 32, precision="fp32")
    assert HERE.timing_cache_name() == same.timing_cache_name()
    assert HERE.timing_cache_name() != dataclasses.replace(HERE, gpu="NVIDIA A100").timing_cache_name()
    assert HERE.timing_cache_name() != dataclasses.replace(HERE, tensorrt="10.12.0").timing_cache_name()


def test_a_plan_built_here_is_loaded(artifact: Artifact) -> None:
    save_plan(artifact.path / FOLDER, HERE, b"plan")
    assert load_plan(artifact, HERE) == b"plan"


def test_without_a_plan_the_message_says_what_to_do(artifact: Artifact) -> None:
    with pytest.raises(InputError, match=r"no TensorRT plan for NVIDIA H200 .*--format onnx,tensorrt"):
        load_plan(artifact, HERE)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gpu": "NVIDIA A100"}, "is for NVIDIA A100"),
        ({"capability": "8.0"}, "compute capability 8.0"),
        ({"tensorrt": "11.3.0.1"}, "TensorRT 11.3.0.1"),
        ({"precision": "fp32"}, "precision 'fp32'"),
        ({"model": "cd" * 32}, "model 'cdcd"),
        ({"tensorrt": "10.12.0.1", "version_compatible": True}, "TensorRT 10.12.0.1"),
        ({"tensorrt": "11.5.0.1", "version_compatible": True}, "TensorRT 11.5.0.1"),
        ({"capability": "8.0", "compatibility": "same_compute_capability"}, "compute capability 8.0"),
    ],
)
def test_a_foreign_plan_is_refused(artifact: Artifact, change: dict[str, object], named: str) -> None:
    save_plan(artifact.path / FOLDER, dataclasses.replace(HERE, **change), b"plan")
    with pytest.raises(InputError, match=named):
        load_plan(artifact, HERE)


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "NVIDIA A100", "capability": "8.0", "compatibility": "ampere_plus"},
        {"gpu": "NVIDIA H100", "compatibility": "same_compute_capability"},
        {"tensorrt": "11.3.0.1", "version_compatible": True},
    ],
)
def test_a_compatible_plan_is_loaded(artifact: Artifact, change: dict[str, object]) -> None:
    save_plan(artifact.path / FOLDER, dataclasses.replace(HERE, **change), b"plan")
    assert load_plan(artifact, HERE) == b"plan"


def test_native_code_of_others_needs_trust(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_plan(artifact.path / FOLDER, HERE, b"plan")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(ArtifactError, match=r"native code that this machine did not build.*`trust=True`"):
        load_plan(artifact, HERE)
    assert load_plan(load_artifact(artifact.path, trust=True), HERE) == b"plan"


def test_damaged_plans_and_sidecars_are_refused(artifact: Artifact) -> None:
    path = save_plan(artifact.path / FOLDER, HERE, b"plan")
    sidecar = path.with_name(path.name + ".json")
    good = sidecar.read_text()
    path.write_bytes(b"plam")
    with pytest.raises(ArtifactError, match="does not match its SHA-256"):
        load_plan(artifact, HERE)
    for text, message in (
        ("{", "cannot be read"),
        (" " * 70_000, "too large"),
        (json.dumps({**json.loads(good), "schema": 2}), "unknown schema"),
    ):
        sidecar.write_text(text)
        with pytest.raises(DeepLightError, match=message):
            load_plan(artifact, HERE)
