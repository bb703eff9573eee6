"""The machine: its facts, its limits (measured, so that rates can be compared with them), and the control."""

from __future__ import annotations

import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from deeplight.engine.core.machine import available_cpus, available_memory, cpu_has_bf16

PACKAGES = (
    "deeplight",
    "numpy",
    "rasterio",
    "onnxruntime",
    "openvino",
    "torch",
    "triton",
    "tensorrt",
    "tensorrt-rtx",
    "tifffile",
    "zstandard",
)
_MATRIX_SIDE = 2048
_COPIED_BYTES = 1 << 28
_CONTROL = np.arange(1 << 23, dtype=np.uint64).tobytes()


@dataclass(frozen=True)
class Limits:
    """The best rates that were measured: with one thread for `_one`, else with all threads.

    matmul: FLOP/s of a large float32 product; matmul_bf16: of bfloat16, 0 where the CPU has none. copy: bytes/s of a
    large copy, read and written. decode: bytes/s of pixels that come out of zstandard.
    """

    matmul: float = 0.0
    matmul_one: float = 0.0
    matmul_bf16: float = 0.0
    copy: float = 0.0
    copy_one: float = 0.0
    decode_one: float = 0.0

    def best(self, other: Limits) -> Limits:
        """The larger of each two rates, so that a moment in which the machine was busy does not lower a limit."""
        mine, theirs = asdict(self), asdict(other)
        return Limits(**{name: max(value, theirs[name]) for name, value in mine.items()})


def machine_facts() -> dict[str, Any]:
    """CPU, GPU, their numbers, memory, load, and the versions that affect speed."""
    import rasterio

    return {
        "cpu": _cpu_name(),
        "cpus": available_cpus(),
        "memory_bytes": available_memory(),
        "gpu": _gpu_name(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "gdal": rasterio.__gdal_version__,
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu_name() -> str:
    try:
        import torch
    except ImportError:
        return "none"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def control_s() -> float:
    """Seconds of a fixed piece of work in one thread, a checksum of 64 MB. What changes them changes every result."""
    start = time.perf_counter()
    zlib.crc32(_CONTROL)
    return time.perf_counter() - start


def measure_limits(encoded: bytes, decoded: int, tries: int = 3) -> Limits:
    """Measure the limits, each as the best of several tries.

    encoded: a zstandard frame of pixels like those that the benchmarks decode. decoded: how many bytes come out.
    """
    import torch
    import zstandard

    a = torch.rand(_MATRIX_SIDE, _MATRIX_SIDE)
    half = a.to(torch.bfloat16)
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    flops = 2 * _MATRIX_SIDE**3

    def all_and_one(amount: float, work: Callable[[], object]) -> tuple[float, float]:
        rates = []
        for threads in (available_cpus(), 1):
            with torch_threads(threads):
                rates.append(amount / _least_s(work, tries))
        return rates[0], rates[1]

    matmul, matmul_one = all_and_one(flops, lambda: a @ a)
    copy, copy_one = all_and_one(2 * _COPIED_BYTES, lambda: target.copy_(source))
    decoder = zstandard.ZstdDecompressor()
    with torch_threads(available_cpus()):
        bf16 = flops / _least_s(lambda: half @ half, tries) if cpu_has_bf16() else 0.0
    repeats = max(1, (1 << 25) // decoded)
    decode_s = _least_s(lambda: [decoder.decompress(encoded) for _ in range(repeats)], tries)
    return Limits(matmul, matmul_one, bf16, copy, copy_one, repeats * decoded / decode_s)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside this context PyTorch uses that many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _least_s(work: Callable[[], object], tries: int) -> float:
    work()
    took = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took)
