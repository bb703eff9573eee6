"""A converter that knows nothing of the network: every float32 of a graph becomes float16."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper


def _narrow(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def naive_half(model: bytes) -> bytes:
    """The fp32 file with float16 weights, constants and casts; float32 only at the inputs and outputs."""
    proto = onnx.inliner.inline_local_functions(onnx.load_from_string(model))
    graph = proto.graph
    for tensor in graph.initializer:
        _narrow(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.name == "value_float":
                value = numpy_helper.from_array(np.float16(min(attribute.f, 65504.0)))
                attribute.CopyFrom(helper.make_attribute("value", value))
            if attribute.HasField("t"):
                _narrow(attribute.t)
    inner = {v.name: f"{v.name}_half" for v in (*graph.input, *graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = inner.get(name, name)
    into = [helper.make_node("Cast", [v.name], [inner[v.name]], to=TensorProto.FLOAT16) for v in graph.input]
    back = [helper.make_node("Cast", [inner[v.name]], [v.name], to=TensorProto.FLOAT) for v in graph.output]
    nodes = [*into, *graph.node, *back]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(proto.SerializeToString())
