"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# PyTorch's OpenMP reads this once, when PyTorch is loaded. By default its threads wait for each other by spinning. If
# other programs run too, this takes many times the CPU time of the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# One thread for each process, since the computations of tests are small. Tests of threads set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for programs that tests start
torch.set_num_threads(1)

if not torch.cuda.is_available():
    # This must be set before a test module imports Triton, which reads it when a kernel is defined.
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(
    tryfirst=True
)  # in its processes pytest-xdist's own hook, which reads the marks, otherwise comes before others
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With pytest-xdist, each file runs in one process, and so do all tests of the export, which share an export."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            folder = item.path.parent
            item.add_marker(pytest.mark.xdist_group(str(folder if folder.name == "export" else item.path)))


@pytest.fixture(scope="session", autouse=True)
def power_that_stays() -> Iterator[None]:
    """Make fsync do nothing in this process, since small runs wait for the disk as long as they compute. Power losses
    are simulated (tests/engine/output/disks.py)."""

    def fsync(file: int) -> None:
        os.fstat(file)

    with pytest.MonkeyPatch.context() as change:
        change.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real rasters (DEEPLIGHT_TEST_DATA, else ../shared/data); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("DEEPLIGHT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real rasters at {folder}; set DEEPLIGHT_TEST_DATA")
    return folder


@pytest.fixture(params=["native", "numpy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations of the host arithmetic in turn: the native module and its NumPy fallback."""
    from deeplight.engine.raster import accel

    if request.param == "numpy":
        monkeypatch.setattr(accel, "NATIVE", None)
    elif accel.NATIVE is None:
        pytest.skip("the native module is not built")
    return str(request.param)
