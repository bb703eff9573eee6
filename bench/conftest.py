"""Machine facts stored with every result, and the model that is measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from deeplight.engine.artifact import DEFAULT_MODEL
from deeplight.engine.machine import available_cpus, available_memory

PACKAGES = ("numpy", "rasterio", "onnxruntime", "tifffile", "zstandard")


def machine_facts() -> dict[str, Any]:
    """CPU, its count, memory and the versions that decide speed."""
    import rasterio

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": available_cpus(),
        "memory_bytes": available_memory(),
        "load": os.getloadavg()[0],
        "gdal": rasterio.__gdal_version__,
        **{name: version(name) for name in PACKAGES},
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Hook of pytest-benchmark."""
    machine_info["deeplight"] = machine_facts()


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """Timings beside other work mean little: say so."""
    if os.getloadavg()[0] > available_cpus() / 2:
        print(f"\nthe machine is busy (load {os.getloadavg()[0]:.1f}): trust ratios, not rates")
    yield


@pytest.fixture(scope="session")
def model() -> str:
    """The artifact to measure: DEEPLIGHT_BENCH_MODEL, else the one that ships."""
    return os.environ.get("DEEPLIGHT_BENCH_MODEL", DEFAULT_MODEL)
