"""Checkpoint → artifact, in the order that makes a wrong artifact impossible: export, run, compare, then rename."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo, receptive_field
from deeplight.engine.runtime.artifact import Artifact, Manifest, check_target, load_artifact, write_artifact
from deeplight.engine.runtime.backends import open_backend
from deeplight.engine.runtime.compare import Difference
from deeplight.engine.runtime.plans import FOLDER
from deeplight.export.parity import Case, cases_of, check_parity, compare_all, report
from deeplight.export.program import to_pt2, to_safetensors, trace
from deeplight.export.to_onnx import metadata, to_onnx
from deeplight.export.to_tensorrt import PlanOptions, build_plans, keep_timings

ONNX_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
PROGRAM_FILES = {"fp32": "program.pt2", "fp16": "program.fp16.pt2", "bf16": "program.bf16.pt2"}
"""Precisions of each kind and their file names."""

_LOG = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
MEMORY_PROBE_LR = 128


@dataclass(frozen=True)
class Request:
    """What to export. formats: of "onnx", "torch" and "tensorrt"; the ONNX file in fp32 is always written, since it
    is the reference. data: folder with the user's own scene, for parity. plans: how TensorRT builds.
    """

    formats: tuple[str, ...] = ("onnx",)
    precisions: tuple[str, ...] = ("fp32",)
    data: Path | None = None
    plans: PlanOptions = field(default_factory=PlanOptions)

    def onnx(self) -> tuple[str, ...]:
        """Precisions of the ONNX files."""
        return (
            "fp32",
            *(p for p in self.precisions if p in ONNX_FILES and p != "fp32" and "onnx" in self.formats),
        )

    def programs(self) -> tuple[str, ...]:
        """Precisions of the torch programs; fp32 is among them, for tiles that fail in another one."""
        wanted = [p for p in self.precisions if p in PROGRAM_FILES and p != "fp32"]
        return ("fp32", *wanted) if "torch" in self.formats else ()

    def check(self, out: Path, *, overwrite: bool = False) -> None:
        """Raise InputError for a precision that none of the formats has, ArtifactError where `out` is not free."""
        for precision in self.precisions:
            if precision not in (*self.onnx(), *self.programs()):
                home = "torch" if precision in PROGRAM_FILES else "onnx"
                raise InputError(f"no file would hold {precision}: add {home} to --format, or leave it out")
        check_target(out, overwrite=overwrite)


@dataclass(frozen=True)
class Exported:
    """path: the artifact. rows: of parity. notes: what was left out, and why."""

    path: Path
    rows: list[Difference]
    notes: list[str]


def export_artifact(
    model: DeepLightSR,
    card: dict[str, Any],
    out: Path,
    request: Request | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the artifact directory `out`: manifest.json, model files, parity.json.

    model: in eval mode. card: the checkpoint's card. Raises ParityError, and leaves nothing, where parity fails;
    InputError for a request that no file would meet, ArtifactError where `out` cannot be written.
    """
    request = request or Request()
    request.check(out, overwrite=overwrite)
    manifest = _manifest(model, card, name or f"deeplight-{model.config.preset}")
    cases = cases_of(model, request.data, manifest.halo_lr)
    files, manifest = _files(model, manifest, request)
    notes: list[str] = []
    if "int8" in request.precisions:
        manifest, note = _add_int8(files, manifest, cases)
        notes.append(note)
    with tempfile.TemporaryDirectory(prefix="deeplight-export-") as scratch:
        draft = load_artifact(write_artifact(Path(scratch) / "draft", manifest, files))
        if "tensorrt" in request.formats:
            _LOG.info("building TensorRT plans, which takes minutes")
            keep_timings(out / FOLDER, draft.path / FOLDER)
            build_plans(draft.path, request.precisions, request.plans)
        rows, absent = compare_all(draft, cases)
        check_parity(rows)
        manifest = replace(manifest, bytes_per_lr_px=_bytes_per_lr_px(draft))
        notes += [f"not compared: {reason}" for reason in absent]
        files["parity.json"] = (json.dumps(report(rows, notes), indent=1) + "\n").encode()
        path = write_artifact(out, manifest, files, overwrite=overwrite)
        if "tensorrt" in request.formats:
            whole = shutil.copytree(draft.path / FOLDER, path / f".{FOLDER}.tmp")
            whole.rename(path / FOLDER)
    return Exported(path, rows, notes)


def _files(model: DeepLightSR, manifest: Manifest, request: Request) -> tuple[dict[str, bytes], Manifest]:
    """Everything but int8, and the manifest that names it. Each precision is traced once for both kinds of file."""
    files: dict[str, bytes] = {}
    weights = to_safetensors(model)
    digest = hashlib.sha256(weights).hexdigest()
    onnx = [p for p in request.onnx() if p != "int8"]
    for precision in dict.fromkeys((*onnx, *request.programs())):
        _LOG.info("exporting %s", precision)
        program = trace(model, precision)
        if precision in request.programs():
            files[PROGRAM_FILES[precision]] = to_pt2(program)
            files[WEIGHTS_FILE] = weights
        if precision in onnx:
            files[ONNX_FILES[precision]] = to_onnx(program, metadata(manifest, precision, digest))
    return files, replace(
        manifest,
        precisions={p: ONNX_FILES[p] for p in onnx},
        programs={p: PROGRAM_FILES[p] for p in request.programs()},
        weights=WEIGHTS_FILE if request.programs() else "",
    )


def _add_int8(files: dict[str, bytes], manifest: Manifest, cases: Sequence[Case]) -> tuple[Manifest, str]:
    """Add the quantised file where it is worth it; else only the note that says why not."""
    from deeplight.export.int8 import quantise

    result = quantise(files[ONNX_FILES["fp32"]], cases)
    if result.kept:
        files[ONNX_FILES["int8"]] = result.model
        manifest = replace(manifest, precisions={**manifest.precisions, "int8": ONNX_FILES["int8"]})
    return manifest, result.note


def _manifest(model: DeepLightSR, card: dict[str, Any], name: str) -> Manifest:
    return Manifest(
        name=name,
        preset=model.config.preset,
        receptive_field_lr=receptive_field(model.config),
        halo_lr=halo(model.config),
        precisions={"fp32": ONNX_FILES["fp32"]},
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
