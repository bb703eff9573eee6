"""float32 matrix products written as products and sums, for Turing: TensorRT for RTX has no such product there.

Of this network they are short (at most 16 terms), so nothing else is slower for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from deeplight.engine.core.errors import DeepLightError

_AXES = {name: np.array([axis], np.int64) for name, axis in (("last", -1), ("middle", -2), ("third", -3))}


def without_products(model: bytes) -> bytes:
    """Return the serialised model with every float32 MatMul and Gemm replaced: A·B = Σₖ Aₘₖ Bₖₙ, in another order.

    Raises DeepLightError for a Gemm in a form that our exporter does not write.
    """
    proto = onnx.load_from_string(model)
    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {t.name: t.data_type for t in graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        wide = types.get(node.output[0]) == TensorProto.FLOAT
        nodes += _REPLACEMENTS[node.op_type](node) if wide and node.op_type in _REPLACEMENTS else [node]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(numpy_helper.from_array(a, f"turing_{n}") for n, a in _AXES.items())
    return bytes(proto.SerializeToString())


def _product(node: NodeProto) -> list[NodeProto]:
    """(…, m, k) by (…, k, n): both to (…, m, k, n), multiplied, summed over k."""
    a, b = node.input
    return [
        _part(node, "Unsqueeze", "a", [a, "turing_last"]),
        _part(node, "Unsqueeze", "b", [b, "turing_third"]),
        *_summed(node, [_name(node, "a"), _name(node, "b")], "turing_middle", node.output[0]),
    ]


def _linear(node: NodeProto) -> list[NodeProto]:
    """(b, k) by the transpose of (n, k), plus (n,): a layer as PyTorch's exporter writes it."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    form = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0} | given
    if form != {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0} or len(node.input) != 3:
        raise DeepLightError(f"the node {node.name} is a Gemm of a form that is not expected: {given}")
    a, weight, bias = node.input
    return [
        _part(node, "Unsqueeze", "a", [a, "turing_middle"]),
        *_summed(node, [_name(node, "a"), weight], "turing_last", _name(node, "sum")),
        helper.make_node("Add", [_name(node, "sum"), bias], list(node.output), name=_name(node, "bias")),
    ]


def _summed(node: NodeProto, factors: list[str], axis: str, output: str) -> list[NodeProto]:
    total = helper.make_node(
        "ReduceSum", [_name(node, "products"), axis], [output], _name(node, "total"), keepdims=0
    )
    return [_part(node, "Mul", "products", factors), total]


def _part(node: NodeProto, kind: str, part: str, inputs: list[str]) -> NodeProto:
    return helper.make_node(kind, inputs, [_name(node, part)], name=_name(node, part))


def _name(node: NodeProto, part: str) -> str:
    return f"{node.output[0]}_{part}"


_REPLACEMENTS: Mapping[str, Callable[[NodeProto], list[NodeProto]]] = {"MatMul": _product, "Gemm": _linear}
