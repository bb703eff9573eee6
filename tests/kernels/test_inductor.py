"""torch.compile's programs for a GPU are made and compiled without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "precision"), [("tiny", "fp16"), ("tiny", "fp32"), ("base", "bf16")])
def test_inductor_s_kernels_compile(preset: str, precision: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.kernels.inductor", preset, precision]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *names = done.stdout.splitlines()
    assert first == f"{len(names)} kernels compiled for sm_90" and len(names) >= 50
