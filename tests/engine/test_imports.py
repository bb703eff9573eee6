"""Importing the engine and asking for help stay light: no runtime, no raster library, half a second."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "onnxruntime", "onnx", "rasterio", "numba", "PIL", "rich", "tifffile", "pystac", "zstandard", "triton",
    "deeplight.kernels", "deeplight.train", "deeplight.export",
)  # fmt: skip
LIMIT_S = 0.5


def cpu_s(*arguments: str) -> float:
    """Least CPU seconds of some Python processes: starting is one thread's work, and unlike wall time, CPU time does
    not grow with what else runs."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took)


@pytest.mark.parametrize(
    "code",
    [
        "import deeplight.engine",
        "import deeplight.engine.cli, deeplight.engine.core.terminal",
        "from deeplight.engine.cli import command; command.main(['--help'], standalone_mode=False)",
        "import deeplight.engine.runtime.artifact, deeplight.engine.runtime.backends.base",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    check = f"{code}\nimport sys; print('loaded:', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_the_public_face_loads_nothing_before_it_is_used() -> None:
    heavy = (*HEAVY, "numpy", "click", "affine", "matplotlib", "xarray", "deeplight.engine")
    check = f"import deeplight, sys; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_importing_the_public_face_takes_a_tenth_of_a_second() -> None:
    assert cpu_s("-c", "import deeplight") - cpu_s("-c", "pass") <= 0.1


@pytest.mark.parametrize(
    "arguments",
    [("-c", "import deeplight.engine"), ("-m", "deeplight.engine.cli", "--help")],
    ids=["import", "help"],
)
def test_start_takes_at_most_half_a_second(arguments: tuple[str, ...]) -> None:
    """And not much more than what the command line cannot do without: twice NumPy and click."""
    ours = cpu_s(*arguments)
    assert ours <= LIMIT_S
    assert ours <= 2 * cpu_s("-c", "import numpy, click")
