"""The comparison that ends an export: every precision on every backend, its limits, its words where it fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from deeplight.engine.core.errors import InputError
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, Artifact, load_artifact, write_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.compare import PSNR_TOLERANCE_DB, TOLERANCE, Difference
from deeplight.engine.runtime.manifest import WEIGHTS
from deeplight.export import parity
from deeplight.export.build import Exported
from deeplight.export.emulate import Emulated
from deeplight.export.parity import (
    ParityError,
    ParityTile,
    cases_of,
    check_parity,
    compare,
    parity_cases,
    scene_inputs,
)
from tests.export.naive import naive_half
from tests.scenes import write_scene


@pytest.fixture(scope="module")
def cases(model: DeepLightSR) -> list[ParityTile]:
    return cases_of(model)


@pytest.mark.slow
def test_parity_of_every_precision_and_backend_is_recorded(exported_all: Exported) -> None:
    rows, notes = exported_all.rows, exported_all.notes
    ran = {(r.backend, r.precision) for r in rows}
    absent = " ".join(notes)
    for wanted in (
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("emulated", "fp16"),
        ("emulated", "bf16"),
        ("torch", "fp32"),
    ):
        assert wanted in ran
    assert ("torch", "bf16") in ran or "torch cpu bf16" in absent
    assert ("openvino", "bf16") in ran or "not compared: openvino cpu bf16" in absent
    assert ("onnxruntime", "bf16") not in ran, "ONNX Runtime has no bfloat16"
    for device in ("torch cuda", "tensorrt cuda"):
        assert any(b == device for b, _ in ran) or f"not compared: {device} fp32" in absent
    assert all(r.passed and r.relative_l2 > 0 for r in rows)
    assert {r.case for r in rows} == set(parity_cases())
    saved = json.loads((exported_all.path / "parity.json").read_text())
    assert saved["passed"] is True and len(saved["rows"]) == len(rows)
    assert {"max_abs", "relative_l2", "psnr_change_db", "sum_of_lights_change"} <= set(saved["rows"][0])


@pytest.mark.slow
def test_one_precision_is_compared_compiled_where_there_is_a_gpu(
    exported_all: Exported, cases: list[ParityTile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor makes a program for each tile shape: compiling every precision would take minutes."""
    asked: list[tuple[str, str, bool]] = []

    def opened(name: str, artifact: Artifact, *, precision: str, device: str, compiling: bool) -> Backend:
        if name == "tensorrt":
            raise InputError("no TensorRT: install it")
        if name == "torch" and device == "cuda":
            asked.append((device, precision, compiling))
        backend = open_backend(name, artifact, precision=precision, device="cpu")
        backend.device = device
        return backend

    monkeypatch.setattr(parity, "open_backend", opened)
    rows, absent = parity.compare_all(load_artifact(exported_all.path), cases[:1])
    assert asked == [
        ("cuda", precision, compiling)
        for precision, compiling in (("fp32", False), ("fp16", False), ("fp16", True), ("bf16", False))
    ]
    where = {(row.backend, row.precision) for row in rows}
    assert ("torch cuda", "fp16") in where and ("torch cuda, compiling", "fp16") in where
    assert any(note.startswith("tensorrt cuda") for note in absent)


def test_what_was_not_compared_is_named_once(exported: Exported) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    _, absent = parity.compare_all(load_artifact(exported.path), [])
    assert sum("torch cuda fp32" in note for note in absent) == 1


def test_a_naive_whole_graph_conversion_fails_the_gate(cases: list[ParityTile], tmp_path: Path) -> None:
    """With the shipped network: its trained offsets and radiances are what float16 cannot hold."""
    shipped = load_artifact(DEFAULT_MODEL)
    naive = naive_half(shipped.read("fp32"))
    manifest = dataclasses.replace(shipped.manifest, precisions={"fp16": "model.onnx"})
    files = {"model.onnx": naive, WEIGHTS: shipped.read_file(WEIGHTS)}
    path = write_artifact(tmp_path / "naive", manifest, files)
    with open_backend("onnxruntime", shipped) as backend:
        cases = [dataclasses.replace(c, want=backend.run(c.inputs)["ntl_hr"]) for c in cases]
    with Emulated.open(load_artifact(path), "fp16", "cpu", 1) as backend:
        rows = [compare(case, backend, "fp16") for case in cases]
    assert not all(row.passed for row in rows)


@pytest.mark.slow
def test_the_emulation_rounds_as_the_types_do(exported_all: Exported) -> None:
    """PyTorch computes the same network on the CPU, rounding every result but those that stay float32."""
    errors: dict[tuple[str, str], list[float]] = {}
    for row in exported_all.rows:
        errors.setdefault((row.backend, row.precision), []).append(row.relative_l2)
    for precision in ("fp16", "bf16"):
        for runtime in ("torch", "openvino"):
            if (runtime, precision) in errors:
                for one, other in zip(errors["emulated", precision], errors[runtime, precision], strict=True):
                    assert 0.7 * other <= one <= 1.4 * other
    # of all cases together: the last step takes a part of every error back
    kept = "ONNX Runtime's CPU provider drops the roundings"
    assert sum(errors["onnxruntime", "fp16"]) < sum(errors["emulated", "fp16"]), kept


def test_the_worst_comparison_is_named() -> None:
    good = Difference("fine", "b", "fp16", 0.0, 1e-3, 0.01, 0.0, 2e-3)
    check_parity([good])
    bad = dataclasses.replace(good, case="wrong", relative_l2=3e-3, psnr_change_db=-0.2)
    with pytest.raises(ParityError) as error:
        check_parity([good, dataclasses.replace(bad, case="less", relative_l2=2.5e-3), bad])
    assert str(error.value).endswith(
        "2 of 3 comparisons failed, worst fp16 on b in 'wrong' with a relative L2 error of 3.0e-03 (at most 2.0e-03) "
        "and -0.200 dB of PSNR (at most 0.05)"
    )
    broken = dataclasses.replace(bad, case="nothing", relative_l2=float("nan"), psnr_change_db=None)
    with pytest.raises(
        ParityError, match=r"in 'nothing' with a relative L2 error of nan \(at most 2.0e-03\)$"
    ):
        check_parity([broken, bad])


def test_a_row_fails_on_nan_and_on_either_limit() -> None:
    row = Difference("c", "b", "fp32", 0.0, 1e-6, 0.0, 0.0, 1e-5)
    assert row.passed and dataclasses.replace(row, psnr_change_db=None).passed
    for change in (
        {"relative_l2": 1e-4},
        {"psnr_change_db": 0.06},
        {"psnr_change_db": -0.06},
        {"relative_l2": float("nan")},
    ):
        assert not dataclasses.replace(row, **change).passed


def test_the_tolerances_are_those_of_the_design() -> None:
    assert {p: TOLERANCE[p] for p in ("fp32", "fp16", "bf16")} == {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2}
    assert {PSNR_TOLERANCE_DB[p] for p in ("fp32", "fp16", "bf16")} == {0.05}


def test_tiles_of_the_users_own_scene_are_compared_too(model: DeepLightSR, tmp_path: Path) -> None:
    scene = tmp_path / "mine"
    scene.mkdir()
    write_scene(scene, 21, 27)
    (case,) = (c for c in cases_of(model, scene, 12) if c.name.startswith("mine"))
    assert case.truth is None and case.inputs["ntl"].shape == (1, 1, 21 + 24, 27 + 24)
    assert case.inputs["dmo_valid"].any() and case.want.shape == (1, 1, 8 * 45, 8 * 51)
    (scene / "dmo.tif").unlink()
    (bare,) = (inputs for _, inputs in scene_inputs(scene, 12))
    assert not bare["dmo_valid"].any() and bare["dem_valid"].any()
    (scene / "ntl.tif").unlink()
    with pytest.raises(InputError, match=r"has no ntl\.tif"):
        next(scene_inputs(scene, 12))
