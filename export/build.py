"""Training run → model folder, in the order that makes a wrong one impossible: export, run, compare, then rename."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.core.wording import mention
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.weights import to_safetensors
from deeplight.engine.runtime.artifact import Artifact, Draft, check_target, load_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.compare import Difference
from deeplight.engine.runtime.manifest import OPENVINO_ALONE, WEIGHTS, Manifest
from deeplight.engine.runtime.models import manifest_of
from deeplight.engine.runtime.plans import FOLDER
from deeplight.export.parity import cases_of, check_measured, check_parity, compare_all, report
from deeplight.export.to_onnx import metadata, to_onnx
from deeplight.export.to_tensorrt import PlanOptions, build_plans, keep_timings
from deeplight.export.to_tensorrt_rtx import put_engines
from deeplight.export.trace import trace

ONNX_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx"}
"""Precisions of the ONNX files and their names."""

_LOG = logging.getLogger(__name__)

MEMORY_PROBE_LR = 128


@dataclass(frozen=True)
class Request:
    """What to export beside the weights. formats: "onnx", "tensorrt", "tensorrt-rtx"; the ONNX file in fp32 is always
    written. precisions: of ONNX_FILES. data: folder with the user's own scene, for parity. plans: how TensorRT builds.
    """

    formats: tuple[str, ...] = ("onnx",)
    precisions: tuple[str, ...] = ("fp32",)
    data: Path | None = None
    plans: PlanOptions = field(default_factory=PlanOptions)

    def onnx(self) -> dict[str, str]:
        """The name of the ONNX file of each precision."""
        return {p: name for p, name in ONNX_FILES.items() if p == "fp32" or p in self.precisions}

    def tile(self) -> tuple[int, int, int] | None:
        """Batch and LR sides of the tiles that plans are tuned for: one of that size is compared too."""
        return self.plans.tile if {"tensorrt", "tensorrt-rtx"} & set(self.formats) else None

    def for_tensorrt(self) -> tuple[str, ...]:
        """The precisions that plans and engines are built in."""
        return tuple(p for p in self.precisions if p not in OPENVINO_ALONE)

    def check(self, out: Path, *, overwrite: bool = False) -> None:
        """Raise ArtifactError where `out` is not free, and InputError where nothing could be built for a format."""
        if self.tile() is not None and not self.for_tensorrt():
            raise InputError(
                f"{mention(precisions=','.join(self.precisions))} makes a file for OpenVINO, of which TensorRT builds "
                "nothing: add fp32 or fp16"
            )
        check_target(out, overwrite=overwrite)


@dataclass(frozen=True)
class Exported:
    """path: the model folder. rows: of parity. notes: what was not compared, and why."""

    path: Path
    rows: list[Difference]
    notes: list[str]


def export_artifact(
    model: DeepLightSR,
    training: Mapping[str, Any],
    out: Path,
    request: Request | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the model folder `out`: manifest.json, weights, ONNX files, plans, engines, parity.json.

    model: in eval mode. training: the record of its run. Raises ParityError, and leaves nothing, where parity fails,
    DeepLightError where a plan could not be compared on this GPU, ArtifactError where `out` cannot be written.
    """
    request = request or Request()
    request.check(out, overwrite=overwrite)
    manifest = manifest_of(model, training, name=name, made_with=("onnx", "onnxscript"))
    cases = cases_of(model, request.data, manifest.halo_lr, request.tile())
    with Draft(out, overwrite=overwrite) as draft:
        manifest = _put_files(draft, model, manifest, request)
        if "tensorrt-rtx" in request.formats:
            manifest = replace(manifest, engines=put_engines(draft, request.onnx(), request.for_tensorrt()))
        artifact = draft.open(manifest)
        if "tensorrt" in request.formats:
            _LOG.info("building TensorRT plans, which takes minutes")
            keep_timings(out / FOLDER, draft.folder / FOLDER)
            build_plans(draft.folder, request.for_tensorrt(), request.plans)
        rows, absent = compare_all(artifact, cases)
        check_parity(rows)
        if "tensorrt" in request.formats:
            check_measured(rows, absent, request.for_tensorrt())
        notes = [f"not compared: {reason}" for reason in absent]
        draft.put("parity.json", (json.dumps(report(rows, notes), indent=1) + "\n").encode())
        path = draft.commit(replace(manifest, bytes_per_lr_px=_bytes_per_lr_px(artifact)))
    return Exported(path, rows, notes)


def _put_files(draft: Draft, model: DeepLightSR, manifest: Manifest, request: Request) -> Manifest:
    """Weights and ONNX files into the draft; the manifest that names them."""
    manifest = replace(manifest, precisions=request.onnx())
    draft.put(WEIGHTS, to_safetensors(model))
    digest = draft.checksum(WEIGHTS)
    for precision, file in manifest.precisions.items():
        _LOG.info("exporting %s", precision)
        draft.put(file, to_onnx(trace(model, precision), metadata(manifest, precision, digest)))
    return manifest


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
