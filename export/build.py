"""Checkpoint → artifact, in the order that makes a wrong artifact impossible: export, run, compare, then rename."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from deeplight.engine.artifact import Artifact, Manifest, load_artifact, write_artifact
from deeplight.engine.backends import BACKENDS, open_backend
from deeplight.engine.errors import DeepLightError
from deeplight.engine.spec import INPUTS, input_shape
from deeplight.export.parity import ParityRow, compare, report, table
from deeplight.export.to_onnx import to_onnx
from deeplight.train.model import DeepLightSR
from deeplight.train.receptive import halo, receptive_field

ONNX_FILE = {"fp32": "model.onnx"}
"""File name of each precision that can be exported."""

MEMORY_PROBE_LR = 128


def export_artifact(
    model: DeepLightSR, card: dict[str, Any], out: Path, *, name: str | None = None, overwrite: bool = False
) -> tuple[Path, list[ParityRow]]:
    """Write the artifact directory `out` (manifest.json, model.onnx, parity.json) and return it with the parity rows.

    model: in eval mode. card: the checkpoint's card. Raises DeepLightError, and leaves nothing, where parity fails.
    """
    manifest = _manifest(model, card, name or f"deeplight-{model.config.preset}")
    files = {ONNX_FILE["fp32"]: to_onnx(model)}
    with tempfile.TemporaryDirectory(prefix="deeplight-export-") as scratch:
        draft = load_artifact(write_artifact(Path(scratch) / "draft", manifest, files))
        rows = _parity(model, draft)
        if not all(row.passed for row in rows):
            raise DeepLightError(
                f"the exported model does not match the checkpoint, so no artifact is written:\n{table(rows)}"
            )
        manifest = replace(manifest, bytes_per_lr_px=_bytes_per_lr_px(draft))
    files["parity.json"] = (json.dumps(report(rows), indent=1) + "\n").encode()
    return write_artifact(out, manifest, files, overwrite=overwrite), rows


def _manifest(model: DeepLightSR, card: dict[str, Any], name: str) -> Manifest:
    return Manifest(
        name=name,
        preset=model.config.preset,
        receptive_field_lr=receptive_field(model.config),
        halo_lr=halo(model.config),
        precisions=dict(ONNX_FILE),
        normalisation=asdict(model.config.normalisation),
        training={k: card[k] for k in ("step", "training", "data", "history") if k in card}
        | {"parameters": sum(p.numel() for p in model.parameters())},
        producer={p: _version(p) for p in ("deeplight", "torch", "onnx", "onnxscript")},
        min_lr=4,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _parity(model: DeepLightSR, artifact: Artifact) -> list[ParityRow]:
    """Rows for every precision of the artifact on every backend of this installation."""
    rows = []
    for precision in artifact.manifest.precisions:
        for name in BACKENDS:
            with open_backend(name, artifact, precision=precision) as backend:
                rows += compare(model, backend, precision)
    return rows


def _bytes_per_lr_px(artifact: Artifact) -> int:
    """Peak working memory of one run per LR pixel of the tile, in a process of its own so that nothing else counts."""
    command = [sys.executable, "-m", "deeplight.export.build", str(artifact.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DeepLightError(f"measuring the model's memory failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def _probe(path: str) -> int:
    with open_backend("onnxruntime", load_artifact(path)) as backend:
        backend.run({s.name: np.zeros(input_shape(s, 1, 8, 8), np.float32) for s in INPUTS})
        before = _peak_kib()
        side = MEMORY_PROBE_LR
        backend.run({s.name: np.zeros(input_shape(s, 1, side, side), np.float32) for s in INPUTS})
        after = _peak_kib()
    return (after - before) * 1024 // (side * side)


def _peak_kib() -> int:
    """Peak resident memory of this process in KiB, or 0 where the system does not tell.

    Not getrusage: its figure survives exec and so starts at the parent's.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    print(_probe(sys.argv[1]))
