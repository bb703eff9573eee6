"""An artifact as a model repository of NVIDIA Triton Inference Server: NAME/config.pbtxt and NAME/1/model.onnx."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, OUTPUTS, InputSpec
from deeplight.engine.runtime.artifact import Artifact, load_artifact

MODEL_FILE = "model.onnx"


def write_repository(artifact: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write one model, version 1, of each precision for ONNX Runtime. Returns `out`. Raises InputError where it is."""
    model = load_artifact(artifact)
    check_free(out, overwrite=overwrite)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        for precision in model.offered():
            name = model.manifest.name + ("" if precision == "fp32" else f"-{precision}")
            folder = temporary / "new" / name
            (folder / "1").mkdir(parents=True)
            (folder / "1" / MODEL_FILE).write_bytes(model.read(precision))
            (folder / "config.pbtxt").write_text(config(model, name), encoding="utf-8")
        if out.exists():
            out.rename(temporary / "old")
        (temporary / "new").rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise InputError where `out` is there and must not be replaced."""
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: use `overwrite=True` to replace it, or choose another `out`")


def config(model: Artifact, name: str) -> str:
    """Return the text of config.pbtxt. max_batch_size 0: the batch is an axis like any other, and the server does not
    join requests, whose results could then depend on their neighbours."""
    m = model.manifest
    parameters = {"scale": m.scale, "halo_lr": m.halo_lr, "min_lr": m.min_lr, "model_sha256": model.digest}
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        f"default_model_filename: {json.dumps(MODEL_FILE)}",
        "version_policy { latest { num_versions: 1 } }",
        *(_tensor("input", spec) for spec in INPUTS),
        *(_tensor("output", spec) for spec in OUTPUTS),
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, spec: InputSpec) -> str:
    space = "" if spec.hr is None else ", -1, -1"
    return f'{kind} {{ name: "{spec.name}" data_type: TYPE_FP32 dims: [ -1, {spec.channels}{space} ] }}'
