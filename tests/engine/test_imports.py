"""Importing the engine and asking for help stay light: no runtime, no raster library, half a second."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "onnxruntime", "onnx", "rasterio", "numba", "PIL", "rich", "tifffile", "pystac")
LIMIT_S = 0.5


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.mark.parametrize(
    "code",
    [
        "import deeplight.engine",
        "import deeplight.engine.cli, deeplight.engine.console",
        "from deeplight.engine.cli import command; command.main(['--help'], standalone_mode=False)",
        "import deeplight.engine.artifact, deeplight.engine.backends.base",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    check = f"{code}\nimport sys; print('loaded:', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    "arguments",
    [("-c", "import deeplight.engine"), ("-m", "deeplight.engine.cli", "--help")],
    ids=["import", "help"],
)
def test_start_takes_at_most_half_a_second(arguments: tuple[str, ...]) -> None:
    # The interpreter's own start is measured beside it: on a busy machine both stretch alike.
    bare = statistics.median(seconds("-c", "pass") for _ in range(5))
    ours = statistics.median(seconds(*arguments) for _ in range(5))
    assert ours <= LIMIT_S or ours <= 12 * bare
