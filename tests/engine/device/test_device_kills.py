"""A run on the device path killed with SIGKILL while tiles are on their way, then resumed on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.engine.analytic import onnx_bytes, write_model
from tests.scenes import write_raster

PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import paths, pipeline
from deeplight.engine.run.options import RunOptions
from deeplight.engine.run.tiling import TileRequest
from tests.engine.device.runs import OnDevice, analytic
from tests.engine.device.standin import StandIn

folder, seed, held = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "held"

def stored():
    return len(list(folder.glob("o.tif.parts/packs-*/*.pack")))

before = stored()

def compute(inputs):
    if held and stored() > before:
        time.sleep(600)
    return analytic(inputs)

paths.open_model = lambda *_: OnDevice(analytic, StandIn(seed), compute)
report = pipeline.infer(RunOptions(
    scene=SceneOptions(ntl=str(folder / "ntl.tif")), out=folder / "o.tif", model=str(folder / "analytic"),
    tiles=TileRequest(16), threads=2, mode=Mode.RESUME, dtype="uint16",
))
(folder / "packs.json").write_text(json.dumps(report.packs))
"""
"""What is held goes no further than the first pack that it stores: a busy machine cannot miss it."""
PACKS, PATIENCE_S = 9, 120.0


def start(folder: Path, seed: int, how: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seed), how]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def finish(folder: Path, seed: int) -> dict[str, int]:
    """A run that nobody disturbs; what its report says of packs."""
    process = start(folder, seed, "free")
    said = process.communicate(timeout=PATIENCE_S)[1].decode()
    assert process.returncode == 0, said
    packs: dict[str, int] = json.loads((folder / "packs.json").read_text())
    return packs


def stored(folder: Path) -> dict[str, int]:
    """Pack → when it was written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("o.tif.parts/packs-*/*.pack")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_between_packs_and_resumed_on_the_device(tmp_path: Path) -> None:
    """In each round the stand-in does what is asked of it in another order."""
    ntl = np.random.default_rng(5).gamma(0.5, 8.0, (3, 8 * 256 + 20)).astype(np.float32)
    write_raster(tmp_path / "ntl.tif", ntl)
    write_model(tmp_path / "analytic", onnx_bytes(), halo_lr=4)
    assert finish(tmp_path, 0)["written"] == PACKS
    expected = (tmp_path / "o.tif").read_bytes()
    (tmp_path / "o.tif").unlink()
    kept: dict[str, int] = {}
    for seed in (1, 2, 3):
        process = start(tmp_path, seed, "held")
        until = time.monotonic() + PATIENCE_S
        while len(stored(tmp_path)) == len(kept) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=PATIENCE_S)[1].decode()
        assert process.returncode == -signal.SIGKILL, said
        now = stored(tmp_path)
        assert len(now) > len(kept) and kept.items() <= now.items(), "no pack is lost or written twice"
        assert not (tmp_path / "o.tif").exists()
        kept = now
    done = finish(tmp_path, 4)
    assert done == {"written": PACKS - len(kept), "all_nodata": 0, "kept_from_earlier_run": len(kept)}
    assert (tmp_path / "o.tif").read_bytes() == expected
