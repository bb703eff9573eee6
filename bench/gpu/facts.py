"""The machine: names, versions, and the rates that everything else is compared with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu.stage import Rows, StageSettings, attempt, milliseconds
from deeplight.engine.core.machine import available_cpus


def measure(settings: StageSettings) -> None:
    """Rows of facts.json."""
    rows = Rows(settings, "facts")
    name = torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or "CPU"
    packages = {p: _version(p) for p in ("triton", "numpy", "rasterio", "zstandard", "onnxruntime")}
    rows.add(what="machine", device=name, cpus=available_cpus(), python=platform.python_version(),
             torch=torch.__version__, cuda=torch.version.cuda, **packages)  # fmt: skip
    size = 1 << (29 if settings.device == "cuda" else 20)
    source = torch.ones(size, device=settings.device)
    target, nbytes = torch.empty_like(source), 2 * 4 * size
    # an elementwise kernel is the yardstick: what copy_ becomes in a graph, a memcpy node, is slower
    ways = {
        "elementwise copy": lambda: torch.add(source, 1.0, out=target),
        "memcpy": lambda: target.copy_(source),
    }
    for what, run in ways.items():
        attempt(rows, {"what": what}, lambda run=run: {"tb_per_s": _rate(run, nbytes, settings)})


def _rate(run: object, nbytes: int, settings: StageSettings) -> float:
    assert callable(run)
    return nbytes / milliseconds(run, settings.device) * 1e-9


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
