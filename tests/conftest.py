"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before PyTorch is loaded, whose OpenMP reads it once: threads that wait for one another by spinning take many times
# the work itself where other programs run too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# One thread for each process: what the tests compute is small. Tests of threads ask for their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start
torch.set_num_threads(1)

if not torch.cuda.is_available():
    # before any test module imports Triton, which decides when a kernel is defined; only tests/kernels run kernels
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(
    tryfirst=True
)  # pytest-xdist's own hook, which looks at the marks, comes before others in its processes
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With pytest-xdist, a file stays in one process, and so do the tests of the export, which takes a minute."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            folder = item.path.parent
            item.add_marker(pytest.mark.xdist_group(str(folder if folder.name == "export" else item.path)))


@pytest.fixture(scope="session", autouse=True)
def power_that_stays() -> Iterator[None]:
    """What this process syncs need not reach the disk, for which a run would wait as long as it computes: power losses
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
