"""Compiling on all cores: Triton's JIT finds every program, and compiles nothing itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deeplight.engine.network.config import PRESETS
from deeplight.kernels import warm
from deeplight.kernels.variants import variants
from tests.conftest import ROOT

FOUND = """
import dataclasses, json, os, sys
from pathlib import Path
import torch
from triton.runtime.driver import driver
from deeplight.engine.network.config import PRESETS
from deeplight.kernels import expected, launch, warm
from deeplight.kernels.table import Config
from deeplight.kernels.variants import variants

def programs():
    return sorted(str(p) for p in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))

if __name__ == "__main__":
    # finish: of any place and size, since a tile at the scene's edge must not wait for a compiler
    kernels = ("fuse", "upsample_conv", "refine_narrow", "finish")
    last = {v.kernel: v for v in variants(PRESETS["tiny"], torch.float16, side=1024) if v.kernel in kernels}
    broken = dataclasses.replace(last["fuse"], config=Config(3, 4))  # no power of two
    problems = warm.compile_all([*last.values(), *last.values(), broken], 90, jobs=2)
    made = programs()
    driver.set_active(warm.Driver(90))
    for small in variants(PRESETS["tiny"], torch.float16, side=16):
        if small.kernel in last and small.constants == last[small.kernel].constants:
            ready = dataclasses.replace(expected.filled(small, "cpu"), config=last[small.kernel].config)
            options = {"num_warps": ready.config.warps, "num_stages": ready.config.stages}
            launch.device_function(ready.kernel).warmup(
                grid=(1,), **ready.arguments, **ready.compile_time, **options
            )
    print(json.dumps({"problems": problems, "made": made, "after": programs()}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_jit_finds_what_was_compiled_elsewhere(tmp_path: Path) -> None:
    """In a process of its own, since the interpreter is on in this one."""
    pytest.importorskip("triton")
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    (tmp_path / "found.py").write_text(FOUND)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "found.py")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["made"]) == 4 and found["after"] == found["made"]
    (problem,) = found["problems"]
    assert problem.startswith("fuse {") and "'BLOCK': 3" in problem


def test_in_the_interpreter_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(warm, "ProcessPoolExecutor", None)
    assert warm.compile_all(variants(PRESETS["tiny"], torch.float16), 90) == []
