"""What TensorRT refuses in an ONNX graph, found without TensorRT. A list of problems, empty where there is none.

Every rule was compared with the parser of TensorRT for RTX 1.7, which refuses the same (tests/export/restrictions.py),
but for one: it takes a convolution's weights also where they are computed from constants, as older parsers did not.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

REFUSED = frozenset(
    [
        *(
            "AffineGrid",
            "DeformConv",
            "BitShift",
            "Det",
            "MaxUnpool",
            "Multinomial",
            "StringNormalizer",
            "TfIdfVectorizer",
        ),
        *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SplitToSequence"),
    ]
)
REFUSED_TYPES = frozenset(("UINT16", "UINT32", "UINT64", "INT16", "STRING", "COMPLEX64", "COMPLEX128"))
ONE_TYPE = frozenset(
    [
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Min",
            "Max",
            "Sum",
            "Mean",
            "PRelu",
            "Concat",
            "Where",
            "Equal",
            "Less",
        ),
        *("Greater", "MatMul", "Gemm", "Conv", "ConvTranspose", "GridSample", "Clip"),
    ]
)
"""Operators whose floating-point inputs must be of one type."""

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))


def problems(proto: onnx.ModelProto, plugins: frozenset[str] = frozenset()) -> list[str]:
    """Return a sentence for each thing that TensorRT refuses. plugins: operators deeplight::… that have a creator."""
    bodies = {(f.domain, f.name) for f in proto.functions}
    found = []
    types = _types(proto)
    for value in proto.graph.input:
        kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if kind in REFUSED_TYPES:
            found.append(f"the input {value.name} is {kind}, which TensorRT does not take: cast it before")
    for tensor in proto.graph.initializer:
        kind = TensorProto.DataType.Name(tensor.data_type)
        if kind in REFUSED_TYPES:
            found.append(f"the weight {tensor.name} is {kind}, which TensorRT does not take")
    for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node)):
        name = node.name or (node.output[0] if node.output else node.op_type)
        if node.domain not in ("", "ai.onnx"):
            if node.op_type not in plugins and (node.domain, node.op_type) not in bodies:
                found.append(f"{node.domain}::{node.op_type} ({name}) has neither a plugin nor a body")
        elif node.op_type in REFUSED:
            found.append(f"{node.op_type} ({name}) is an operator that TensorRT does not have")
        elif node.op_type == "Resize" and _integer(node, "antialias"):
            found.append(f"Resize ({name}) is antialiased, which TensorRT does not do")
        found += _cast(node, name) + _mixed(node, name, types)
    return found + _computed_weights(proto)


def _computed_weights(proto: onnx.ModelProto) -> list[str]:
    """TensorRT took a convolution's weights from an initializer or a constant only; to fold costs nothing."""
    constant = {t.name for t in proto.graph.initializer}
    constant |= {n.output[0] for n in proto.graph.node if n.op_type == "Constant"}
    return [
        f"{node.op_type} ({node.name or node.output[0]}) has weights that the graph computes: fold constants"
        for node in proto.graph.node
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] not in constant
    ]


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Name → element type, as far as it can be inferred."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _cast(node: NodeProto, name: str) -> list[str]:
    kind = TensorProto.DataType.Name(_integer(node, "to")) if node.op_type == "Cast" else ""
    return [f"Cast ({name}) makes {kind}, which TensorRT does not have"] if kind in REFUSED_TYPES else []


def _mixed(node: NodeProto, name: str, types: Mapping[str, int]) -> list[str]:
    if node.op_type not in ONE_TYPE or node.domain not in ("", "ai.onnx"):
        return []
    kinds = sorted({types[i] for i in node.input if types.get(i) in _FLOATS})
    if len(kinds) < 2:
        return []
    names = " and ".join(TensorProto.DataType.Name(k) for k in kinds)
    return [f"{node.op_type} ({name}) mixes {names}; a strongly typed network needs a Cast"]


def _integer(node: NodeProto, attribute: str) -> int:
    return next((a.i for a in node.attribute if a.name == attribute and a.type == AttributeProto.INT), 0)
