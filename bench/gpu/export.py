"""`deeplight-export` on this machine: its seconds, and whether what it wrote agrees with the model on the device."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from bench.gpu.stage import Rows, StageSettings, attempt

NEEDED = {name: name for name in ("click", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "safetensors")}
"""Module → the package that has it."""


def measure(settings: StageSettings) -> None:
    """Rows of export.json: the shipped weights as ONNX, with the comparisons that the command itself makes."""
    rows = Rows(settings, "export")
    if rows.lack(NEEDED):
        return
    out = settings.scratch / "exported"
    command = [
        sys.executable,
        "-m",
        "deeplight.export.cli",
        "deeplight-tiny",
        "--out",
        str(out),
        "--overwrite",
    ]
    attempt(rows, {"what": "deeplight-export"}, lambda: run([*command, "--format", "onnx"], settings.left))
    parity = out / "parity.json"
    if parity.is_file():
        rows.add(what="parity", found=json.loads(parity.read_text()))


def run(command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A command's seconds and exit status, and its last line on stderr where that is not 0; that it was left out where
    it takes longer than `seconds`, since a lack of time is no failure."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"left_out": f"`{' '.join(command[1:3])}` was ended after {seconds:.0f} s"}
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - begin, 2), "exit": done.returncode}
    if done.returncode:
        found["error"] = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    return found
