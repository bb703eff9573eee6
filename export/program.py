"""DeepLightSR → torch.export program, the common root of the ONNX files and of program.pt2."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.export import ExportedProgram

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import INPUTS, SCALE, InputSpec, input_shape
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.precision import in_precision
from deeplight.engine.runtime.program_scan import MODEL, WEIGHT_FILE, check_program
from deeplight.kernels.dispatch import emit_operators


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


def trace(model: DeepLightSR, precision: str) -> ExportedProgram:
    """The graph of the model in a precision, with dynamic batch, h and w and the operators deeplight::….

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


def to_pt2(program: ExportedProgram) -> bytes:
    """The program as program.pt2 without weights, example inputs, stack traces or pickles.

    The loader puts weights from `to_safetensors` in (engine/runtime/backends/torch_backend.py).
    """
    kept, buffer = program.example_inputs, io.BytesIO()
    program.example_inputs = None
    torch.export.save(program, buffer)
    program.example_inputs = kept
    slim = io.BytesIO()
    with zipfile.ZipFile(buffer) as full, zipfile.ZipFile(slim, "w", zipfile.ZIP_STORED) as out:
        for entry in full.infolist():
            if not WEIGHT_FILE.match(entry.filename):
                content = full.read(entry)
                # a fixed date: the same program gives the same bytes
                plain = zipfile.ZipInfo(entry.filename)
                out.writestr(plain, _bare(content) if MODEL.match(entry.filename) else content)
    check_program(slim.getvalue())
    return slim.getvalue()


def _bare(text: bytes) -> bytes:
    """The graph without guards (the backend checks its inputs) and without metadata (paths, stack traces)."""
    model = json.loads(text)
    model["guards_code"] = []
    for node in model["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return json.dumps(model, separators=(",", ":")).encode()


def to_safetensors(model: DeepLightSR) -> bytes:
    """The weights and buffers in float32; every precision's program takes them from here."""
    return save({name: t.detach().float().contiguous().cpu() for name, t in model.state_dict().items()})
