"""A float16 or bfloat16 ONNX file with the rounding of its types, on a CPU that has neither.

ONNX Runtime's CPU provider computes float16 graphs in float32 and drops the roundings between nodes, so it would pass
files that fail on a GPU; bfloat16 graphs it does not run. Here every float16 result is rounded to its 11 significant
bits, or every bfloat16 result to its 8, by float32 arithmetic, sums inside a node staying in float32 as on tensor
cores, and clipped to its range. Gradual underflow (below 6e-5) is not emulated.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend

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


class _Type(NamedTuple):
    """split: 2ⁿ + 1 (Dekker 1971): x·s − (x·s − x) keeps the upper 24 − n bits of a float32."""

    number: int
    split: float
    largest: float


EMULATED = {
    "fp16": _Type(TensorProto.FLOAT16, 2.0**13 + 1.0, 65504.0),
    "bf16": _Type(TensorProto.BFLOAT16, 2.0**16 + 1.0, 3.3895313892515355e38),
}
"""Precision → the type that is emulated."""


class Emulated(OnnxRuntimeBackend):
    """Runs the emulation of a reduced ONNX file of the artifact."""

    name: ClassVar[str] = "emulated"

    @classmethod
    def open(
        cls, artifact: Artifact, precision: str, device: str, threads: int, *, compiling: bool = True
    ) -> Self:
        """Return the backend that emulates the artifact's file of this precision, of EMULATED."""
        model = artifact.read_file(artifact.manifest.precisions[precision])
        return cls(emulated(model, precision), threads)


def emulated(model: bytes, precision: str) -> bytes:
    """`model` as a float32 graph that rounds wherever the original holds the type of the precision."""
    kind = EMULATED[precision]
    proto = onnx.shape_inference.infer_shapes(
        onnx.inliner.inline_local_functions(onnx.load_from_string(model)), data_prop=True
    )
    graph = proto.graph
    reduced = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == kind.number
    }
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        nodes += _rounded(node, kind, reduced)
    for tensor in graph.initializer:
        _widen(tensor, kind)
    constants = {"split_": kind.split, "lowest_": -kind.largest, "largest_": kind.largest}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items()
    )
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(proto.SerializeToString())


def _rounded(node: onnx.NodeProto, kind: _Type, reduced: set[str]) -> list[onnx.NodeProto]:
    """The node in float32, and after it the rounding of its reduced results."""
    if node.op_type == "CastLike":
        node = helper.make_node("Cast", [node.input[0]], list(node.output), to=TensorProto.FLOAT)
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == kind.number:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t"):
            _widen(attribute.t, kind)
    out = [node]
    if node.op_type in _EXACT:
        return out
    for i, name in enumerate(node.output):
        if name in reduced:
            raw, high, low, kept = (f"{name}_{part}_" for part in ("raw", "high", "low", "kept"))
            node.output[i] = raw
            out += [
                helper.make_node("Mul", [raw, "split_"], [high]),
                helper.make_node("Sub", [high, raw], [low]),
                helper.make_node("Sub", [high, low], [kept]),
                helper.make_node("Clip", [kept, "lowest_", "largest_"], [name]),
            ]
    return out


def _widen(tensor: TensorProto, kind: _Type) -> None:
    if tensor.data_type == kind.number:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        )
