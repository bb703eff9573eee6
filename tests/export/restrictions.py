"""Small models that TensorRT refuses or takes: our rules and a real parser must say the same of each."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deeplight.export.operators import VERSION
from deeplight.export.tensorrt_rules import ONE_TYPE, REFUSED_TYPES
from deeplight.export.tensorrt_rules import REFUSED as OPERATORS

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
node = helper.make_node


def model_of(
    *nodes: onnx.NodeProto, inputs: dict[str, int], weights: dict[str, np.ndarray] | None = None
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, t, ["b", 8, "h", "w"]) for n, t in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("deeplight", VERSION)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


RELU = model_of(node("Relu", ["x"], ["y"]), inputs={"x": FLOAT})
SCALES = {"s": np.array([1, 1, 2, 2], np.float32)}
WEIGHT = {"w": np.zeros((8, 8, 3, 3), np.float32)}
_BETWEEN = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Where", "Clip", "GridSample"}
"""Operators of ONE_TYPE that do not take just two images, or are refused for more than their types."""

REFUSED: dict[str, tuple[bytes, str]] = {
    "antialiased Resize": (
        model_of(node("Resize", ["x", "", "s"], ["y"], antialias=1), inputs={"x": FLOAT}, weights=SCALES),
        "Resize .* antialiased",
    ),
    "GridSample of two types": (
        model_of(node("GridSample", ["x", "z"], ["y"]), inputs={"x": HALF, "z": FLOAT}),
        "GridSample .* mixes",
    ),
    "operator of ours without body": (
        model_of(node("warp", ["x"], ["y"], domain="deeplight"), inputs={"x": FLOAT}),
        "deeplight::warp .* neither a plugin nor a body",
    ),
    "weights that depend on an input": (
        model_of(node("Conv", ["x", "z"], ["y"]), inputs={"x": FLOAT, "z": FLOAT}),
        "Conv .* has weights that the graph computes",
    ),
    "weight in uint16": (
        model_of(
            node("Cast", ["w"], ["v"], to=FLOAT),
            node("Add", ["x", "v"], ["y"]),
            inputs={"x": FLOAT},
            weights={"w": np.zeros((1, 8, 1, 1), np.uint16)},
        ),
        "the weight w is UINT16",
    ),
    **{
        kind: (model_of(node(kind, ["x", "s"], ["y"]), inputs={"x": FLOAT, "s": TensorProto.INT64}), kind)
        for kind in sorted(OPERATORS)
    },
    **{
        f"{kind} of two types": (
            model_of(
                node(kind, ["x", "z"], ["y"], name="sum", **({"axis": 1} if kind == "Concat" else {})),
                inputs={"x": FLOAT, "z": HALF},
            ),
            rf"{kind} \(sum\) mixes FLOAT and FLOAT16",
        )
        for kind in sorted(ONE_TYPE - _BETWEEN)
    },
    **{
        f"input of {kind}": (
            model_of(node("Cast", ["x"], ["y"], to=FLOAT), inputs={"x": TensorProto.DataType.Value(kind)}),
            f"the input x is {kind}",
        )
        for kind in sorted(REFUSED_TYPES)
    },
    **{
        f"cast to {kind}": (
            model_of(node("Cast", ["x"], ["y"], to=TensorProto.DataType.Value(kind)), inputs={"x": FLOAT}),
            f"makes {kind}",
        )
        for kind in sorted(REFUSED_TYPES)
    },
}
"""From a name to a model with one thing that is refused, and to the words of our rules."""

TAKEN = {
    "Relu": RELU,
    "linear Resize": model_of(
        node("Resize", ["x", "", "s"], ["y"], mode="linear"), inputs={"x": FLOAT}, weights=SCALES
    ),
    "constant weights": model_of(node("Conv", ["x", "w"], ["y"]), inputs={"x": FLOAT}, weights=WEIGHT),
    "Pow of two types": model_of(node("Pow", ["x", "z"], ["y"]), inputs={"x": FLOAT, "z": HALF}),
}
