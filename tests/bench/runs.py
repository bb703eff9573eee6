"""A run's JSON as `make bench` writes it, with made-up numbers, for tests of what is computed from it."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import Limits
from bench.rates import Work, rates

LIMITS = Limits(200e9, 100e9, 400e9, 20e9, 10e9, 2e9)
STAGES = (
    (Work("decode", "zstd", 4.0, bytes=56e6, limit="decode_one"), 0.2),
    (Work("read", "mesh", 4.0, bytes=112e6), 0.4),
    (Work("read", "WarpedVRT", 4.0, bytes=112e6), 1.6),
    (Work("normalise", "uint16 → float32", 4.0, bytes=168e6, limit="copy_one"), 0.05),
    (Work("align", "mesh, bilinear", 4.0, bytes=224e6, limit="copy_one"), 0.15),
    (Work("model", "onnxruntime fp32", 1.0, 24e9, 1.2e9, "matmul", "flops", 2, 1, 100), 1.0),
    (Work("model", "onnxruntime fp32", 2.0, 48e9, 2.4e9, "matmul", "flops", 2, 1, 164), 2.0),
    (Work("model", "onnxruntime fp32", 2.0, 48e9, 2.4e9, "matmul", "flops", 2, 2, 100), 2.1),
    (Work("model", "torch fp32", 2.0, 48e9, 2.4e9, "matmul", "flops", 2, 1, 164), 3.0),
    (Work("kernel fuse", "reference", 0.26, 0.1e9, 0.3e9, "copy", threads=2, tile=64), 0.1),
    (Work("compress", "float32, zstd", 4.0, bytes=16e6, limit="copy_one"), 0.08),
    (Work("assemble", "float32, zstd", 16.0, bytes=40e6, limit="copy_one"), 0.16),
    (Work("engine", "onnxruntime fp32", 16.0, 384e9, 0, "matmul", "flops", 2), 20.0),
    (Work("training step", "torch fp32", 0.5, 36e9, 0, "matmul", "flops", 2, 4, 44), 2.0),
)
ENGINE = {"wall_over_bare": 1.1, "bottleneck": "infer"}


def entry(work: Work, seconds: float, lap: int) -> dict[str, Any]:
    """One benchmark of one lap."""
    extra = {"work": asdict(work), "lap": lap, **rates(asdict(work), seconds, LIMITS)}
    if work.stage == "engine":
        extra |= ENGINE
    return {"extra_info": extra, "stats": {"median": seconds}}


def peer(tool: str, seconds: float, memory: float, far: float) -> dict[str, Any]:
    """One tool's result of one lap."""
    took = {
        "tool": tool,
        "seconds": seconds,
        "cpu_s": 2 * seconds,
        "peak_memory_bytes": memory,
        "difference": far,
    }
    return {
        "extra_info": {"peer": {**took, "size": 256, "core": 128, "versions": {}}},
        "stats": {"median": seconds},
    }


def document(date: str = "2026-01-02T03:04:05", factor: float = 1.0, load: float = 0.1) -> dict[str, Any]:
    """A whole run of three laps; `factor` makes everything slower."""
    entries = [
        entry(work, factor * seconds * (1.0, 1.1, 0.9)[lap], lap)
        for lap in range(3)
        for work, seconds in STAGES
    ]
    entries += [peer("whole-image PyTorch", 12.0, 2e9, 0.0), peer("MONAI", 20.0, 2.5e9, 0.01)]
    entries += [peer("deeplight-infer --tiles 128", 10.0, 1e9, 1e-6)]
    for size, memory in ((4.2, 5e8), (16.8, 5.2e8), (67.1, 5.4e8)):
        entries.append(
            {"extra_info": {"scene_hr_mpix": size, "peak_memory_bytes": memory}, "stats": {"median": 1.0}}
        )
    facts = {
        "cpu": "Test CPU",
        "cpus": 2,
        "gpu": "none",
        "load": load,
        "memory_bytes": 8 << 30,
        "numpy": "2.0",
    }
    return {
        "datetime": date + ".123456+00:00",
        "machine_info": {"deeplight": facts},
        "benchmarks": copy.deepcopy(entries),
        "deeplight": {
            "limits": asdict(LIMITS),
            "control_s": {"median": 0.02 * factor, "least": 0.019 * factor, "most": 0.022 * factor},
            "laps": 3,
            "skipped": {"test_backend": "no <TensorRT> here"},
        },
    }


def write(folder: Path, name: str = "bench-20260102T030405.json", **changes: Any) -> Path:
    """The document as a file; changes: see `document`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(document(**changes)))
    return path
