"""bench/gpu.sh: what it takes, and that it measures on a machine where the project is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.bench.test_gpu import NO_GPU, found
from tests.conftest import ROOT


def run_script(
    out: Path | str, *options: str, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(out)} | more
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


@NO_GPU
def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run_script(tmp_path / "out", "x")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert re.match(r"gpu\.sh: (PyTorch \S+ finds no CUDA GPU|\S+ has no triton)", done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a name for the results"),
        (["../x"], "is not a plain name"),
        (["x", "--wheels"], "--wheels needs a folder"),
        (["x", "--wheels", "/dev/null"], "has no \\*.whl files"),
    ],
)
def test_the_script_says_what_it_takes(tmp_path: Path, options: list[str], message: str) -> None:
    done = run_script(tmp_path / "out", *options)
    assert done.returncode == 2 and re.search(message, done.stderr) and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_folders_are_those_of_the_caller(tmp_path: Path) -> None:
    """A wheel of its own and a folder of results, from where the script is called."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "brought-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought/__init__.py", "")
        wheel.writestr(
            "brought-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n"
        )
        wheel.writestr(
            "brought-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("brought-1.0.dist-info/RECORD", "")
    options = [
        "x",
        "--wheels",
        "wheels",
        "--device",
        "cpu",
        "--side",
        "8",
        "--only",
        "facts",
        "--seconds",
        "200",
    ]
    done = run_script("results", *options, cwd=tmp_path, PATH=elsewhere(tmp_path)["PATH"])
    assert done.returncode == 0 and "wheels do not fit" not in done.stdout, done.stdout + done.stderr
    (results,) = (tmp_path / "results").iterdir()
    assert found(results, "facts")[0]["what"] == "machine"


def elsewhere(folder: Path) -> dict[str, str]:
    """The environment of a machine with this one's packages, but where the project is not installed, and where CMake
    succeeds without building anything, as without Python's headers."""
    venv.create(folder / "python", symlinks=True)
    (site,) = folder.glob("python/lib/python*/site-packages")
    # of a folder that a .pth file names, no .pth files are read: nor that of an editable installation
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    cmake = folder / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text("#!/bin/sh\n")
    cmake.chmod(0o755)
    own = {"PYTHON": str(folder / "python" / "bin" / "python"), "PYTHONPATH": ""}
    return own | {"PATH": f"{cmake.parent}:{os.environ['PATH']}"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["facts", "engine"])
def test_the_script_measures_where_the_project_is_not_installed(stage: str, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--side", "8", "--strip", "16x24", "--presets", "tiny", "--only", stage]
    options += ["--max-autotune"]  # limits that a busy machine keeps
    there = elsewhere(tmp_path)
    done = run_script(tmp_path / "out", "elsewhere", *options, **there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the native module was not built" in done.stdout
    (results,) = (tmp_path / "out").iterdir()
    rows = found(results, stage)
    assert len(rows) > 2 and not any("left_out" in row or "error" in row for row in rows), rows
    command = [there["PYTHON"], "-P", "-c", "import deeplight.engine.core.spec"]
    missing = subprocess.run(command, capture_output=True, text=True, env=os.environ | there)
    installed = importlib.util.find_spec("deeplight")
    if installed is not None and ROOT / "deeplight" in Path(str(installed.origin)).parents:
        assert "No module named" in missing.stderr, "the check would see the installed project"
