"""Packages built as a user builds them, with and without a C++ compiler, run and give the same pixels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.analytic import write_analytic
from tests.scenes import SceneFiles, write_scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FOLDERS = ("deeplight", "kernels", "engine", "train", "export")
FILES = ("pyproject.toml", "CMakeLists.txt", "Makefile", "README.md", "LICENSE", "constraints.txt")
RUN = "import sys; sys.path[:0] = {wheel!r}, {packages!r}; from deeplight.engine.cli import main; main()"
"""Without the site module, which would put the editable installation before everything."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[SceneFiles, Path]:
    folder = tmp_path_factory.mktemp("scene")
    return write_scene(folder), write_analytic(folder / "model")


def built(folder: Path, environment: dict[str, str]) -> Path:
    """The unpacked wheel that `make wheel` leaves of a copy of the sources."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    command = ["make", "wheel", f"VENV={Path(sys.executable).parents[1]}"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if "No matching distribution found" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip("pip finds no package index, which the build's own requirements come from")
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def output(wheel: Path, scene: tuple[SceneFiles, Path], folder: Path) -> tuple[bytes, str]:
    """(the file that the wheel's deeplight-infer makes, stderr)."""
    files, model = scene
    code = RUN.format(wheel=str(wheel), packages=sysconfig.get_path("purelib"))
    layers = ("--ntl", files.ntl, "--dmo", files.dmo, "--dem", files.dem)
    command = [sys.executable, "-S", "-c", code, *layers, "--model", model, "--tiles", "8", "--out", "o.tif"]
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (folder / "o.tif").read_bytes(), done.stderr


def test_a_wheel_with_and_one_without_a_compiler(tmp_path: Path, scene: tuple[SceneFiles, Path]) -> None:
    results = {}
    for kind, environment in (("native", {}), ("plain", {"CC": "/no/such/cc", "CXX": "/no/such/c++"})):
        folder = tmp_path / kind
        folder.mkdir()
        wheel = built(folder, environment)
        modules = list((wheel / "deeplight" / "engine" / "raster").glob("_native*.so"))
        assert bool(modules) == (kind == "native")
        assert not list(wheel.rglob("*.cpp")) and not (wheel / "deeplight" / "tests").exists()
        pixels, said = output(wheel, scene, folder)
        assert ("native module" in said) == (kind == "plain")
        results[kind] = pixels
    assert results["native"] == results["plain"]
