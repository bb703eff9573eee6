"""A tiny ONNX model whose result is known in closed form, wrapped as an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplight.engine.core.spec import INPUTS, OUTPUTS, InputSpec
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.runtime.artifact import write_artifact
from deeplight.engine.runtime.manifest import WEIGHTS, Manifest

if TYPE_CHECKING:
    import onnx

DMO_WEIGHT, DEM_WEIGHT, BLUR = 2.0, 0.001, 2
"""Weights of the auxiliary terms; radius in LR pixels of the box blur, so the receptive field is known."""
SIDE = 2 * BLUR + 1


def _axes(spec: InputSpec) -> list[object]:
    if spec.hr is None:
        return ["b", spec.channels]
    return ["b", spec.channels, "H", "W"] if spec.hr else ["b", spec.channels, "h", "w"]


CONSTANTS = {
    "box": np.full((1, 1, SIDE, SIDE), 1 / SIDE**2, np.float32),
    "scales": np.array([1, 1, 8, 8], np.float32),
    "zero": np.float32(0),
    "w_dmo": np.float32(DMO_WEIGHT),
    "w_dem": np.float32(DEM_WEIGHT),
    "axes": np.array([2, 3], np.int64),
    "channel": np.array([1], np.int64),
    "half": np.float32(0.5),
    "two": np.float32(2),
    "rows_fwhm": np.array([[1], [0]], np.float32),
    "noise_level": np.array([[0], [1]], np.float32),
}
NEAREST = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
Node = tuple[str, tuple[str, ...], str, dict[str, object]]
"""The nodes of the graph: operator, inputs, output, attributes."""
RADIANCE: tuple[Node, ...] = (
    ("Max", ("ntl", "zero"), "light", {}),
    ("Mul", ("light", "ntl_valid"), "lit", {}),
    ("Conv", ("lit", "box"), "soft", {"pads": [BLUR] * 4}),
    ("Resize", ("soft", "", "scales"), "up", NEAREST),
    ("Unsqueeze", ("dmo_bands", "axes"), "bands4", {}),
    ("Mul", ("dmo", "bands4"), "dmo_on", {}),
    ("ReduceMean", ("dmo_on", "channel"), "dmo_mean", {"keepdims": 1}),
    ("Mul", ("dmo_mean", "dmo_valid"), "dmo_seen", {}),
    ("Mul", ("dmo_seen", "w_dmo"), "dmo_term", {}),
    ("Abs", ("dem",), "height", {}),
    ("Mul", ("height", "dem_valid"), "dem_seen", {}),
    ("Mul", ("dem_seen", "w_dem"), "dem_term", {}),
    ("Add", ("up", "dmo_term"), "with_dmo", {}),
    ("Add", ("with_dmo", "dem_term"), "ntl_hr", {}),
)
OTHER_BANDS: tuple[Node, ...] = (
    ("Sigmoid", ("dmo_mean",), "isp", {}),
    ("Concat", ("ntl", "ntl_valid"), "offset", {"axis": 1}),
    ("MatMul", ("psf", "rows_fwhm"), "blur", {}),
    ("MatMul", ("limits", "noise_level"), "noise", {}),
    ("Add", ("blur", "noise"), "told", {}),
    ("Unsqueeze", ("told", "axes"), "told4", {}),
    ("Mul", ("ntl_hr", "half"), "low", {}),
    ("Mul", ("ntl_hr", "two"), "twice", {}),
    ("Add", ("twice", "told4"), "high", {}),
    ("Concat", ("low", "high"), "interval", {"axis": 1}),
)


def onnx_bytes(doc: str = "", notes: Mapping[str, str] | None = None) -> bytes:
    """ntl_hr = up(box(max(ntl, 0))) + DMO_WEIGHT · mean(dmo·bands)·dmo_valid + DEM_WEIGHT·|dem|·dem_valid.

    doc: a text in the file that changes its bytes. notes: its metadata.
    up is nearest ×8; isp, offset and interval are arbitrary functions of the inputs, for tests of extra bands:
    interval is ntl_hr / 2 and 2 · ntl_hr + psf[0] + limits[1].
    """
    import onnx
    from onnx import helper

    model = helper.make_model(
        _graph(), opset_imports=[helper.make_opsetid("", 20)], ir_version=10, doc_string=doc
    )
    helper.set_model_props(model, dict(notes or {}))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _graph() -> onnx.GraphProto:
    from onnx import TensorProto, helper, numpy_helper

    def info(specs: tuple[InputSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, _axes(s)) for s in specs]

    nodes = [
        helper.make_node(op, inputs, [out], **attributes)
        for op, inputs, out, attributes in RADIANCE + OTHER_BANDS
    ]
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items()]
    return helper.make_graph(nodes, "analytic", info(INPUTS), info(OUTPUTS), constants)


def manifest(**changes: object) -> Manifest:
    """The manifest of the analytic model. changes: fields with other values."""
    fields: dict[str, object] = {
        "name": "analytic",
        "configuration": ModelConfig(preset="test").to_dict(),
        "receptive_field_lr": float(BLUR),
        "halo_lr": BLUR,
        "precisions": {"fp32": "model.onnx"},
        "bytes_per_lr_px": 20_000,
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def write_analytic(directory: Path) -> Path:
    """Write the model folder."""
    return write_model(directory, onnx_bytes())


def write_model(directory: Path, model: bytes, **changes: object) -> Path:
    """Write a model folder with an ONNX file and weights that cannot be run. changes: fields of the manifest."""
    files = {"model.onnx": model, WEIGHTS: weights()}
    return write_artifact(directory, manifest(**changes), files)


def weights() -> bytes:
    """A safetensors file without any layer."""
    from safetensors.numpy import save

    return bytes(save({"box": np.ones((1, 1, SIDE, SIDE), np.float32)}))


def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The same formula in NumPy, float64: (H, W) for inputs of batch 1."""
    a = {k: v[0].astype(np.float64) for k, v in inputs.items()}
    lit = np.pad(np.maximum(a["ntl"][0], 0) * a["ntl_valid"][0], BLUR)
    h, w = a["ntl"].shape[1:]
    soft = sum(lit[i : i + h, j : j + w] for i in range(SIDE) for j in range(SIDE))
    up = np.repeat(np.repeat(soft / SIDE**2, 8, 0), 8, 1)
    dmo = (a["dmo"] * a["dmo_bands"][:, None, None]).mean(0) * a["dmo_valid"][0]
    return np.asarray(up + DMO_WEIGHT * dmo + DEM_WEIGHT * np.abs(a["dem"][0]) * a["dem_valid"][0])
