"""Export: files that hold what they promise, parity through the engine's backends, nothing left where it fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, OUTPUTS, input_shape
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, Artifact, load_artifact, write_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.compare import PSNR_TOLERANCE_DB, TOLERANCE, Difference
from deeplight.engine.runtime.manifest import WEIGHTS
from deeplight.export import build, parity, to_onnx
from deeplight.export.build import Exported, Request
from deeplight.export.emulate import EmulatedHalf
from deeplight.export.parity import (
    Case,
    ParityError,
    cases_of,
    check_parity,
    compare,
    parity_cases,
    scene_inputs,
    table,
)
from deeplight.export.to_tensorrt import prepared
from deeplight.export.trace import trace
from tests.export.conftest import SMALL
from tests.export.naive import naive_half
from tests.scenes import write_scene


@pytest.fixture(scope="module")
def cases(model: DeepLightSR) -> list[Case]:
    return cases_of(model)


def test_axes_are_dynamic_and_named_by_the_contract(exported: Exported) -> None:
    for file in ("model.onnx", "model.fp16.onnx"):
        proto = onnx.load(exported.path / file)
        graph = proto.graph
        assert [v.name for v in graph.input] == [s.name for s in INPUTS]
        assert [v.name for v in graph.output] == [s.name for s in OUTPUTS]
        assert {e.domain: e.version for e in proto.opset_import}[""] == 20
        for value, spec in zip([*graph.input, *graph.output], [*INPUTS, *OUTPUTS], strict=True):
            dims = value.type.tensor_type.shape.dim
            assert dims[1].dim_value == spec.channels
            assert all(dims[axis].dim_param for axis in ([0] if spec.hr is None else [0, 2, 3]))


def test_custom_operators_are_nodes_with_bodies(exported: Exported) -> None:
    proto = onnx.load(exported.path / "model.onnx")
    nodes = [n for n in proto.graph.node if n.domain == "deeplight"]
    assert [n.op_type for n in nodes].count("fuse") == 3 and [n.op_type for n in nodes].count("upsample") == 3
    assert {n.op_type for n in nodes} == {"align", "fuse", "upsample", "refine"}
    assert {f.name for f in proto.functions} == {n.op_type for n in nodes}
    for node in nodes:
        assert [a.s for a in node.attribute if a.name == "plugin_namespace"] == [b"deeplight"]


def test_the_graph_has_no_grid_sample_and_no_resize(exported: Exported) -> None:
    proto = onnx.load(exported.path / "model.onnx")
    ops = {n.op_type for n in proto.graph.node} | {n.op_type for f in proto.functions for n in f.node}
    assert {"Conv", "DepthToSpace", "Gather"} <= ops
    assert not ops & {"GridSample", "Resize", "InstanceNormalization", "GlobalAveragePool", "Where"}


def test_metadata_is_complete(exported: Exported) -> None:
    proto = onnx.load(exported.path / "model.fp16.onnx")
    meta = {p.key.removeprefix("deeplight."): p.value for p in proto.metadata_props}
    weights = (exported.path / WEIGHTS).read_bytes()
    assert meta["halo_lr"] == str(halo(SMALL)) and meta["scale"] == "8" and meta["precision"] == "fp16"
    assert float(meta["receptive_field_lr"]) <= halo(SMALL)
    assert json.loads(meta["modalities"])["dmo"] == list(DMO_SLOTS)
    assert json.loads(meta["units"])["ntl_hr"] == "nW/cm²/sr" and json.loads(meta["units"])["dem"] == "m"
    assert meta["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert meta["configuration_sha256"] == load_artifact(exported.path).manifest.configuration_digest


def test_no_source_path_of_the_exporting_machine_is_left(exported: Exported) -> None:
    for path in exported.path.iterdir():
        data = path.read_bytes()
        assert str(Path(torch.__file__).parent).encode() not in data and b".py" not in data


def test_parity_of_every_precision_and_backend_is_recorded(exported: Exported) -> None:
    ran = {(r.backend, r.precision) for r in exported.rows}
    absent = " ".join(exported.notes)
    for wanted in (
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("emulated GPU", "fp16"),
        ("torch", "fp32"),
    ):
        assert wanted in ran
    assert ("torch", "bf16") in ran or "torch cpu bf16" in absent
    for device in ("torch cuda", "tensorrt cuda"):
        assert any(b == device for b, _ in ran) or f"not compared: {device} fp32" in absent
    assert all(r.passed and r.relative_l2 > 0 for r in exported.rows)
    assert {r.case for r in exported.rows} == set(parity_cases())
    saved = json.loads((exported.path / "parity.json").read_text())
    assert saved["passed"] is True and len(saved["rows"]) == len(exported.rows)
    assert {"max_abs", "relative_l2", "psnr_change_db", "sum_of_lights_change"} <= set(saved["rows"][0])


def test_one_precision_is_compared_compiled_where_there_is_a_gpu(
    exported: Exported, cases: list[Case], monkeypatch: pytest.MonkeyPatch
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
    rows, absent = parity.compare_all(load_artifact(exported.path), cases[:1])
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
    assert sum("torch cuda fp16" in note for note in absent) == 1


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


def test_manifest_says_what_the_model_is(exported: Exported) -> None:
    m = load_artifact(exported.path).manifest
    assert m.halo_lr == halo(SMALL) and m.preset == SMALL.preset
    assert m.bytes_per_lr_px > 64 * 4, "a run needs at least its output"
    assert m.training["step"] == 7 and m.producer["torch"] == torch.__version__
    assert set(m.precisions) == {"fp32", "fp16"} and ModelConfig.from_dict(dict(m.configuration)) == SMALL


def test_a_naive_whole_graph_conversion_fails_the_gate(cases: list[Case], tmp_path: Path) -> None:
    """With the shipped network: its trained offsets and radiances are what float16 cannot hold."""
    shipped = load_artifact(DEFAULT_MODEL)
    naive = naive_half(shipped.read("fp32"))
    manifest = dataclasses.replace(shipped.manifest, precisions={"fp16": "model.onnx"})
    files = {"model.onnx": naive, WEIGHTS: shipped.read_file(WEIGHTS)}
    path = write_artifact(tmp_path / "naive", manifest, files)
    with open_backend("onnxruntime", shipped) as backend:
        cases = [dataclasses.replace(c, want=backend.run(c.inputs)["ntl_hr"]) for c in cases]
    with EmulatedHalf.open(load_artifact(path), "fp16", "cpu", 1) as backend:
        rows = [compare(case, backend, "fp16") for case in cases]
    assert not all(row.passed for row in rows)


def test_the_emulation_rounds_as_float16_does(exported: Exported) -> None:
    """PyTorch computes the same network in float16 on the CPU, rounding every result."""
    errors = {
        backend: [r.relative_l2 for r in exported.rows if (r.backend, r.precision) == (backend, "fp16")]
        for backend in ("emulated GPU", "torch", "onnxruntime")
    }
    for emulated, rounded in zip(errors["emulated GPU"], errors["torch"], strict=True):
        assert 0.5 * rounded <= emulated <= 2.0 * rounded
    # of all cases together: the last step takes a part of every error back
    kept = "ONNX Runtime's CPU provider drops the roundings"
    assert sum(errors["onnxruntime"]) < sum(errors["emulated GPU"]), kept


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
    with pytest.raises(
        ParityError, match=r"5 of 20 comparisons failed, worst fp32 on onnxruntime in "
    ) as error:
        build.export_artifact(model, {"step": 0}, tmp_path / "artifact")
    assert error.value.exit_code == 1 and "FAILED" in table(error.value.rows)
    assert list(tmp_path.iterdir()) == []


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


class Fixed(torch.nn.Module):
    """Takes tiles of 12 × 16 LR pixels only."""

    def forward(
        self,
        ntl: torch.Tensor,
        ntl_valid: torch.Tensor,
        dmo: torch.Tensor,
        dmo_valid: torch.Tensor,
        dmo_bands: torch.Tensor,
        dem: torch.Tensor,
        dem_valid: torch.Tensor,
        psf: torch.Tensor,
        limits: torch.Tensor,
    ) -> torch.Tensor:
        return ntl + torch.ones(12, 16)


def test_a_model_of_one_tile_shape_is_not_exported() -> None:
    with pytest.raises(DeepLightError, match="the model cannot be exported with dynamic shapes"):
        trace(Fixed(), "fp32")  # type: ignore[arg-type]


class Learnt(torch.nn.Module):
    """A convolution whose kernel follows from three weights."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = torch.nn.Parameter(torch.tensor([1.5, 0.8, -0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        line = torch.softmax(self.taps, dim=0)
        return torch.nn.functional.conv2d(x, torch.cat([line, line.new_zeros(1)]).reshape(1, 1, 1, 4))


def test_kernels_that_are_computed_from_weights_are_folded() -> None:
    with torch.no_grad(), to_onnx.quietly():
        program = torch.export.export(Learnt().eval(), (torch.ones(1, 1, 4, 9),))
        exported = torch.onnx.export(program, opset_version=20, dynamo=True, verbose=False)
    assert exported is not None
    before = exported.model_proto
    to_onnx.fold_weights(exported.model)
    after = exported.model_proto
    assert [n.op_type for n in after.graph.node] == ["Conv"] and len(before.graph.node) > 1
    assert [t.name for t in after.graph.initializer] == [after.graph.node[0].input[1]]


def element_types(proto: onnx.ModelProto) -> tuple[list[onnx.NodeProto], dict[str, int]]:
    """The nodes, functions inlined, and the element type of every tensor."""
    flat = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(proto), data_prop=True).graph
    types = {t.name: t.data_type for t in flat.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*flat.input, *flat.value_info, *flat.output)}
    return list(flat.node), types


def test_the_float16_file_has_float32_islands(exported: Exported) -> None:
    """Offsets, gathers, logarithms, exponentials, the NTL's first convolution and the sums of its levels."""
    nodes, types = element_types(onnx.load(exported.path / "model.fp16.onnx"))
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    for node in nodes:
        if node.op_type in ("Log", "Exp", "Tanh", "Softmax", "Floor", "Reciprocal"):
            assert types[node.input[0]] == single, node.name
        if node.op_type == "Gather" and types[node.output[0]] in (single, half):
            assert types[node.input[0]] == single, "rows of pixels"
    convolutions = [n for n in nodes if n.op_type == "Conv"]
    kept = {n.input[1] for n in convolutions if types[n.input[1]] == single}
    assert "first.weight" in kept and any(name.startswith("localise.") for name in kept)
    assert sum(types[n.input[1]] == half for n in convolutions) > 20, "all others are reduced"
    assert {types[v] for v in ("ntl_hr", "isp", "offset")} == {single}


@pytest.mark.parametrize("plugins", [False, True])
@pytest.mark.parametrize("file", ["model.onnx", "model.fp16.onnx"])
def test_tensorrt_would_refuse_nothing_of_a_whole_export(
    exported: Exported, file: str, plugins: bool
) -> None:
    proto = onnx.load_from_string(prepared((exported.path / file).read_bytes(), plugins=plugins))
    ours = {n.op_type for n in proto.graph.node if n.domain == "deeplight"}
    assert ours == ({"align", "fuse", "upsample", "refine"} if plugins else set())


def damaged(proto: onnx.ModelProto, how: str) -> onnx.ModelProto:
    if how == "static axis":
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    elif how == "resize":
        proto.graph.node[0].op_type = "Resize"
    elif how == "body":
        del proto.functions[0]
    elif how == "metadata":
        del proto.metadata_props[0]
    elif how == "opset":
        proto.opset_import[0].version = 18
    return proto


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("static axis", "fixed axes"),
        ("resize", "operator Resize"),
        ("body", "lacks its body"),
        ("metadata", "lacks the metadata"),
        ("opset", "opset 18, not 20"),
    ],
)
def test_a_file_that_is_not_as_promised_fails_the_export(exported: Exported, how: str, message: str) -> None:
    proto = onnx.load(exported.path / "model.onnx")
    to_onnx.check_onnx(proto)
    proto.opset_import.sort(key=lambda entry: entry.domain)
    with pytest.raises(DeepLightError, match=message):
        to_onnx.check_onnx(damaged(proto, how))


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
