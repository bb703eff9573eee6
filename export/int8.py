"""Static int8 quantisation for CPUs (ONNX Runtime's QDQ form), kept only where it is faster and costs little."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import onnxscript.optimizer
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from deeplight.engine.runtime.compare import PSNR_TOLERANCE_DB, TOLERANCE, difference
from deeplight.export.parity import Case, Inputs
from deeplight.export.to_onnx import quietly

ISLANDS = ("localise", "filler", "cubic", "normalise", "residual", "isp", "query")
"""Parts of weights' names whose convolutions stay in float32: the offsets, and everything of one or two channels."""

_RUNS = 5


@dataclass(frozen=True)
class Quantised:
    """model: the ONNX file. kept: whether it is worth shipping. note: the measurement that decided."""

    model: bytes
    kept: bool
    note: str


class _Tiles(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, cases: Sequence[Case]) -> None:
        self._inputs = iter([case.inputs for case in cases])

    def get_next(self) -> Inputs | None:
        return next(self._inputs, None)


def quantise(model: bytes, cases: Sequence[Case]) -> Quantised:
    """Quantise the wide convolutions of `model`, calibrated on the cases' tiles, and measure both.

    The first case is timed; the loss is the largest drop in PSNR against the truth of any case.
    """
    plain = onnxscript.optimizer.optimize(onnx.inliner.inline_local_functions(onnx.load_from_string(model)))
    with quietly():
        quantised = _quantised(plain, cases)
    sessions = [_session(m) for m in (model, quantised)]
    seconds = [statistics.median(times) for times in _times(sessions, cases[0].inputs)]
    rows = [
        difference(c.name, "onnxruntime", "int8", sessions[1].run(["ntl_hr"], c.inputs)[0], c.want, c.truth)
        for c in cases
    ]
    loss = max((-r.psnr_change_db for r in rows if r.psnr_change_db is not None), default=0.0)
    worst = max(r.relative_l2 for r in rows)
    faster = seconds[0] / seconds[1]
    allowed = loss < PSNR_TOLERANCE_DB["int8"] and worst <= TOLERANCE["int8"]
    kept = faster > 1.0 and all(r.passed for r in rows) and allowed
    what = "kept" if kept else "left out"
    return Quantised(
        quantised,
        kept,
        f"int8 {what}: {faster:.2f}× the speed of fp32, {loss:.3f} dB lost, rel. L2 {worst:.1e}",
    )


def _quantised(proto: onnx.ModelProto, cases: Sequence[Case]) -> bytes:
    for node in proto.graph.node:
        node.name = node.name or f"node_{node.output[0]}"
    kept = [
        node.name
        for node in proto.graph.node
        if node.op_type == "Conv" and any(part in "".join(node.input[1:]) for part in ISLANDS)
    ]
    with tempfile.TemporaryDirectory(prefix="deeplight-int8-") as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        onnx.save_model(proto, source)
        quantize_static(
            str(source),
            str(target),
            _Tiles(cases),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=kept,
        )
        return target.read_bytes()


def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def _times(sessions: Sequence[ort.InferenceSession], inputs: Inputs) -> list[list[float]]:
    """CPU seconds of each run, the sessions in turn so that both meet the same machine."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(_RUNS):
        for session, record in zip(sessions, times, strict=True):
            start = time.process_time()
            session.run(["ntl_hr"], {k: np.asarray(v) for k, v in inputs.items()})
            record.append(time.process_time() - start)
    return times
