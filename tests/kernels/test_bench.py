"""What is measured on a GPU runs, and the table of configurations is written and read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_measure
from bench.traffic import network, updated
from bench.traffic import table as table_of
from deeplight.kernels import tune
from deeplight.kernels.variants import PRESETS
from tests.conftest import ROOT


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_measured_cases_are_valid_calls(preset: str) -> None:
    names = []
    for name, op, args, moved in gpu_measure.op_cases(preset, torch.float32, 1, "cpu"):
        result: Any = op(*args, implementation="reference")
        first = result if isinstance(result, torch.Tensor) else result[0]
        assert torch.isfinite(first).all() and moved > 0
        names.append(name)
    assert names == ["fuse", "upsample", "align", "align_raw", "refine"]


def test_what_it_compares_with_is_compiled_in_one_piece() -> None:
    for name, op, args, _ in gpu_measure.op_cases("tiny", torch.float32, 1, "cpu"):
        torch.compiler.reset()

        def run(op: Any = op, args: Any = args) -> Any:
            return op(*args, implementation="reference")

        got, want = torch.compile(run, backend="eager", fullgraph=True)(), run()
        assert torch.equal(got, want) if isinstance(got, torch.Tensor) else torch.equal(got[0], want[0]), name


def test_the_table_of_results_has_a_row_each() -> None:
    facts = {"gpu": "X", "torch": "2.0", "copy_bytes_per_s": 4.3e12}
    op = {
        "op": "fuse",
        "preset": "tiny",
        "dtype": "fp16",
        "eager_ms": 4.0,
        "compile_ms": 3.0,
        "kernel_ms": 2.0,
    }
    whole = {**op, "op": "network", "kernel_compile_ms": 1.5, "hr_mpix_per_s": 1234.5, "share_of_copy": 0.5}
    lines = gpu_measure.table(facts, [{**op, "share_of_copy": 0.815}, whole]).splitlines()
    assert lines[0].startswith("X, PyTorch 2.0, copy 4.30 TB/s")
    assert lines[-2] == "| fuse | tiny | fp16 | 4.000 | 3.000 | 2.000 |  | 1.50 | 82 % |  |"
    assert lines[-1] == "| network | tiny | fp16 | 4.000 | 3.000 | 2.000 | 1.500 | 2.00 | 50 % | 1234 |"
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_the_document_has_the_present_tables() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    for preset in sorted(PRESETS):
        assert table_of(preset) in text, "python -m bench.traffic docs/kernels.md"
    assert updated(text) == text
    assert updated(text.replace("| align | 720", "| align | 721")) == text


def python(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", program, *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_nothing_that_the_script_runs_needs_rasterio() -> None:
    """A GPU machine may have PyTorch, Triton, NumPy and pytest alone."""
    program = """
import sys
for name in ("rasterio", "affine", "onnxruntime", "onnx", "tifffile", "zstandard", "rich"):
    sys.modules[name] = None
sys.modules["deeplight.engine.raster._native"] = None
import bench.gpu_measure, deeplight.engine.network.model, deeplight.engine.core.spec
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
    options = ["tests/kernels", "--collect-only", "-qq", "-m", "gpu", "-o", "addopts=--import-mode=importlib"]
    done = python(program, *options, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    for module in ("align", "fuse", "library", "model", "refine", "upsample"):
        assert f"tests/kernels/test_{module}.py" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert re.match(r"gpu\.sh: (PyTorch \S+ finds no CUDA GPU|\S+ has no triton)", done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_table_of_traffic_never_promises_more_bytes(preset: str) -> None:
    for name, cost in network(preset).items():
        assert cost.fused <= cost.compiled <= cost.eager, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [tune.main, gpu_measure.main])
def test_without_a_gpu_it_says_so(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        module(["--out", "x"] if module is gpu_measure.main else [])
    assert "no CUDA GPU" in capsys.readouterr().err
