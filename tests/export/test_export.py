"""Export: dynamic axes, parity through the engine's backend, and nothing left behind where it fails."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deeplight.engine.artifact import load_artifact
from deeplight.engine.backends import open_backend
from deeplight.engine.errors import DeepLightError
from deeplight.engine.spec import INPUTS, OUTPUTS, input_shape
from deeplight.export import build, to_onnx
from deeplight.export.parity import ParityRow, parity_cases
from deeplight.train.config import ModelConfig
from deeplight.train.model import DeepLightSR
from deeplight.train.receptive import halo

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4, 4), localise_width=8)


def wild_model() -> DeepLightSR:
    torch.manual_seed(0)
    model = DeepLightSR(SMALL).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ParityRow]]:
    out = tmp_path_factory.mktemp("export") / "artifact"
    return build.export_artifact(wild_model(), {"step": 7, "data": {"kind": "test"}}, out)


def test_axes_are_dynamic_and_named_by_the_contract(exported: tuple[Path, list[ParityRow]]) -> None:
    graph = onnx.load(exported[0] / "model.onnx").graph
    assert [v.name for v in graph.input] == [s.name for s in INPUTS]
    assert [v.name for v in graph.output] == [s.name for s in OUTPUTS]
    for value, spec in zip([*graph.input, *graph.output], [*INPUTS, *OUTPUTS], strict=True):
        dims = value.type.tensor_type.shape.dim
        assert dims[1].dim_value == spec.channels
        assert all(dims[axis].dim_param for axis in ([0] if spec.hr is None else [0, 2, 3]))


def test_the_graph_has_no_grid_sample_and_no_resize(exported: tuple[Path, list[ParityRow]]) -> None:
    ops = {node.op_type for node in onnx.load(exported[0] / "model.onnx").graph.node}
    assert not ops & {"GridSample", "Resize", "InstanceNormalization", "GlobalAveragePool", "Where"}


def test_no_source_path_of_the_exporting_machine_is_left(exported: tuple[Path, list[ParityRow]]) -> None:
    assert str(Path(torch.__file__).parent).encode() not in (exported[0] / "model.onnx").read_bytes()
    assert b".py" not in (exported[0] / "model.onnx").read_bytes()


def test_parity_is_within_tolerance_and_recorded(exported: tuple[Path, list[ParityRow]]) -> None:
    path, rows = exported
    assert {r.case for r in rows} == set(parity_cases())
    assert all(r.passed and r.relative_l2 > 0 for r in rows)
    assert json.loads((path / "parity.json").read_text())["passed"] is True


def test_other_shapes_and_batches_run_and_agree(exported: tuple[Path, list[ParityRow]]) -> None:
    model, artifact = wild_model(), load_artifact(exported[0])
    for b, h, w in ((1, 4, 4), (1, 9, 31), (3, 6, 5)):
        g = torch.Generator().manual_seed(h)
        inputs = [torch.rand(input_shape(s, b, h, w), generator=g) for s in INPUTS]
        with torch.no_grad():
            want = model(*inputs)
        with open_backend("onnxruntime", artifact) as backend:
            got = backend.run(
                {s.name: x.numpy() for s, x in zip(INPUTS, inputs, strict=True)}, [s.name for s in OUTPUTS]
            )
        for spec, value in zip(OUTPUTS, want, strict=True):
            # two runtimes order float32 sums differently: a few ulp of the largest value
            assert np.abs(got[spec.name] - value.numpy()).max() <= 2e-5 * max(1.0, float(value.abs().max()))


def test_manifest_says_what_the_model_is(exported: tuple[Path, list[ParityRow]]) -> None:
    m = load_artifact(exported[0]).manifest
    assert m.halo_lr == halo(SMALL) and m.preset == SMALL.preset
    assert m.bytes_per_lr_px > 64 * 4, "a run needs at least its output"
    assert m.training["step"] == 7 and m.producer["torch"] == torch.__version__


def test_failed_parity_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wild_model()
    good = to_onnx.to_onnx(model)
    monkeypatch.setattr(build, "to_onnx", lambda _: good)
    model.first.weight.data *= 1.01  # the checkpoint is no longer what was exported
    with pytest.raises(DeepLightError, match="FAILED"):
        build.export_artifact(model, {"step": 0}, tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_a_static_axis_fails_the_export() -> None:
    proto = onnx.load_from_string(to_onnx.to_onnx(wild_model()))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    with pytest.raises(DeepLightError, match="fixed axes"):
        to_onnx._name_axes(proto)


def test_parity_row_fails_on_nan_and_on_either_limit() -> None:
    row = ParityRow("c", "b", "fp32", 0.0, 1e-6, 0.0, 0.0, 1e-5)
    assert row.passed
    for change in (
        {"relative_l2": 1e-4},
        {"psnr_change_db": 0.06},
        {"psnr_change_db": -0.06},
        {"relative_l2": float("nan")},
    ):
        assert not dataclasses.replace(row, **change).passed
