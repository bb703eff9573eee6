"""What is measured of each operation is a valid call, and the paper tables are those of the document."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from bench import ops
from bench.traffic import network, updated
from bench.traffic import table as table_of
from deeplight.engine.network.config import PRESETS
from tests.conftest import ROOT


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_measured_cases_are_valid_calls(preset: str) -> None:
    names = []
    for name, op, args, moved in ops.op_cases(preset, torch.float32, 1, "cpu"):
        result: Any = op(*args, implementation="reference")
        first = result if isinstance(result, torch.Tensor) else result[0]
        assert torch.isfinite(first).all() and moved > 0
        names.append(name)
    assert names == [
        "fuse",
        "upsample",
        "align",
        "align_raw",
        "base",
        "restore",
        "finish",
        "suggest",
        "locate",
        "settle",
    ]


@pytest.mark.slow
def test_what_it_compares_with_is_compiled_in_one_piece() -> None:
    for name, op, args, _ in ops.op_cases("tiny", torch.float32, 1, "cpu"):
        torch.compiler.reset()

        def run(op: Any = op, args: Any = args) -> Any:
            return op(*args, implementation="reference")

        got, want = torch.compile(run, backend="eager", fullgraph=True)(), run()
        assert torch.equal(got, want) if isinstance(got, torch.Tensor) else torch.equal(got[0], want[0]), name


def test_the_document_has_the_present_tables() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    for preset in sorted(PRESETS):
        assert table_of(preset) in text, "python -m bench.traffic docs/kernels.md"
    assert updated(text) == text
    assert updated(text.replace("| align | 720", "| align | 721")) == text


def python(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # such a machine has no plugins
    }
    command = [sys.executable, "-c", program, *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_nothing_that_the_script_runs_needs_rasterio() -> None:
    """A GPU machine may have PyTorch, Triton, NumPy and pytest alone."""
    program = """
import sys
for name in ("rasterio", "affine", "onnxruntime", "onnx", "tifffile", "zstandard", "rich"):
    sys.modules[name] = None
sys.modules["deeplight.engine.raster._native"] = None
import bench.gpu.__main__, bench.gpu.facts, bench.gpu.kernels, bench.gpu.network, bench.gpu.export
import bench.gpu.engine, deeplight.engine.network.model, deeplight.engine.core.spec
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
    options = ["tests/kernels", "--collect-only", "-qq", "-m", "gpu", "--assert=plain"]
    settings = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    done = python(program, *options, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    for module in (
        "agree",
        "align",
        "finish",
        "fuse",
        "locate",
        "model",
        "refine",
        "restore",
        "settle",
        "suggest",
        "upsample",
    ):
        assert f"tests/kernels/test_{module}.py" in done.stdout


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_table_of_traffic_never_promises_more_bytes(preset: str) -> None:
    for name, cost in network(preset).items():
        assert cost.fused <= cost.compiled <= cost.eager, name
