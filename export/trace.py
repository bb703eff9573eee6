"""DeepLightSR → traced graph, from which the ONNX files are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import INPUTS, SCALE, InputSpec, input_shape
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.precision import in_precision
from deeplight.kernels.dispatch import emit_operators


def example_inputs(batch: int, h: int, w: int) -> tuple[Tensor, ...]:
    """Return plausible inputs in the order of `spec.INPUTS`; batch ≥ 2 keeps the exporter from fixing the axis."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(input_shape(spec, batch, h, w), generator=generator) for spec in INPUTS)


def dynamic_shapes() -> dict[str, dict[int, Any]]:
    """Return the symbolic axes of each input: batch, h, w on the LR grid; 8h, 8w on the HR grid."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    h = torch.export.Dim("h", min=4, max=8192)
    w = torch.export.Dim("w", min=4, max=8192)

    def axes(spec: InputSpec) -> dict[int, Any]:
        if spec.hr is None:
            return {0: batch}
        return {0: batch, 2: SCALE * h, 3: SCALE * w} if spec.hr else {0: batch, 2: h, 3: w}

    return {spec.name: axes(spec) for spec in INPUTS}


def trace(model: DeepLightSR, precision: str) -> ExportedProgram:
    """Return the graph of the model in a precision, with dynamic batch, h and w and the operators deeplight::….

    Raises DeepLightError where an axis would be static.
    """
    try:
        with torch.no_grad(), emit_operators():
            return torch.export.export(
                in_precision(model, precision),
                example_inputs(2, 12, 16),
                dynamic_shapes=dynamic_shapes(),
                strict=False,
            )
    except (torch._dynamo.exc.UserError, ValueError) as e:
        raise DeepLightError(f"the model cannot be exported with dynamic shapes: {e}") from e
