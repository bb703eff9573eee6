"""A float16 ONNX file with the rounding that a GPU would do, on a CPU.

ONNX Runtime's CPU provider computes float16 graphs in float32 and drops the roundings between nodes, so it would pass
files that fail on a GPU. Here every float16 result is rounded to float16's 11 significant bits by float32
arithmetic, sums inside a node staying in float32 as on tensor cores, and clipped to its range.
Gradual underflow (below 6e-5) is not emulated.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend, open_session

_EXACT = frozenset(
    [
        *(
            "Transpose",
            "Slice",
            "Concat",
            "Relu",
            "Pad",
            "DepthToSpace",
            "Gather",
            "GatherND",
            "Split",
            "Unsqueeze",
        ),
        *("Squeeze", "Reshape", "Identity", "Clip", "Neg", "Max", "Min", "Flatten", "Expand"),
    ]
)
"""Operators whose results are among their inputs: nothing to round."""

_SPLIT = 8193.0
"""2¹³ + 1 (Dekker 1971): x·s − (x·s − x) keeps the upper 24 − 13 = 11 bits of a float32."""

LARGEST = 65504.0


class EmulatedHalf(OnnxRuntimeBackend):
    """Runs the emulation of the artifact's float16 file."""

    name: ClassVar[str] = "emulated GPU"

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Return the backend that emulates the artifact's file of this precision, "fp16"."""
        model = emulated(artifact.read(precision))
        return cls(model, open_session(model, threads))


def emulated(model: bytes) -> bytes:
    """`model` as a float32 graph that rounds wherever the original holds float16."""
    proto = onnx.shape_inference.infer_shapes(
        onnx.inliner.inline_local_functions(onnx.load_from_string(model)), data_prop=True
    )
    graph = proto.graph
    half = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        nodes += _rounded(node, half)
    for tensor in graph.initializer:
        _widen(tensor)
    constants = {"split_": _SPLIT, "lowest_": -LARGEST, "largest_": LARGEST}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items()
    )
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(proto.SerializeToString())


def _rounded(node: onnx.NodeProto, half: set[str]) -> list[onnx.NodeProto]:
    """The node in float32, and after it the rounding of its float16 results."""
    if node.op_type == "CastLike":
        node = helper.make_node("Cast", [node.input[0]], list(node.output), to=TensorProto.FLOAT)
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t"):
            _widen(attribute.t)
    out = [node]
    if node.op_type in _EXACT:
        return out
    for i, name in enumerate(node.output):
        if name in half:
            raw, high, low, kept = (f"{name}_{part}_" for part in ("raw", "high", "low", "kept"))
            node.output[i] = raw
            out += [
                helper.make_node("Mul", [raw, "split_"], [high]),
                helper.make_node("Sub", [high, raw], [low]),
                helper.make_node("Sub", [high, low], [kept]),
                helper.make_node("Clip", [kept, "lowest_", "largest_"], [name]),
            ]
    return out


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        )
