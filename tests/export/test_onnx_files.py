"""The ONNX files of an export: axes, operators, metadata, precisions; what is not as promised ends the export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.numpy_helper
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from onnxscript import ir

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import DMO_SLOTS, INPUTS, OUTPUTS
from deeplight.engine.network.receptive import halo
from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact
from deeplight.engine.runtime.manifest import WEIGHTS
from deeplight.engine.runtime.onnx_alone import lights_alone
from deeplight.engine.runtime.onnx_suggested import in_parts
from deeplight.export import to_onnx
from deeplight.export.build import Exported
from deeplight.export.emulate import emulated
from deeplight.export.parity import parity_cases
from deeplight.export.to_tensorrt import prepared
from deeplight.export.trace import trace
from tests.export.conftest import SMALL


def test_axes_are_dynamic_and_named_by_the_contract(onnx_file: Path) -> None:
    proto = onnx.load(onnx_file)
    graph = proto.graph
    assert [v.name for v in graph.input] == [s.name for s in INPUTS]
    assert [v.name for v in graph.output] == [s.name for s in OUTPUTS]
    assert {e.domain: e.version for e in proto.opset_import}[""] == (22 if "bf16" in onnx_file.name else 20)
    for value, spec in zip([*graph.input, *graph.output], [*INPUTS, *OUTPUTS], strict=True):
        dims = value.type.tensor_type.shape.dim
        assert dims[1].dim_value == spec.channels
        assert all(dims[axis].dim_param for axis in ([0] if spec.hr is None else [0, 2, 3]))


def test_custom_operators_are_nodes_with_bodies(exported: Exported) -> None:
    proto = onnx.load(exported.path / "model.onnx")
    nodes = [n for n in proto.graph.node if n.domain == "deeplight"]
    assert [n.op_type for n in nodes].count("fuse") == 3 and [n.op_type for n in nodes].count("upsample") == 2
    assert {n.op_type for n in nodes} == {"align", "fuse", "upsample", "finest"}
    assert {f.name for f in proto.functions} == {n.op_type for n in nodes}
    for node in nodes:
        assert [a.s for a in node.attribute if a.name == "plugin_namespace"] == [b"deeplight"]


def test_what_scenes_without_layers_need_can_be_cut_out_of_it(onnx_file: Path) -> None:
    """Where the exporter began to write another graph, the engine would run the whole network and only be slower."""
    left = lights_alone(onnx_file.read_bytes(), ["ntl_hr", "isp", "interval"])
    assert left is not None
    proto = onnx.load_from_string(left)
    onnx.checker.check_model(proto, full_check=True)
    assert [v.name for v in proto.graph.input] == ["ntl", "ntl_valid", "psf", "limits"]
    assert not {"fuse", "align"} & {node.op_type for node in proto.graph.node}
    assert lights_alone(onnx_file.read_bytes(), ["ntl_hr", "offset"]) is None


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_cut_out_of_a_reduced_file_rounds_as_the_whole(
    exported_all: Exported, precision: str
) -> None:
    """1 + γ is float32 in both."""
    whole = (exported_all.path / f"model.{precision}.onnx").read_bytes()
    cut = lights_alone(whole, ["ntl_hr", "interval"])
    assert cut is not None
    inputs, _ = parity_cases()["very bright, NTL alone"]
    maps = []
    for model in (whole, cut):
        session = ort.InferenceSession(emulated(model, precision), providers=["CPUExecutionProvider"])
        feeds = {value.name: inputs[value.name] for value in session.get_inputs()}
        maps.append(session.run(["ntl_hr", "interval"], feeds))
    assert all(np.array_equal(a, b) for a, b in zip(*maps, strict=True))


def test_what_layers_suggest_can_be_cut_out_of_it(onnx_file: Path) -> None:
    """Where the exporter began to write another graph, stacks would compute it for every date and only be slower."""
    parts = in_parts(onnx_file.read_bytes(), ["ntl_hr"])
    assert parts is not None
    suggest, rest = (onnx.load_from_string(part) for part in parts)
    for proto in (suggest, rest):
        onnx.checker.check_model(proto, full_check=True)
    assert [v.name for v in suggest.graph.output] == ["suggested"]
    convolutions = [node for node in suggest.graph.node if node.op_type == "Conv"]
    assert {node.input[1].split(".")[1] for node in convolutions} == {"impervious", "lights"}
    left = {name for node in rest.graph.node for name in node.input}
    assert "suggested" in left and not any(name.startswith("localise.lights") for name in left)


def test_the_graph_has_no_grid_sample_and_no_resize(exported: Exported) -> None:
    proto = onnx.load(exported.path / "model.onnx")
    ops = {n.op_type for n in proto.graph.node} | {n.op_type for f in proto.functions for n in f.node}
    assert {"Conv", "DepthToSpace", "Gather"} <= ops
    assert not ops & {"GridSample", "Resize", "InstanceNormalization", "GlobalAveragePool", "Where"}


def test_metadata_is_complete(exported: Exported) -> None:
    proto = onnx.load(exported.path / "model.onnx")
    meta = {p.key.removeprefix("deeplight."): p.value for p in proto.metadata_props}
    weights = (exported.path / WEIGHTS).read_bytes()
    assert meta["halo_lr"] == str(halo(SMALL)) and meta["scale"] == "8" and meta["precision"] == "fp32"
    assert float(meta["receptive_field_lr"]) <= halo(SMALL)
    assert json.loads(meta["modalities"])["dmo"] == list(DMO_SLOTS)
    assert json.loads(meta["units"])["ntl_hr"] == "nW/cm²/sr" and json.loads(meta["units"])["dem"] == "m"
    assert meta["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert meta["configuration_sha256"] == load_artifact(exported.path).manifest.configuration_digest


def test_no_source_path_of_the_exporting_machine_is_left(exported: Exported) -> None:
    for path in exported.path.iterdir():
        data = path.read_bytes()
        assert str(Path(torch.__file__).parent).encode() not in data and b".py" not in data


def element_types(proto: onnx.ModelProto) -> tuple[list[onnx.NodeProto], dict[str, int]]:
    """The nodes, functions inlined, and the element type of every tensor."""
    flat = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(proto), data_prop=True).graph
    types = {t.name: t.data_type for t in flat.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*flat.input, *flat.value_info, *flat.output)}
    return list(flat.node), types


@pytest.fixture(
    params=["bf16, shipped", *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp16", "bf16"))]
)
def reduced_file(request: pytest.FixtureRequest) -> Path:
    precision, _, shipped = request.param.partition(", ")
    folder = load_artifact(DEFAULT_MODEL).path if shipped else request.getfixturevalue("exported_all").path
    return Path(folder) / f"model.{precision}.onnx"


def test_reduced_files_have_float32_islands(reduced_file: Path) -> None:
    """Offsets, gathers, logarithms, exponentials, the blur, the first convolution of the NTL, the sums of levels."""
    half = onnx.TensorProto.FLOAT16 if "fp16" in reduced_file.name else onnx.TensorProto.BFLOAT16
    nodes, types = element_types(onnx.load(reduced_file))
    single = onnx.TensorProto.FLOAT
    for node in nodes:
        if node.op_type in ("Log", "Exp", "Tanh", "Softmax", "Floor", "Reciprocal"):
            assert types[node.input[0]] == single, node.name
        if node.op_type == "Gather" and types[node.output[0]] in (single, half):
            assert types[node.input[0]] == single, "rows of pixels"
    blurs = [n for n in nodes if n.op_type == "MatMul"]
    assert len(blurs) > 20 and all({types[v] for v in (*n.input, *n.output)} == {single} for n in blurs)
    convolutions = [n for n in nodes if n.op_type == "Conv"]
    kept = {n.input[1] for n in convolutions if types[n.input[1]] == single}
    ends = [n for n in convolutions if n.output[0].split("__")[0] in ("factor", "beta", "residual32")]
    assert len(ends) == 7 and all(types[n.output[0]] == single for n in ends), "1 + γ, β, the last residual"
    assert "first.weight" in kept and any(name.startswith("localise.") for name in kept)
    assert sum(types[n.input[1]] == half for n in convolutions) > 20, "all others are reduced"
    assert {types[v] for v in ("ntl_hr", "isp", "offset", "interval")} == {single}
    assert not {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} - {half} & set(types.values())


@pytest.mark.parametrize(
    ("file", "plugins"),
    [
        ("model.onnx", False),
        *(pytest.param("model.fp16.onnx", plugins, marks=pytest.mark.slow) for plugins in (False, True)),
        pytest.param("model.onnx", True, marks=pytest.mark.slow),
    ],
)
def test_tensorrt_would_refuse_nothing_of_a_whole_export(
    request: pytest.FixtureRequest, file: str, plugins: bool
) -> None:
    exported = request.getfixturevalue("exported_all" if "fp16" in file else "exported")
    proto = onnx.load_from_string(prepared((exported.path / file).read_bytes(), plugins=plugins))
    ours = {n.op_type for n in proto.graph.node if n.domain == "deeplight"}
    assert ours <= {"fuse", "upsample", "refine"} and bool(ours) == plugins, "those that have a plugin alone"
    assert len({n.name for n in proto.graph.node}) == len(proto.graph.node) and not proto.functions


def test_a_map_spread_over_channels_is_a_convolution_of_the_same_numbers() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[B,1,H,W] x) => (float[B,5,H,W] y)
        { s = Sigmoid (x)  y = Mul (s, e) }"""
    before = onnx.parser.parse_model(text)
    weights = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)
    before.graph.initializer.append(onnx.numpy_helper.from_array(weights, "e"))
    model = ir.serde.deserialize_model(before)
    to_onnx.spread_by_convolution(model)
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after, full_check=True)
    assert [n.op_type for n in after.graph.node] == ["Sigmoid", "Conv"]
    x = np.linspace(-4, 4, 24, dtype=np.float32).reshape(2, 1, 3, 4)
    results = [
        ort.InferenceSession(p.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for p in (before, after)
    ]
    assert np.array_equal(*results)


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
