"""DeepLightSR → one ONNX file with dynamic batch, height and width."""

from __future__ import annotations

import io
from typing import Any

import onnx
import torch
from torch import Tensor

from deeplight.engine.errors import DeepLightError
from deeplight.engine.spec import INPUTS, OUTPUTS, SCALE, InputSpec, input_shape
from deeplight.train.model import DeepLightSR

OPSET = 20


def example_inputs(batch: int, h: int, w: int) -> tuple[Tensor, ...]:
    """Plausible inputs in the order of `spec.INPUTS`; batch ≥ 2 keeps the exporter from fixing the axis."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(input_shape(spec, batch, h, w), generator=generator) for spec in INPUTS)


def dynamic_shapes() -> dict[str, dict[int, Any]]:
    """Symbolic axes: batch, h, w on the LR grid; 8h, 8w on the HR grid."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    h = torch.export.Dim("h", min=4, max=8192)
    w = torch.export.Dim("w", min=4, max=8192)

    def axes(spec: InputSpec) -> dict[int, Any]:
        if spec.hr is None:
            return {0: batch}
        return {0: batch, 2: SCALE * h, 3: SCALE * w} if spec.hr else {0: batch, 2: h, 3: w}

    return {spec.name: axes(spec) for spec in INPUTS}


def to_onnx(model: DeepLightSR) -> bytes:
    """The model as serialised ONNX (fp32, opset 20). DeepLightError where an axis would be static.

    Two steps on purpose: torch.export raises where a dimension specialises; the ONNX exporter alone would write a
    static model without a word.
    """
    model = model.eval()
    with torch.no_grad():
        program = torch.export.export(
            model, example_inputs(2, 12, 16), dynamic_shapes=dynamic_shapes(), strict=False
        )
        exported = torch.onnx.export(
            program,
            input_names=[s.name for s in INPUTS],
            output_names=[s.name for s in OUTPUTS],
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert exported is not None
    proto = exported.model_proto
    _name_axes(proto)
    _strip_traces(proto)
    onnx.checker.check_model(proto, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(proto, buffer)
    return buffer.getvalue()


def _name_axes(proto: onnx.ModelProto) -> None:
    """Assert that every axis that must vary does; a static file would fail on the second tile shape."""
    for value, spec in zip([*proto.graph.input, *proto.graph.output], [*INPUTS, *OUTPUTS], strict=True):
        dims = value.type.tensor_type.shape.dim
        moving = [0] if spec.hr is None else [0, 2, 3]
        static = [axis for axis in moving if not dims[axis].dim_param]
        if static:
            raise DeepLightError(
                f"the ONNX export fixed axes {static} of {spec.name!r}; the model must be dynamic"
            )


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Drop the exporter's per-node metadata: source paths and stack traces do not belong into a shipped file."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
