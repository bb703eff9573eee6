"""The operators deeplight::… in ONNX: how a node is written, and the function body that defines it.

A body serves any width; what has float32 parts has a second body, for features of float16 or bfloat16. Names, order and
layout of the inputs are those of the kernels, so that a plugin can hand its pointers on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnx.parser
import torch
from onnx import FunctionProto, OperatorSetIdProto, TensorProto, helper, numpy_helper
from onnxscript import opset20 as op
from onnxscript.values import Op, Opset

from deeplight.export.bodies import BODIES, REDUCED, TENSORS
from deeplight.kernels.refine.reference import Radiance

DOMAIN, VERSION, OPSET = "deeplight", 2, 20
"""VERSION: of the operators' inputs. Plugins take nodes of this version alone; older graphs run from their bodies."""

BFLOAT16_OPSET = 22
"""The first opset with convolutions of bfloat16. Of what the files hold, it defines all else as OPSET does."""

NAMESPACE = "plugin_namespace"
"""Attribute by which TensorRT finds the plugin's creator; every node carries it."""

_REFINED = (
    "level",
    "isp_weight",
    "isp_bias",
    "embed",
    "weight",
    "bias",
    "residual_weight",
    "residual_bias",
)

SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "align": (("x", "offset"), ("out",), ()),
    "fuse": (
        (
            "main",
            "aux0",
            "aux1",
            "mask0",
            "mask1",
            "query_aux",
            "query_main",
            "query_bias",
            "film_weight",
            "film_bias",
        ),
        ("out",),
        (),
    ),
    "upsample": (("x", "weight", "bias"), ("out",), ()),
    "refine": (("x", *_REFINED), ("radiance", "isp"), ("unit", "gain", "top")),
    "refine_last": (
        ("y", "level", "weight", "bias", "residual_weight", "residual_bias"),
        ("radiance",),
        ("unit", "gain", "top"),
    ),
    "finest": (("x", "up_weight", "up_bias", *_REFINED), ("radiance", "isp"), ("unit", "gain", "top")),
}
"""Operator → inputs, outputs, float attributes. finest: `refine` of what `upsample` makes of x."""

_HEADER = '<domain: "deeplight", opset_import: ["" : 20]>'


def function(name: str, *, reduced: bool = False) -> FunctionProto:
    """Return the ONNX function that defines an operator, by the same formula as the operator's reference.py. reduced:
    for features of float16 or bfloat16."""
    inputs, outputs, attributes = SIGNATURES[name]
    bodies = REDUCED if reduced else BODIES
    text = f"{_HEADER} {name} <{', '.join((*attributes, NAMESPACE))}> ({', '.join(inputs)}) => "
    body = onnx.parser.parse_function(f"{text} ({', '.join(outputs)}) {{ {bodies[name]} }}")
    for constant, value in reversed(TENSORS.get(name, dict)().items()):
        tensor = numpy_helper.from_array(value, constant)
        body.node.insert(0, helper.make_node("Constant", [], [constant], value=tensor))
    for node in body.node:
        node.name = f"{name}_{node.output[0]}"
    return body


def attach(proto: onnx.ModelProto) -> None:
    """Give every operator that the graph uses its body. After export: the exporter inlines any that it sees."""
    used = {node.op_type for node in proto.graph.node if node.domain == DOMAIN}
    proto.functions.extend(function(name, reduced=is_reduced(proto)) for name in sorted(used))
    if used and DOMAIN not in {entry.domain for entry in proto.opset_import}:
        proto.opset_import.append(OperatorSetIdProto(domain=DOMAIN, version=VERSION))
    for entry in (*proto.opset_import, *(e for f in proto.functions for e in f.opset_import)):
        if entry.domain == "":
            entry.version = opset_of(proto)


def is_reduced(proto: onnx.ModelProto) -> bool:
    """Whether weights of the graph have a reduced type, so that its features have it too."""
    return any(t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for t in proto.graph.initializer)


def opset_of(proto: onnx.ModelProto) -> int:
    """The opset that the types of the graph need."""
    weights = {t.data_type for t in proto.graph.initializer}
    return BFLOAT16_OPSET if TensorProto.BFLOAT16 in weights else OPSET


def _operator(name: str) -> Op:
    inputs, outputs, attributes = SIGNATURES[name]
    schema = onnx.defs.OpSchema
    floats = [f"tensor({t})" for t in ("float", "float16", "bfloat16")]
    described = schema(
        name,
        DOMAIN,
        VERSION,
        inputs=[schema.FormalParameter(n, f"T{i}") for i, n in enumerate(inputs)],
        outputs=[schema.FormalParameter(n, f"U{i}") for i, n in enumerate(outputs)],
        type_constraints=[(f"T{i}", floats, "") for i in range(len(inputs))]
        + [(f"U{i}", floats, "") for i in range(len(outputs))],
        attributes=[schema.Attribute(n, schema.AttrType.FLOAT, "") for n in attributes]
        + [schema.Attribute(NAMESPACE, schema.AttrType.STRING, "", required=False)],
    )
    return Op(Opset(DOMAIN, VERSION), name, described)


def _align(raw: Any, gain: Any, bias: Any, mask: Any, offset: Any, whole: Any, *_: Any) -> Any:
    if any(t is not None for t in (gain, bias, mask, whole)) or offset is None:
        raise NotImplementedError("only features on the HR grid are aligned in a network")
    return _operator("align")(raw, offset, plugin_namespace=DOMAIN)


def _fuse(main: Any, aux: Sequence[Any], masks: Sequence[Any], *weights: Any) -> Any:
    if len(aux) != 2:
        raise NotImplementedError(f"the ONNX operator fuses two modalities, not {len(aux)}")
    return _operator("fuse")(main, *aux, *masks, *weights, plugin_namespace=DOMAIN)


def _upsample(x: Any, weight: Any, bias: Any, skip: Any) -> Any:
    out = _operator("upsample")(x, weight, bias, plugin_namespace=DOMAIN)
    return out if skip is None else op.Add(out, skip)


def _refine(
    x: Any,
    level: Any,
    isp_weight: Any,
    isp_bias: Any,
    embed: Any,
    weights: Sequence[Any],
    biases: Sequence[Any],
    residual_weight: Any,
    residual_bias: Any,
    unit: float,
    gain: float,
    ceiling: float,
) -> Any:
    values = {
        "unit": unit,
        "gain": gain,
        "top": Radiance(unit, gain, ceiling).top,
        "plugin_namespace": DOMAIN,
    }
    if len(weights) == 1:
        heads = (level, isp_weight, isp_bias, embed, weights[0], biases[0], residual_weight, residual_bias)
        before = x.producer()
        if before is not None and before.op_type == "upsample" and before.domain == DOMAIN:
            return _operator("finest")(*before.inputs, *heads, **values)
        return _operator("refine")(x, *heads, **values)
    isp = op.Sigmoid(op.Conv(x, isp_weight, isp_bias))
    around: Any = op.Constant(value_ints=[0, 2, 3])
    y = op.Add(x, op.Mul(isp, op.Unsqueeze(embed, around)))
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        y = op.Add(y, op.Relu(op.Conv(y, weight, bias, pads=[1, 1, 1, 1])))
    last = (weights[-1], biases[-1], residual_weight, residual_bias)
    return _operator("refine_last")(y, level, *last, **values), op.Cast(isp, to=1)


def apart(proto: onnx.ModelProto) -> None:
    """Write every `finest` as its `upsample` and `refine`, in place: these have kernels for a GPU, it has none."""
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        nodes += _two(node) if node.domain == DOMAIN and node.op_type == "finest" else [node]
    if len(nodes) == len(proto.graph.node):
        return
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    bodies = {f.name: f for f in proto.functions if f.name != "finest"}
    reduced = is_reduced(proto)
    bodies = {name: function(name, reduced=reduced) for name in ("upsample", "refine")} | bodies
    bodies = {name: FunctionProto.FromString(body.SerializeToString()) for name, body in bodies.items()}
    del proto.functions[:]
    proto.functions.extend(bodies.values())


def _two(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    wide = f"{node.output[0]}_upsampled"
    space = {NAMESPACE: DOMAIN}
    up = helper.make_node("upsample", node.input[:3], [wide], f"{node.name}_upsample", domain=DOMAIN, **space)
    refined = helper.make_node("refine", [wide, *node.input[3:]], node.output, node.name, domain=DOMAIN)
    refined.attribute.extend(node.attribute)
    return [up, refined]


def translations() -> dict[Any, Callable[..., Any]]:
    """Return, for torch.onnx.export, the function that writes the ONNX node of each operator of torch."""
    ops = torch.ops.deeplight
    return {
        ops.align.default: _align,
        ops.fuse.default: _fuse,
        ops.upsample.default: _upsample,
        ops.refine.default: _refine,
    }
